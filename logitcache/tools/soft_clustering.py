"""Soft clustering of tokens: k-means++ and expectation maximization.

The assignment of a token p to prototype k is that of NetVLAD (Arandjelović et al., CVPR 2016)::

    a_k = softmax over k of w_k . p + b_k, with w_k = 2 s c_k and b_k = -s |c_k|^2
        = softmax over k of -s |p - c_k|^2

Prototypes c are chosen by k-means++ (Arthur and Vassilvitskii, 2007) and improved by whole passes
over the tokens j::

    c_k = sum_j a_jk p_j / sum_j a_jk

which is expectation maximization of a mixture of equal round Gaussians: no pass increases the mean
of -log(sum_k exp(-s |p_j - c_k|^2)) / s, and there is no learning rate.

Shapes: M tokens, K prototypes, E channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["State", "Tokens", "assignments", "improved", "spread_centers"]

Tokens = NDArray[np.float32]
_Wide = NDArray[np.float64]

_UNUSED = 1e-12  # sum of the assignments to a prototype without tokens


@dataclass(frozen=True)
class State:
    """Prototypes after some passes.

    Attributes:
        centers: The prototypes, (K, E).
        scale: Sharpness s of the assignment, one over squared units of the tokens.
        passes: Number of passes.
        explained: Explained share of the variance, before the last pass.
    """

    centers: _Wide
    scale: float
    passes: int = 0
    explained: float = 0.0


def assignments(tokens_ME: _Wide, state: State) -> _Wide:
    """Return the soft assignment of tokens to prototypes, (M, K); rows sum to one."""
    logits_MK = -state.scale * _distances(tokens_ME, state.centers)
    exp_MK = np.exp(logits_MK - logits_MK.max(1, keepdims=True))
    shares_MK: _Wide = exp_MK / exp_MK.sum(1, keepdims=True)
    return shares_MK


def improved(batches: Iterable[Tokens], state: State) -> State:
    """Return the prototypes after a further pass over all tokens.

    A prototype that no token is assigned to stays where it is.

    Args:
        batches: All tokens, in batches (M, E).
        state: The prototypes before the pass.
    """
    centers_KE = state.centers
    sums_KE, weights_K = np.zeros_like(centers_KE), np.zeros(len(centers_KE))
    total_E, squares, distance, count = np.zeros(centers_KE.shape[1]), 0.0, 0.0, 0
    for tokens_ME in batches:
        wide_ME = tokens_ME.astype(np.float64)
        shares_MK = assignments(wide_ME, state)
        sums_KE += shares_MK.T @ wide_ME
        weights_K += shares_MK.sum(0)
        total_E += wide_ME.sum(0)
        squares += float(np.square(wide_ME).sum())
        distance += float((shares_MK * _distances(wide_ME, centers_KE)).sum())
        count += len(tokens_ME)
    used_K1 = (weights_K > _UNUSED)[:, None]
    moved_KE = sums_KE / np.maximum(weights_K, _UNUSED)[:, None]
    variance = squares - float(np.square(total_E).sum()) / max(1, count)
    explained = 1.0 - distance / variance if variance > 0 else 0.0
    centers_KE = np.where(used_K1, moved_KE, centers_KE)
    return State(centers_KE, state.scale, state.passes + 1, explained)


def spread_centers(tokens_ME: Tokens, count: int, seed: int) -> tuple[_Wide, float]:
    """Return prototypes chosen by k-means++, (K, E), and the mean squared distance from them.

    Each is a token, drawn with a probability in proportion to its squared distance from the nearest
    one so far.

    Args:
        tokens_ME: Tokens to choose from, M >= K.
        count: Number of prototypes, K.
        seed: Random seed.
    """
    generator = np.random.default_rng(seed)
    wide_ME = tokens_ME.astype(np.float64)
    chosen = [int(generator.random() * len(wide_ME))]
    nearest_M = _distances(wide_ME, wide_ME[chosen])[:, 0]
    while len(chosen) < count:
        # where all tokens are equal to a prototype, any of them is as good
        edges_M = np.cumsum(nearest_M if nearest_M.any() else np.ones(len(wide_ME)))
        place = np.searchsorted(edges_M, generator.random() * edges_M[-1], side="right")
        chosen.append(min(int(place), len(wide_ME) - 1))
        nearest_M = np.minimum(nearest_M, _distances(wide_ME, wide_ME[chosen[-1:]])[:, 0])
    return wide_ME[chosen], float(nearest_M.mean())


def _distances(tokens_ME: _Wide, centers_KE: _Wide) -> _Wide:
    """Return squared distances, (M, K)."""
    squares_M1 = np.square(tokens_ME).sum(1, keepdims=True)
    found = squares_M1 - 2 * tokens_ME @ centers_KE.T + np.square(centers_KE).sum(1)
    return np.asarray(np.maximum(found, 0.0))
