"""``logitcache demo``: the quickstart pipeline, its students in a process without teachers.

Stage 2 runs in a process of its own. Before it starts, every trace of the teachers' weights is
deleted, and in that process ``logitcache.teachers`` cannot be imported.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from logitcache.cli.interrupt import StopRequest
from logitcache.cli.layout import new_console
from logitcache.cli.options import print_json
from logitcache.cli.pipeline_tables import print_pipeline
from logitcache.cli.run import load_pipelines
from logitcache.cli.stages import stage_runner
from logitcache.errors import LogitcacheError

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.pipeline.run import Pipeline, StageResult

__all__ = ["run_demo"]

_PIPELINE = "quickstart"
_WITHOUT_TEACHERS = (
    "import sys; sys.modules['logitcache.teachers'] = None; "
    "from logitcache.cli.app import main; main()"
)


def run_demo(out: Path, *, seeds: int, as_json: bool) -> None:
    """Run the demo and print its table."""
    pipelines = load_pipelines(_PIPELINE, out=str(out), seeds=seeds, sets=[])
    runs = [_run_once(pipeline) for pipeline in pipelines]
    if as_json:
        runs_json = [{r.stage.name: r.values for r in results} for results in runs]
        print_json({"pipeline": _PIPELINE, "runs": runs_json})
        return
    print_pipeline(runs)
    console = new_console()
    console.print(
        "Teachers saw the labeled images; students saw all images and no label, "
        "except 'labels', which saw what the teachers saw."
    )
    console.print(f"The teachers' weights were deleted before the students began. Files: {out}")


def _run_once(pipeline: Pipeline) -> list[StageResult]:
    """Run stage 1 here, forget the teachers, and run stage 2 in another process."""
    names = [stage.name for stage in pipeline.stages]
    last_cache = max(i for i, stage in enumerate(pipeline.stages) if stage.kind == "precompute")
    first, second = names[: last_cache + 1], names[last_cache + 1 :]
    with StopRequest() as stop:
        pipeline.run(stage_runner(stop), first)
    for stage in pipeline.stages[:last_cache]:
        shutil.rmtree(pipeline.out / stage.name, ignore_errors=True)
    _run_without_teachers(pipeline, second)
    with StopRequest() as stop:
        return pipeline.run(stage_runner(stop), names)


def _run_without_teachers(pipeline: Pipeline, names: list[str]) -> None:
    command = [sys.executable, "-c", _WITHOUT_TEACHERS, "run", _PIPELINE, "--json"]
    command += ["--out", str(pipeline.out), "--set", f"seed={pipeline.seed}"]
    command += [part for name in names for part in ("--only", name)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        error = LogitcacheError(
            "the students' process failed; see above", where=" ".join(command[3:])
        )
        error.exit_code = done.returncode
        raise error
