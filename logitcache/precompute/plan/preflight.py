"""Checks before a long run: free space, a working store, and accuracy of new teachers.

The last check is the first unit: it is computed like every other one and read back, and its size
shows whether the others will fit.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.ledger import is_intact, read_commits
from logitcache.cache.format.names import sha256
from logitcache.cache.write.claims import CLAIMS, TRIAL
from logitcache.data.sample import sample_images
from logitcache.errors import CacheDamaged, NetworkError, StorageError
from logitcache.precompute.sample.trial import TRIAL_IMAGES, run_teachers, spread

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from logitcache.cache.format.groups import RowGroup
    from logitcache.cache.store.base import Location
    from logitcache.data.source import Source
    from logitcache.precompute.plan.plan import Plan
    from logitcache.precompute.plan.worklist import WorkItem
    from logitcache.teachers.ensemble import Ensemble

__all__ = [
    "FirstUnit",
    "accuracy_floor",
    "check_accuracy",
    "check_images",
    "check_storage",
    "estimated_bytes",
]

_TRIAL_BYTES = 1 << 16
_FEWEST_IMAGES = 128
_DEVIATIONS = 4.0  # of a binomial distribution
_HEADROOM = 1.05  # later units may compress a little less than the first one
_MUCH_LARGER = 2
_TIMED_IMAGES = 8


def check_storage(plan: Plan) -> None:
    """Write and read back a test object, and compare the free space with an estimate.

    Raises:
        StorageError: The store returns other bytes than were written, or lacks free space.
    """
    location = plan.writer.location
    trial = os.urandom(_TRIAL_BYTES)
    key = f"{CLAIMS}/{TRIAL}-{os.getpid()}.json"
    location.write(key, trial)
    back = location.digest(key, most=len(trial))
    location.delete(key)
    location.remove_folder(CLAIMS)
    if back != (len(trial), sha256(trial)):
        raise StorageError(
            "the store does not return the bytes that were written",
            where=f"{location}/{key}",
            expected=f"{len(trial)} bytes, sha256 {sha256(trial)}",
            got="no object" if back is None else f"{back[0]} bytes, sha256 {back[1]}",
            hint="check the disk or the store, or choose another --cache",
        )
    _check_room(location, estimated_bytes(plan.items, plan.groups), "an estimate")


def estimated_bytes(items: Collection[WorkItem], groups: Mapping[str, RowGroup]) -> int:
    """Return the approximate number of bytes of the units of items."""
    total = 0.0
    for item in items:
        for name, units in item.units.items():
            group = groups[name]
            total += group.compressed_share * len(units) * group.unit_bytes
    return int(total)


def check_accuracy(
    source: Source, ensemble: Ensemble, names: Collection[str], batch: int, floor: float | None
) -> dict[str, float]:
    """Measure the accuracy of new teachers on a few hundred labeled images.

    Args:
        source: Image set.
        ensemble: The teachers.
        names: Names of the teachers that are new to the cache.
        batch: Images per forward pass.
        floor: Minimum accuracy; :func:`accuracy_floor` if None.

    Returns:
        Accuracy by name; empty if there are too few labeled images, without teachers that have
        other classes than the data.

    Raises:
        NetworkError: The accuracy of a teacher is below the minimum.
    """
    classes = len(source.class_names)
    members = ensemble.members
    judged = [
        name
        for name in names
        if members[name].num_classes == classes and members[name].class_names is None
    ]
    labeled = np.flatnonzero(np.asarray(source.labels) >= 0).astype(np.int64)
    indices = labeled[spread(len(labeled), TRIAL_IMAGES)]
    if not judged or len(indices) < _FEWEST_IMAGES:
        return {}
    outputs, read = run_teachers(source, ensemble, dict.fromkeys(judged), indices, batch)
    found = {}
    for name in judged:
        right = outputs[name].argmax(axis=1)[read] == source.labels[indices[read]]
        found[name] = float(right.mean())
        needed = floor if floor is not None else accuracy_floor(classes, len(read))
        if found[name] < needed:
            raise NetworkError(
                f"the accuracy of teacher {name!r} is too low",
                where=f"{len(read)} images of {source.description}",
                expected=f"an accuracy of at least {needed:.1%}",
                got=f"{found[name]:.1%}",
                hint="check its weights, its mean and std, and the order of its classes "
                f"(--set teachers.{name}.class_map=[...]); --set min_accuracy=0 skips this check",
            )
    return found


def check_images(
    source: Source, ensemble: Ensemble, names: Collection[str], table: int
) -> list[str]:
    """Decode a few images, and compare their size with the input size of new teachers.

    Args:
        source: Image set.
        ensemble: The teachers.
        names: Names of the teachers that are new to the cache.
        table: Version of the decoding table.

    Returns:
        A note for each kind of image that is probably not decoded as intended, and for each new
        teacher whose input size is the default of its model and much larger than the images, with
        the measured images per second.
    """
    sample = sample_images(source, table)
    side, notes = sample.side, sample.notes
    unknown = [name for name in names if not ensemble.members[name].size_is_known]
    for name in unknown:
        member = ensemble.members[name]
        if side is None or member.input.size < _MUCH_LARGER * side:
            continue
        size = member.input.size
        batch = np.zeros((_TIMED_IMAGES, 3, size, size), dtype=np.uint8)
        member.run(batch)
        started = time.perf_counter()
        member.run(batch)
        rate = _TIMED_IMAGES / (time.perf_counter() - started)
        notes.append(
            f"teacher {name}: the weights file has no input size; using {size} pixels, the default "
            f"of the model, at {rate:.0f} images/s; the images have {side} pixels: set "
            f"teachers.{name}.size if the teacher was trained on that size"
        )
    return notes


def accuracy_floor(classes: int, images: int) -> float:
    """Return the accuracy that random guessing exceeds once in about thirty thousand trials."""
    chance = 1.0 / classes
    return chance + _DEVIATIONS * math.sqrt(chance * (1 - chance) / images)


class FirstUnit:
    """Check of the first committed item; a callback of ``compute_plan``.

    Args:
        plan: Plan of the run.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._done = False

    def __call__(self, item: WorkItem) -> None:
        """Read the units of an item back, and extrapolate the size of the other items.

        Raises:
            CacheDamaged: The bytes read differ from the bytes written.
            StorageError: The other items will not fit; committed data is intact.
        """
        if self._done or not item.units:
            return
        self._done = True
        plan, location = self._plan, self._plan.writer.location
        written = raw = 0
        for name, units in item.units.items():
            group = plan.groups[name]
            for commit in read_commits(location, group.path, item.view_id, units).values():
                for stored in commit.arrays.values():
                    if not is_intact(location, stored):
                        raise CacheDamaged(
                            "the first unit is not read back as it was written",
                            where=f"{location}/{stored.key}",
                            expected=f"{stored.bytes} bytes, sha256 {stored.sha256}",
                            got="other bytes, or no object",
                            hint="check the disk or the store; logitcache repair restores the unit",
                        )
                    written += stored.bytes
                raw += group.unit_bytes
        left = sum(
            len(units) * plan.groups[name].unit_bytes
            for other in plan.items
            if (other.view_id, other.block) != (item.view_id, item.block)
            for name, units in other.units.items()
        )
        needed = int(_HEADROOM * left * written / max(1, raw))
        _check_room(location, needed, "measured on the first unit")


def _check_room(location: Location, needed: int, how: str) -> None:
    free = location.free_bytes()
    if free is not None and free < needed:
        raise StorageError(
            "not enough free space for this cache",
            where=location,
            expected=f"{needed / 1e9:.2f} GB ({how})",
            got=f"{free / 1e9:.2f} GB free",
            hint="free some space, reduce the number of views or top_k, "
            "or choose another --cache; committed data is intact",
        )
