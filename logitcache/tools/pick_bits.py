"""Choice of the number of bits of each layer of a network, from its weights.

Source: GHOST (see ``objectives/gate.py``): the weights of a layer are clustered by k-means with 2^n
clusters, and the smallest n is chosen whose mean squared distance from the centers is below a
threshold. Weights are numbers, so they are sorted once, and clusters are intervals of them: a step
of k-means is a search for the limits and a difference of cumulative sums, for millions of weights
as fast as for a few. The start is that of high-resolution quantizers (Panter and Dite, 1951):
centers are as dense as the cube root of the density of the weights.

Shapes: N weights, k clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from logitcache.config import Config
from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.networks.weight_layers import FEWEST_BITS, MOST_BITS, weight_layers
from logitcache.tools.result import ToolResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LayerBits", "PickBitsConfig", "check_trained", "clustering_errors", "pick_bits"]

BITS = tuple(range(FEWEST_BITS, MOST_BITS + 1))
_STEPS = 100
_PARTS = 4  # of the numbers, for each cluster: where the density is measured
_CHANGE = 1e-4  # relative, of the error; as in scikit-learn, of the centers


class PickBitsConfig(Config):
    """Settings of the choice of bits: network and threshold.

    Attributes:
        network: The network, with its weights.
        out: YAML file to write the bits to.
        threshold: Mean squared distance of a weight from the center of its cluster that a layer may
            have; 1e-7 in GHOST. A layer that has more with 8 bits gets 8.
    """

    network: NetworkConfig
    out: str
    threshold: Annotated[float, Field(gt=0)] = 1e-7


@dataclass(frozen=True)
class LayerBits(ToolResult):
    """Number of bits of the weights of each layer.

    Attributes:
        bits: Number of bits by name of the layer.
        errors: Mean squared distance of a weight of the layer from its center, at this number.
        mean_bits: Mean number of bits of a weight.
        weights: Number of weights of all layers.
        threshold: The threshold.
        model: Name of the network.
    """

    bits: dict[str, int]
    errors: dict[str, float]
    mean_bits: float
    weights: int
    threshold: float
    model: str


def pick_bits(config: PickBitsConfig) -> LayerBits:
    """Choose the number of bits of each layer of a network and write them to a file.

    Raises:
        UsageError: The network has no weights of its own, or no convolution or linear layer.
        NetworkError: The weights do not fit, cannot be read, or cannot be downloaded.
    """
    check_trained(config.network)
    layers = weight_layers(build_network(config.network), "pick_bits.network")
    weights = {name: layer.weight.detach().flatten() for name, layer in layers.items()}
    found = {name: clustering_errors(w.double().numpy()) for name, w in weights.items()}
    bits = {
        name: next((n for n in BITS if errors[n] < config.threshold), MOST_BITS)
        for name, errors in found.items()
    }
    total = sum(map(len, weights.values()))
    chosen = LayerBits(
        bits=bits,
        errors={name: float(f"{found[name][n]:.4g}") for name, n in bits.items()},
        mean_bits=round(sum(n * len(weights[name]) for name, n in bits.items()) / total, 4),
        weights=total,
        threshold=config.threshold,
        model=config.network.model,
    )
    chosen.write(config.out)
    return chosen


def check_trained(network: NetworkConfig) -> None:
    """Check that a network has weights of its own.

    Raises:
        UsageError: Its weights would be random.
    """
    if not network.is_trained:
        raise UsageError(
            "bits are chosen from trained weights, and the network has new ones",
            where="pick_bits.network",
            got=network.model,
            hint="give weights, or the folder of an exported network",
        )


def clustering_errors(weights_N: NDArray[np.float64]) -> dict[int, float]:
    """Return the mean squared distance of numbers from the centers of 2^n clusters, by n.

    Args:
        weights_N: The numbers.
    """
    sorted_N = np.sort(weights_N)
    moments = np.stack([np.ones_like(sorted_N), sorted_N, sorted_N**2]).cumsum(1)
    moments_3N = np.concatenate([np.zeros((3, 1)), moments], 1)
    return {n: _error(sorted_N, moments_3N, 2**n) for n in BITS}


def _error(sorted_N: NDArray[np.float64], moments_3N: NDArray[np.float64], clusters: int) -> float:
    """Return the mean squared distance from the centers that k-means finds.

    Args:
        sorted_N: The numbers, ascending.
        moments_3N: Count, sum and sum of squares of the first numbers, of none to all.
        clusters: Number of clusters k.
    """
    centers_k = _start(sorted_N, clusters)
    error = np.inf
    for _ in range(_STEPS):
        limits = np.searchsorted(sorted_N, (centers_k[1:] + centers_k[:-1]) / 2)
        counts_k, sums_k, squares_k = np.diff(moments_3N[:, [0, *limits, len(sorted_N)]])
        centers_k = sums_k / np.maximum(counts_k, 1)
        within_k = squares_k - sums_k * centers_k
        before, error = error, max(0.0, float(within_k.sum())) / len(sorted_N)
        empty = np.flatnonzero(counts_k == 0)
        if before - error <= _CHANGE * error and (not len(empty) or error == 0):
            break
        # a cluster without weights divides one of those with the largest sums of squares
        divided = np.argsort(-within_k)[: len(empty)]
        deviations = np.sqrt(np.maximum(within_k, 0) / np.maximum(counts_k, 1))
        centers_k[empty] = centers_k[divided] + deviations[divided]
        centers_k.sort()
    return error


def _start(sorted_N: NDArray[np.float64], clusters: int) -> NDArray[np.float64]:
    """Return centers as dense as the cube root of the density of the numbers, ascending."""
    last = len(sorted_N) - 1
    parts = max(1, min(last, _PARTS * clusters))
    quantiles = sorted_N[np.linspace(0, last, parts + 1).round().astype(np.int64)]
    # the density in a part is the inverse of its width, and a part holds 1 / parts of the numbers
    mass = np.concatenate([[0.0], np.cumsum(np.diff(quantiles) ** (2 / 3))])
    wanted = (np.arange(clusters) + 0.5) / clusters * mass[-1]
    centers_k: NDArray[np.float64] = np.interp(wanted, mass, quantiles)
    return centers_k
