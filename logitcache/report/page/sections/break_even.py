"""After how many epochs of students a cache took less time than live teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.precompute.estimate.break_even import break_even_epochs
from logitcache.report.page.blocks import Paragraph, Section, Table
from logitcache.report.page.contents import is_from
from logitcache.report.quantities import seconds_text

if TYPE_CHECKING:
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import CacheContents, Contents, Run, StageTime

__all__ = ["break_even"]

_SHARES = (1.0, 0.75, 0.5, 0.25)


def break_even(contents: Contents) -> Section | None:
    """Return the break-even of caches whose computation was timed by a pipeline."""
    blocks: list[Block] = []
    times = {one.origin.path: one for one in contents.times if one.outputs}
    for cache in contents.first_caches:
        time, sample = times.get(cache.origin.path), contents.sample_of(cache)
        if time is not None and sample is not None:
            blocks += _blocks(contents, cache, time, sample.read_seconds)
    if not blocks:
        return None
    return Section("Break-even", blocks)


def _blocks(
    contents: Contents, cache: CacheContents, time: StageTime, read_seconds: float
) -> list[Block]:
    images = max(1, cache.description.images)
    each = time.seconds / max(1, time.outputs)
    trained = sum(_epochs(run) for run in contents.runs if is_from(run, cache))
    text = (
        f"Computing “{cache.origin.name}” took {seconds_text(time.seconds)}: {1e3 * each:.2f} ms "
        f"for each image and view. Reading the outputs of an image takes {1e6 * read_seconds:.0f} "
        "microseconds here. How much of the computing was forward passes of the teachers is not "
        "recorded, so the table has several shares; logitcache plan measures it. Networks of this "
        f"report trained {trained:.0f} epochs from the cache."
    )
    rows = []
    for share in _SHARES:
        epochs = break_even_epochs(time.seconds / images, share * each, read_seconds)
        rows.append([f"{share:.0%}", "never" if epochs is None else str(epochs)])
    caption = "Break-even: epochs of all students together."
    return [
        Paragraph(text),
        Table(caption, ["share of forward passes", "student epochs"], rows),
    ]


def _epochs(run: Run) -> float:
    return 0.0 if run.result is None else run.result.images / max(1, run.result.set_images)
