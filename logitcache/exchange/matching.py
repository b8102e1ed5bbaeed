"""Images of a data set for the rows of a file of outputs: by name, or by position."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from logitcache.data.identity import normalize_key
from logitcache.errors import DataError, DataMismatch, first_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.exchange.outputs import OutputFile

__all__ = ["Match", "image_folder_order", "match_images"]


class Match(NamedTuple):
    """Rows of a file of outputs for the images of a data set.

    Attributes:
        rows: Row of each image, int64 (N,); -1 for images without outputs.
        unused: Number of rows that belong to no image.
        by_position: Whether rows were identified by their position alone.
    """

    rows: NDArray[np.int64]
    unused: int
    by_position: bool


def image_folder_order(keys: Sequence[str]) -> list[int]:
    """Return the positions of images in the order of torchvision's ``ImageFolder``.

    Classes, then folders of a class with their path, then files of a folder, are each ordered by
    code points.
    """

    def place(index: int) -> tuple[str, str, str]:
        folder, _, name = keys[index].rpartition("/")
        return folder.partition("/")[0], folder, name

    return sorted(range(len(keys)), key=place)


def match_images(file: OutputFile, keys: Sequence[str], where: str) -> Match:
    """Find the row of each image.

    Keys that are the numbers from 0 up, and are no names of images, are positions in an
    ``ImageFolder``; so are rows without keys.

    Args:
        file: The file of outputs.
        keys: Names of the images.
        where: Description of the images, for messages.

    Raises:
        DataError: Two rows have the same key.
        DataMismatch: No image has outputs, or positions are of another number of images.
    """
    named = {_key(key): row for row, key in enumerate(file.keys)}
    if len(named) != len(file.keys):
        raise DataError("two rows of a file of outputs have the same key", where=file.path)
    rows_N = np.fromiter((named.get(key, -1) for key in keys), np.int64, len(keys))
    if (rows_N >= 0).any():
        return Match(rows_N, len(named) - int((rows_N >= 0).sum()), by_position=False)
    positions = list(range(file.rows)) if not file.keys else _positions(file.keys)
    if positions is None:
        raise DataMismatch(
            "no image has outputs in this file",
            where=file.path,
            expected=f"names of images such as {first_of(list(keys), 2)}",
            got=f"keys such as {first_of(list(file.keys), 2)}",
            hint="keys are paths relative to the root of the images, or their positions",
        )
    if len(positions) != len(keys):
        raise DataMismatch(
            "outputs are identified by position, and their number is not that of the images",
            where=file.path,
            expected=f"{len(keys)} rows, one for each image of {where}",
            got=f"{len(positions)} rows",
            hint="give exactly the images that the outputs were computed from",
        )
    rows_N[image_folder_order(keys)] = np.argsort(positions)
    return Match(rows_N, 0, by_position=True)


def _key(text: str) -> str:
    """Return a name as a key of an image; unchanged if it cannot be one, so it matches none."""
    try:
        return normalize_key(text)
    except DataError:
        return text


def _positions(keys: Sequence[str]) -> list[int] | None:
    """Return keys as positions; None unless they are the numbers from 0 up in some order."""
    if not all(key.isascii() and key.isdecimal() for key in keys):
        return None
    positions = [int(key) for key in keys]
    return positions if sorted(positions) == list(range(len(keys))) else None
