"""Soft clustering of tokens: k-means++ and expectation maximization.

Prototypes c are chosen by k-means++ (Arthur and Vassilvitskii, 2007) and improved by whole passes
over the tokens j::

    c_k = sum_j a_jk p_j / sum_j a_jk

with the assignment a of :class:`~logitcache.objectives.prototypes.table.PrototypeTable`. This is
expectation maximization of a mixture of equal round Gaussians: no pass increases the mean
of -log(sum_k exp(-s |p_j - c_k|^2)) / s, and there is no learning rate.

Shapes: M tokens, K prototypes, E channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from logitcache.objectives.prototypes.table import PrototypeTable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["State", "improved", "spread_centers"]

_UNUSED = 1e-12  # sum of the assignments to a prototype without tokens


@dataclass(frozen=True)
class State:
    """Prototypes after some passes.

    Attributes:
        centers: The prototypes, float64 (K, E).
        scale: Sharpness s of the assignment, one over squared units of the tokens.
        passes: Number of passes.
        explained: Explained share of the variance, before the last pass.
    """

    centers: Tensor
    scale: float
    passes: int = 0
    explained: float = 0.0


def improved(batches: Iterable[NDArray[np.float32]], state: State) -> State:
    """Return the prototypes after a further pass over all tokens.

    A prototype that no token is assigned to stays where it is.

    Args:
        batches: All tokens, in batches (M, E).
        state: The prototypes before the pass.
    """
    centers_KE, table = state.centers, PrototypeTable.of(state.centers, state.scale)
    sums_KE, weights_K1 = torch.zeros_like(centers_KE), centers_KE.new_zeros(len(centers_KE), 1)
    squares = 0.0
    for tokens_ME in batches:
        wide_ME = torch.from_numpy(tokens_ME).double()
        shares_KM = table.log_shares(wide_ME).exp().T
        sums_KE += shares_KM @ wide_ME
        weights_K1 += shares_KM.sum(1, keepdim=True)
        squares += wide_ME.square().sum().item()
    # sums over tokens of |p_j - mean|^2, and of a_jk |p_j - c_k|^2 over k; the a_jk of j sum to one
    variance = squares - (sums_KE.sum(0).square().sum() / weights_K1.sum()).item()
    distance = squares + ((weights_K1 * centers_KE - 2 * sums_KE) * centers_KE).sum().item()
    moved_KE = torch.where(weights_K1 > _UNUSED, sums_KE / weights_K1, centers_KE)
    explained = 1.0 - distance / variance if variance > 0 else 0.0
    return State(moved_KE, state.scale, state.passes + 1, explained)


def spread_centers(
    tokens_ME: NDArray[np.float32], count: int, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Return prototypes chosen by k-means++, (K, E), and the mean squared distance from them.

    Each is a token, drawn with a probability in proportion to its squared distance from the nearest
    one so far; any of them where all have the distance zero.

    Args:
        tokens_ME: Tokens to choose from, M >= K.
        count: Number of prototypes, K.
        seed: Random seed.
    """
    generator = np.random.default_rng(seed)
    wide_ME = tokens_ME.astype(np.float64)
    chosen, nearest_M = [], np.full(len(wide_ME), np.inf)
    for number in range(count):
        weights_M = nearest_M if number and nearest_M.any() else np.ones(len(wide_ME))
        chosen.append(generator.choice(len(wide_ME), p=weights_M / weights_M.sum()))
        nearest_M = np.minimum(nearest_M, np.square(wide_ME - wide_ME[chosen[-1]]).sum(1))
    return wide_ME[chosen], float(nearest_M.mean())
