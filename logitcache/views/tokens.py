"""Random choice of patch tokens: those that networks are run on, and those that are stored.

Shapes: N rows, P patches, n kept ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.draws import Purpose, unit_floats, words
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from logitcache.views.spec import View

__all__ = ["ShownPatches", "kept_tokens", "patches_shown", "shown_patches"]


@dataclass(frozen=True)
class ShownPatches:
    """The patches of some rows that a network is run on.

    Attributes:
        indices: Indices of the patches in row-major order, int64 (N, n), ascending.
        grid: Patches along a side.
    """

    indices: NDArray[np.int64]
    grid: int

    def take(self, rows: slice | NDArray[np.int64]) -> ShownPatches:
        """Return those of some of the rows."""
        return ShownPatches(self.indices[rows], self.grid)


def shown_patches(view: View, hashes_N: NDArray[np.uint64]) -> ShownPatches | None:
    """Return the patches of each row that a view does not drop; None if it drops none.

    Args:
        view: The view.
        hashes_N: Hashes of the keys of the rows, uint64.
    """
    drop = view.dropping
    if drop is None:
        return None
    # imports torch, which units of work do not need that drop no patches
    from logitcache.views.algorithm import address_of
    from logitcache.views.erase import drawn_cells

    purpose, count = address_of(drop)
    floats_NP = unit_floats(
        words(view.seed, hashes_N, draw=view.draw, purpose=purpose, count=count)
    )
    shown_NP = np.ones(floats_NP.shape, dtype=np.bool_)
    np.put_along_axis(shown_NP, drawn_cells(floats_NP, drop.dropped), values=False, axis=1)
    indices = np.nonzero(shown_NP)[1].reshape(len(hashes_N), -1).astype(np.int64)
    return ShownPatches(indices, drop.grid)


def patches_shown(views: Iterable[View]) -> tuple[int, int] | None:
    """Return the side of the grid of patches and the number of visible ones; None for all patches.

    Raises:
        UsageError: The views show different numbers of patches.
    """
    drops = {view.id: view.dropping for view in views}
    found = {None if d is None else (d.grid, d.grid**2 - d.dropped) for d in drops.values()}
    if len(found) > 1:
        texts = [
            f"{view_id}: {'all patches' if d is None else f'{d.ratio:g} of {d.grid}x{d.grid}'}"
            for view_id, d in drops.items()
        ]
        raise UsageError(
            "features cannot be cached in views that drop different numbers of patches",
            where="views",
            expected="the same patch_drop_rate and patch_drop_grid in all views",
            got=", ".join(texts[:3]),
            hint="set eval: false, or store these views in another cache",
        )
    return next(iter(found), None)


def kept_tokens(
    view: View, hashes_N: NDArray[np.uint64], patches: int, kept: int
) -> NDArray[np.int64]:
    """Return the patches of each row that are stored in a view.

    In a view that drops patches, they are the other ones. In all others they are those with the
    ``kept`` smallest of P words; ties go to the lower number.

    Args:
        view: View with the seed and draw of the words.
        hashes_N: Hashes of the keys of the rows, uint64.
        patches: P.
        kept: n, at most P.

    Returns:
        int64 (N, n), ascending.
    """
    shown = shown_patches(view, hashes_N)
    if shown is not None:
        return shown.indices
    drawn = words(view.seed, hashes_N, draw=view.draw, purpose=Purpose.TOKENS, count=patches)
    return np.sort(np.argsort(drawn, axis=1, kind="stable")[:, :kept], axis=1)
