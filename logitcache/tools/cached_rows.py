"""Sample of a cache for tools: rows, a view that all have, and the encoded values of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from logitcache.config import Config
from logitcache.draws import Purpose, chosen
from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from logitcache.cache.format.group import RowGroup
    from logitcache.cache.format.groups import FeatureGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.features import FeatureEncoding

__all__ = [
    "SampleConfig",
    "SeenConfig",
    "cached_positions",
    "check_layer",
    "feature_teacher",
    "labeled_rows",
    "sampled_rows",
    "shared_view",
    "stored_rows",
]


Form = Literal["vectors", "positions", "energy"]
"""What is cached of a layer: one vector, channels at several positions, or their energy alone."""

_HOW = {
    "vectors": "cache a vector, such as pre_logits, or the mean of a layer (reduce: mean)",
    "positions": "cache the whole layer, without reduce",
}


class SampleConfig(Config):
    """Settings of a tool that reads a sample of a cache and writes a file.

    Attributes:
        cache: Folder or URL of the cache.
        out: File to write the result to.
        rows: Maximum number of images; more are sampled at random.
        seed: Random seed of that sample.
    """

    cache: str
    out: str
    rows: Annotated[int, Field(ge=1)] = 10000
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class SeenConfig(Config):
    """Images whose labels a training run used: its ``labels``.

    Attributes:
        count: Number of images, ``labels.count`` of that run.
        seed: Random seed of their draw, ``labels.seed`` or else ``seed`` of that run.
    """

    count: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**64)]

    def among(self, cache: Cache, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of these images among the labeled rows of a cache.

        Raises:
            UsageError: There are fewer labeled rows.
        """
        if self.count > len(rows):
            raise UsageError(
                "a training run cannot have used more labels than there are",
                where=cache.url,
                expected=f"a count of at most {len(rows)}",
                got=self.count,
                hint="give labels.count of that run",
            )
        hashes = cache.samples.hashes[rows]
        return chosen(self.seed, hashes, self.count, purpose=Purpose.LABELLED_ROWS)


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


def feature_teacher(cache: Cache, name: str | None, where: str) -> str:
    """Return the name of the teacher whose features are read.

    Args:
        cache: The cache.
        name: Its name; None for the only one that has features.
        where: Name of the option, for messages.

    Raises:
        UsageError: The cache has no features, none of this teacher, or those of several.
    """
    names = list(dict.fromkeys(group.teacher for group in cache.features.values()))
    if not names:
        raise UsageError(
            "the cache has no features, so there are no layers to choose from",
            where=cache.url,
            hint="precompute them: teachers.<name>.features: {<tap>: {reduce: mean}}",
        )
    if name is None and len(names) > 1:
        raise UsageError(
            "the cache has features of several teachers",
            where=where,
            expected="the name of one",
            got=", ".join(names),
        )
    found = name or names[0]
    if found not in names:
        raise UsageError(
            f"no features of a teacher {found!r} in this cache",
            where=cache.url,
            hint=nearest(found, names),
        )
    return found


def labeled_rows(cache: Cache, what: str) -> NDArray[np.int64]:
    """Return the readable rows with a label, ascending.

    Args:
        cache: The cache.
        what: What they are needed for, for messages.

    Raises:
        UsageError: Images have sets of labels, or none has a label.
    """
    samples = cache.samples
    labeled = samples.readable[samples.labels[samples.readable] >= 0]
    if samples.label_sets is not None or not len(labeled):
        raise UsageError(
            f"{what} need images with one label each",
            where=cache.url,
            got="images with label sets" if samples.label_sets is not None else "no labels",
            hint="precompute images with labels",
        )
    return labeled


def sampled_rows(cache: Cache, most: int, seed: int) -> NDArray[np.int64]:
    """Return readable rows, ascending; if there are more than so many, a random sample of them.

    Args:
        cache: The cache.
        most: Maximum number of rows.
        seed: Random seed of the sample.
    """
    readable = cache.samples.readable
    drawn = chosen(
        seed,
        cache.samples.hashes[readable],
        most,
        purpose=Purpose.LABELLED_ROWS,  # a draw by key, as that of labeled images
    )
    return np.sort(readable[drawn])


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


def check_layer(
    encoding: FeatureEncoding, accepted: AbstractSet[Form], need: str, where: str
) -> None:
    """Check that a layer is cached in a form that a tool can read.

    Args:
        encoding: Encoding of the layer.
        accepted: Forms that the tool can read.
        need: Why, the first line of the message.
        where: The layer, for messages.

    Raises:
        UsageError: It is cached in another form.
    """
    form: Form = "vectors" if encoding.layout == "vector" else "positions"
    form = "energy" if encoding.reduction == "energy" else form
    if form not in accepted:
        raise UsageError(
            need,
            where=where,
            expected=" or ".join(sorted(accepted)),
            got={"vectors": "a vector", "energy": "the energy of the channels"}.get(form, form),
            hint="; or ".join(_HOW[each] for each in sorted(accepted)) + "; or choose another one",
        )


def cached_positions(
    cache: Cache, group: FeatureGroup, view: str, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return a layer of some rows at every position, without prefix tokens, (N, P, D).

    Args:
        cache: The cache.
        group: The layer; a vector is one position.
        view: The view.
        rows: Row numbers (N,).
    """
    encoding = group.encoding
    values: NDArray[np.float32] = encoding.decode(stored_rows(cache, group, view, rows))
    if encoding.layout == "NCHW":
        values = np.moveaxis(values, 1, 3)
    elif encoding.layout == "NLC":
        values = values[:, encoding.prefix_tokens :]
    return values.reshape(len(values), -1, values.shape[-1])
