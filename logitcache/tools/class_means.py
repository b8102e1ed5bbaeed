"""Class table from a cache: the mean of the cached vectors of each class.

Source: the prototypes of Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017.
A classifier over unit vectors takes the table in place of text embeddings.

Shapes: N rows, D channels, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field
from safetensors.numpy import save
from torch.nn import functional

from logitcache.cache.read.reader import open_cache
from logitcache.config import Config
from logitcache.errors import UsageError, first_of
from logitcache.files import write_file
from logitcache.tools.cached_rows import (
    SeenConfig,
    cached_positions,
    check_layer,
    labeled_rows,
    shared_view,
)
from logitcache.tools.result import ToolResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.features import FeatureEncoding

__all__ = ["ClassMeans", "ClassMeansConfig", "check_vectors", "class_means"]

_TINY = float(np.finfo(np.float32).tiny)


class ClassMeansConfig(Config):
    """Settings of a table of class means.

    Attributes:
        cache: Folder or URL of a cache with vectors and labels.
        feature: Name of the cached vectors, ``<teacher>/<tap>``.
        out: File to write the table to, in the format of safetensors.
        labels: Images whose labels are used; all labeled images by default.
    """

    cache: str
    feature: Annotated[str, Field(pattern=r"^[^/]+/.+$")]
    out: str
    labels: SeenConfig | None = None


@dataclass(frozen=True)
class ClassMeans(ToolResult):
    """A table of class means.

    Attributes:
        feature: Name of the cached vectors.
        classes: Number of images of each class.
        channels: Length of the vectors.
        cache: Folder or URL of the cache.
    """

    feature: str
    classes: dict[str, int]
    channels: int
    cache: str


def class_means(config: ClassMeansConfig) -> ClassMeans:
    """Compute the mean of the unit vectors of each class, and write the table to a file.

    Each mean is scaled to unit length. The view is ``eval``, or else the first one of the cache.

    Raises:
        UsageError: The features are unknown or no vectors, images have no labels or several, or a
            class has no image.
    """
    cache = open_cache(config.cache)
    group = cache.tap(config.feature)
    check_vectors(group.encoding, f"{cache.url}, features {config.feature}")
    rows = labeled_rows(cache, "class means")
    if config.labels is not None:
        rows = np.sort(rows[config.labels.among(cache, rows)])
    view = shared_view(cache, [], [config.feature])
    vectors_ND = cached_positions(cache, group, view, rows)[:, 0]
    labels_N = cache.samples.labels[rows]
    counts_C = np.bincount(labels_N, minlength=len(cache.class_names))
    lacking = [name for name, n in zip(cache.class_names, counts_C, strict=True) if n == 0]
    if lacking:
        raise UsageError(
            f"{len(lacking)} of {len(counts_C)} classes have no image to average",
            where=cache.url,
            got=first_of(lacking),
            hint="use more labels (labels.count), or another seed",
        )
    means_CD = unit_means(vectors_ND, labels_N, len(counts_C))
    table = dict(zip(cache.class_names, means_CD, strict=True))
    write_file(Path(config.out), save(table))
    return ClassMeans(
        feature=config.feature,
        classes=dict(zip(cache.class_names, counts_C.tolist(), strict=True)),
        channels=means_CD.shape[1],
        cache=config.cache,
    )


def check_vectors(encoding: FeatureEncoding, where: str) -> None:
    """Check that a layer is cached as one vector for each image.

    Raises:
        UsageError: It is cached as maps or tokens.
    """
    check_layer(encoding, {"vectors"}, "class means need one vector for each image", where)


def unit_means(
    vectors_ND: NDArray[np.float32], labels_N: NDArray[np.int32], classes: int
) -> NDArray[np.float32]:
    """Return the mean direction of the vectors of each class, (C, D), of unit length.

    Args:
        vectors_ND: Vectors of any length.
        labels_N: Their classes, each of which occurs.
        classes: Number of classes C.
    """
    units_ND = functional.normalize(torch.from_numpy(vectors_ND).double(), eps=_TINY)
    sums_CD = units_ND.new_zeros(classes, vectors_ND.shape[1])
    sums_CD.index_add_(0, torch.from_numpy(labels_N), units_ND)
    means_CD: NDArray[np.float32] = functional.normalize(sums_CD, eps=_TINY).float().numpy()
    return means_CD
