"""Images of a source, matched with rows of a cache.

Memory per row is one number, the position of its image in the source. Key hashes, labels and
content digests are read from the source and the cache when a batch needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.names import Status
from logitcache.cache.format.squares import stored_views
from logitcache.data.decode import DECODING
from logitcache.data.identity import row_order
from logitcache.data.join import ImageJoin, NamedKeys, check_content
from logitcache.data.lookup import key_hashes, position_dtype
from logitcache.data.source import is_compared_with
from logitcache.errors import DataMismatch, UnreadableImage, UsageError
from logitcache.label_sets import label_sets_of
from logitcache.targets.classes.label_targets import CachedLabelSets
from logitcache.targets.images.row_ids import AllRows, RowIds, row_ids_of
from logitcache.targets.unit_cache import UnitCache
from logitcache.views.stored import SquareNumbers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.samples import Samples
    from logitcache.cache.read.reader import Cache
    from logitcache.cache.read.stored_squares import StoredSquares
    from logitcache.data.source import Source
    from logitcache.label_sets import LabelSets
    from logitcache.targets.classes.class_space import ClassSpace
    from logitcache.views.render import BatchRequest

__all__ = ["CheckedReader", "ImageRows", "match_rows", "number_rows"]

_REASONS = ("left_out", "missing", "unreadable", "withdrawn")
_AT_ONCE = 1 << 16


@dataclass
class ImageRows:
    """The images that can be shown, in the order of their rows; positions count in that order.

    Attributes:
        source: The images.
        numbers: Row number of each image.
        indices: Index of each image in the source, int32 or int64 (N,).
        digests: Content digest by row, compared when an image is first read; None without a cache,
            or if the source compares them.
        visible: Which labels are not hidden, bool (N,); None if no label is hidden.
        complete: Whether no image that may be mixed into another is missing.
        class_names: Names of the classes, in the order of the labels' numbers.
        labels: Labels in the cache, by row; None if the labels of the source are used.
        classes: The classes of the student, whose numbers the labels are mapped to; None if they
            are those of the images.
        label_sets: Label sets in the cache, by row; None without them.
        table: Version of the decoding table.
        squares: Views in the cache, which are shown instead of views of the images; None if it
            contains none.
        square_views: Ids of these views.
        left_out: Images of the source that have no row.
        missing: Images of the cache that the source lacks; only if a subset is allowed.
        unreadable: Images that could not be decoded when the cache was computed.
        withdrawn: Images that were excluded.
    """

    source: Source
    numbers: RowIds
    indices: NDArray[np.signedinteger]
    digests: UnitCache | None = None
    visible: NDArray[np.bool_] | None = None
    complete: bool = True
    class_names: Sequence[str] = ()
    labels: UnitCache | None = None
    classes: ClassSpace | None = None
    label_sets: CachedLabelSets | None = None
    table: int = DECODING
    squares: StoredSquares | None = None
    square_views: tuple[str, ...] = ()
    left_out: int = 0
    missing: int = 0
    unreadable: int = 0
    withdrawn: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of rows, all of which are present."""
        return self.numbers.find(rows)

    def find(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of rows, -1 for those that are missing."""
        if not len(self):
            return np.full_like(rows, -1)
        # a missing row gets the position of the next one, so its number is compared
        found = np.minimum(self.positions(rows), len(self) - 1)
        return np.where(self.numbers.take(found) == rows, found, -1)

    def hashes_of(self, positions_B: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the key hashes of some images, uint64 (B,)."""
        return key_hashes(self.source.keys, self.indices[positions_B])

    def labels_of(self, positions_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the labels of some images, int64 (B,), -1 for none and for hidden ones."""
        found = (
            self.source.labels[self.indices[positions_B]]
            if self.labels is None
            else self.labels.take(self.numbers.take(positions_B))
        )
        label_table = None if self.classes is None else self.classes.label_table
        mapped = found if label_table is None else label_table[found]
        labels: NDArray[np.int64] = mapped.astype(np.int64)
        return labels if self.visible is None else np.where(self.visible[positions_B], labels, -1)

    @property
    def has_label_sets(self) -> bool:
        """Whether an image may have several classes."""
        own = self.labels is None and label_sets_of(self.source) is not None
        return own or self.label_sets is not None

    def label_sets_of(self, positions_B: NDArray[np.int64]) -> LabelSets:
        """Return the label sets of some images, unknown for hidden ones."""
        if self.label_sets is None:
            sets = label_sets_of(self.source)
            assert sets is not None
            found = sets.take(self.indices[positions_B])
        else:
            found = self.label_sets.take(self.numbers.take(positions_B))
        table = None if self.classes is None else self.classes.label_table
        found = found if table is None else found.merged(table)
        if self.visible is None:
            return found
        return found.take(np.where(self.visible[positions_B], np.arange(len(positions_B)), -1))

    def is_labeled(self, positions_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which images have labels that are not hidden, bool (B,)."""
        if self.has_label_sets:
            return self.label_sets_of(positions_B).known
        return self.labels_of(positions_B) >= 0

    def keep_units(self, count: int) -> None:
        """Set the number of units whose digests and labels stay in memory."""
        sets = None if self.label_sets is None else self.label_sets.units
        for of_rows in (self.digests, self.labels, sets):
            if of_rows is not None:
                of_rows.keep = count

    @property
    def square_numbers(self) -> SquareNumbers:
        """Numbers of the squares in the cache, by which a renderer requests them."""
        return SquareNumbers(self.square_views, len(self))

    def shown(self, request: BatchRequest) -> BatchRequest:
        """Return a request to render a view of images as one to finish squares in the cache.

        It is returned as it is where the cache contains none.
        """
        return request if self.squares is None else self.square_numbers.request(request)

    def check_size(self, size: int) -> None:
        """Refuse a size at which views in the cache cannot be shown.

        Raises:
            UsageError: The cache contains views of another size.
        """
        if self.squares is not None and size != self.squares.side:
            raise UsageError(
                "the cache contains its views in one size",
                where=self.source.description,
                expected=f"{self.squares.side} pixels",
                got=f"{size} pixels",
                hint=f"train at {self.squares.side} pixels, or compute a cache with packed images",
            )

    def key(self, position: int) -> str:
        """Return the name of an image."""
        return self.source.keys[int(self.indices[position])]

    def in_part(self, positions_B: NDArray[np.int64], name: str) -> NDArray[np.bool_]:
        """Return which images belong to a part of a joined set: their keys begin with its name."""
        begin = f"{name}/"
        return np.array([self.key(p).startswith(begin) for p in positions_B.tolist()], np.bool_)

    def checked_parts(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return names of parts after a check that all of them have images.

        Raises:
            UsageError: A part has none.
        """
        for name in names:
            if not any(key.startswith(f"{name}/") for key in self.source.keys):
                raise UsageError(
                    f"no image is in a part {name!r}",
                    where=self.source.description,
                    expected=f"keys that begin with {name}/",
                    got=f"for example {self.source.keys[0]}",
                    hint="join the sets: data: {parts: {NAME: SET, NAME: SET}}",
                )
        return tuple(names)

    def parts(self) -> Iterator[NDArray[np.int64]]:
        """Yield all positions in blocks, to bound memory."""
        for start in range(0, len(self), _AT_ONCE):
            yield np.arange(start, min(start + _AT_ONCE, len(self)))

    @property
    def labeled(self) -> int:
        """Number of images with a label that is not hidden."""
        return sum(int(self.is_labeled(positions).sum()) for positions in self.parts())

    def counts(self) -> dict[str, int]:
        """Return the number of images that are not shown, by reason."""
        return {name: getattr(self, name) for name in _REASONS}

    def in_classes(self, classes: ClassSpace) -> ImageRows:
        """Return the images with labels in the classes of a student."""
        if not classes.names:
            return self
        return replace(self, class_names=classes.names, classes=classes)

    def keep(self, chosen: NDArray[np.bool_]) -> ImageRows:
        """Return only the chosen images."""
        return replace(
            self,
            numbers=self.numbers.keep(chosen),
            indices=self.indices[chosen],
            visible=None if self.visible is None else self.visible[chosen],
            complete=False,
        )


def number_rows(source: Source) -> ImageRows:
    """Return all images of a source that has no cache."""
    order = row_order(source)
    return ImageRows(source, AllRows(len(order)), order, class_names=source.class_names)


def match_rows(
    cache: Cache, source: Source, *, subset: bool = False, counterparts: bool = False
) -> ImageRows:
    """Find the images of a cache in a source, by key and file size, unit by unit.

    Images that could not be decoded when the cache was computed are left out. Labels are those of
    the cache, if it has any; labels of the source must name the same classes.

    Args:
        cache: The cache.
        source: The images, in any order, below any root.
        subset: Whether images of the cache may be missing.
        counterparts: Whether the images are others than those of the cache, with the same keys.

    Raises:
        DataMismatch: Images are missing, or have a different file size or class.
    """
    match = _Match(source, cache.rows_end, cache.class_names, counterparts=counterparts)
    for samples in cache.all_samples():
        match.add(samples)
    missing, changed = match.missing, match.changed
    if changed.count or (missing.count and not subset) or not match.found:
        raise DataMismatch(
            "these are not the images the cache was made from",
            where=cache.url,
            expected=f"{match.readable} images of {cache.manifest.data.description}, by name and "
            "file size",
            got=f"{source.description}: {missing:missing}; {changed:with a different file size}",
            hint="give the folder the cache was made from with --data"
            + ("" if subset else ", or allow missing images (subset: true)"),
        )
    if match.relabeled.count:
        raise DataMismatch(
            "the labels of these images differ from those in the cache",
            where=cache.url,
            expected="the class that the cache has for each image",
            got=f"{source.description}: {match.relabeled:with a different class}",
            hint="restore the labels; logitcache verify CACHE --data DIR lists all differences",
        )
    return match.image_rows(cache)


class _Match:
    """Search for the rows of a cache in a source, in blocks of rows."""

    def __init__(
        self, source: Source, rows: int, class_names: Sequence[str], *, counterparts: bool
    ) -> None:
        self._source = source
        self._counterparts = counterparts
        self._join = ImageJoin(source, class_names)
        self._rows = np.empty(rows, dtype=position_dtype(rows))
        self._indices = np.empty(rows, dtype=position_dtype(len(source.keys)))
        self.found = self.readable = self.unreadable = self.withdrawn = 0
        self.missing, self.changed, self.relabeled = NamedKeys(), NamedKeys(), NamedKeys()

    def add(self, samples: Samples) -> None:
        """Search for the images of some rows; blocks are given in ascending order."""
        here = samples.rows - samples.start
        keys, shown = samples.keys[here], samples.status[here] == Status.OK
        sets = samples.label_sets
        joined = self._join.find(
            keys,
            samples.hashes[here],
            None if self._counterparts else samples.sizes[here],
            samples.labels[here],
            None if sets is None else sets.take(here),
        )
        self.readable += int(shown.sum())
        self.unreadable += samples.unreadable
        self.withdrawn += samples.withdrawn
        self.missing.add(keys[shown & ~joined.found])
        self.changed.add(keys[shown & joined.resized])
        self.relabeled.add(keys[shown & joined.relabeled])
        chosen = np.flatnonzero(shown & joined.found)
        stop = self.found + len(chosen)
        self._rows[self.found : stop] = samples.rows[chosen]
        self._indices[self.found : stop] = joined.positions[chosen]
        self.found = stop

    def image_rows(self, cache: Cache) -> ImageRows:
        """Return the images that were found."""
        labels = UnitCache(partial(cache.sample_unit, "label"), cache.unit_rows)
        return ImageRows(
            self._source,
            row_ids_of(self._rows[: self.found]),
            self._indices[: self.found],
            None
            if self._counterparts or is_compared_with(self._source, cache)
            else UnitCache(partial(cache.sample_unit, "digest"), cache.unit_rows),
            complete=not self.missing.count and not self.withdrawn,
            class_names=cache.class_names or self._source.class_names,
            labels=labels if cache.class_names else None,
            label_sets=CachedLabelSets.of(cache),
            table=cache.decoding,
            squares=None if self._counterparts else cache.squares,
            square_views=tuple(stored_views(cache.manifest)),
            left_out=len(self._join.added()),
            missing=self.missing.count,
            unreadable=self.unreadable,
            withdrawn=self.withdrawn,
        )


class CheckedReader:
    """Reader of images by position in :class:`ImageRows` that compares each digest once.

    Several threads may call it: two that read the same image at once compare its digest twice.

    Args:
        rows: The images and their digests.
    """

    def __init__(self, rows: ImageRows) -> None:
        self._rows = rows
        self._checked = np.zeros(len(rows), dtype=np.bool_)

    def named(self, error: UnreadableImage) -> UnreadableImage:
        """Return an error with the name of the image instead of its position."""
        position: Any = error.where
        if self._rows.squares is not None:
            position = self._rows.square_numbers.split(position)[1]
        return error.at(
            self._rows.key(position), "repair the file, or leave it out with --on-bad-image skip"
        )

    def __call__(self, position: int) -> bytes | NDArray[np.uint8]:
        """Return the stored image; of a cache that contains views, the square of a number.

        Raises:
            DataMismatch: It is not the image the cache was computed from.
        """
        rows = self._rows
        if rows.squares is not None:
            view_id, position = rows.square_numbers.split(position)
            return rows.squares.read(view_id, int(rows.numbers.take(np.array([position]))[0]))
        image = rows.source.read(int(rows.indices[position]))
        if rows.digests is None or self._checked[position]:
            return image
        (row,) = rows.numbers.take(np.array([position]))
        check_content(image, rows.digests.at(int(row)), rows.key(position))
        self._checked[position] = True
        return image
