"""Map-style data sets of PyTorch as sources of images."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from PIL import Image

from logitcache.data.classes import class_name
from logitcache.data.identity import content_digest, normalize_key
from logitcache.data.readers.columns import IMAGES, LABELS
from logitcache.errors import DataError, LogitcacheError, UsageError, first_of
from logitcache.label_sets import LabelSets

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels: TypeAlias = (
        "Sequence[int] | NDArray[Any] | Sequence[Collection[int] | NDArray[Any] | None]"
    )

__all__ = ["DatasetSource"]

_NO_LABEL = object()
_EXPECTED = "a PIL image, encoded bytes, or pixels in uint8: (H, W), (H, W, 3), a tensor (3, H, W)"


class DatasetSource:
    """Images of a map-style data set, such as a ``torch.utils.data.Dataset``.

    Items are images, pairs of an image and a label, or mappings with an ``image`` and a ``label``.
    They are read one at a time in each process, since a data set need not be thread-safe.

    Args:
        dataset: The data set; it must return the same image for an index every time. To be read by
            other processes, it must be picklable.
        keys: Stable and unique name of every image; ``train/000000000`` and so on by default, which
            is right as long as the order of the data set stays the same.
        labels: Class of every image, (N,), -1 without one. Where an image may have several: 0 or 1
            for every image and class, (N, C), or a sequence of collections of classes, None for an
            image without labels. By default the attribute ``targets`` or ``labels`` of the data
            set, or else those of the items, all of which are read once.
        class_names: Names of the classes; by default the attribute ``classes``, or else the
            numbers.
        description: Description of the set; the type of the data set by default.

    Raises:
        UsageError: It is not a map-style data set, or keys or labels have another length.
        DataError: Items are no images, or differ from one reading to the next.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        keys: Sequence[str] | None = None,
        labels: Labels | None = None,
        class_names: Sequence[str] | None = None,
        description: str | None = None,
    ) -> None:
        self._dataset, self._lock = dataset, threading.Lock()
        self.description = description or f"data set {type(dataset).__name__}"
        count = self._count()
        self.notes: list[str] = []
        self.sizes = np.full(count, -1, dtype=np.int64)
        self.keys = self._keys(keys, count)
        self._check_repeatable()
        found = self._found_labels(labels, count)
        self.label_sets, columns = self._sets(found)
        self.labels = (
            self._labels(found, count)
            if self.label_sets is None
            else np.full(count, -1, dtype=np.int32)
        )
        self.class_names = self._class_names(class_names, columns)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return one image, encoded or as pixels (H, W) or (H, W, 3) in uint8.

        Raises:
            DataError: The data set raises an error, or the item is no image.
        """
        with self._lock:
            return self._image(self._item(index), index)

    def _item(self, index: int) -> Any:
        try:
            return self._dataset[index]
        except LogitcacheError:
            raise
        except Exception as error:  # code of the user may raise anything
            raise DataError(
                "the data set raised an error",
                where=f"{self.description}, index {index}",
                got=f"{type(error).__name__}: {str(error)[:200]}",
                hint="correct the item or the code of the data set; what is computed is kept",
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _count(self) -> int:
        try:
            count = len(self._dataset)
            readable = hasattr(self._dataset, "__getitem__")
        except TypeError:
            count, readable = 0, False
        if not readable:
            raise UsageError(
                "the data set is not map-style",
                where=self.description,
                expected="a data set with a length whose items are read by index",
                got=type(self._dataset).__name__,
                hint="collect an iterable data set into files or shards first",
            )
        if not count:
            raise DataError("the data set has no images", where=self.description)
        return count

    def _keys(self, keys: Sequence[str] | None, count: int) -> list[str]:
        if keys is None:
            return [f"train/{index:09d}" for index in range(count)]
        found = [normalize_key(str(key)) for key in keys]
        if len(found) != count or len(set(found)) != count:
            raise UsageError(
                "the keys are not one unique name per image",
                where=self.description,
                expected=f"{count} keys",
                got=f"{len(found)} keys, {len(set(found))} of them different",
            )
        return found

    def _check_repeatable(self) -> None:
        """Refuse random augmentation in the data set: a row is one image."""
        for index in {0, len(self.keys) - 1}:
            if content_digest(self.read(index)) != content_digest(self.read(index)):
                raise DataError(
                    "the data set returns another image each time",
                    where=f"{self.description}, index {index}",
                    expected="the same image every time",
                    hint="remove random transforms: views are augmented by logitcache",
                )

    def _found_labels(self, labels: Labels | None, count: int) -> Any:
        """Return the given labels, or those of the data set."""
        if labels is not None:
            return labels
        attributes = (getattr(self._dataset, name, None) for name in ("targets", "labels"))
        found = next((a for a in attributes if a is not None and len(a) == count), None)
        return self._labels_of_items(count) if found is None else found

    def _sets(self, labels: Any) -> tuple[LabelSets | None, int]:
        """Return label sets, and the number of classes where it is known; None for one class.

        Arrays and tensors are 0 or 1 for each class, other collections are numbers of classes.
        """
        flags = _as_array(labels)
        if flags is not None and flags.ndim == 2 and flags.shape[1] > 1:
            rows: list[Any] = list(flags)
        elif isinstance(labels, Sequence) and any(_is_collection(one) for one in labels):
            rows = [None if one is None or _is_minus_one(one) else one for one in labels]
        else:
            return None, 0
        arrays = [_as_array(row) for row in rows]
        lengths = {len(array) for array in arrays if array is not None and array.ndim == 1}
        wrong = next((row for row in rows if not _is_label_set(row)), None)
        if len(rows) != len(self.keys) or len(lengths) > 1 or wrong is not None:
            raise UsageError(
                "the label sets are not one set of classes per image",
                where=self.description,
                expected=f"for each of {len(self.keys)} images 0 or 1 for every class as an array, "
                "or a collection of numbers of classes, or None",
                got=f"{len(rows)} labels" if wrong is None else f"{wrong!r}"[:100],
            )
        sets = [
            row if array is None else np.flatnonzero(array).tolist()
            for row, array in zip(rows, arrays, strict=True)
        ]
        return LabelSets.of(sets), max(lengths, default=0)

    def _labels(self, labels: Any, count: int) -> NDArray[np.int32]:
        found = np.asarray(labels)
        if found.shape != (count,) or found.dtype.kind not in "iu" or found.min() < -1:
            raise UsageError(
                "the labels are not one class per image",
                where=self.description,
                expected=f"{count} whole numbers, -1 without a class",
                got=f"an array of shape {found.shape} and type {found.dtype}",
                hint="pass labels=… to logitcache.DatasetSource, -1 for all if there are none",
            )
        return found.astype(np.int32)

    def _labels_of_items(self, count: int) -> list[Any]:
        if _parts(self._item(0))[1] is _NO_LABEL:
            return [-1] * count
        self.notes.append(
            f"all {count} items were read for their labels; pass labels=… to avoid this"
        )
        found = []
        for index in range(count):
            label = _parts(self._item(index))[1]
            if (_is_tensor(label) or isinstance(label, np.ndarray)) and label.ndim == 0:
                label = label.item()
            found.append(-1 if label is None or label is _NO_LABEL else label)
        return found

    def _class_names(self, names: Sequence[str] | None, columns: int) -> list[str]:
        used = self.labels if self.label_sets is None else self.label_sets.ids
        most = max(columns, int(used.max()) + 1 if len(used) else 0) - 1
        least = int(used.min()) if self.label_sets is not None and len(used) else 0
        if names is None:
            names = getattr(self._dataset, "classes", None)
        if names is None and most >= 0:
            self.notes.append("the classes of the data set have no names: numbers are used")
            names = [str(number) for number in range(most + 1)]
        found = [class_name(str(name)) for name in names or ()] if most >= 0 else []
        if most >= len(found) > 0 or least < 0:
            raise UsageError(
                "a label is in no list of classes",
                where=self.description,
                expected=f"numbers from 0 to {len(found) - 1}: {first_of(found)}",
                got=least if least < 0 else most,
            )
        return found

    def _image(self, item: Any, index: int) -> bytes | NDArray[np.uint8]:
        image, _ = _parts(item)
        if isinstance(image, bytes):
            return image
        if isinstance(image, Image.Image):
            # a copy: the memory of an image is read-only
            return np.array(image if image.mode in {"L", "RGB"} else image.convert("RGB"))
        if _is_tensor(image):
            image = image.detach().cpu()
            image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
        pixels = np.ascontiguousarray(image) if isinstance(image, np.ndarray) else None
        if pixels is not None and pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        if pixels is None or pixels.dtype != np.uint8 or pixels.shape[2:] not in {(), (3,)}:
            raise DataError(
                "an item of the data set is not an image",
                where=f"{self.description}, index {index}",
                expected=_EXPECTED,
                got=type(image).__name__
                if pixels is None
                else f"pixels of shape {pixels.shape} and type {pixels.dtype}",
                hint="remove ToTensor and Normalize from its transforms: students get normalized "
                "tensors from the loader",
            )
        return pixels


def _as_array(value: object) -> NDArray[Any] | None:
    """Return an array or a tensor as an array; None for all else."""
    if _is_tensor(value):
        value = cast("Any", value).detach().cpu().numpy()
    return value if isinstance(value, np.ndarray) and value.dtype.kind in "iufb" else None


def _is_label_set(value: Any) -> bool:
    """Return whether a label is 0 or 1 for each class, numbers of classes, or None."""
    array = _as_array(value)
    if array is not None:
        return array.ndim == 1 and bool(np.isin(array, (0, 1)).all())
    numbers = value is not None and _is_collection(value)
    return value is None or (numbers and all(isinstance(n, Integral) for n in value))


def _is_collection(value: object) -> bool:
    return isinstance(value, list | tuple | set | frozenset | np.ndarray) or _is_tensor(value)


def _is_minus_one(value: object) -> bool:
    return isinstance(value, int) and value == -1  # what an item without a label becomes


def _is_tensor(value: object) -> bool:
    # PyTorch is not imported for this: a process without it has no tensors, and opening images
    # would take a second longer
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _parts(item: Any) -> tuple[Any, Any]:
    """Return the image and the label of an item; ``_NO_LABEL`` where it has no place for one."""
    if isinstance(item, Mapping):
        images = [value for name, value in item.items() if str(name).lower() in IMAGES.usual]
        labels = [value for name, value in item.items() if str(name).lower() in LABELS.usual]
        return (images or [None])[0], (labels or [_NO_LABEL])[0]
    if isinstance(item, tuple | list):
        return (*item, _NO_LABEL, _NO_LABEL)[:2]
    return item, _NO_LABEL
