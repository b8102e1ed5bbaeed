"""Where images come from: folders, tar files, torchvision's sets, scikit-learn's digits.

Listing is timm's (its readers know the file extensions and the class names); reading is done here,
because timm's data set answers a corrupt file with the *next* image's pixels, and its tar reader
shares one seek position between threads.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from logitcache.config import Config
from logitcache.data.identity import key_hash, normalise_key, stored_bytes
from logitcache.errors import DataError, UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source

__all__ = ["DataConfig", "has_splits", "open_source"]

_TORCH_SETS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
_DIGITS_VAL = 450


class DataConfig(Config):
    """Which images.

    Attributes:
        name: A folder, a ``.tar`` file, ``digits``, or ``torch/<set>:<folder>``.
        split: ``train`` or ``val``, for sets that have splits; folders and tar files have none.
            ``train`` by default, and ``val`` for what a training is evaluated on.
        limit: How many of the images, chosen by the hash of their keys; all by default.
    """

    name: str
    split: Literal["train", "val"] = "train"
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


def has_splits(name: str) -> bool:
    """Return whether images of this name come as ``train`` and ``val``."""
    return name == "digits" or name.startswith("torch/")


def open_source(data: str | DataConfig) -> Source:
    """List a set of images.

    Args:
        data: A configuration or just its name.

    Raises:
        UsageError: The name cannot be understood.
        DataError: There is nothing there, or no image in it.
    """
    config = DataConfig(name=data) if isinstance(data, str) else data
    source = _list(config)
    if config.limit is None or config.limit >= len(source.keys):
        return source
    by_hash = sorted(range(len(source.keys)), key=lambda index: key_hash(source.keys[index]))
    return SubsetSource(source, sorted(by_hash[: config.limit]))


def _list(config: DataConfig) -> Source:
    if config.name == "digits":
        return DigitsSource(config.split)
    if config.name.startswith("torch/"):
        return _torch_source(config)
    root = Path(config.name).expanduser()
    if not root.exists():
        raise _missing(config.name)
    if root.is_file():
        return _tar_source(root)
    return _folder_source(root)


def _missing(name: str) -> DataError | UsageError:
    if "/" in name or os.sep in name or "." in name:
        return DataError("no such folder or file", where=name, hint="check the path")
    return UsageError(
        "no such data", where=name, expected="a folder, a .tar file, digits or torch/<set>:<folder>"
    )


class SubsetSource:
    """Some of the images of a source; the classes stay."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.description = f"{len(indices)} of {len(source.keys)} images of {source.description}"
        self.class_names = source.class_names
        self.keys = [source.keys[index] for index in indices]
        self.sizes = source.sizes[list(indices)]
        self.labels = source.labels[list(indices)]
        self._source = source
        self._indices = list(indices)

    def read(self, index: int) -> bytes | NDArray[np.uint8]:
        """Return one image as the source stores it."""
        return self._source.read(self._indices[index])


class FileSource:
    """Image files below a folder; the class is the name of the folder a file lies in."""

    def __init__(
        self, root: Path, files: Sequence[str], labels: Sequence[int], class_names: Sequence[str]
    ) -> None:
        self.description = f"folder {root}"
        self.class_names = class_names
        self.labels = np.array(labels, dtype=np.int32)
        self._paths = list(files)
        self.keys = [normalise_key(os.path.relpath(path, root)) for path in files]
        self.sizes = np.array([Path(path).stat().st_size for path in files], dtype=np.int64)

    def read(self, index: int) -> bytes:
        """Return the bytes of one file."""
        return Path(self._paths[index]).read_bytes()


class TarSource:
    """Image files inside one uncompressed tar file, read at their offsets."""

    def __init__(
        self,
        path: Path,
        members: Sequence[tuple[tarfile.TarInfo, int]],
        labels: Sequence[int],
        class_names: Sequence[str],
    ) -> None:
        self.description = f"tar file {path}"
        self.class_names = class_names
        self.labels = np.array(labels, dtype=np.int32)
        self._path = path
        self._offsets = [offset for _, offset in members]
        self.keys = [normalise_key(info.name) for info, _ in members]
        self.sizes = np.array([info.size for info, _ in members], dtype=np.int64)

    def read(self, index: int) -> bytes:
        """Return the bytes of one member; no state is shared between threads."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._offsets[index])
            return file.read(int(self.sizes[index]))


class ArraySource:
    """Pixels without files: a set that is addressed by number."""

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
                "the digits come with scikit-learn, which is not installed",
                hint='pip install "logitcache[demo]"',
            ) from None
        digits = load_digits()
        order = sorted(range(len(digits.target)), key=lambda index: key_hash(f"digits/{index:09d}"))
        chosen = sorted(order[:_DIGITS_VAL] if split == "val" else order[_DIGITS_VAL:])
        pixels = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        labels = digits.target[chosen].astype(np.int32)
        names = [str(name) for name in digits.target_names]
        super().__init__(f"digits, {split}", split, list(pixels), labels, names)


def _folder_source(root: Path) -> FileSource:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    files, class_to_index = find_images_and_targets(str(root))
    if not files:
        raise _no_images(root)
    labels, names = _labels_of([target for _, target in files], class_to_index, root)
    return FileSource(root, [path for path, _ in files], labels, names)


def _tar_source(path: Path) -> TarSource:
    from timm.data.readers.reader_image_in_tar import extract_tarinfos

    if path.suffix.lower() != ".tar":
        raise DataError(
            "images cannot be read at random out of this file",
            where=path,
            expected="a folder or an uncompressed .tar",
            hint="gunzip it, or extract it into a folder",
        )
    try:
        samples, targets, class_to_index, _ = extract_tarinfos(str(path), cache_tarinfo=False)
    except tarfile.TarError as error:
        raise DataError("not a readable tar file", where=path, got=error) from None
    except ValueError:  # what timm raises for a tar file without images
        raise _no_images(path) from None
    members = []
    for info, _, parent in samples:
        members.append((info, info.offset_data + (parent.offset_data if parent else 0)))
    labels, names = _labels_of([int(t) for t in targets], class_to_index, path)
    return TarSource(path, members, labels, names)


def _no_images(where: Path) -> DataError:
    return DataError(
        "no image in it",
        where=where,
        expected="image files in one folder per class, or all in one folder without classes",
    )


def _labels_of(
    targets: list[int], class_to_index: dict[str, int], where: Path
) -> tuple[list[int], list[str]]:
    """Return labels and class names; images that lie in no folder at all have none."""
    names = sorted(class_to_index, key=lambda name: class_to_index[name])
    if names == [""]:
        return [-1] * len(targets), []
    if "" in names:
        raise DataError(
            "some images lie in class folders and some beside them",
            where=where,
            expected="one folder per class, or no folder at all",
            got=f"{targets.count(names.index(''))} images outside of any folder",
        )
    return targets, names


def _torch_source(config: DataConfig) -> Source:
    """List one of torchvision's sets; sets of files are read as files."""
    name, _, root = config.name.removeprefix("torch/").partition(":")
    if name not in (*_TORCH_SETS, "imagenet"):
        raise UsageError(
            f"unknown set torch/{name}",
            hint=nearest(name, (*_TORCH_SETS, "imagenet")),
        )
    if not root:
        raise UsageError("no folder given", where=config.name, expected=f"torch/{name}:<folder>")
    from timm.data.dataset_factory import create_dataset

    try:
        dataset: Any = create_dataset(
            f"torch/{name}", root=root, split=config.split, search_split=False, download=False
        )
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(
            f"torchvision finds no {name} here", where=root, got=str(error).split("\n")[0]
        ) from None
    if hasattr(dataset, "samples"):
        files, labels = zip(*dataset.samples, strict=True)
        return FileSource(Path(dataset.root), files, labels, [str(c) for c in dataset.classes])
    images = [np.asarray(image) for image in dataset.data]
    targets = np.asarray(dataset.targets, dtype=np.int64)
    labels_N = (targets[:, 0] if targets.ndim > 1 else targets).astype(np.int32)
    return ArraySource(
        f"torch/{name}, {config.split}", config.split, images, labels_N, list(dataset.classes)
    )
