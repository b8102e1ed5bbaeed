"""``logitcache run --dry-run``: what the stages of a pipeline would do, and what they follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cli.layout import bytes_text, new_console, new_table, print_line
from logitcache.dry_run.stages import outline_pipeline

if TYPE_CHECKING:
    from rich.console import Console

    from logitcache.dry_run.outline import StageOutline
    from logitcache.pipeline.config import PipelineConfig
    from logitcache.pipeline.run import Pipeline

__all__ = ["outline_json", "print_outline"]

_RATE = 50e12
"""Operations per second that hours are computed with: about what an A100 sustains in bfloat16."""


def outline_json(pipeline: Pipeline) -> dict[str, Any]:
    """Return the stages of a pipeline and its paper as JSON values."""
    config = pipeline.config
    return {
        "pipeline": config.name,
        "description": config.description,
        "paper": config.paper.model_dump(mode="json") if config.paper else None,
        "stages": [outline.to_json() for outline in outline_pipeline(pipeline)],
    }


def print_outline(pipeline: Pipeline) -> None:
    """Print the stages of a pipeline, their bytes and steps, and how it differs from its paper."""
    console, stages = new_console(), outline_pipeline(pipeline)
    print_line(console, f"{pipeline.config.name}: {pipeline.config.description}")
    table = new_table("stage", "kind", "networks", *_NUMBERS)
    for stage in stages:
        table.add_row(stage.name, stage.kind, stage.what, *_cells(stage))
    console.print(table)
    flops = sum(stage.flops or 0.0 for stage in stages)
    print_line(
        console,
        f"hours: {flops / 1e18:.3g} exaFLOP in all, at {_RATE / 1e12:.0f} TFLOP/s and without "
        "waiting for images; backward passes count as two forward passes",
    )
    for stage in stages:
        each = ", ".join(f"{n} {bytes_text(size)}" for n, size in stage.row_bytes.items())
        if each:
            print_line(console, f"bytes per image and view, {stage.name}: {each}")
    for note in dict.fromkeys(note for stage in stages for note in stage.notes):
        print_line(console, f"note: {note}")
    _print_paper(console, pipeline.config)


_NUMBERS = ("images", "views", "epochs", "steps", "stored", "hours")


def _cells(stage: StageOutline) -> list[str]:
    hours = None if stage.flops is None else f"{stage.flops / _RATE / 3600:.3g}"
    epochs = None if stage.epochs is None else f"{stage.epochs:g}"
    size = None if stage.bytes is None else bytes_text(stage.bytes)
    values = (stage.images, stage.views, epochs, stage.steps, size, hours)
    return ["" if value is None else str(value) for value in values]


def _print_paper(console: Console, config: PipelineConfig) -> None:
    paper = config.paper
    if paper is None:
        return
    print_line(console, f"follows: {paper.title} ({paper.reference})")
    print_line(console, f"published: {paper.result} ({paper.source})")
    for sentence in paper.differs:
        print_line(console, f"differs: {sentence}")
    for sentence in paper.unknown:
        print_line(console, f"not known: {sentence}")
