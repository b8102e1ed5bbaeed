"""What the caches contain, and how many bytes each group takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.report.page.axis import Axis
from logitcache.report.page.blocks import Note, Paragraph, Section, Table
from logitcache.report.page.charts import Bars, Charts
from logitcache.report.quantities import bytes_text, encoding_text, percent_text

if TYPE_CHECKING:
    from logitcache.report.describe import CacheDescription
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import CacheContents, Contents

__all__ = ["caches"]


def caches(contents: Contents) -> Section | None:
    """Return teachers, views and bytes of all caches."""
    if not contents.caches:
        return None
    found = contents.first_caches
    blocks: list[Block] = []
    if len(found) < len(contents.caches):
        blocks.append(Paragraph("Of caches with several seeds, the first one is described."))
    blocks += [Note(text) for cache in found if (text := _incomplete(cache.description))]
    blocks.append(
        Table(
            "Images, classes, views and bytes of each cache.",
            ["cache", "images", "classes", "views", "state", "bytes in all"],
            [_cache_row(cache) for cache in found],
            text_columns=(4,),
        )
    )
    teachers = [row for cache in found for row in _teacher_rows(cache)]
    if teachers:
        columns = ["teacher", "network", "stored", "views", "top-1", "bytes", "bytes per row"]
        caption = "Teachers; top-1 is the accuracy on the labeled images of one view."
        blocks.append(Table(caption, [*columns, "size vs. float32"], teachers, text_columns=(1, 2)))
    blocks.append(Charts([_bytes_chart(found)]))
    return Section("Caches", blocks)


def _incomplete(cache: CacheDescription) -> str:
    if cache.complete and cache.revision is not None:
        return ""
    missing = sum(t.needed - t.units for t in cache.teachers)
    state = f"{missing} units of teacher outputs are missing" if missing else "it is not sealed"
    return (
        f"The cache {cache.url} is not finished: {state}. Run the same precompute command again; "
        "until then its outputs are not described here."
    )


def _cache_row(cache: CacheContents) -> list[str]:
    found = cache.description
    state = f"revision {found.revision}" if found.revision else "not sealed"
    return [
        cache.origin.name,
        str(found.images),
        str(len(found.class_names)),
        str(len(found.views)),
        state,
        bytes_text(sum(size for _, size in _groups(found))),
    ]


def _teacher_rows(cache: CacheContents) -> list[list[str]]:
    rows = []
    for teacher in cache.description.teachers:
        shown = max(1, cache.description.images * teacher.views)
        dense = max(1, teacher.dense_bytes)
        encoding = "features alone" if teacher.encoding is None else encoding_text(teacher.encoding)
        rows.append(
            [
                f"{cache.origin.name}/{teacher.name}",
                teacher.architecture,
                encoding,
                str(teacher.views),
                percent_text(next(iter(teacher.accuracy.values()), None)),
                bytes_text(teacher.stored_bytes),
                f"{teacher.stored_bytes / shown:.1f}",
                f"{teacher.stored_bytes / dense:.2f}" if teacher.dense_bytes else "-",
            ]
        )
    return rows


def _groups(cache: CacheDescription) -> list[tuple[str, float]]:
    """Return names and bytes of the groups of a cache."""
    groups = [(t.name, float(t.stored_bytes)) for t in cache.teachers if t.encoding is not None]
    groups += [
        (f"{t.name}/{tap.tap}", float(tap.stored_bytes))
        for t in cache.teachers
        for tap in t.features
    ]
    if cache.images_in_cache is not None:
        groups.append(("images", float(cache.images_in_cache.stored_bytes)))
    return groups


def _bytes_chart(found: list[CacheContents]) -> Bars:
    groups = [
        (f"{cache.origin.name}/{name}", size)
        for cache in found
        for name, size in _groups(cache.description)
    ]
    largest = max((size for _, size in groups), default=1.0)
    return Bars(
        "Bytes by group",
        "Stored bytes of teacher outputs, features and images.",
        Axis("bytes", 0.0, max(1.0, largest), bytes_text),
        table=Table("Bytes by group.", ["group", "bytes"], [[n, bytes_text(s)] for n, s in groups]),
        rows=[(f"{name}: {bytes_text(size)}", [size]) for name, size in groups],
        parts=["bytes"],
    )
