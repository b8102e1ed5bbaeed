"""Random choice of the patch tokens of a feature map that are stored.

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
    """Return the patches of each row that are stored in a view.

    They are those with the ``kept`` smallest of P words; ties go to the lower number.

    Args:
        view: View with the seed and draw of the words.
        hashes_N: Hashes of the keys of the rows, uint64.
        patches: P.
        kept: n, at most P.

    Returns:
        int64 (N, n), ascending.
    """
    drawn = words(view.seed, hashes_N, draw=view.draw, purpose=Purpose.TOKENS, count=patches)
    return np.sort(np.argsort(drawn, axis=1, kind="stable")[:, :kept], axis=1)
