"""Label sets as targets: for each image and class whether the image has the class.

Shapes: B rows, C classes, W width of the rows of a cache.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from logitcache.label_sets import LabelSets
from logitcache.targets.unit_cache import UnitCache

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.cache.read.reader import Cache

__all__ = ["CachedLabelSets", "mixed_sets"]


class CachedLabelSets:
    """Label sets of the rows of a cache, read unit by unit.

    Args:
        cache: A cache of images that may have several classes.

    Attributes:
        units: Number of classes of each row, -1 where they are unknown, and the classes.
    """

    def __init__(self, cache: Cache) -> None:
        self.units = UnitCache(partial(_unit, cache), cache.unit_rows)

    @classmethod
    def of(cls, cache: Cache) -> CachedLabelSets | None:
        """Return the label sets of a cache; None where an image has at most one class."""
        return None if cache.manifest.data.label_width is None else cls(cache)

    def take(self, rows_B: NDArray[np.int64]) -> LabelSets:
        """Return the label sets of some rows."""
        found = self.units.take(rows_B)
        return LabelSets.of_rows(found[:, 0], found[:, 1:])


def _unit(cache: Cache, unit: int) -> NDArray[np.int32]:
    return cache.label_sets_unit(unit)


def mixed_sets(
    own: LabelSets, partners: LabelSets | None, lam_B: Tensor | None, num_classes: int
) -> Tensor:
    """Return label sets as targets, float32 (B, C), NaN in rows without labels.

    Args:
        own: Classes of each image.
        partners: Classes of the image that is mixed into each; None without mixing.
        lam_B: Share of each own image, float32 (B,).
        num_classes: Number of classes, C.
    """
    own_BC = torch.from_numpy(own.indicators(num_classes))
    if partners is None or lam_B is None:
        return own_BC
    lam_B1 = lam_B[:, None]
    mixed_BC = lam_B1 * own_BC + (1 - lam_B1) * torch.from_numpy(partners.indicators(num_classes))
    # an image that is not mixed needs no labels of another one: 0 times NaN is NaN
    return torch.where(lam_B1 == 1, own_BC, mixed_BC)
