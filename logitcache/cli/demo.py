"""``logitcache demo``: the quickstart pipeline, with students trained in a separate process.

Before that process starts, all files with weights of the teachers are deleted, and in it
``logitcache.teachers`` cannot be imported: the students depend on the cache alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from logitcache.cli.interrupt import StopRequest
from logitcache.cli.layout import PlainConsole, new_console, print_line, print_report_command
from logitcache.cli.logs import is_quiet
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
        "The teachers were trained on the labeled images. The students were trained on all images "
        "without labels, except 'labels', which was trained like the teachers."
    )
    console.print(
        f"The teachers' weights were deleted before the students were trained. Files: {out}"
    )
    print_report_command(console, str(out))


def _run_once(pipeline: Pipeline) -> list[StageResult]:
    """Run all stages up to the last cache, delete the teachers, and run the rest elsewhere."""
    names = [stage.name for stage in pipeline.stages]
    last_cache = max(i for i, stage in enumerate(pipeline.stages) if stage.kind == "precompute")
    first, second = names[: last_cache + 1], names[last_cache + 1 :]
    with StopRequest() as stop:
        pipeline.run(stage_runner(stop), first)
    for stage in pipeline.stages[:last_cache]:
        shutil.rmtree(pipeline.out / stage.name, ignore_errors=True)
    if pipeline.unfinished():
        _run_without_teachers(pipeline, second)
    with StopRequest() as stop:  # every stage is finished, so this only reads the results
        return pipeline.run(stage_runner(stop), names)


def _run_without_teachers(pipeline: Pipeline, names: list[str]) -> None:
    command = [sys.executable, "-c", _WITHOUT_TEACHERS, "run", _PIPELINE, "--json"]
    command += ["--out", str(pipeline.out), "--set", f"seed={pipeline.seed}"]
    command += [part for name in names for part in ("--only", name)]
    console = PlainConsole(stderr=True, quiet=is_quiet())
    print_line(console, "The students are trained in a new process, without the teachers.")
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        error = LogitcacheError(
            "the process that trains the students failed; its messages are above",
            where=" ".join(command[3:]),
        )
        error.exit_code = done.returncode
        raise error
