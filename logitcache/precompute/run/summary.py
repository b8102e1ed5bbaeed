"""Summary of a finished cache: fingerprint of its images, accuracy, size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.cache.format.groups import group_bytes
from logitcache.cache.format.names import Status
from logitcache.cache.format.partners import mixed_views
from logitcache.data.identity import fingerprint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.cache.format.groups import RowGroup, TeacherGroup
    from logitcache.cache.format.samples import Samples
    from logitcache.cache.write.writer import CacheWriter

__all__ = [
    "Size",
    "accuracy_of",
    "count_images",
    "images_fingerprint",
    "measured_view",
    "size_of",
]

_FLOAT32 = 4


@dataclass(frozen=True)
class Size:
    """Size of a group.

    Attributes:
        stored: Stored bytes, including metadata.
        dense_float32: Bytes of the logits or features of all readable images and views as float32.
    """

    stored: int
    dense_float32: int


def images_fingerprint(writer: CacheWriter) -> str:
    """Return the sha256 over key and digest of all rows."""
    return fingerprint(
        (samples.keys[row - samples.start], samples.digests[row - samples.start].tobytes())
        for samples in _blocks(writer)
        for row in samples.rows
    )


def count_images(writer: CacheWriter) -> tuple[int, int]:
    """Return the number of images of a cache, and how many of them are unreadable."""
    rows = readable = 0
    for samples in _blocks(writer):
        rows += len(samples.rows)
        readable += len(samples.readable)
    return rows, rows - readable


def accuracy_of(writer: CacheWriter) -> dict[str, dict[str, float]]:
    """Return the accuracy of each teacher on its first view without mixed images.

    None for a teacher with classes of its own, which are not those of the labels.
    """
    measured: dict[str, dict[str, float]] = {}
    mixed = mixed_views(writer.manifest)
    for name, group in writer.teachers().items():
        view_id = measured_view(group, mixed)
        if view_id is None:
            measured[name] = {}
            continue
        value = _teacher_accuracy(writer, group, view_id)
        measured[name] = {} if value is None else {view_id: value}
    return measured


def measured_view(group: TeacherGroup, mixed: Collection[str]) -> str | None:
    """Return the view that the accuracy of a teacher is measured on; None without one.

    Args:
        group: Outputs of the teacher.
        mixed: Ids of the views that mix images.
    """
    if group.class_names is not None:  # its classes are not those of the labels
        return None
    return next((view for view in group.view_ids if view not in mixed), None)


def _teacher_accuracy(writer: CacheWriter, group: TeacherGroup, view_id: str) -> float | None:
    """Return the accuracy of a teacher on the labeled, readable rows; None without labels."""
    right = labeled = 0
    for samples in _blocks(writer):
        known = (samples.labels >= 0) & (samples.status == Status.OK)
        if not known.any():
            continue
        stop = samples.start + len(samples.status)
        outputs = _top_classes(writer, group, view_id, samples.start, stop)
        right += int((outputs == samples.labels)[known].sum())
        labeled += int(known.sum())
    return right / labeled if labeled else None


def size_of(writer: CacheWriter, group: RowGroup, rows: int) -> Size:
    """Return the size of a group as stored, and as dense float32.

    Args:
        writer: Writer of the cache.
        group: The group.
        rows: Number of readable images.
    """
    dense = rows * len(group.view_ids) * group.row_numbers * _FLOAT32
    return Size(group_bytes(writer.location, group), dense)


def _blocks(writer: CacheWriter) -> Iterator[Samples]:
    """Yield the samples block by block."""
    rows = writer.manifest.unit_rows
    for block in sorted(writer.needed_units(rows)):
        yield writer.read_samples(block * rows, (block + 1) * rows)


def _top_classes(
    writer: CacheWriter, group: TeacherGroup, view_id: str, start: int, stop: int
) -> NDArray[np.int64]:
    """Return the most probable class of each row, int64 (U,); -1 for rows without outputs."""
    names = list(group.encoding.specs())
    encoded = writer.read_rows(group, view_id, start, stop, names)
    return group.encoding.decode(encoded).top_class()
