"""Choice of the layers of a teacher that a student should imitate, by clustering all candidates.

Source: Keser et al., "PURSUhInT: In Search of Informative Hint Points Based on Layer Clustering for
Knowledge Distillation", Expert Systems with Applications 2023. Layers are compared by their
responses to the same images: the distance of two layers is one minus the linear centered kernel
alignment (CKA; Kornblith et al., ICML 2019) of their means over positions. The layers are divided
into groups, and the center of each group is a hint point. Centers are medoids here, the best of all
sets of layers, instead of the means of k-means, which are no layers and depend on their start.

Shapes: N rows, C and E channels, L layers, k hints.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from logitcache.cache.read.reader import open_cache
from logitcache.errors import UsageError
from logitcache.tools.cached_rows import (
    SampleConfig,
    cached_positions,
    check_layer,
    feature_teacher,
    sampled_rows,
    shared_view,
)
from logitcache.tools.result import ToolResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache
    from logitcache.encoding.features import FeatureEncoding

__all__ = [
    "HintPoints",
    "PickHintsConfig",
    "check_candidate",
    "check_count",
    "cka_distances",
    "medoids",
    "pick_hints",
]

_MOST_SETS = 2_000_000  # a second for 50 layers
_SETS_AT_ONCE = 4096
_FEWEST_ROWS = 2  # the alignment of a single row is not defined


class PickHintsConfig(SampleConfig):
    """Settings of hint points: cache, candidate layers and their number.

    Attributes:
        cache: Folder or URL of a cache with features of the candidate layers; their means
            (``reduce: mean``) are all that is needed.
        out: YAML file to write the hint points to.
        teacher: Name of the teacher; that of the cache if it has features of one only.
        taps: Candidate layers, in the order of the network; all cached layers by default.
        count: Number of hint points.
        rows: Maximum number of images; more are sampled at random. All layers of so many images
            are in memory at once, four bytes for each channel.
    """

    teacher: str | None = None
    taps: list[str] | None = Field(default=None, min_length=1)
    count: Annotated[int, Field(ge=1)] = 3
    rows: Annotated[int, Field(ge=_FEWEST_ROWS)] = 10000


@dataclass(frozen=True)
class HintPoints(ToolResult):
    """Chosen layers, and the groups that they are the centers of.

    Attributes:
        teacher: Name of the teacher.
        taps: Chosen layers, in the order of the candidates.
        groups: Layers of each group, by its center.
        distance: Mean distance of a layer from the center of its group, in [0, 1].
        rows: Number of images.
        cache: Folder or URL of the cache.
    """

    teacher: str
    taps: list[str]
    groups: dict[str, list[str]]
    distance: float
    rows: int
    cache: str


def pick_hints(config: PickHintsConfig) -> HintPoints:
    """Choose hint points among the cached layers of a teacher and write them to a file.

    Raises:
        UsageError: A teacher or layer is unknown, there are fewer layers than hint points or too
            many sets to try, the layers share no view, or a layer was cached as its energy.
    """
    cache = open_cache(config.cache)
    teacher = feature_teacher(cache, config.teacher, "pick_hints.teacher")
    names = _candidates(config, cache, teacher)
    features = [f"{teacher}/{tap}" for tap in names]
    view = shared_view(cache, [], features)
    rows = _rows(config, cache)
    distances_LL = cka_distances(
        [cached_positions(cache, cache.tap(f), view, rows).mean(1) for f in features]
    )
    centers = medoids(distances_LL, config.count)
    nearest_L = distances_LL[:, centers].argmin(1)
    found = HintPoints(
        teacher=teacher,
        taps=[names[center] for center in centers],
        groups={
            names[center]: [names[layer] for layer in np.flatnonzero(nearest_L == number)]
            for number, center in enumerate(centers)
        },
        distance=round(float(distances_LL[:, centers].min(1).mean()), 6),
        rows=len(rows),
        cache=config.cache,
    )
    found.write(config.out)
    return found


def cka_distances(layers: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return one minus the linear CKA of each pair of layers, (L, L).

    ::

        CKA(X, Y) = |Y^T X|^2 / (|X^T X| |Y^T Y|)

    with Frobenius norms and columns of mean zero. A layer that is the same for all images has the
    distance one from all others.

    Args:
        layers: Vectors (N, C) of each layer for the same images; C may differ.
    """
    centered = [(x_NC - x_NC.mean(0, dtype=np.float64)).astype(np.float32) for x_NC in layers]
    norms_L = [float(np.linalg.norm(x_NC.T @ x_NC)) for x_NC in centered]
    distances_LL = np.zeros((len(layers), len(layers)))
    for a, b in itertools.combinations(range(len(layers)), 2):
        scale = norms_L[a] * norms_L[b]
        cross = float(np.linalg.norm(centered[b].T @ centered[a])) ** 2
        alike = cross / scale if scale > 0 else 0.0
        distances_LL[a, b] = distances_LL[b, a] = max(0.0, 1.0 - alike)
    return distances_LL


def medoids(distances_LL: NDArray[np.float64], count: int) -> list[int]:
    """Return the centers with the smallest sum of distances to the nearest one, ascending.

    Of sets with equal sums the first in lexicographic order is returned.

    Args:
        distances_LL: Distances of each pair.
        count: Number of centers k.

    Raises:
        UsageError: There are fewer than k things, or too many sets of k.
    """
    things = len(distances_LL)
    check_count(count, things)
    best, least = [0], math.inf
    sets = itertools.combinations(range(things), count)
    while some := list(itertools.islice(sets, _SETS_AT_ONCE)):
        sums = distances_LL[:, np.array(some)].min(2).sum(0)
        first = int(sums.argmin())
        if sums[first] < least:
            best, least = list(some[first]), float(sums[first])
    return best


def check_count(count: int, layers: int) -> None:
    """Check that a number of hint points can be chosen among some layers.

    Raises:
        UsageError: There are fewer layers, or too many sets of them.
    """
    if count > layers:
        raise UsageError(
            "there are fewer layers than hint points",
            where="pick_hints.count",
            expected=f"at most {layers}",
            got=count,
            hint="reduce the count, or cache more layers",
        )
    if math.comb(layers, count) > _MOST_SETS:
        raise UsageError(
            f"there are more than {_MOST_SETS} sets of hint points to try",
            where="pick_hints",
            got=f"{count} of {layers} layers",
            hint="give fewer candidates (taps), or a smaller count",
        )


def check_candidate(encoding: FeatureEncoding, where: str) -> None:
    """Check that a layer is cached with its channels.

    Raises:
        UsageError: It is cached as its energy.
    """
    need = "layers are compared by their channels, but only an energy was cached"
    check_layer(encoding, {"vectors", "positions"}, need, where)


def _candidates(config: PickHintsConfig, cache: Cache, teacher: str) -> list[str]:
    """Return the candidate layers."""
    own = [group.tap for group in cache.features.values() if group.teacher == teacher]
    names = config.taps or own
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the layer {name!r} is given twice", where="pick_hints.taps")
        group = cache.tap(f"{teacher}/{name}")
        check_candidate(group.encoding, f"{cache.url}, features {teacher}/{name}")
    return names


def _rows(config: PickHintsConfig, cache: Cache) -> NDArray[np.int64]:
    """Return the rows to compare layers on, ascending."""
    rows = sampled_rows(cache, config.rows, config.seed)
    if len(rows) < _FEWEST_ROWS:
        raise UsageError(
            "layers cannot be compared on fewer than two images", where=cache.url, got=len(rows)
        )
    return rows
