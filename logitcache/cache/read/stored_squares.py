"""Squares of the views of a cache that contains them, by view and row."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.names import SQUARES
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.cache.read.image_bytes import ImageBytes

__all__ = ["StoredSquares"]


class StoredSquares:
    """Encoded squares by view and row; thread-safe.

    Args:
        side: Side of the squares in pixels.
        open_view: Returns the squares of a view that is not derived, by its id.
        where: The cache, for messages.

    Attributes:
        side: Side of the squares in pixels.
    """

    def __init__(self, side: int, open_view: Callable[[str], ImageBytes], where: str) -> None:
        self.side = side
        self._open_view, self._where = open_view, where
        self._views: dict[str, ImageBytes] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, which opens files and connections for itself."""
        return {**self.__dict__, "_views": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= {**state, "_lock": threading.Lock()}

    def read(self, view_id: str, row: int) -> bytes:
        """Return the bytes of a square; empty for a row without a readable image.

        Raises:
            CacheDamaged: They are not those that were committed.
        """
        squares = self._views.get(view_id) or self._of(view_id)
        expected = squares.digest(row)
        square, digest = squares.checked(row, expected)
        if square and digest != expected:
            raise CacheDamaged(
                "a rendered view in the cache is not the one that was committed",
                where=f"{self._where}, {SQUARES}/{view_id}, row {row}",
                expected=f"digest {expected.hex()}",
                got=f"digest {digest.hex()}",
                hint="logitcache verify lists all damage; logitcache repair fixes it",
            )
        return square

    def _of(self, view_id: str) -> ImageBytes:
        with self._lock:
            if view_id not in self._views:
                self._views[view_id] = self._open_view(view_id)
            return self._views[view_id]
