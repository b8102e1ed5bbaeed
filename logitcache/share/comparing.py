"""Comparison of two caches, field by field: data, images, views, teachers, encodings, values.

Values are compared where both caches have the image, the view and the teacher. The noise floor of
a difference is what the encodings lose by themselves: two caches of the same outputs in two
encodings differ by about that much.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.groups import (
    FeatureGroup,
    TeacherGroup,
    groups_of,
)
from logitcache.share.conflicts import (
    differing_data,
    differing_fields,
    differing_records,
    equal_rows,
    image_conflicts,
    same_units,
)
from logitcache.share.gathering import GatheredRows
from logitcache.share.rows import NO_ROW
from logitcache.share.slicing import sealed_groups
from logitcache.share.source import SourceCache
from logitcache.share.union_rows import union_of_rows
from logitcache.share.view_plan import ViewPlan

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.group import Group
    from logitcache.cache.format.manifest import TeacherRecord
    from logitcache.cache.store.base import Location
    from logitcache.encoding.arrays import Encoded
    from logitcache.share.rows import RowPlan

__all__ = ["CacheDifference", "ValueDifference", "compare_caches"]


@dataclass(frozen=True)
class ValueDifference:
    """Difference of the outputs of a teacher, or of features, in one view.

    Attributes:
        group: Name of the teacher, or ``<teacher>/features/<tap>``.
        view: Id of the view.
        rows: Number of rows that both caches have.
        differing: Number of those with other stored values.
        measure: What ``mean`` and ``noise`` are: ``KL`` in nats at T = 1, or the relative
            ``error`` of features.
        mean: Difference over all rows, of features over the units that differ; None where the
            outputs have other shapes, or the features of the first cache are all zero.
        noise: What the encodings of both lose, as measured when they were computed; None where that
            is not known.
    """

    group: str
    view: str
    rows: int
    differing: int
    measure: str
    mean: float | None
    noise: float | None

    @property
    def is_noise(self) -> bool:
        """Whether the values are equal, or differ by no more than the noise floor."""
        if self.differing == 0:
            return True
        return self.mean is not None and self.noise is not None and self.mean <= self.noise


@dataclass(frozen=True)
class CacheDifference:
    """What two caches do not have in common.

    Attributes:
        first: Location of the first cache.
        second: Location of the second cache.
        images: Numbers of images of both, of the first cache alone and of the second alone.
        views: Ids of the views of the first cache alone, and of the second alone.
        groups: Teachers and features of the first cache alone, and of the second alone.
        fields: Differences of data, images, teachers and encodings, as text.
        values: Differences of the values of shared views of shared groups.
    """

    first: str
    second: str
    images: tuple[int, int, int]
    views: tuple[tuple[str, ...], tuple[str, ...]]
    groups: tuple[tuple[str, ...], tuple[str, ...]]
    fields: tuple[str, ...]
    values: tuple[ValueDifference, ...]

    @property
    def is_same(self) -> bool:
        """Whether there is no difference beyond the noise floor of the encodings."""
        alone = [*self.images[1:], *self.views[0], *self.views[1], *self.groups[0], *self.groups[1]]
        return not any(alone) and not self.fields and all(v.is_noise for v in self.values)

    def to_json(self) -> dict[str, Any]:
        """Return the difference as JSON values."""
        return {
            **asdict(self),
            "values": [{**asdict(value), "is_noise": value.is_noise} for value in self.values],
            "is_same": self.is_same,
        }


@dataclass(frozen=True)
class _Pair:
    """Two caches, and which rows of them are of the same image."""

    sources: tuple[SourceCache, ...]
    rows: RowPlan

    def records(self, name: str) -> list[TeacherRecord]:
        """Return the records of a teacher in both."""
        return [source.cache.manifest.teachers[name] for source in self.sources]


def compare_caches(
    first: str | os.PathLike[str] | Location, second: str | os.PathLike[str] | Location
) -> CacheDifference:
    """Compare two sealed caches; images are the same if their keys are.

    Values of units with equal digests are not read.

    Args:
        first: A cache: a folder, URL or location.
        second: Another one.

    Raises:
        CacheError: See :func:`~logitcache.cache.read.reader.open_cache`.
    """
    sources = (SourceCache(first), SourceCache(second))
    pair = _Pair(sources, union_of_rows(sources, append=False))
    having = [rows != NO_ROW for rows in pair.rows.rows]
    groups = [sealed_groups(source) for source in sources]
    views = [{view for group in own.values() for view in group.view_ids} for own in groups]
    shared = [name for name in groups[0] if name in groups[1]]
    return CacheDifference(
        first=str(sources[0]),
        second=str(sources[1]),
        images=(
            int((having[0] & having[1]).sum()),
            int((having[0] & ~having[1]).sum()),
            int((having[1] & ~having[0]).sum()),
        ),
        views=(tuple(sorted(views[0] - views[1])), tuple(sorted(views[1] - views[0]))),
        groups=(
            tuple(sorted(groups[0].keys() - groups[1].keys())),
            tuple(sorted(groups[1].keys() - groups[0].keys())),
        ),
        fields=tuple(_fields(pair, groups[0], groups[1])),
        values=tuple(
            value for name in shared for value in _values(pair, groups[0][name], groups[1][name])
        ),
    )


def _fields(pair: _Pair, ours: Mapping[str, Group], theirs: Mapping[str, Group]) -> Iterator[str]:
    """Yield differences of data, images, teachers and encodings."""
    first, second = (source.cache.manifest for source in pair.sources)
    for field in differing_data(first.data, second.data):
        yield f"data.{field} differs"
    if (first.images, first.squares) != (second.images, second.squares):
        yield "images in the cache are encoded in another way, or are in one of them only"
    yield from image_conflicts(pair.sources, pair.rows)
    for name in sorted(first.teachers.keys() & second.teachers.keys()):
        for what in differing_records(*pair.records(name)):
            yield f"teacher {name!r} has another {what}"
    for name, group in ours.items():
        if name not in theirs:
            continue
        for field in differing_fields(group.to_json(), theirs[name].to_json()):
            yield f"{name} has another {field}"
        if group.kind not in _KINDS and not _equal_contents(pair, group):
            yield f"{name} has other values"
        lacking = set(group.view_ids) ^ set(theirs[name].view_ids)
        if lacking:
            yield f"{name} has {len(lacking)} views in one of the caches only"


def _equal_contents(pair: _Pair, group: Group) -> bool:
    """Return whether both caches have the same digests of all units of a group."""
    digests = []
    for source in pair.sources:
        own = source.cache.groups[group.name]
        commits = [source.commits(own.placement(view)) for view in own.ledger_views]
        arrays = [c.arrays for found in commits for c in found.values()]
        digests.append([{p: a.content_sha256 for p, a in one.items()} for one in arrays])
    return digests[0] == digests[1]


def _values(pair: _Pair, ours: Group, theirs: Group) -> Iterator[ValueDifference]:
    """Yield the differences of the values of the shared views of a group."""
    both = {0: ours, 1: theirs}
    compare = _KINDS.get(ours.kind)
    if compare is None:
        return
    for view in ours.ledger_views:
        if view not in theirs.ledger_views:
            continue
        original = {n: pair.sources[n].cache.groups[ours.name] for n in both}
        placements = {n: group.placement(view) for n, group in original.items()}
        part = ViewPlan(placements[0], placements)
        yield compare(pair, part, both)


def _shared_units(
    pair: _Pair, part: ViewPlan
) -> Iterator[tuple[int, NDArray[np.bool_], list[Encoded] | None]]:
    """Yield number of shared rows, mask of them, and both encoded; None where they are equal."""
    gathered = [GatheredRows(pair, part, [number]) for number in (0, 1)]
    for unit in part.units(pair.rows):
        size = part.placement.unit_rows
        start = unit * size
        taken = [pair.rows.taken_from(n, start, start + size) for n in (0, 1)]
        shared = (taken[0] != NO_ROW) & (taken[1] != NO_ROW)
        count = int(shared.sum())
        if not count:
            continue
        same = same_units(pair, part, 0, 1, unit)
        yield count, shared, None if same else [rows.of(unit)[0] for rows in gathered]


def _differing(shared: NDArray[np.bool_], both: list[Encoded]) -> int:
    """Return how many shared rows are stored with other values; all in other encodings."""
    ours, theirs = both
    specs = [{name: (a.dtype, a.shape) for name, a in arrays.items()} for arrays in both]
    if specs[0] != specs[1]:
        return int(shared.sum())
    equal = [equal_rows(ours[name], theirs[name]) for name in ours]
    return int((shared & ~np.logical_and.reduce(equal)).sum())


def _compare_logits(pair: _Pair, part: ViewPlan, groups: Mapping[int, Group]) -> ValueDifference:
    """Compare distributions at T = 1 by the mean KL divergence of the second from the first.

    With sigmoid heads it is the sum of the divergences of all classes.
    """
    encodings = [groups_of({"": groups[n]}, TeacherGroup)[""].encoding for n in (0, 1)]
    rows = differing = compared = 0
    total = 0.0
    for count, shared, both in _shared_units(pair, part):
        rows += count
        if both is None:
            compared += count
            continue
        differing += _differing(shared, both)
        some = [{n: array[shared] for n, array in arrays.items()} for arrays in both]
        decoded = [encoding.decode(a) for encoding, a in zip(encodings, some, strict=True)]
        p, q = (found.outcome_log_probs() for found in decoded)
        known = decoded[0].computed & decoded[1].computed
        if p.shape != q.shape or not known.any():
            continue
        p, q = p[known], q[known]
        with np.errstate(invalid="ignore"):  # 0 times the logarithm of 0
            total += float(np.nansum(np.exp(p) * (p - q)))
        compared += int(known.sum())
    records = [record.fidelity for record in pair.records(groups[0].teacher)]
    losses = [record.temperatures.get("1") for record in records if record is not None]
    known_losses = [loss.kl_truncation + loss.kl_coding for loss in losses if loss is not None]
    noise = None
    if len(known_losses) == 2:
        # near each other, KL is half a squared distance, and distances add up at most
        noise = sum(math.sqrt(max(0.0, loss)) for loss in known_losses) ** 2
    mean = total / compared if compared else None
    return ValueDifference(groups[0].name, part.placement.view, rows, differing, "KL", mean, noise)


def _compare_features(pair: _Pair, part: ViewPlan, groups: Mapping[int, Group]) -> ValueDifference:
    """Compare features by the root of the squared difference over that of the first ones."""
    taps = [groups_of({"": groups[n]}, FeatureGroup)[""] for n in (0, 1)]
    rows = differing = 0
    error = energy = 0.0
    for count, shared, both in _shared_units(pair, part):
        rows += count
        if both is None:
            continue
        differing += _differing(shared, both)
        some = [{n: array[shared] for n, array in arrays.items()} for arrays in both]
        a, b = (tap.encoding.decode(own) for tap, own in zip(taps, some, strict=True))
        if a.shape == b.shape:
            difference = np.nan_to_num(a.astype(np.float64) - b)
            error += float((difference**2).sum())
            energy += float((np.nan_to_num(a.astype(np.float64)) ** 2).sum())
    tap = taps[0].tap
    known = [record.feature_fidelity.get(tap) for record in pair.records(groups[0].teacher)]
    noise = None
    if known[0] is not None and known[1] is not None:
        noise = sum(loss.coding for loss in known if loss is not None)
    mean: float | None = float(np.sqrt(error / energy)) if energy else None
    if not differing:
        mean = 0.0
    return ValueDifference(
        groups[0].name, part.placement.view, rows, differing, "error", mean, noise
    )


_KINDS: dict[str, Callable[[_Pair, ViewPlan, Mapping[int, Group]], ValueDifference]] = {
    TeacherGroup.kind: _compare_logits,
    FeatureGroup.kind: _compare_features,
}
"""Comparisons of values by kind of group; those of other kinds are compared by digest."""
