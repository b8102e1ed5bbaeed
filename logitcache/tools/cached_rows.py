"""Encoded rows of one view of a group, for tools that read a sample of a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from logitcache.config import Config
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.group import RowGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.encoding.arrays import Encoded

__all__ = ["SeenConfig", "shared_view", "stored_rows"]


class SeenConfig(Config):
    """Images whose labels a training run used: its ``labels``.

    Attributes:
        count: Number of images, ``labels.count`` of that run.
        seed: Random seed of their draw, ``labels.seed`` or else ``seed`` of that run.
    """

    count: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**64)]


def shared_view(cache: Cache, teachers: Sequence[str], features: Sequence[str] = ()) -> str:
    """Return the view that a tool reads: ``eval`` if all have it, otherwise their first one.

    Args:
        cache: The cache.
        teachers: Names of teachers whose logits are read.
        features: Names of taps that are read, ``<teacher>/<tap>``.

    Raises:
        UsageError: There is no view that all of them have.
    """
    views = cache.views_of(teachers, features)
    if not views:
        raise UsageError(
            "the cache has no view that all of these teachers and taps share",
            where=cache.url,
            got=", ".join([*teachers, *features]),
            hint="choose fewer of them, or precompute their missing views",
        )
    return "eval" if "eval" in views else views[0]


def stored_rows(cache: Cache, group: RowGroup, view: str, rows: NDArray[np.int64]) -> Encoded:
    """Return the arrays of some rows, (N, ...), as the group encodes them.

    Args:
        cache: The cache.
        group: Logits or features of a teacher.
        view: The view.
        rows: Row numbers (N,).
    """
    units = np.unique(rows // group.unit_rows)
    read = cache.read_units(group.name, view, units.tolist(), list(group.specs()))
    slots = np.searchsorted(units, rows // group.unit_rows)
    places = slots * group.unit_rows + rows % group.unit_rows
    return {name: array[places] for name, array in read.items()}
