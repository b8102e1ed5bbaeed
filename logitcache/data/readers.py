"""Readers of image sets: folders, tar files, tables, torchvision sets, scikit-learn's digits.

Listing is done in :mod:`logitcache.data.listing`; reading is done here, because timm's data set
returns the *next* image where one cannot be decoded, and its tar reader shares one seek position
between threads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from logitcache.config import Config
from logitcache.data.classes import RelabeledSource
from logitcache.data.identity import key_hash, normalize_key, stored_bytes
from logitcache.data.listing import (
    LISTING,
    ClassFolder,
    ListedFile,
    Listing,
    list_folder,
    list_tar,
)
from logitcache.data.source import left_out_of, notes_of
from logitcache.data.table import TableColumns, list_table
from logitcache.errors import DataError, UsageError, nearest, redacted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source

__all__ = [
    "READERS",
    "DataConfig",
    "Reader",
    "has_splits",
    "open_source",
    "open_source_for",
]

_TORCH_SETS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
_DIGITS_VAL = 450
_TABLE_FIELDS = ("root", "path_column", "label_column", "split_column")


class DataConfig(Config):
    """Settings of an image set.

    Attributes:
        name: A folder, a ``.tar`` file, a ``.csv`` or ``.tsv`` table of paths and classes,
            ``digits``, or ``torch/<set>:<folder>``.
        split: ``train`` or ``val``, for sets that have splits; folders and tar files have none, and
            tables if they have no column of splits. ``train`` by default, and ``val`` for the
            images that a training is evaluated on.
        limit: Number of images to use, chosen by the hash of their keys; all by default.
        class_folder: The folder above an image that names its class: ``first`` below the root, or
            the ``last``; ``auto`` is the first one, and an error where that is not clear.
        root: Folder that the paths of a table are relative to; the folder of the table by default.
        path_column: Column of the paths in a table; by default one with a usual name, such as
            ``path``, ``file_name`` or ``image``.
        label_column: Column of the classes in a table; by default one with a usual name, such as
            ``label`` or ``class``, and no labels without one.
        split_column: Column of the splits in a table; by default ``split``, if there is one.
    """

    name: str
    split: Literal["train", "val"] = "train"
    limit: int | None = Field(default=None, ge=1)
    class_folder: ClassFolder = "auto"
    root: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _columns_of_tables(self) -> Self:
        given = [name for name in _TABLE_FIELDS if getattr(self, name) is not None]
        if given and not self.name.lower().endswith((".csv", ".tsv")):
            raise ValueError(f"{', '.join(given)} can only be set for .csv and .tsv tables")
        return self


def has_splits(name: str) -> bool:
    """Return whether the image set of this name may have the splits ``train`` and ``val``."""
    reader = _named(name) or READERS.get(Path(name).suffix.lower())
    return reader is not None and reader.splits


def open_source(data: str | DataConfig, *, listing: int = LISTING) -> Source:
    """List a set of images.

    Args:
        data: A configuration or just its name.
        listing: Version of the rules by which files are listed; see
            :mod:`logitcache.data.listing`.

    Raises:
        UsageError: There is no image set of this name.
        DataError: The folder or file does not exist, has no images, or its folders cannot be
            classes.
    """
    config = DataConfig(name=data) if isinstance(data, str) else data
    source = _list(config, listing)
    if config.limit is None or config.limit >= len(source.keys):
        return source
    by_hash = sorted(range(len(source.keys)), key=lambda index: key_hash(source.keys[index]))
    return SubsetSource(source, sorted(by_hash[: config.limit]))


def open_source_for(
    data: str | DataConfig | Source,
    class_names: Sequence[str],
    whose: str,
    *,
    listing: int = LISTING,
) -> Source:
    """List images by the rules and class numbers of a cache or another set.

    Args:
        data: A configuration, its name, or a source.
        class_names: Class names of the cache or set; labels stay as they are if it is empty.
        whose: Owner of the class names, for messages: ``the cache``.
        listing: As for :func:`open_source`.

    Raises:
        DataMismatch: There are images of classes that are not in the list.
    """
    source = open_source(data, listing=listing) if isinstance(data, str | DataConfig) else data
    if not class_names or list(source.class_names) == list(class_names):
        return source
    return RelabeledSource(source, class_names, whose)


def _list(config: DataConfig, listing: int) -> Source:
    named = _named(config.name)
    if named is not None:
        return named.open_set(config, listing)
    root = Path(config.name).expanduser()
    if not root.exists():
        raise _missing(config.name)
    if root.is_dir():
        return FileSource(root, list_folder(root, listing, config.class_folder))
    reader = READERS.get(root.suffix.lower())
    if reader is None:
        raise _not_an_image_set(root)
    return reader.open_set(config, listing)


def _named(name: str) -> Reader | None:
    """Return the reader of a set that is not a path; None for a path."""
    for key, reader in READERS.items():
        if not key.startswith(".") and (name == key or (key[-1] == "/" and name.startswith(key))):
            return reader
    return None


_NOT_READ = {
    **dict.fromkeys((".parquet", ".json", ".jsonl"), "of tables, only .csv and .tsv are read"),
    **dict.fromkeys(
        (".gz", ".tgz", ".xz", ".bz2", ".zst"), "compressed files have no random access"
    ),
    **dict.fromkeys((".zip", ".7z", ".rar"), "only tar files are read without extracting them"),
    **dict.fromkeys((".h5", ".hdf5", ".lmdb", ".npz", ".npy"), "arrays are not read"),
}
_PREFIXES = ("hfds/", "hfids/", "tfds/", "wds/")


def _not_an_image_set(path: Path) -> DataError:
    """Return the error for a file that is not a tar file, by its ending."""
    why = _NOT_READ.get(path.suffix.lower(), "it is neither a folder, a tar file nor a table")
    return DataError(
        "the file is not an image set",
        where=path,
        expected="a folder, an uncompressed .tar file, or a .csv or .tsv table of paths",
        got=why,
        hint="put the images into one folder per class",
    )


def _missing(name: str) -> DataError | UsageError:
    """Return the error for a name that is neither a path nor a known set."""
    expected = "a folder, a .tar, .csv or .tsv file, digits or torch/<set>:<folder>"
    if "://" in name:
        scheme = name.partition("://")[0]
        hint = f"copy the images to this machine; {scheme}:// URLs are for caches only"
        return UsageError(
            "images cannot be read from a URL", where=redacted(name), expected=expected, hint=hint
        )
    if name.startswith(_PREFIXES):
        return UsageError(
            f"data sets of {name.partition('/')[0]}/ are not supported",
            where=name,
            expected=expected,
            hint="export the images into one folder per class",
        )
    if any(sign in name for sign in "/\\."):
        what = "the folder or file of images does not exist"
        return DataError(what, where=name, hint="check the path")
    return UsageError("unknown image set", where=name, expected=expected)


class SubsetSource:
    """Some of the images of a source, with all of its classes."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.description = f"{len(indices)} of {len(source.keys)} images of {source.description}"
        self.class_names = source.class_names
        self.keys = [source.keys[index] for index in indices]
        self.sizes = source.sizes[list(indices)]
        self.labels = source.labels[list(indices)]
        self.left_out = left_out_of(source)
        self.notes = notes_of(source)
        self._source = source
        self._indices = list(indices)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return one image as the source stores it."""
        return self._source.read(self._indices[index])


class _ListedSource:
    """Images of a listing."""

    def __init__(self, description: str, listing: Listing) -> None:
        self.description = description
        self.class_names = listing.class_names
        self.labels = np.array(listing.labels, dtype=np.int32)
        self.keys = [file.key for file in listing.files]
        self.sizes = np.array([file.size for file in listing.files], dtype=np.int64)
        self.left_out: Mapping[str, int] = listing.left_out
        self.notes: Sequence[str] = listing.notes


class FileSource(_ListedSource):
    """Image files below a folder.

    Args:
        root: The folder.
        listing: Its files; ``place`` is the path.
        description: What lists the files; the folder by default.
    """

    def __init__(self, root: Path, listing: Listing, description: str | None = None) -> None:
        super().__init__(description or f"folder {root}", listing)
        self._paths = [str(file.place) for file in listing.files]

    def read(self, index: int) -> bytes:
        """Return the bytes of one file."""
        return Path(self._paths[index]).read_bytes()


class TarSource(_ListedSource):
    """Image files inside of one uncompressed tar file, read at their offsets.

    Args:
        path: The tar file.
        listing: Its members; ``place`` is the offset of the bytes.
    """

    def __init__(self, path: Path, listing: Listing) -> None:
        super().__init__(f"tar file {path}", listing)
        self._path = path
        self._offsets = [int(file.place) for file in listing.files]

    def read(self, index: int) -> bytes:
        """Return the bytes of one member; no state is shared between threads."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._offsets[index])
            return file.read(int(self.sizes[index]))


class ArraySource:
    """An image set of pixel arrays without files, whose keys are numbers."""

    def __init__(
        self,
        description: str,
        split: str,
        images: Sequence[NDArray[np.uint8]],
        labels: NDArray[np.int32],
        class_names: Sequence[str],
    ) -> None:
        self.description = description
        self.class_names = class_names
        self.labels = labels
        self._images = images
        self.keys = [f"{split}/{index:09d}" for index in range(len(images))]
        self.sizes = np.array([len(stored_bytes(image)) for image in images], dtype=np.int64)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the pixels of one image."""
        return self._images[index]


class DigitsSource(ArraySource):
    """scikit-learn's 1797 handwritten digits of 8x8 pixels: 1347 to train on, 450 to test with.

    The set is sorted by writer, so the split goes by the hash of a digit's number.
    """

    def __init__(self, split: str) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UsageError(
                "the digits data set requires scikit-learn, which is not installed",
                hint='pip install "logitcache[demo]"',
            ) from None
        digits = load_digits()
        order = sorted(range(len(digits.target)), key=lambda index: key_hash(f"digits/{index:09d}"))
        chosen = sorted(order[:_DIGITS_VAL] if split == "val" else order[_DIGITS_VAL:])
        # 17 gray levels; rounded, since astype truncates
        pixels = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        labels = digits.target[chosen].astype(np.int32)
        names = [str(name) for name in digits.target_names]
        super().__init__(f"digits, {split}", split, list(pixels), labels, names)


def _tar_source(config: DataConfig, listing: int) -> Source:
    path = Path(config.name).expanduser()
    return TarSource(path, list_tar(path, listing, config.class_folder))


def _table_source(config: DataConfig, listing: int) -> Source:
    del listing  # the rules are those of folders: what a table lists is never left out
    path = Path(config.name).expanduser()
    root = path.parent if config.root is None else Path(config.root).expanduser()
    columns = TableColumns(config.path_column, config.label_column, config.split_column)
    return FileSource(root, list_table(path, columns, root, config.split), f"table {path}")


def _torch_source(config: DataConfig, listing: int) -> Source:
    """List one of torchvision's data sets; those of files are read as files."""
    name, _, root = config.name.removeprefix("torch/").partition(":")
    if name not in (*_TORCH_SETS, "imagenet"):
        raise UsageError(
            f"unknown torchvision data set torch/{name}",
            hint=nearest(name, (*_TORCH_SETS, "imagenet")),
        )
    if not root:
        what = "the folder of the torchvision data set is not given"
        raise UsageError(what, where=config.name, expected=f"torch/{name}:<folder>")
    from timm.data.dataset_factory import create_dataset

    try:
        dataset: Any = create_dataset(
            f"torch/{name}", root=root, split=config.split, search_split=False, download=False
        )
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(
            f"torchvision cannot find {name} in this folder",
            where=root,
            got=str(error).split("\n")[0],
        ) from None
    if hasattr(dataset, "samples"):
        return FileSource(Path(dataset.root), _listing_of(dataset))
    images = [np.asarray(image) for image in dataset.data]
    targets = np.asarray(dataset.targets, dtype=np.int64)
    labels_N = (targets[:, 0] if targets.ndim > 1 else targets).astype(np.int32)
    return ArraySource(
        f"torch/{name}, {config.split}", config.split, images, labels_N, list(dataset.classes)
    )


def _listing_of(dataset: Any) -> Listing:
    """Return the files of one of torchvision's data sets of folders."""
    names = [str(name) for name in dataset.classes]
    files, labels = [], []
    for path, label in dataset.samples:
        key = normalize_key(os.path.relpath(path, dataset.root))
        files.append(ListedFile(key, names[label], Path(path).stat().st_size, str(path)))
        labels.append(int(label))
    return Listing(files, labels, names)


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of image set.

    Attributes:
        open_set: Function that lists the images of a configuration by a version of the rules.
        splits: Whether the set has the splits ``train`` and ``val``.
    """

    open_set: Callable[[DataConfig, int], Source]
    splits: bool = False


READERS: dict[str, Reader] = {
    "digits": Reader(lambda config, listing: DigitsSource(config.split), splits=True),
    "torch/": Reader(_torch_source, splits=True),
    ".tar": Reader(_tar_source),
    ".csv": Reader(_table_source, splits=True),
    ".tsv": Reader(_table_source, splits=True),
}
"""Readers by name of the set, by the start of its name (``torch/``), or by the ending of its file.

A new reader is one entry here. Folders need no entry.
"""
