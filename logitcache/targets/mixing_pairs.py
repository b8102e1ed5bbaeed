"""Mixing partners among the available images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from logitcache.data.lookup import position_dtype
from logitcache.targets.classes.label_targets import mixed_sets
from logitcache.targets.unit_cache import UnitCache
from logitcache.views.algorithm import mix_shares
from logitcache.views.mix import match_partners

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.targets.images.image_rows import ImageRows
    from logitcache.targets.reader import TargetsReader
    from logitcache.views.spec import View

__all__ = ["Pairs", "find_pairs", "label_set_targets", "shares_of"]


_BLOCK = 1 << 16  # images that are matched among themselves where no cache has the partners


@dataclass(frozen=True)
class Pairs:
    """The mixing partners of the images in one view.

    Attributes:
        view: A view that mixes images.
        rows: The available images.
        partners: From rows to the rows of their partners: the row itself if it is not mixed, -1 if
            it is not shown. From positions to positions if ``by_position``.
        by_position: Whether partners are given by position instead of row.
    """

    view: View
    rows: ImageRows
    partners: UnitCache
    by_position: bool = False

    def partners_of(self, rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each row's partner, int64 (B,), -1 where it is not available."""
        numbers = self.rows.numbers
        if self.by_position:
            return numbers.take(self.partners.take(numbers.find(rows_B)).astype(np.int64))
        partners: NDArray[np.int64] = self.partners.take(rows_B)
        if self.rows.complete:
            return partners
        return np.where(self.rows.find(partners) >= 0, partners, -1)

    def count(self) -> int:
        """Return the number of images whose partner is available."""
        if self.rows.complete or self.by_position:
            return len(self.rows)
        numbers = self.rows.numbers
        return sum(
            int((self.partners_of(numbers.take(part)) >= 0).sum()) for part in self.rows.parts()
        )

    def mixture(self, positions_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the partners' labels, int64 (B,), and the share of each image, float32 (B,)."""
        partners = self.positions_of(positions_B)
        hashes_B = self.rows.hashes_of(positions_B)
        lam = shares_of(self.view, hashes_B, alone_B=partners == positions_B)
        return torch.from_numpy(self.rows.labels_of(partners)), lam

    def positions_of(self, positions_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position of each image's partner, int64 (B,), -1 where it is not available."""
        return self.rows.find(self.partners_of(self.rows.numbers.take(positions_B)))


def label_set_targets(
    rows: ImageRows, pairs: Pairs | None, positions_B: NDArray[np.int64], lam_B: Tensor | None
) -> Tensor | None:
    """Return the label sets of images as targets, float32 (B, C); None without label sets.

    Args:
        rows: The images.
        pairs: Mixing partners; None without mixing.
        positions_B: Positions of the images.
        lam_B: Share of each own image, float32 (B,); None without mixing.
    """
    if not rows.has_label_sets:
        return None
    own = rows.label_sets_of(positions_B)
    partners = None if pairs is None else rows.label_sets_of(pairs.positions_of(positions_B))
    return mixed_sets(own, partners, lam_B, len(rows.class_names))


def shares_of(view: View, hashes_B: NDArray[np.uint64], *, alone_B: NDArray[np.bool_]) -> Tensor:
    """Return the share of each row's own image in a view that mixes images, float32 (B,).

    Args:
        view: The view.
        hashes_B: Key hashes of the images.
        alone_B: Which images are mixed with no other one: their share is 1.
    """
    shares = np.array(mix_shares(view, hashes_B))
    return torch.from_numpy(np.where(alone_B, 1.0, shares).astype(np.float32))


def find_pairs(view: View, rows: ImageRows, reader: TargetsReader | None) -> Pairs | None:
    """Return the mixing partners of a view, None if it mixes no images.

    Args:
        view: The view.
        rows: The available images.
        reader: Reader of the cache that stores the partners; None to match the available images.
    """
    if view.mixing is None:
        return None
    if reader is not None:
        return Pairs(view, rows, reader.partners(view.id))
    matched = UnitCache(partial(_matched, view, rows), _BLOCK)
    matched.keep = -(-len(rows) // _BLOCK)  # all rows are shuffled together: any may be next
    return Pairs(view, rows, matched, by_position=True)


def _matched(view: View, rows: ImageRows, block: int) -> NDArray[np.signedinteger]:
    """Match the images of a block with each other; return the position of each one's partner."""
    positions = np.arange(block * _BLOCK, min((block + 1) * _BLOCK, len(rows)))
    offsets = match_partners(view.seed, view.draw, rows.hashes_of(positions))
    return (block * _BLOCK + offsets).astype(position_dtype(len(rows)))
