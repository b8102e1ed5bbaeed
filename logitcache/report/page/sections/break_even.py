"""After how many epochs of students a cache took less time than live teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.precompute.estimate.break_even import break_even_epochs
from logitcache.report.page.blocks import Paragraph, Section, Table
from logitcache.report.page.contents import is_from
from logitcache.report.quantities import seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import CacheContents, Contents, Run, StageTime

__all__ = ["break_even"]

_SHARES = (1.0, 0.75, 0.5, 0.25)
_COLUMNS = ("cache", "computing", "per image and view", "reading an image")
_CAPTION = "Break-even, and the epochs that networks of this report trained from a cache."
_TEXT = (
    "With live teachers, the forward passes are repeated in every epoch of every student. A cache "
    "takes less time from the number of epochs in the table on, counted over all students. It is "
    "based on the duration of the stage that computed the cache (decoding, forward passes and "
    "encoding; not planning) and on that of its forward passes, both recorded by the pipeline, and "
    "on the time to read an image's targets, measured while this page was made."
)
_ASSUMED = (
    "The forward passes of these caches were not measured, which is so with workers and in earlier "
    "versions. There is a column for each of several shares of the stage; logitcache plan measures "
    "it."
)


def break_even(contents: Contents) -> Section | None:
    """Return the break-even of caches whose computation was timed by a pipeline."""
    times = {one.origin.path: one for one in contents.times if one.outputs}
    measured, assumed = [], []
    for cache in contents.first_caches:
        time, sample = times.get(cache.origin.path), contents.sample_of(cache)
        if time is None or sample is None:
            continue
        if time.forward_seconds is None:
            assumed.append(_row(contents, cache, time, sample.read_seconds, _shares(time)))
        else:
            forward = {f"{1e3 * time.forward_seconds:.2f} ms": time.forward_seconds}
            row = _row(contents, cache, time, sample.read_seconds, [*forward.values()])
            measured.append([*row[:3], *forward, *row[3:]])
    if not measured and not assumed:
        return None
    blocks: list[Block] = [Paragraph(_TEXT)]
    if measured:
        columns = [*_COLUMNS[:3], "forward passes", *_COLUMNS[3:], "break-even (epochs)"]
        blocks.append(Table(_CAPTION, [*columns, "epochs trained"], measured))
    if assumed:
        shares = [f"epochs if {share:.0%}" for share in _SHARES]
        columns = [*_COLUMNS, *shares, "epochs trained"]
        blocks += [Paragraph(_ASSUMED), Table(_CAPTION, columns, assumed)]
    return Section("Break-even", blocks)


def _shares(time: StageTime) -> list[float]:
    """Return the seconds of forward passes per image and view for shares of the stage."""
    return [share * time.seconds / time.outputs for share in _SHARES]


def _row(
    contents: Contents,
    cache: CacheContents,
    time: StageTime,
    read_seconds: float,
    forward: Sequence[float],
) -> list[str]:
    per_image = time.seconds / max(1, cache.description.images)
    epochs = [break_even_epochs(per_image, each, read_seconds) for each in forward]
    trained = sum(_epochs(run) for run in contents.runs if is_from(run, cache))
    return [
        cache.origin.name,
        seconds_text(time.seconds),
        f"{1e3 * time.seconds / time.outputs:.2f} ms",
        f"{1e3 * read_seconds:.3f} ms",
        *("never" if number is None else str(number) for number in epochs),
        f"{trained:.0f}",
    ]


def _epochs(run: Run) -> float:
    return 0.0 if run.result is None else run.result.images / max(1, run.result.set_images)
