"""Write the sections of ``docs/full-scale.md`` from the dry runs of all full-scale pipelines.

``python -m tests.full_scale_page``; ``tests/dry_run/test_full_pipelines.py`` compares each section.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from logitcache.cli.layout import bytes_text
from logitcache.cli.run import load_pipelines
from logitcache.dry_run.stages import outline_pipeline
from tests.full_pipelines import FULL

if TYPE_CHECKING:
    from logitcache.dry_run.outline import StageOutline
    from logitcache.pipeline.config import PipelineConfig

PAGE = Path(__file__).parent.parent / "docs" / "full-scale.md"
RATE = 50e12


def section(config: PipelineConfig, stages: list[StageOutline]) -> str:
    """Return the section of a pipeline as Markdown."""
    assert config.paper is not None
    system = config.name.partition("/")[2]
    lines = [
        f"## {system}",
        "",
        f"{config.paper.title} ({config.paper.reference}).",
        "",
        "| stage | networks | images | views | epochs | steps | stored | hours |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(stage) for stage in stages),
        "",
        f"Published: {config.paper.result}. Source: {config.paper.source}.",
        "",
        *(f"* differs: {sentence}" for sentence in config.paper.differs),
        *(f"* not known: {sentence}" for sentence in config.paper.unknown),
    ]
    return "\n".join(lines) + "\n"


def _row(stage: StageOutline) -> str:
    numbers = [
        stage.images,
        stage.views,
        None if stage.epochs is None else f"{stage.epochs:g}",
        stage.steps,
        None if stage.bytes is None else bytes_text(stage.bytes),
        None if stage.flops is None else f"{stage.flops / RATE / 3600:.3g}",
    ]
    cells = [stage.name, stage.what, *("" if n is None else str(n) for n in numbers)]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """Return the page as Markdown: its introduction is kept."""
    parts = [PAGE.read_text().partition("\n## ")[0]]
    for name in FULL:
        (pipeline,) = load_pipelines(name, out=None, seeds=1, sets=[])
        parts.append(section(pipeline.config, outline_pipeline(pipeline)))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
