"""Export of the outputs of a teacher in formats of other programs.

What is written are the probabilities that a student of the cache would get at T = 1. Nothing else
of the cache fits into these formats: recipes of views, tails at other temperatures, features.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.read.reader import open_cache
from logitcache.cache.read.view_selection import choose_views
from logitcache.encoding.heads import HEADS
from logitcache.encoding.topk import top_k_ids
from logitcache.errors import UsageError, nearest
from logitcache.exchange.formats import FORMATS
from logitcache.exchange.matching import image_folder_order
from logitcache.exchange.outputs import ExportedOutputs, ExportedRows, WriteSettings
from logitcache.files import PARTIAL, make_folder
from logitcache.platforms import replace_file, sync_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from logitcache.cache.format.groups import TeacherGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.cache.store.base import Location

__all__ = ["ExportSummary", "export_outputs"]


@dataclass(frozen=True)
class ExportSummary:
    """Result of an export.

    Attributes:
        out: File or folder.
        format: Its format.
        teacher: Name of the teacher.
        images: Number of images.
        views: Number of views.
        top_k: Number of classes that were written; None for all.
        left_out: Number of images without outputs: unreadable or excluded ones.
        bytes: Size of the files.
        notes: Notes for the user.
    """

    out: str
    format: str
    teacher: str
    images: int
    views: int
    top_k: int | None
    left_out: int
    bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {**asdict(self), "notes": list(self.notes)}


def export_outputs(
    cache: str | os.PathLike[str] | Location,
    out: str | os.PathLike[str],
    *,
    format: str,
    teacher: str | None = None,
    views: Sequence[str] = (),
    top_k: int | None = None,
    positions: bool = False,
    revision: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExportSummary:
    """Write the outputs of a teacher as record files of TinyViT, as ``.npz``, or as parquet.

    The file appears once it is complete. An export that was interrupted starts again.

    Args:
        cache: A sealed cache.
        out: A new file, or for TinyViT a new folder.
        format: ``tinyvit``, ``npz`` or ``parquet``.
        teacher: Name of the teacher; may be left out if there is one.
        views: Views, as :func:`.choose_views` reads them; all by default.
        top_k: Number of classes to write; by default those that the cache stores, and 100 for
            TinyViT.
        positions: Whether images are identified by their position in an ``ImageFolder`` of all
            images of the cache, instead of their name.
        revision: sha256 of the revision that the cache must have, or its first 12 digits or more.
        on_progress: Called with the numbers of rows that are written, and of all rows.

    Raises:
        UsageError: A name or number is not possible, or something exists at ``out``.
        CacheDamaged: An object of the cache is not the one that was committed.
    """
    target = Path(out)
    write = _writer(format, target)
    opened = open_cache(cache, revision=revision)
    exported = _outputs(opened, teacher, views, top_k, FORMATS[format].top_k, on_progress)
    keys = opened.samples.keys[opened.samples.rows].tolist() if positions else []
    order = [keys[index] for index in image_folder_order(keys)]
    settings = WriteSettings({key: n for n, key in enumerate(order)} if positions else None)
    _write(target, lambda path: write(exported, path, settings))
    return ExportSummary(
        out=str(target),
        format=format,
        teacher=exported.teacher,
        images=len(exported.keys),
        views=len(exported.views),
        top_k=exported.top_k,
        left_out=len(opened.samples.rows) - len(exported.keys),
        bytes=sum(file.stat().st_size for file in _files(target)),
        notes=_notes(format),
    )


def _writer(format_: str, target: Path) -> Callable[[ExportedOutputs, Path, WriteSettings], None]:
    """Return the function that writes a format.

    Raises:
        UsageError: There is none, or something exists at the destination.
    """
    writers = {name: one.write for name, one in FORMATS.items() if one.write is not None}
    if format_ not in writers:
        raise UsageError(
            f"outputs cannot be written in the format {format_!r}",
            where="--format",
            expected=" or ".join(writers),
            hint=nearest(format_, writers),
        )
    if target.exists():
        raise UsageError(
            "there is a file or folder at the destination already",
            where=target,
            hint="choose another one, or remove it",
        )
    return writers[format_]


def _outputs(
    cache: Cache,
    teacher: str | None,
    views: Sequence[str],
    top_k: int | None,
    default: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> ExportedOutputs:
    """Return the outputs to be written.

    Raises:
        UsageError: There is no such teacher or view, or a number of classes is out of range.
    """
    name = _teacher(cache, teacher)
    group = cache.teacher(name)
    own = cache.views_of([name])
    chosen = choose_views(list(cache.views), list(views)) if views else own
    for view in chosen:
        group.slot(view)
    kept = _kept(group, top_k, default)
    samples = cache.samples
    names = group.class_names if group.class_names is not None else tuple(cache.class_names)
    return ExportedOutputs(
        teacher=name,
        revision=cache.revision_sha256,
        views=tuple(chosen),
        keys=samples.keys[samples.readable].tolist(),
        num_classes=group.num_classes,
        top_k=kept,
        class_names=names,
        rows=partial(_rows, cache, group, chosen, kept, on_progress),
    )


def _teacher(cache: Cache, teacher: str | None) -> str:
    """Return the name of the teacher to export.

    Raises:
        UsageError: It is not stated, or its outputs are no distributions.
    """
    if teacher is None and len(cache.teachers) != 1:
        raise UsageError(
            "it is not known which teacher to export",
            where=cache.url,
            expected=f"--teacher {' or '.join(cache.teachers) or '(none has logits)'}",
        )
    name = next(iter(cache.teachers)) if teacher is None else teacher
    if not HEADS[cache.teacher(name).encoding.head].sums_to_one:
        raise UsageError(
            f"teacher {name!r} has independent classes, and these formats have distributions",
            where=cache.url,
            hint="choose a teacher with a softmax",
        )
    return name


def _kept(group: TeacherGroup, top_k: int | None, default: int | None) -> int | None:
    """Return the number of classes to write; None for all.

    Raises:
        UsageError: The teacher has fewer.
    """
    classes = group.num_classes
    kept = top_k or (min(default, classes) if default else None)
    if kept is None and group.encoding.truncates:
        kept = int(group.encoding.to_json()["top_k"])
    if kept is not None and not 1 <= kept <= classes:
        raise UsageError(
            "the teacher has fewer classes than are to be written",
            where="--top-k",
            expected=f"1 to {classes}",
            got=kept,
        )
    return kept


def _rows(
    cache: Cache,
    group: TeacherGroup,
    views: Sequence[str],
    top_k: int | None,
    on_progress: Callable[[int, int], None] | None,
) -> Iterator[ExportedRows]:
    """Yield the readable rows of all views, view by view, a few at a time."""
    samples, size = cache.samples, group.unit_rows
    readable = samples.readable
    done, total = 0, len(readable) * len(views)
    for number, view in enumerate(views):
        for unit in np.unique(readable // size).tolist():
            shown = readable[readable // size == unit]
            encoded = cache.read_units(group.name, view, [unit], list(group.encoding.specs()))
            some = {name: array[shown - unit * size] for name, array in encoded.items()}
            for part, decoded in group.encoding.decode(some).parts():
                log_probs = decoded.dense_log_probs()
                keys = samples.keys[shown[part]].tolist()
                yield _chosen(number, keys, log_probs, top_k)
            done += len(shown)
            if on_progress is not None:
                on_progress(done, total)


def _chosen(number: int, keys: list[str], log_probs: Any, top_k: int | None) -> ExportedRows:
    """Return rows with their most probable classes, the most probable first."""
    if top_k is None:
        return ExportedRows(number, keys, log_probs.astype(np.float32), None)
    ids = top_k_ids(log_probs, top_k)
    kept = np.take_along_axis(log_probs, ids, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    values = np.take_along_axis(kept, order, axis=1).astype(np.float32)
    return ExportedRows(number, keys, values, np.take_along_axis(ids, order, axis=1))


def _write(target: Path, write: Callable[[Path], None]) -> None:
    """Write a file or folder under a temporary name, and rename it when it is complete."""
    make_folder(target.absolute().parent)
    partial_target = target.with_name(f"{target.name}{PARTIAL}")
    _remove(partial_target)  # of a process that was killed
    try:
        write(partial_target)
        replace_file(partial_target, target)
        sync_folder(target.absolute().parent)
    finally:
        _remove(partial_target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]


def _notes(format_: str) -> tuple[str, ...]:
    found = [
        "recipes of views are not in the file: whoever reads it does not know the pixels that the "
        "teacher was given"
    ]
    if format_ == "tinyvit":
        found.append(
            "the seeds of the records do not reproduce these views: TinyViT's own augmentation "
            "would show other crops"
        )
    return tuple(found)
