"""After how many epochs of students a cache took less time than live teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.precompute.estimate.break_even import break_even_epochs
from logitcache.report.page.blocks import Paragraph, Section, Table
from logitcache.report.page.contents import is_from
from logitcache.report.quantities import seconds_text

if TYPE_CHECKING:
    from logitcache.report.page.contents import CacheContents, Contents, Run, StageTime

__all__ = ["break_even"]

_SHARES = (1.0, 0.75, 0.5, 0.25)


def break_even(contents: Contents) -> Section | None:
    """Return the break-even of caches whose computation was timed by a pipeline."""
    times = {one.origin.path: one for one in contents.times if one.outputs}
    rows = []
    for cache in contents.first_caches:
        time, sample = times.get(cache.origin.path), contents.sample_of(cache)
        if time is not None and sample is not None:
            rows.append(_row(contents, cache, time, sample.read_seconds))
    if not rows:
        return None
    text = (
        "With live teachers, the forward passes are repeated in every epoch of every student. A "
        "cache takes less time from the number of epochs in the table on, counted over all "
        "students. It is based on the duration of the stage that computed the cache, as the "
        "pipeline recorded it (decoding, forward passes and encoding; not planning), and on the "
        "time to read an image's targets, measured while this page was made. How much of the "
        "stage was forward passes is not recorded, so there is a column for each of several "
        "shares; logitcache plan measures it."
    )
    columns = ["cache", "computing", "per image and view", "reading an image"]
    shares = [f"epochs if {share:.0%}" for share in _SHARES]
    caption = "Break-even, and the epochs that networks of this report trained from a cache."
    return Section(
        "Break-even",
        [Paragraph(text), Table(caption, [*columns, *shares, "epochs trained"], rows)],
    )


def _row(
    contents: Contents, cache: CacheContents, time: StageTime, read_seconds: float
) -> list[str]:
    per_image = time.seconds / max(1, cache.description.images)
    each = time.seconds / time.outputs
    epochs = [break_even_epochs(per_image, share * each, read_seconds) for share in _SHARES]
    trained = sum(_epochs(run) for run in contents.runs if is_from(run, cache))
    return [
        cache.origin.name,
        seconds_text(time.seconds),
        f"{1e3 * each:.2f} ms",
        f"{1e3 * read_seconds:.3f} ms",
        *("never" if number is None else str(number) for number in epochs),
        f"{trained:.0f}",
    ]


def _epochs(run: Run) -> float:
    return 0.0 if run.result is None else run.result.images / max(1, run.result.set_images)
