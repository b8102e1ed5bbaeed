"""Random choice of the patch tokens of a feature map that are kept.

Shapes: N rows, P patches, n kept ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.draws import Purpose, words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.views.spec import View

__all__ = ["kept_tokens"]


def kept_tokens(
    view: View, hashes_N: NDArray[np.uint64], patches: int, kept: int
) -> NDArray[np.int64]:
    """Return which patches of each row are kept in a view.

    Those with the ``kept`` smallest of P words, the lower number first where words are equal.

    Args:
        view: Seed and draw are its own.
        hashes_N: Hashes of the rows' keys.
        patches: P.
        kept: n, at most P.

    Returns:
        int64 (N, n), ascending.
    """
    drawn = words(view.seed, hashes_N, draw=view.draw, purpose=Purpose.TOKENS, count=patches)
    return np.sort(np.argsort(drawn, axis=1, kind="stable")[:, :kept], axis=1)
