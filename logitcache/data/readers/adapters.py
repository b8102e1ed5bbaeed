"""Objects from Python as sources of images: PyTorch and Hugging Face data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from logitcache.data.readers.files import FileSource
from logitcache.data.readers.hugging_face import HuggingFaceSource
from logitcache.data.readers.reader import ReaderConfig
from logitcache.data.readers.torch_dataset import DatasetSource
from logitcache.data.readers.torchvision import listing_of_files
from logitcache.data.subset import SubsetSource
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.data.source import Source

__all__ = ["ADAPTERS", "as_source"]


def _folder(dataset: Any) -> Source:
    """Return the files of an ``ImageFolder``: keys are those of its folder."""
    return FileSource(Path(dataset.root), listing_of_files(dataset))


def _subset(dataset: Any) -> Source:
    """Return images of the whole data set, under the keys that they have there."""
    return SubsetSource(as_source(dataset.dataset), [int(index) for index in dataset.indices])


def _hugging_face(dataset: Any) -> Source:
    split = str(dataset.split or "train")
    config = ReaderConfig(name=split, split="train" if split == "train" else "val")
    return HuggingFaceSource(dataset, config, f"Hugging Face data set, {split}")


ADAPTERS: dict[str, Callable[[Any], Source]] = {
    "torchvision.datasets.folder.DatasetFolder": _folder,
    "torch.utils.data.dataset.Subset": _subset,
    "torch.utils.data.dataset.Dataset": DatasetSource,
    "datasets.arrow_dataset.Dataset": _hugging_face,
}
"""Functions that make a source of an object, by the name of its class or of a base class of it.

Classes are named, so that their libraries are imported by those who use them. Sources themselves
need no entry, and other map-style data sets are taken as those of PyTorch.
"""


def as_source(data: object) -> Source:
    """Return an object from Python as a source of images.

    Args:
        data: A :class:`~logitcache.data.source.Source`, or a map-style data set.

    Raises:
        UsageError: It is neither, or its columns are not clear.
        DataError: Its items are no images.
    """
    if hasattr(data, "read") and hasattr(data, "keys") and hasattr(data, "class_names"):
        return cast("Source", data)
    for base in type(data).__mro__:
        adapter = ADAPTERS.get(f"{base.__module__}.{base.__qualname__}")
        if adapter is not None:
            return adapter(data)
    if isinstance(data, dict) or not hasattr(data, "__getitem__"):
        raise UsageError(
            "this object is not an image set",
            got=type(data).__name__,
            expected="a name, a DataConfig, a Source, or a map-style data set",
            hint="of a data set with several splits, pass one: dataset['train']"
            if isinstance(data, dict)
            else None,
        )
    return DatasetSource(data)
