"""Images of a training run, and which of their labels are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from logitcache.data.readers import open_source
from logitcache.draws import Purpose, words
from logitcache.errors import UsageError
from logitcache.targets.epochs.sampled_epoch import with_sampler
from logitcache.targets.images.image_rows import ImageRows, number_rows
from logitcache.targets.selection import cached_targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from logitcache.data.readers import ImageSet
    from logitcache.objectives.term import Needs
    from logitcache.targets.selection import Targets
    from logitcache.training.config import TrainConfig

__all__ = ["ImageSets", "check_labels", "training_images"]

_BUCKET_BITS = 16
_BUCKET_SHIFT = np.uint64(64 - _BUCKET_BITS)


class ImageSets(NamedTuple):
    """Image sets of a run.

    Attributes:
        data: The training images; None for those in the cache.
        val: The validation images; None for no validation.
    """

    data: ImageSet | None
    val: ImageSet | None

    @classmethod
    def of(cls, config: TrainConfig, data: ImageSet | None, val: ImageSet | None) -> ImageSets:
        """Return the images from Python where they are given, else those of the configuration."""
        return cls(
            config.data if data is None else data,
            config.val if val is None else val,
        )


def training_images(
    config: TrainConfig, needs: Needs, data: ImageSet | None = None
) -> tuple[ImageRows, Targets | None]:
    """Return the images of a run with the labels that it uses, and its cached targets, if any.

    Args:
        config: Configuration of the run.
        needs: Targets that the objective needs.
        data: The training images; those of the configuration by default.
    """
    data = ImageSets.of(config, data, None).data
    if config.cache is None:
        return _with_labels(number_rows(open_source(data)), config), None
    vectors = config.student.head_on
    rows, targets = cached_targets(
        config.cache,
        data,
        teachers=needs.teachers,
        features=sorted({*needs.features, *([vectors] if vectors else [])}),
        images=vectors is None,
        counterparts=config.counterparts,
        views=config.use_views,
        show=config.show,
        target_memory=config.target_memory,
        shuffled=config.shuffle_targets,
        class_map=config.class_map,
        student_views=config.views,
        subset=config.subset,
        tolerate_pixel_drift=config.tolerate_pixel_drift,
        local_copy=config.local_copy,
        local_copy_bytes=config.local_copy_bytes,
        revision=config.revision,
        signed_by=config.signed_by,
    )
    if config.sampler is not None:
        targets = with_sampler(targets, config.sampler, config.cache)
    return _with_labels(rows, config), targets


def check_labels(config: TrainConfig, rows: ImageRows) -> None:
    """Check that terms that learn from labels have any.

    Args:
        config: Configuration of the run.
        rows: The training images, with the labels that are used.

    Raises:
        UsageError: A term is zero without labels, and there are none; or no image is of its parts.
    """
    if config.sampler is not None and not _has_labels(rows, ()):
        raise UsageError(
            "a sampler chooses views by the probability of an image's label, and no image has one",
            where="sampler",
            expected="images with labels: class folders, or a table with a column of labels",
            got=f"{len(rows)} images of {rows.source.description}",
            hint="remove the sampler, or give images with labels",
        )
    for term in config.terms:
        parts = rows.checked_parts(term.term.parts or ())
        if term.term.needs_labels and not _has_labels(rows, parts):
            of_parts = f" of the parts {', '.join(parts)}" if parts else ""
            raise UsageError(
                f"the term {term.name} learns from labels, and no image{of_parts} has one",
                where=rows.source.description,
                expected="images with labels: class folders, or a table with a column of labels",
                got=f"{len(rows)} images",
                hint="remove the term, or give images with labels",
            )


def _has_labels(rows: ImageRows, parts: Sequence[str]) -> bool:
    """Return whether any image of some parts has a label; of all images without parts."""
    for positions in rows.parts():
        labeled = positions[rows.is_labeled(positions)]
        if any(rows.in_part(labeled, name).any() for name in parts) if parts else len(labeled):
            return True
    return False


def _with_labels(rows: ImageRows, config: TrainConfig) -> ImageRows:
    """Hide all labels but the ones that are used.

    The choice depends on the keys of the images and the seed alone, so it is the same in every run
    on a set of images, with a cache or without.
    """
    wanted = config.labels
    if wanted.count is None and wanted.images == "all":
        return rows
    known = rows.labeled
    if wanted.count is not None and wanted.count > known:
        raise UsageError(
            "labels.count is larger than the number of labeled images",
            where=rows.source.description,
            expected=f"at most {known}",
            got=wanted.count,
            hint="reduce labels.count, or remove it to use all labels",
        )
    seed = config.seed if wanted.seed is None else wanted.seed
    rows.visible = _drawn(rows, known if wanted.count is None else wanted.count, seed)
    return rows.keep(rows.visible) if wanted.images == "labeled" else rows


def _drawn(rows: ImageRows, count: int, seed: int) -> NDArray[np.bool_]:
    """Return which images keep their label: those with the smallest random words.

    The words are drawn twice instead of stored, for constant memory: first to count them by their
    leading bits, then to select all below the bucket that contains the last one, and the smallest
    words of that bucket.
    """
    begins = np.zeros(1 << _BUCKET_BITS, dtype=np.int64)
    for _, drawn in _words(rows, seed):
        number = (drawn >> _BUCKET_SHIFT).astype(np.int64)  # bincount: no uint64 before numpy 2.2
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
    """Yield the positions of labeled images and a random word of each, in blocks."""
    for part in rows.parts():
        labeled = part[rows.is_labeled(part)]
        hashes = rows.hashes_of(labeled)
        yield labeled, words(seed, hashes, draw=0, purpose=Purpose.LABELLED_ROWS, count=1)[:, 0]
