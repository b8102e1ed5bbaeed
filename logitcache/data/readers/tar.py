"""Uncompressed tar files, and tar files of tar files, read without extracting them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.data.listing import Listing, list_tar
from logitcache.data.readers.files import ListedSource
from logitcache.data.readers.paths import user_path

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["TarSource", "open_tar"]


class TarSource(ListedSource):
    """Image files inside of one uncompressed tar file, read at their offsets.

    timm's reader of tar files is not used: its threads share one seek position.

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


def open_tar(config: ReaderConfig, listing: int) -> TarSource:
    """List a tar file."""
    path = user_path(config.name)
    return TarSource(path, list_tar(path, listing, config.class_folder, config.root))
