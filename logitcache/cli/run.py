"""``logitcache run``: the stages of a pipeline file, for one seed or several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from logitcache.cli.interrupt import StopRequest
from logitcache.cli.launch import refuse_ranks
from logitcache.cli.layout import new_console, print_report_command
from logitcache.cli.options import print_json
from logitcache.cli.pipeline_tables import print_pipeline
from logitcache.cli.stages import stage_runner
from logitcache.errors import UsageError
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import Pipeline
from logitcache.pipeline.settings import find_pipeline, override, read_yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["load_pipelines", "run_pipeline"]


def run_pipeline(
    name: str,
    *,
    out: str | None,
    only: Sequence[str],
    seeds: int,
    sets: Sequence[str],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run a pipeline once per seed and print the results, or print what it would do."""
    refuse_ranks("run")
    if dry_run:
        _outline(name, out=out, only=only, seeds=seeds, sets=sets, as_json=as_json)
        return
    with StopRequest() as stop:
        pipelines = load_pipelines(name, out=out, seeds=seeds, sets=sets)
        runs = [pipeline.run(stage_runner(stop), only) for pipeline in pipelines]
    if as_json:
        documents = [
            {result.stage.name: {"kind": result.stage.kind, **result.values} for result in results}
            for results in runs
        ]
        print_json({"pipeline": name, "runs": documents})
    else:
        print_pipeline(runs)
        print_report_command(new_console(), str(folder_of(pipelines)))


def folder_of(pipelines: Sequence[Pipeline]) -> Path:
    """Return the output folder that the pipelines of all seeds have in common."""
    first = pipelines[0].out
    return first if len(pipelines) == 1 else first.parent


def _outline(
    name: str,
    *,
    out: str | None,
    only: Sequence[str],
    seeds: int,
    sets: Sequence[str],
    as_json: bool,
) -> None:
    """Print what a pipeline would do with one seed."""
    from logitcache.cli.dry_run import outline_json, print_outline

    if only or seeds > 1:
        raise UsageError(
            "a dry run is of all stages and one seed",
            got="--only" if only else f"--seeds {seeds}",
            hint="remove this option, or remove --dry-run",
        )
    (pipeline,) = load_pipelines(name, out=out, seeds=1, sets=sets)
    if as_json:
        print_json(outline_json(pipeline))
    else:
        print_outline(pipeline)


def load_pipelines(
    name: str, *, out: str | None, seeds: int, sets: Sequence[str]
) -> list[Pipeline]:
    """Return the pipeline of each seed; with several seeds, each has its own output folder."""
    path = find_pipeline(name)
    config = PipelineConfig.parse(override(read_yaml(path), sets), path.name)
    folder = Path(out or config.out)
    if seeds == 1:
        return [Pipeline(config, out=str(folder))]
    return [
        Pipeline(config, out=str(folder / f"seed-{seed}"), seed=seed)
        for seed in range(config.seed, config.seed + seeds)
    ]
