"""Whose image is mixed into whose, among the images at hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from logitcache.views.algorithm import mix_shares
from logitcache.views.mix import match_partners

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.targets.gather import TargetsReader
    from logitcache.targets.match import ImageRows
    from logitcache.views.spec import View

__all__ = ["Pairs", "find_pairs"]


@dataclass(frozen=True)
class Pairs:
    """The partners of one view.

    Attributes:
        view: A view that mixes.
        rows: The images at hand.
        partners: By position in ``rows``: that of the partner, int64 (N,); the image itself where
            it is left alone, -1 where the partner is not at hand.
    """

    view: View
    rows: ImageRows
    partners: NDArray[np.int64]

    @property
    def shown(self) -> NDArray[np.int64]:
        """Positions of the images whose partner is at hand, ascending."""
        return np.flatnonzero(self.partners >= 0)

    @property
    def partner_rows(self) -> NDArray[np.int64]:
        """Row of the partner of each of :attr:`shown`."""
        return self.rows.rows[self.partners[self.shown]]

    def mixture(self, positions_B: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the partners' labels, int64 (B,), and each row's own share, float32 (B,)."""
        partners = self.partners[positions_B]
        shares = np.array(mix_shares(self.view, self.rows.hashes[positions_B]))
        lam = np.where(partners == positions_B, 1.0, shares).astype(np.float32)
        return torch.from_numpy(self.rows.labels[partners]), torch.from_numpy(lam)


def find_pairs(view: View, rows: ImageRows, reader: TargetsReader | None) -> Pairs | None:
    """Find the partners of a view, None where it mixes nothing.

    Args:
        view: The view.
        rows: The images at hand.
        reader: Of the cache that knows the partners; without one the images at hand are matched.
    """
    if view.mixing is None:
        return None
    if reader is None:
        return Pairs(view, rows, match_partners(view.seed, view.draw, rows.hashes))
    wanted = reader.partners(view.id)[rows.rows]
    found = np.minimum(rows.positions(wanted), len(rows) - 1)
    return Pairs(view, rows, np.where(rows.rows[found] == wanted, found, -1))
