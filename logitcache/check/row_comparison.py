"""Comparison of stored rows with recomputed outputs, row by row, within a tolerance eps.

A forward pass on another device or in another batch rounds differently. So bytes are not compared;
instead, the encodings decide whether a row could be the encoding of an output within eps of the
recomputed one; eps is relative to the size of a row's activations:

    eps = constant + 4 x noise floor + share x sensitivity

* Noise floor: difference of the teacher from itself at another batch composition on this machine.
* Sensitivity: change of a row where every pixel changes by one level of 255, an error of 2^-8 of
  the input. It is measured for rows that do not match without it: for some images the network
  amplifies all rounding errors a hundredfold.
* The constant is needed because the floor says nothing about another machine; it may even be zero.

There are two standards for constant and share. *Rounding* is the difference of any machine. GPUs
run the convolutions of float32 networks in TF32, whose fraction has the 10 bits of float16. Small
networks trained on CIFAR-10 (ResNet, ViT, RedNet, MobileNet) differ by up to 0.002 of the largest
logit between float32 and TF32, 0.002 between float32 and float16 and 0.014 between float32 and
bfloat16, apart from sensitive rows, and their activations by about four times as much.

*Exact* is the difference of float32 on two processors: 1.5e-6 on the same networks, whatever the
batch and the number of threads. A row that meets the first standard but not the second was computed
in TF32, or it is another row. Its unit decides: a unit is computed by one process, so if its other
rows match 16 times as exactly, this one does not match.

Shapes: N rows, S side of the square, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from logitcache.check.recompute import LOGITS, Recomputation
from logitcache.check.stored_rows import StoredReader, StoredRows
from logitcache.encoding.agreement import encoding_losses, row_closeness
from logitcache.encoding.feature_noise import reduced_noise
from logitcache.encoding.intervals import label_consistent, lse_consistent
from logitcache.encoding.logits import label_log_probs
from logitcache.views.spec import parse_view
from logitcache.views.tokens import kept_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.format.groups import FeatureGroup, RowGroup, TeacherGroup
    from logitcache.cache.read.reader import Cache
    from logitcache.check.recompute import Outputs, Run, ShownImages, ShownRows
    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.teachers.member import Member

__all__ = ["Mismatch", "RowComparison"]

_FACTOR = 4.0  # of the noise floor
_QUANTILE = 0.98  # of the rows that the floor is measured on
_FLOOR_ROWS = 256  # rows that are forwarded twice, for that
_ACTIVATIONS = 4.0  # constants of activations over those of logits
_PEERS = 8  # rows of a unit that show how exactly it matches
_MOST_NAMED = 10
_TARGETS, _FEATURES = "targets", "features/"


@dataclass(frozen=True)
class _Standard:
    """Tolerance of a comparison.

    Attributes:
        constant: Constant part, as a share of the largest logit.
        sensitivity: Share of the change of a row where every pixel changes by one level.
    """

    constant: float
    sensitivity: float


# Twice the measured values: with 10 bits of fraction, the errors of all layers add up to the effect
# of one level of the pixels, and with the 7 bits of bfloat16 to four times that.
_ROUNDING = {
    "float32": _Standard(2.0**-8, 2.0),
    "float16": _Standard(2.0**-7, 2.0),
    "bfloat16": _Standard(2.0**-5, 8.0),
}
# A level is 2^16 rounding errors of float32, thousands of which add up in a sum at random.
_EXACT = _Standard(2.0**-13, 2.0**-10)
_OF_PEERS = _Standard(2.0**-17, 2.0**-14)
_VISIBLE = _Standard(2.0**-15, 0.0)  # noise that has to change the stored arrays of a unit
_VISIBLE_SHARE = 0.75  # in this share of its rows


@dataclass(frozen=True)
class Mismatch:
    """A stored row that is not the encoding of the teacher's output for its image and view.

    Attributes:
        key: Name of the image.
        view: Id of the view.
        arrays: Arrays that do not match: ``targets``, ``lse``, ``label_logp``, ``features/<tap>``.
    """

    key: str
    view: str
    arrays: tuple[str, ...]


class RowComparison:
    """Comparison of stored rows with recomputed ones, chunk by chunk.

    Args:
        cache: The cache.
        member: The teacher.
        shown: Rendered views.

    Attributes:
        batch: Rows of a chunk.
        samples: Number of rows compared so far.
        taps: Numbers of rows of features compared so far, by tap.
        mismatched: Number of rows that do not match.
        mismatches: The first few of them.
    """

    def __init__(self, cache: Cache, member: Member, shown: ShownRows) -> None:
        self._cache, self._shown = cache, shown
        self._group = cache.teacher(member.name) if member.has_logits else None
        self._taps = {g.tap: g for g in cache.features.values() if g.teacher == member.name}
        groups: dict[str, RowGroup] = {g.name: g for g in self._taps.values()}
        if self._group is not None:
            groups[member.name] = self._group
        record = cache.manifest.teachers[member.name]
        precision = record.locked.precision or "float32"
        self._rounding = _ROUNDING[precision]
        # in half precision a single rounding error is not smaller than the standard
        self._is_exact = precision == "float32"
        self._unit_rows = min(group.unit_rows for group in groups.values())
        self._exact_units: dict[tuple[str, int], dict[str, bool]] = {}
        self._teacher = Recomputation(member, list(self._taps), record.canonical_batch)
        self._rows = StoredReader(cache, groups)
        self._views = {v: parse_view(recipe, v) for v, recipe in cache.views.items()}
        compared = [*([] if self._group is None else [LOGITS]), *self._taps]
        self._floors: dict[str, list[float]] = {name: [] for name in compared}
        self._sums: dict[str, float] = {}
        self.mismatches: list[Mismatch] = []
        self.taps = dict.fromkeys(self._taps, 0)
        self.mismatched = self._floor_rows = self.samples = 0
        self.batch = self._teacher.batch

    def add(self, runs: Sequence[Run], shown: ShownImages) -> None:
        """Compare some rows."""
        stored, now = self._rows.read(runs), self._teacher.outputs(shown)
        noise = _Noise({}, {})
        if self._floor_rows < _FLOOR_ROWS:
            noise = _Noise(self._measure_floor(now, shown), {})
        first = _EXACT if self._is_exact else self._rounding
        matches = self._matches(stored, now, first, noise)
        doubtful = np.flatnonzero(~_everywhere(matches))
        if len(doubtful):
            some, outputs = stored.take(doubtful), now.take(doubtful)
            noise = self._noise_of(outputs, shown.take(doubtful))
            again = self._matches(some, outputs, first, noise)
            if self._is_exact and not _everywhere(again).all():
                self._allow_rounding(again, some, outputs, noise)
            for name, matching in again.items():
                matches[name][doubtful] = matching
        self._count(stored, now, matches)

    def means(self) -> dict[str, float]:
        """Return means over rows by name; those of the noise floor end with ``_floor``."""
        rows = dict.fromkeys(self._sums, self.samples)
        rows |= {name: self._floor_rows for name in rows if name.endswith("_floor")}
        return {name: total / rows[name] for name, total in self._sums.items()}

    def _measure_floor(self, now: Outputs, shown: ShownImages) -> dict[str, NDArray[np.float64]]:
        """Compare the teacher with itself at another batch composition."""
        other = self._teacher.outputs_elsewhere(shown)
        if self._group is not None:
            encoding = self._group.encoding
            close = row_closeness(
                encoding, encoding.encode(now.log_probs), encoding.encode(other.log_probs)
            )
            self._add_up({f"{name}_floor": values for name, values in close.items()})
        self._floor_rows += len(shown)
        differences = now.differences(other)
        for name, values in differences.items():
            self._floors[name] += values.tolist()
        return differences

    def _noise_of(self, now: Outputs, shown: ShownImages) -> _Noise:
        """Measure the noise of these rows: at another composition, and of other pixels."""
        floor = now.differences(self._teacher.outputs_elsewhere(shown))
        return _Noise(floor, now.differences(self._teacher.outputs(shown.changed())))

    def _allow_rounding(
        self,
        matches: dict[str, NDArray[np.bool_]],
        stored: StoredRows,
        now: Outputs,
        noise: _Noise,
    ) -> None:
        """Accept rows that match up to rounding, unless their unit matches exactly."""
        rounded = self._matches(stored, now, self._rounding, noise)
        for index in np.flatnonzero(~_everywhere(matches)).tolist():
            unit = str(stored.views[index]), int(stored.rows[index]) // self._unit_rows
            exact = self._exact_unit(*unit)
            for name, matching in matches.items():
                matching[index] |= rounded[name][index] and not exact[name]

    def _exact_unit(self, view_id: str, unit: int) -> dict[str, bool]:
        """Return by array whether rows of a unit match as exactly as float32 allows, all but one.

        False where there are too few rows to decide, or the codes are too coarse: a change of the
        outputs that is far smaller than in TF32 has to change most stored rows. It always changes
        the logsumexp, a float32.
        """
        if (view_id, unit) in self._exact_units:
            return self._exact_units[view_id, unit]
        rows, start = self._shown.rows(view_id), unit * self._unit_rows
        rows = rows[slice(*np.searchsorted(rows, [start, start + self._unit_rows]))]
        generator = np.random.default_rng(unit)
        peers = np.sort(generator.permutation(rows)[:_PEERS])
        shown = self._shown.images(view_id, peers)
        stored, now = self._rows.read([(view_id, peers)]), self._teacher.outputs(shown)
        noise = self._noise_of(now, shown)
        unmeasured = _Noise({}, {})
        shares = {n: float(self._relative_eps(n, _VISIBLE, unmeasured)) for n in self._floors}
        moved = self._encoded(stored, now.moved(shares, generator))
        matches = self._matches(stored, now, _OF_PEERS, noise)
        moved_matches = self._matches(moved, now, _OF_PEERS, noise)
        exact: dict[str, bool] = {}
        # the arrays of a tap may be from a later forward pass than the others
        taps = [name for name in matches if name.startswith(_FEATURES)]
        others = [name for name in matches if name not in taps]
        for arrays in (*([others] if others else []), *([tap] for tap in taps)):
            matching = _everywhere({name: matches[name] for name in arrays}).sum()
            visible = ~_everywhere({name: moved_matches[name] for name in arrays})
            is_exact = matching >= max(2, len(peers) - 1) and visible.mean() >= _VISIBLE_SHARE
            exact |= dict.fromkeys(arrays, bool(is_exact))
        self._exact_units[view_id, unit] = exact
        return exact

    def _encoded(self, stored: StoredRows, now: Outputs) -> StoredRows:
        """Return outputs as they would be stored."""
        arrays: dict[str, Encoded] = {}
        if self._group is not None:
            arrays[self._group.name] = self._encoded_logits(self._group, stored, now)
        for tap, kept in self._taps.items():
            values = self._reduce(kept, stored, now.taps[tap], kept.encoding)
            arrays[kept.name] = kept.encoding.encode(values)
        return replace(stored, arrays=arrays)

    def _encoded_logits(self, group: TeacherGroup, stored: StoredRows, now: Outputs) -> Encoded:
        targets = group.encoding.encode(now.log_probs)
        if "lse" in group.optional:
            targets["lse"] = now.lse.astype(np.float32)
        if "label_logp" in group.optional:
            labels = self._cache.samples.labels[stored.rows]
            targets["label_logp"] = label_log_probs(now.log_probs, labels)
        return targets

    def _matches(
        self, stored: StoredRows, now: Outputs, standard: _Standard, noise: _Noise
    ) -> dict[str, NDArray[np.bool_]]:
        """Return which rows may be encodings of outputs within eps, (N,) by array."""
        found: dict[str, NDArray[np.bool_]] = {}
        if self._group is not None:
            eps_N = self._relative_eps(LOGITS, standard, noise) * now.scale
            found |= self._matching_logits(self._group, stored, now, eps_N)
        for tap, group in self._taps.items():
            reduce = partial(self._reduce, group, stored)
            values = reduce(now.taps[tap], group.encoding)
            relative_N = np.broadcast_to(self._relative_eps(tap, standard, noise), now.scale.shape)
            eps = reduced_noise(now.taps[tap], relative_N, group.encoding, reduce)
            matching = group.encoding.consistent(stored.arrays[group.name], values, eps)
            found[f"{_FEATURES}{tap}"] = matching | ~stored.has[group.name]
        return found

    def _matching_logits(
        self, group: TeacherGroup, stored: StoredRows, now: Outputs, eps_N: NDArray[np.float64]
    ) -> dict[str, NDArray[np.bool_]]:
        targets = stored.arrays[group.name]
        found = {_TARGETS: group.encoding.consistent(targets, now.log_probs, eps_N)}
        if "lse" in targets:
            found["lse"] = lse_consistent(targets["lse"], now.lse, eps_N)
        if "label_logp" in targets:
            labels = self._cache.samples.labels[stored.rows]
            found["label_logp"] = label_consistent(
                targets["label_logp"], now.log_probs, labels, eps_N
            )
        return found

    def _relative_eps(
        self, name: str, standard: _Standard, noise: _Noise
    ) -> NDArray[np.float64] | np.float64:
        """Return eps relative to the size of each row."""
        constant = standard.constant * (1.0 if name == LOGITS else _ACTIVATIONS)
        floors = self._floors[name]
        floor = np.maximum(noise.floor.get(name, 0.0), np.quantile(floors, _QUANTILE))
        return constant + _FACTOR * floor + standard.sensitivity * noise.sensitivity.get(name, 0.0)

    def _reduce(
        self,
        group: FeatureGroup,
        stored: StoredRows,
        values_N: NDArray[np.float32],
        encoding: FeatureEncoding,
    ) -> NDArray[np.float32]:
        """Reduce rows of a tap, keeping the tokens that were drawn for each row and view."""
        positions = None
        if group.encoding.kept is not None:
            positions = np.empty((len(values_N), group.encoding.kept), dtype=np.int64)
            hashes = self._cache.samples.hashes[stored.rows]
            for view_id in dict.fromkeys(stored.views):
                mine = stored.views == view_id
                positions[mine] = kept_tokens(
                    self._views[view_id], hashes[mine], group.encoding.patches, group.encoding.kept
                )
        return self._teacher.reduce(group.tap, values_N, encoding, positions)

    def _count(
        self, stored: StoredRows, now: Outputs, matches: Mapping[str, NDArray[np.bool_]]
    ) -> None:
        if self._group is not None:
            encoding, arrays = self._group.encoding, stored.arrays[self._group.name]
            encoded = encoding.encode(now.log_probs)
            self._add_up(row_closeness(encoding, encoded, arrays))
            self._add_up(encoding_losses(encoding, now.log_probs, encoded))
            first = _EXACT if self._is_exact else self._rounding
            eps_N = self._relative_eps(LOGITS, first, _Noise({}, {})) * now.scale
            self._add_up({"eps": eps_N})
        self.samples += len(stored.rows)
        for tap, group in self._taps.items():
            self.taps[tap] += int(stored.has[group.name].sum())
        wrong = np.flatnonzero(~_everywhere(matches))
        self.mismatched += len(wrong)
        for index in wrong[: _MOST_NAMED - len(self.mismatches)]:
            arrays_of = tuple(name for name, matching in matches.items() if not matching[index])
            key = str(self._cache.samples.keys[stored.rows[index]])
            self.mismatches.append(Mismatch(key, str(stored.views[index]), arrays_of))

    def _add_up(self, values: Mapping[str, NDArray[np.float64]]) -> None:
        for name, values_N in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(values_N.sum())


@dataclass(frozen=True)
class _Noise:
    """Noise of rows relative to their size, (N,) by name; not measured where a name is missing.

    Attributes:
        floor: Difference at another batch composition.
        sensitivity: Difference where every pixel changes by one level.
    """

    floor: Mapping[str, NDArray[np.float64]]
    sensitivity: Mapping[str, NDArray[np.float64]]


def _everywhere(matches: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Return which rows match in all arrays."""
    whole_N: NDArray[np.bool_] = np.logical_and.reduce(list(matches.values()))
    return whole_N
