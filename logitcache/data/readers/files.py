"""Images of a listing; class folders, whose images are files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.listing import Listing, list_folder
from logitcache.data.readers.paths import user_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["FileSource", "ListedSource", "open_folder"]


class ListedSource:
    """Images of a listing.

    Args:
        description: Description of the set.
        listing: The images.
    """

    def __init__(self, description: str, listing: Listing) -> None:
        self.description = description
        self.class_names = listing.class_names
        self.labels = np.array(listing.labels, dtype=np.int32)
        self.label_sets = listing.label_sets
        self.keys = [file.key for file in listing.files]
        self.sizes = np.array([file.size for file in listing.files], dtype=np.int64)
        self.left_out: Mapping[str, int] = listing.left_out
        self.notes: Sequence[str] = listing.notes


class FileSource(ListedSource):
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


def open_folder(config: ReaderConfig, listing: int) -> FileSource:
    """List a folder with one folder per class, or of images without classes."""
    root = user_path(config.name)
    return FileSource(root, list_folder(root, listing, config.class_folder))
