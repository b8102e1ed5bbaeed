"""Hugging Face data sets: saved by ``save_to_disk``, or by name through the cache of ``datasets``.

The library ``datasets`` is imported when such a set is opened. It runs no code of a data set from
version 4 on.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.data.classes import class_name
from logitcache.data.identity import normalize_key
from logitcache.data.readers.columns import IMAGES, LABELS, PATHS, find_column, without_label_notes
from logitcache.data.readers.label_values import LabelValues, NumberedLabels, column_names
from logitcache.data.readers.paths import user_path
from logitcache.errors import DataError, UnreadableImage, UsageError, first_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["HuggingFaceSource", "open_by_name", "open_saved"]

_SPLITS = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev", "test"),
}
_AT_ONCE = 1000
_MOST_CHARACTERS = 300


class HuggingFaceSource:
    """Images of a ``datasets.Dataset``, in their encoded form.

    Args:
        dataset: The data set.
        config: Names of its columns, and the split that numbered keys begin with.
        description: Description of the set.
        notes: Notes for the user.

    Raises:
        UsageError: The columns are not clear.
        DataError: Images do not exist, or a label cannot be used.
    """

    def __init__(
        self, dataset: Any, config: ReaderConfig, description: str, notes: Sequence[str] = ()
    ) -> None:
        from datasets import Image

        self.description = description
        if not len(dataset):
            raise DataError("the data set has no images", where=description)
        self._column = _image_column(dataset, config.image_column, description)
        encoded = dataset.with_format(None).select_columns([self._column])
        self._images = encoded.cast_column(self._column, Image(decode=False))
        try:
            paths, self.sizes = _paths_and_sizes(self._images, self._column, description)
            numbered = _labels(dataset, config, description)
            self.class_names, labels = numbered.class_names, numbered.labels
            self.keys = _keys(dataset, config, paths, [[*self.class_names, ""][n] for n in labels])
        except _damaged() as error:
            raise DataError(
                "the data set is damaged",
                where=description,
                got=_brief(error),
                hint="download or save it again",
            ) from error
        self.labels = np.array(labels, dtype=np.int32)
        self.label_sets = numbered.sets
        self.notes = [*notes, *numbered.notes]
        if not _label_columns(dataset, config, description):
            used = {self._column, config.path_column}
            unused = [name for name in _columns(dataset) if name not in used]
            self.notes += without_label_notes(unused, "the data set")

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of one image.

        Raises:
            UnreadableImage: The data set is damaged.
        """
        try:
            stored = self._images[index][self._column]
        except _damaged() as error:
            where = f"{self.keys[index]} in {self.description}"
            raise UnreadableImage(
                "the data set is damaged", where=where, got=_brief(error)
            ) from None
        content: bytes | None = stored["bytes"]
        return Path(stored["path"]).read_bytes() if content is None else content


def _damaged() -> tuple[type[Exception], ...]:
    """Return the errors that values of damaged files raise: checksums are not stored."""
    import pyarrow as pa

    return pa.ArrowException, UnicodeDecodeError, OverflowError, SystemError


def open_saved(config: ReaderConfig, listing: int) -> HuggingFaceSource:
    """List a folder that ``save_to_disk`` wrote.

    Raises:
        UsageError: ``datasets`` is not installed, or the columns are not clear.
        DataError: The folder cannot be read, or images or labels cannot be used.
    """
    del listing  # the data set decides what its images are
    path = user_path(config.name)
    datasets = _library(path)
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # of any kind: its parts are read by several libraries
        raise DataError(
            "the saved data set cannot be read",
            where=path,
            expected="a folder that save_to_disk of Hugging Face datasets wrote",
            got=_brief(error),
        ) from error
    return _of_split(found, config, f"saved data set {path}")


def open_by_name(config: ReaderConfig, listing: int) -> HuggingFaceSource:
    """List a data set of the Hugging Face Hub, ``hfds/NAME`` or ``hfds/NAME:CONFIGURATION``.

    It is read from the cache of ``datasets``, and downloaded to it if it is not there.

    Raises:
        UsageError: ``datasets`` is not installed, or the columns are not clear.
        DataError: It cannot be downloaded, or images or labels cannot be used.
    """
    del listing  # the data set decides what its images are
    name, _, configuration = config.name.removeprefix("hfds/").partition(":")
    datasets = _library(config.name)
    try:
        found = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # of any kind: hub, network, files, unknown configurations
        raise DataError(
            "the Hugging Face data set cannot be loaded",
            where=config.name,
            expected="hfds/NAME or hfds/NAME:CONFIGURATION that is in the cache of datasets or can "
            "be downloaded, and that needs no script",
            got=_brief(error),
            hint="download it where there is a network (datasets.load_dataset, then save_to_disk) "
            "and give the saved folder",
        ) from error
    return _of_split(found, config, config.name)


def _library(where: object) -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "Hugging Face data sets need the package datasets, which is not installed",
            where=where,
            hint='pip install "logitcache[datasets]"',
        ) from None
    return datasets


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_MOST_CHARACTERS]}"


def _of_split(found: Any, config: ReaderConfig, description: str) -> HuggingFaceSource:
    """Return the images of a split; all images of a data set without splits."""
    if not isinstance(found, dict):
        return HuggingFaceSource(found, config, description)
    split = next((name for name in _SPLITS[config.split] if name in found), None)
    if split is None:
        raise DataError(
            f"the data set has no split {config.split!r}",
            where=description,
            expected=f"one of {', '.join(_SPLITS[config.split])}",
            got=", ".join(found),
            hint="choose the other split: --set data.split=val, or train",
        )
    notes = [f"the split {split!r} is used as {config.split!r}"] if split == "test" else []
    return HuggingFaceSource(found[split], config, f"{description}, {split}", notes)


def _image_column(dataset: Any, name: str | None, where: str) -> str:
    """Return the name of the column of images."""
    columns = _columns(dataset)
    of_images = _columns(dataset, "Image")
    if name is None and len(of_images) > 1:
        name = of_images[find_column(of_images, IMAGES, None, where) or 0]
    if name is None and of_images:
        return of_images[0]
    if name is not None:
        find_column(columns, IMAGES, name, where)
        if name in of_images:
            return name
    raise UsageError(
        f"the column {name!r} has no images" if name else "the data set has no images",
        where=where,
        expected=f"one of {', '.join(of_images)}" if of_images else "a column of type Image",
        got=first_of([f"{key}: {dataset.features[key]}" for key in ([name] if name else columns)]),
        hint="a column of paths becomes one by dataset.cast_column(NAME, datasets.Image()); "
        "images behind links are not downloaded",
    )


def _columns(dataset: Any, kind: str | None = None) -> list[str]:
    """Return the names of all columns, or of those of one type of ``datasets``."""
    import datasets

    wanted = object if kind is None else getattr(datasets, kind)
    return [str(name) for name, own in dataset.features.items() if isinstance(own, wanted)]


def _paths_and_sizes(images: Any, column: str, where: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the stored path of every image, empty without one, and its size in bytes."""
    import pyarrow.compute as pc

    paths: list[str] = []
    sizes: list[int | None] = []
    for batch in _batches(images):
        stored = batch[column].combine_chunks()
        # offsets and validity alone: the bytes of images are not read
        sizes += pc.binary_length(pc.struct_field(stored, "bytes")).to_pylist()
        paths += [path or "" for path in pc.struct_field(stored, "path").to_pylist()]
    missing = []
    for index, size in enumerate(sizes):
        if size is None:
            place = Path(paths[index])
            if paths[index] and place.is_file():
                sizes[index] = place.stat().st_size
            else:
                missing.append(f"{paths[index] or 'no bytes'} (row {index})")
    if missing:
        raise DataError(
            f"{len(missing)} images of the data set do not exist",
            where=where,
            expected="images whose bytes are in the data set, or files of this machine",
            got=first_of(missing),
            hint="save it again where the images are: save_to_disk stores their bytes",
        )
    return paths, np.array(sizes, dtype=np.int64)


def _label_columns(dataset: Any, config: ReaderConfig, where: str) -> list[str]:
    """Return the names of the columns of classes; nothing without one."""
    columns = _columns(dataset)
    at = [find_column(columns, LABELS, name, where) for name in column_names(config)]
    found = [columns[position] for position in at if position is not None]
    others = [] if found else _columns(dataset, "ClassLabel")
    if len(others) > 1:  # such as fine and coarse classes
        find_column(others, LABELS._replace(required=True), None, where)
    return found or others


def _labels(dataset: Any, config: ReaderConfig, where: str) -> NumberedLabels:
    """Return the classes of every image as numbers, and the names of the classes."""
    columns = _label_columns(dataset, config, where)
    values, orders = [], []
    for column in columns:
        read, order = _column_labels(dataset, column, where, several=len(columns) > 1)
        values.append(read)
        orders.append(order)
    rows = list(zip(*values, strict=True)) or [()] * len(dataset)
    found = LabelValues(rows, columns, config, lambda at: f"{where}, row {at}")
    numbered = found.numbered(where, "the data set", config.class_list)
    if config.class_list is not None or orders[:1] in ([], [None]) or len(orders) > 1:
        return numbered
    # a ClassLabel has an order of its own, and classes without images
    return numbered.ordered([class_name(name) for name in orders[0] or ()])


def _column_labels(
    dataset: Any, column: str, where: str, *, several: bool
) -> tuple[list[Any], list[str] | None]:
    """Return the labels of a column, and the names of a ``ClassLabel`` in their order."""
    from datasets import ClassLabel

    kind = dataset.features[column]
    inner = getattr(kind, "feature", kind[0] if isinstance(kind, list) else kind)
    values = _values(dataset, column)
    flat = [label for value in values for label in (value if isinstance(value, list) else [value])]
    if isinstance(inner, ClassLabel):
        names = list(inner.names)
        unknown = sorted({int(n) for n in flat if n is not None and not -1 <= n < len(names)})
        if unknown:
            raise DataError(
                f"labels of the column {column!r} are not among its classes",
                where=where,
                expected=f"numbers from 0 to {len(names) - 1}: {first_of(names)}",
                got=first_of([str(number) for number in unknown]),
            )
        named = dict(enumerate(names))
        return [
            [named.get(n) for n in value] if isinstance(value, list) else named.get(value)
            for value in values
        ], names
    usable: Any = str | int | None
    if any((isinstance(v, bool) and not several) or not isinstance(v, usable) for v in flat):
        raise DataError(
            f"the column {column!r} of the data set has no classes",
            where=where,
            expected="a ClassLabel, a text or a whole number for each image, or a list of them",
            got=f"values of type {kind}",
            hint="choose another column: --set data.label_column=NAME",
        )
    return values, None


def _values(dataset: Any, column: str) -> list[Any]:
    """Return all values of a column."""
    batches = _batches(dataset.with_format(None).select_columns([column]))
    return [value for batch in batches for value in batch[column].to_pylist()]


def _batches(dataset: Any) -> Iterator[Any]:
    """Yield Arrow tables of some rows each; their offsets are checked, and bytes are not read."""
    for batch in dataset.with_format("arrow").iter(batch_size=_AT_ONCE):
        batch.validate(full=True)  # wrong offsets would lead out of the memory of the process
        yield batch


def _keys(
    dataset: Any, config: ReaderConfig, paths: Sequence[str], classes: Sequence[str]
) -> list[str]:
    """Return the key of every image.

    It is its class and its file name, which is all that ``save_to_disk`` keeps of a path, so that a
    folder of class folders keeps its keys; the number of the row where names are not unique.
    """
    if config.path_column is not None:
        find_column(_columns(dataset), PATHS, config.path_column, config.name)
        given = _values(dataset, config.path_column)
        keys = [normalize_key(str(name).replace("\\", "/")) for name in given]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice or None in given:
            raise DataError(
                f"the paths of the column {config.path_column!r} are not unique",
                where=config.name,
                expected="one path per image: a row is found by it",
                got=first_of(twice) or "rows without a path",
            )
        return keys
    files = [path.partition("::")[0].replace("\\", "/").rpartition("/")[2] for path in paths]
    keys = [
        f"{label}/{file}" if label else file for label, file in zip(classes, files, strict=True)
    ]
    if all(files) and len(set(keys)) == len(keys):
        return [normalize_key(key) for key in keys]
    return [f"{config.split}/{index:09d}" for index in range(len(keys))]
