"""Images of a training run, and which of their labels are used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.readers import open_source
from logitcache.draws import Purpose, words
from logitcache.errors import UsageError
from logitcache.targets.image_rows import ImageRows, number_rows
from logitcache.targets.selection import cached_targets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from logitcache.objectives.term import Needs
    from logitcache.targets.selection import Targets
    from logitcache.training.config import TrainConfig

__all__ = ["training_images"]

_BUCKET_BITS = 16
_BUCKET_SHIFT = np.uint64(64 - _BUCKET_BITS)


def training_images(config: TrainConfig, needs: Needs) -> tuple[ImageRows, Targets | None]:
    """List the images of a run, choose the labels it may see, and open its targets.

    Args:
        config: The run.
        needs: What the objective needs.
    """
    if config.cache is None:
        return _with_labels(number_rows(open_source(config.data)), config), None
    rows, targets = cached_targets(
        config.cache,
        config.data,
        needs.teachers,
        needs.features,
        views=config.use_views,
        show=config.show,
        target_memory=config.target_memory,
        shuffled=config.shuffle_targets,
        subset=config.subset,
        tolerate_pixel_drift=config.tolerate_pixel_drift,
        local_copy=config.local_copy,
        local_copy_bytes=config.local_copy_bytes,
        revision=config.revision,
    )
    return _with_labels(rows, config), targets


def _with_labels(rows: ImageRows, config: TrainConfig) -> ImageRows:
    """Hide all labels but the ones the student may see.

    Which images keep theirs depends on their keys and the seed alone, so every run over a set,
    cached or not, hides the same ones.
    """
    wanted = config.labels
    if wanted.count is None and wanted.images == "all":
        return rows
    known = rows.labeled
    if wanted.count is not None and wanted.count > known:
        raise UsageError(
            "there are not so many labels",
            where=rows.source.description,
            expected=f"at most {known}",
            got=wanted.count,
            hint="set labels.count lower",
        )
    seed = config.seed if wanted.seed is None else wanted.seed
    rows.visible = _drawn(rows, known if wanted.count is None else wanted.count, seed)
    return rows.keep(rows.visible) if wanted.images == "labeled" else rows


def _drawn(rows: ImageRows, count: int, seed: int) -> NDArray[np.bool_]:
    """Return which images keep their label: those with the smallest words.

    Words are drawn twice rather than kept: first to learn how many begin with what bits, then to
    take all that begin with less than enough, and the smallest of those that begin with just that.
    """
    begins = np.zeros(1 << _BUCKET_BITS, dtype=np.int64)
    for _, drawn in _words(rows, seed):
        number = (drawn >> _BUCKET_SHIFT).astype(np.int64)  # numpy before 2.2 takes no uint64
        begins += np.bincount(number, minlength=len(begins))
    upto = begins.cumsum()
    bucket = int(np.searchsorted(upto, count)) if count else 0
    visible = np.zeros(len(rows), dtype=np.bool_)
    edge: list[tuple[int, int]] = []
    for positions, drawn in _words(rows, seed):
        begin = drawn >> _BUCKET_SHIFT
        visible[positions[begin < bucket]] = True
        here = begin == bucket
        edge += zip(drawn[here].tolist(), positions[here].tolist(), strict=True)
    left = count - int(visible.sum())
    visible[[position for _, position in sorted(edge)[:left]]] = True
    return visible


def _words(rows: ImageRows, seed: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """Yield the positions of labeled images and a word of each, some at a time."""
    for part in rows.parts():
        labeled = part[rows.labels_of(part) >= 0]
        hashes = rows.hashes_of(labeled)
        yield labeled, words(seed, hashes, draw=0, purpose=Purpose.LABELLED_ROWS, count=1)[:, 0]
