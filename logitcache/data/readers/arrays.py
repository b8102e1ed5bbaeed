"""Image sets of pixel arrays: scikit-learn's digits, and the base of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.identity import key_hash, stored_bytes
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["ArraySource", "DigitsSource", "open_digits"]

_DIGITS_VAL = 450


class ArraySource:
    """An image set of pixel arrays without files, whose keys are numbers.

    Args:
        description: Description of the set.
        split: Name that the keys begin with.
        images: Pixels (H, W) or (H, W, 3), uint8.
        labels: Class of each image, int32 (N,); -1 without one.
        class_names: Names of the classes.
    """

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


def open_digits(config: ReaderConfig, listing: int) -> DigitsSource:
    """Return scikit-learn's digits."""
    del listing  # there are no files
    return DigitsSource(config.split)
