"""What a cache would cost and what it would lose, before one is made. Nothing is written.

The teachers are shown a few hundred images in the views they would see. Bytes and fidelity of every
encoding are measured on what they say, times on how long they take; the rest is arithmetic, in
``footprint.py`` and ``payback.py``.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.arrays import pack, packed_bytes, unpack
from logitcache.cache.format import default_unit_rows, group_unit_rows, teacher_group
from logitcache.cache.groups import OPTIONAL_ARRAYS
from logitcache.data.readers import open_source
from logitcache.encoding.budget import choose_within
from logitcache.encoding.choice import choose
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.fidelity import measure_fidelity
from logitcache.encoding.logits import label_log_probs, log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.precompute.compute import resolve_device
from logitcache.precompute.footprint import GroupPlan, cache_footprint, group_footprint
from logitcache.precompute.payback import break_even_epochs
from logitcache.precompute.plan import check_classes
from logitcache.precompute.rehearsal import Rehearsal, rehearse
from logitcache.precompute.trial import TRIAL_IMAGES
from logitcache.teachers.ensemble import Ensemble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.encoding.arrays import ArraySpec, Encoded
    from logitcache.encoding.choice import Encoding
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.views.spec import View

__all__ = [
    "DeviceEstimate",
    "EncodingEstimate",
    "Estimate",
    "TeacherEstimate",
    "ViewsEstimate",
    "estimate_cache",
]

_TOP_KS = (10, 20, 50, 100, 200)
_BITS = (8, 5)
_FEWER_IMAGES = 64  # for a device that is timed beside the one that is used


@dataclass(frozen=True)
class EncodingEstimate:
    """One way to store what a teacher says.

    Attributes:
        encoding: Its parameters.
        chosen: Whether the configuration stores it so.
        row_bytes: Bytes of a row and view, compressed.
        bytes: Of the teacher's group with all views, its commits and ledgers.
        files: Of the same.
        memory: Bytes of one view of all rows in a student's memory.
        fidelity: What it loses, as ``docs/format.md`` has it.
    """

    encoding: dict[str, Any]
    chosen: bool
    row_bytes: float
    bytes: int
    files: int
    memory: int
    fidelity: dict[str, Any]


@dataclass(frozen=True)
class TeacherEstimate:
    """One teacher.

    Attributes:
        architecture: Of its network.
        num_classes: C.
        accuracy: Share of the labelled images shown that it gets right; None without labels.
        seconds: Of a forward of one image, by device.
        encodings: Ways to store what it says; one is chosen.
    """

    architecture: str
    num_classes: int
    accuracy: float | None
    seconds: dict[str, float]
    encodings: list[EncodingEstimate]

    @property
    def chosen(self) -> EncodingEstimate:
        """How the configuration stores it."""
        return next(row for row in self.encodings if row.chosen)


@dataclass(frozen=True)
class DeviceEstimate:
    """How long an image takes on one device, in seconds; see :mod:`.payback`.

    Attributes:
        teach: All teachers' forwards.
        store: One view in precompute.
    """

    teach: float
    store: float


@dataclass(frozen=True)
class ViewsEstimate:
    """A cache with so many views.

    Attributes:
        views: How many.
        bytes: Of the whole cache.
        files: Of the whole cache.
        minutes: Of precompute, by device.
        break_even_epochs: Student epochs after which it costs no more than live teachers, by
            device; None where it never does.
    """

    views: int
    bytes: int
    files: int
    minutes: dict[str, float]
    break_even_epochs: dict[str, int | None]


@dataclass(frozen=True)
class Estimate:
    """What a cache would cost and lose.

    Attributes:
        images: Images of the set.
        shown: How many of them the teachers were shown.
        views: How many views are asked for.
        unit_rows: U.
        devices: Seconds of an image, by device.
        fetch: Seconds of reading one row's targets of all teachers in training, from memory.
        teachers: By name.
        by_views: The cache with fewer and more views.
    """

    images: int
    shown: int
    views: int
    unit_rows: int
    devices: dict[str, DeviceEstimate]
    fetch: float
    teachers: dict[str, TeacherEstimate]
    by_views: list[ViewsEstimate]

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return asdict(self)


def estimate_cache(config: PrecomputeConfig) -> Estimate:
    """Measure what a configuration of precompute would make, as if no cache were there.

    Args:
        config: As for :func:`.build_cache`; ``cache`` is never looked at.

    Raises:
        LogitcacheError: What precompute would refuse before its first unit.
    """
    source = open_source(config.data)
    views = config.views.views()
    used, *others = _devices(config)
    shown = _rehearse(config, source, views, used, TRIAL_IMAGES)
    layout = _Layout(config, source, views, min(shown.ensemble.sizes))
    measured = {
        name: _Measured(config, name, shown.found.logits[name], shown.found.labels, source)
        for name in shown.ensemble.members
    }
    seconds = {used.type: shown.found}
    for device in others:
        seconds[device.type] = _rehearse(config, source, views, device, _FEWER_IMAGES).found
    store = sum(teacher.store for teacher in measured.values())
    fetch = sum(teacher.fetch for teacher in measured.values())
    devices = {name: _device(name, found, store) for name, found in seconds.items()}
    return Estimate(
        images=len(source.keys),
        shown=len(shown.found.labels),
        views=len(views),
        unit_rows=layout.unit_rows,
        devices=devices,
        fetch=fetch,
        teachers={
            name: TeacherEstimate(
                architecture=str(member.lock["architecture"]),
                num_classes=member.num_classes,
                accuracy=measured[name].accuracy,
                seconds={device: found.teach[name] for device, found in seconds.items()},
                encodings=[
                    layout.encoding(name, measured[name], encoding)
                    for encoding in measured[name].tried
                ],
            )
            for name, member in shown.ensemble.members.items()
        },
        by_views=[layout.with_views(count, measured, devices, fetch) for count in layout.counts],
    )


@dataclass(frozen=True)
class _Shown:
    ensemble: Ensemble
    found: Rehearsal


def _rehearse(
    config: PrecomputeConfig,
    source: Source,
    views: Sequence[View],
    device: torch.device,
    images: int,
) -> _Shown:
    ensemble = Ensemble(config.teachers, device=device, precision=config.precision)
    for name, member in ensemble.members.items():
        check_classes(name, member, source)
    for view in views:
        view.check_sizes(ensemble.sizes)
    found = rehearse(
        source, ensemble, views, images=images, batch=config.batch_size, threads=config.threads
    )
    return _Shown(ensemble, found)


def _devices(config: PrecomputeConfig) -> list[torch.device]:
    """Return the device that is used, and the processor where an accelerator was found."""
    used = resolve_device(config.device)
    alone = config.device != "auto" or used.type == "cpu"
    return [used] if alone else [used, resolve_device("cpu")]


def _device(name: str, found: Rehearsal, store: float) -> DeviceEstimate:
    """Return an image's seconds; what an accelerator does overlaps with encoding and writing."""
    whole = found.show + store if name == "cpu" else max(found.show, store)
    return DeviceEstimate(teach=sum(found.teach.values()), store=whole)


class _Measured:
    """One teacher's sample, encoded in every way."""

    def __init__(
        self,
        config: PrecomputeConfig,
        name: str,
        logits_NC: NDArray[np.float32],
        labels_N: NDArray[np.int32],
        source: Source,
    ) -> None:
        self._log_probs_NC, lse_N = log_softmax(logits_NC)
        known = labels_N >= 0
        right_N = logits_NC.argmax(axis=1) == labels_N
        self.accuracy = float(right_N[known].mean()) if known.any() else None
        self._extra: Encoded = {}
        if config.encoding.lse:
            self._extra["lse"] = lse_N.astype(np.float32)
        if config.encoding.label_log_probs and source.class_names:
            self._extra["label_logp"] = label_log_probs(self._log_probs_NC, labels_N)
        self.chosen = self._choose(config, name)
        self.tried = _tried(self.chosen)
        self.store, self.fetch = self._seconds()

    def specs(self, encoding: Encoding) -> dict[str, ArraySpec]:
        return encoding.specs() | {name: OPTIONAL_ARRAYS[name] for name in self._extra}

    def row_bytes(self, encoding: Encoding) -> float:
        encoded = {**encoding.encode(self._log_probs_NC), **self._extra}
        return packed_bytes(self.specs(encoding), encoded) / len(self._log_probs_NC)

    def fidelity(self, encoding: Encoding) -> dict[str, Any]:
        return measure_fidelity(encoding, self._log_probs_NC).to_json()

    def _choose(self, config: PrecomputeConfig, name: str) -> Encoding:
        limit = config.encoding.limit
        if limit is None:
            return choose(config.encoding, self._log_probs_NC.shape[1])
        where = f"teacher {name!r}"
        return choose_within(limit, self._log_probs_NC, packed_bytes, where).encoding

    def _seconds(self) -> tuple[float, float]:
        """Return the seconds of storing and of fetching a row as it is chosen."""
        rows, specs = len(self._log_probs_NC), self.specs(self.chosen)
        started = time.perf_counter()
        encoded = {**self.chosen.encode(self._log_probs_NC), **self._extra}
        packed = pack(specs, encoded)
        stored = time.perf_counter()
        arrays = unpack(specs, packed)
        order = np.random.default_rng(0).permutation(rows)
        self.chosen.decode({name: arrays[name][order] for name in self.chosen.specs()})
        return (stored - started) / rows, (time.perf_counter() - stored) / rows


def _tried(chosen: Encoding) -> list[Encoding]:
    """Return the encodings to compare, smallest K first, with the chosen one among them."""
    classes = chosen.num_classes
    tried: list[Encoding] = [
        SparseEncoding(classes, top_k, bits=bits)
        for top_k in _TOP_KS
        if top_k < classes
        for bits in _BITS
    ]
    tried += [DenseEncoding(classes, "uint8"), DenseEncoding(classes)]
    return tried if chosen in tried else [chosen, *tried]


class _Layout:
    """How a set of images is cut into units, and what that makes of measured rows."""

    def __init__(
        self, config: PrecomputeConfig, source: Source, views: Sequence[View], probe_side: int
    ) -> None:
        self._keys, self._views, self._probe_side = source.keys, views, probe_side
        self.rows = len(source.keys)
        self.unit_rows = default_unit_rows(self.rows, config.unit_rows)
        self._capacity = -(-self.rows // self.unit_rows) * self.unit_rows

    @property
    def counts(self) -> list[int]:
        """Numbers of views to compare: powers of two up to twice as many as asked for."""
        asked = len(self._views)
        return sorted({2**n for n in range(asked.bit_length() + 1)} | {asked})

    def encoding(self, name: str, measured: _Measured, encoding: Encoding) -> EncodingEstimate:
        plan = self._plan(name, measured, encoding, len(self._views))
        found = group_footprint(plan, self.rows, self._capacity)
        return EncodingEstimate(
            encoding=encoding.to_json(),
            chosen=encoding == measured.chosen,
            row_bytes=plan.row_bytes,
            bytes=found.bytes,
            files=found.files,
            memory=self._capacity * _row_memory(plan.specs),
            fidelity=measured.fidelity(encoding),
        )

    def with_views(
        self,
        count: int,
        measured: Mapping[str, _Measured],
        devices: Mapping[str, DeviceEstimate],
        fetch: float,
    ) -> ViewsEstimate:
        asked = self._views
        mixed = sum(asked[n % len(asked)].mixing is not None for n in range(count))
        found = cache_footprint(
            [self._plan(name, one, one.chosen, count) for name, one in measured.items()],
            self._keys,
            self._capacity,
            self.unit_rows,
            mixed_views=mixed,
            probe_side=self._probe_side,
        )
        return ViewsEstimate(
            views=count,
            bytes=found.bytes,
            files=found.files,
            minutes={n: self.rows * count * d.store / 60 for n, d in devices.items()},
            break_even_epochs={
                n: break_even_epochs(count, d.teach, d.store, fetch) for n, d in devices.items()
            },
        )

    def _plan(self, name: str, measured: _Measured, encoding: Encoding, views: int) -> GroupPlan:
        specs = measured.specs(encoding)
        raw = sum(spec.row_bytes for spec in encoding.specs().values())
        return GroupPlan(
            path=teacher_group(name),
            views=views,
            unit_rows=group_unit_rows(self.unit_rows, raw),
            specs=specs,
            row_bytes=measured.row_bytes(encoding),
        )


def _row_memory(specs: Mapping[str, ArraySpec]) -> int:
    """Return the bytes of a row in a student's memory, where lse is never read."""
    return sum(spec.row_bytes for name, spec in specs.items() if name != "lse")
