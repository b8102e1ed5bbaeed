"""Estimate of size, time and fidelity of a cache; nothing is written.

The teachers are run on a few hundred images in the configured views. Their outputs give the bytes
and the fidelity of every encoding, the runs themselves the times; the rest is arithmetic, in
``footprint.py`` and ``break_even.py``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.names import (
    default_unit_rows,
    group_unit_rows,
    tap_of,
    teacher_group,
    teacher_of,
)
from logitcache.data.readers import open_source
from logitcache.encoding.choice import fits_basis
from logitcache.label_sets import label_sets_of
from logitcache.networks.device import resolve_device
from logitcache.precompute.estimate.break_even import break_even_epochs
from logitcache.precompute.estimate.footprint import GroupPlan, cache_footprint, group_footprint
from logitcache.precompute.estimate.images import ImagesEstimate, estimate_images
from logitcache.precompute.plan.declaration import check_classes
from logitcache.precompute.plan.layers import choose_taps
from logitcache.precompute.plan.pending import find_lacking
from logitcache.precompute.plan.rows import open_images, with_images
from logitcache.precompute.sample.batch_size import choose_batch
from logitcache.precompute.sample.encodings import EncodedFeatures, EncodedOutputs
from logitcache.precompute.sample.timing import SampleRun, run_sample
from logitcache.precompute.sample.trial import TRIAL_IMAGES
from logitcache.teachers.ensemble import Ensemble

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from logitcache.cache.store.base import Location
    from logitcache.data.readers import ImageSet
    from logitcache.data.source import Source
    from logitcache.encoding.arrays import ArraySpec
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.encoding.kinds import Encoding
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.precompute.plan.pending import Lacking
    from logitcache.views.spec import View

__all__ = [
    "DeviceEstimate",
    "EncodingEstimate",
    "Estimate",
    "TapEstimate",
    "TeacherEstimate",
    "ViewsEstimate",
    "estimate_cache",
]

_FITTED_IMAGES = 1024  # where a basis is fitted: with fewer it would lose more than in a cache
_FEWER_IMAGES = 64  # for a device that is timed in addition to the one that is used


@dataclass(frozen=True, kw_only=True)
class _GroupEstimate:
    """Estimate for one group in one encoding.

    Attributes:
        encoding: Parameters of the encoding, without principal directions.
        row_bytes: Bytes per row and view, after compression if the encoding compresses.
        bytes: Bytes of the group with all its views, including commits and ledgers.
        files: Number of files of the group.
        memory: Bytes of all rows of one view in the memory of a student.
        fidelity: Losses of the encoding, as ``docs/format.md`` defines them.
    """

    encoding: dict[str, Any]
    row_bytes: float
    bytes: int
    files: int
    memory: int
    fidelity: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EncodingEstimate(_GroupEstimate):
    """Estimate for one encoding of a teacher's outputs.

    Attributes:
        chosen: Whether the configuration results in this encoding.
    """

    chosen: bool


@dataclass(frozen=True, kw_only=True)
class TapEstimate(_GroupEstimate):
    """Estimate for the features of one layer of a teacher.

    Attributes:
        views: Number of views whose features are stored.
    """

    views: int


@dataclass(frozen=True)
class TeacherEstimate:
    """Estimate for one teacher.

    Attributes:
        architecture: Architecture of the network.
        num_classes: Number of classes, C; None without logits.
        accuracy: Accuracy on the labeled images of the sample; None without labels.
        seconds: Seconds per image of a forward pass, by device.
        encodings: Encodings of the logits to compare; one is the chosen one. Empty without logits.
        taps: Layers whose features are cached, by name.
    """

    architecture: str
    num_classes: int | None
    accuracy: float | None
    seconds: dict[str, float]
    encodings: list[EncodingEstimate]
    taps: dict[str, TapEstimate]

    @property
    def chosen(self) -> EncodingEstimate | None:
        """The encoding that the configuration results in; None without logits."""
        return next((row for row in self.encodings if row.chosen), None)


@dataclass(frozen=True)
class DeviceEstimate:
    """Seconds per image on one device; see :mod:`.break_even`.

    Attributes:
        teach: Forward passes of all teachers.
        decode: Decoding in precompute, once for all views.
        store: Computing and storing one view in precompute, without decoding.
    """

    teach: float
    decode: float
    store: float

    def precompute(self, views: int) -> float:
        """Return the seconds per image to compute and store this number of views."""
        return self.decode + views * self.store


@dataclass(frozen=True)
class ViewsEstimate:
    """Estimate for the cache with a certain number of views.

    Attributes:
        views: Number of views.
        bytes: Bytes of the whole cache.
        files: Number of files of the whole cache.
        minutes: Minutes of precompute, by device.
        break_even_epochs: Student epochs after which the cache takes no more time than live
            teachers, by device; None if it never breaks even.
    """

    views: int
    bytes: int
    files: int
    minutes: dict[str, float]
    break_even_epochs: dict[str, int | None]


@dataclass(frozen=True)
class Estimate:
    """Estimate of size, time and fidelity of a cache.

    Attributes:
        images: Number of images of the set.
        shown: Number of images that the teachers were run on.
        views: Number of views that are configured.
        unit_rows: Rows per unit, U.
        devices: Seconds per image, by device.
        fetch: Seconds per image to read the targets of all teachers in training, from memory.
        teachers: Estimates by name of the teacher.
        by_views: Estimates for fewer and more views, images in the cache included.
        images_in_cache: Estimate for the images in the cache; None if it would contain none.
        lacking: What an existing cache lacks; None without one.
    """

    images: int
    shown: int
    views: int
    unit_rows: int
    devices: dict[str, DeviceEstimate]
    fetch: float
    teachers: dict[str, TeacherEstimate]
    by_views: list[ViewsEstimate]
    images_in_cache: ImagesEstimate | None = None
    lacking: Lacking | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return asdict(self)


def estimate_cache(
    config: PrecomputeConfig, cache: Location | None = None, *, data: ImageSet | None = None
) -> Estimate:
    """Estimate a new cache with the given configuration; nothing is written.

    Args:
        config: Configuration as for :func:`.build_cache`; its ``cache`` is not read.
        cache: An existing cache; what it lacks of the configuration is counted, too.
        data: The images, instead of ``config.data``, as for :func:`.build_cache`.

    Raises:
        LogitcacheError: Precompute would refuse the configuration before its first unit.
    """
    data = config.data if data is None else data
    if cache is not None:
        source = open_images(data, cache, config.images)
    else:
        source = with_images(open_source(data), config.images)
    views = config.views.views()
    used, *others = _devices(config)
    ensemble = _ensemble(config, source, views, used)
    batch, _ = choose_batch(ensemble, list(ensemble.members), config.batch_size)
    config = config.model_copy(update={"batch_size": batch})
    taps = choose_taps(config, {}, source, ensemble)
    lacking = None
    if cache is not None and not cache.is_empty():
        lacking = find_lacking(config, cache, source, ensemble, taps)
    fitted = any(fits_basis(config.encoding, m.num_classes) for m in ensemble.members.values())
    images = _FITTED_IMAGES if fitted else TRIAL_IMAGES
    shown = _run_sample(config, source, views, ensemble, taps, images)
    seconds = {used.type: shown}
    for device in others:
        other = _ensemble(config, source, views, device)
        seconds[device.type] = _run_sample(config, source, views, other, taps, _FEWER_IMAGES)
    estimate = _Cost(config, source, views, ensemble, taps, seconds).estimate()
    return replace(estimate, lacking=lacking)


def _ensemble(
    config: PrecomputeConfig, source: Source, views: Sequence[View], device: torch.device
) -> Ensemble:
    ensemble = Ensemble(
        config.teachers,
        device=device,
        precision=config.precision,
        class_names=source.class_names,
    )
    for name, member in ensemble.members.items():
        check_classes(name, member, source)
    for view in views:
        view.check_sizes(ensemble.sizes)
    return ensemble


def _run_sample(
    config: PrecomputeConfig,
    source: Source,
    views: Sequence[View],
    ensemble: Ensemble,
    taps: Mapping[str, FeatureEncoding],
    images: int,
) -> SampleRun:
    return run_sample(
        source,
        ensemble,
        views,
        taps,
        images=images,
        batch=config.batch,
        threads=config.threads,
        image_memory=config.image_memory,
    )


def _devices(config: PrecomputeConfig) -> list[torch.device]:
    """Return the device to use; if that is an accelerator found by ``auto``, the CPU as well."""
    used = resolve_device(config.device)
    alone = config.device != "auto" or used.type == "cpu"
    return [used] if alone else [used, resolve_device("cpu")]


def _device(name: str, found: SampleRun, store: float) -> DeviceEstimate:
    """Return seconds per image; work on an accelerator overlaps with encoding and writing."""
    first, later = (
        show + store if name == "cpu" else max(show, store)
        for show in (found.show, found.show_decoded)
    )
    return DeviceEstimate(teach=sum(found.teach.values()), decode=first - later, store=later)


class _Cost:
    """Extrapolation of the measurements on a sample to the whole image set."""

    def __init__(
        self,
        config: PrecomputeConfig,
        source: Source,
        views: Sequence[View],
        ensemble: Ensemble,
        taps: Mapping[str, FeatureEncoding],
        seconds: Mapping[str, SampleRun],
    ) -> None:
        self._config, self._source, self._views = config, source, views
        self._ensemble, self._keys, self._seconds = ensemble, source.keys, seconds
        self._shown = next(iter(seconds.values()))
        self._unit_rows = default_unit_rows(len(source.keys), config.unit_rows)
        self._capacity = -(-len(source.keys) // self._unit_rows) * self._unit_rows
        one_label = bool(source.class_names) and label_sets_of(source) is None
        labels = self._shown.labels if one_label else None
        own = {name for name, member in ensemble.members.items() if member.class_names is not None}
        heads = {name: member.head for name, member in ensemble.members.items()}
        wanted, logits = config.encoding, self._shown.logits
        self._outputs = {
            name: EncodedOutputs(
                wanted, name, logits[name], None if name in own else labels, heads[name]
            )
            for name in ensemble.with_logits
        }
        self._taps = {
            name: EncodedFeatures(encoding, self._shown.features[name])
            for name, encoding in taps.items()
        }
        tried: list[EncodedOutputs | EncodedFeatures] = [
            *self._outputs.values(),
            *self._taps.values(),
        ]
        store = sum(one.store for one in tried)
        self._fetch = sum(one.fetch for one in tried)
        self._images = estimate_images(
            source, config.images, views[-1], ensemble.sizes, self._unit_rows
        )
        self._devices = {name: _device(name, found, store) for name, found in seconds.items()}

    def estimate(self) -> Estimate:
        return Estimate(
            images=len(self._keys),
            shown=len(self._shown.labels),
            views=len(self._views),
            unit_rows=self._unit_rows,
            devices=self._devices,
            fetch=self._fetch,
            teachers={name: self._teacher(name) for name in self._ensemble.members},
            by_views=[self._with_views(count) for count in self._counts()],
            images_in_cache=self._images,
        )

    def _counts(self) -> list[int]:
        """Return the numbers of views to compare: powers of two, and the configured number."""
        requested = len(self._views)
        return sorted({2**n for n in range(requested.bit_length() + 1)} | {requested})

    def _teacher(self, name: str) -> TeacherEstimate:
        member, outputs = self._ensemble.members[name], self._outputs.get(name)
        tried = [] if outputs is None else outputs.tried
        return TeacherEstimate(
            architecture=str(member.lock["architecture"]),
            num_classes=None if outputs is None else member.num_classes,
            accuracy=None if outputs is None else outputs.accuracy,
            seconds={device: found.teach[name] for device, found in self._seconds.items()},
            encodings=[self._encoding(name, encoding) for encoding in tried],
            taps={
                str(tap_of(tap)): self._tap(tap) for tap in self._taps if teacher_of(tap) == name
            },
        )

    def _encoding(self, name: str, encoding: Encoding) -> EncodingEstimate:
        outputs = self._outputs[name]
        plan = self._outputs_plan(name, encoding, len(self._views))
        return EncodingEstimate(
            encoding=encoding.settings(),
            chosen=encoding == outputs.chosen,
            fidelity=outputs.fidelity(encoding),
            **self._sizes(plan),
        )

    def _tap(self, name: str) -> TapEstimate:
        tap, plan = self._taps[name], self._tap_plan(name, len(self._views))
        parameters = tap.encoding.to_json()
        return TapEstimate(
            encoding={key: value for key, value in parameters.items() if key != "principal"},
            views=plan.views,
            fidelity=tap.fidelity,
            **self._sizes(plan),
        )

    def _sizes(self, plan: GroupPlan) -> dict[str, Any]:
        """Return the fields of an estimate that follow from the plan of its group."""
        found = group_footprint(plan, len(self._keys), self._capacity)
        # a student never reads lse
        row_memory = sum(spec.row_bytes for name, spec in plan.specs.items() if name != "lse")
        memory = self._capacity * row_memory
        return {"row_bytes": plan.row_bytes, **asdict(found), "memory": memory}

    def _with_views(self, count: int) -> ViewsEstimate:
        views, devices = self._views, self._devices
        mixed = sum(views[n % len(views)].mixing is not None for n in range(count))
        groups = [self._outputs_plan(n, one.chosen, count) for n, one in self._outputs.items()]
        found = cache_footprint(
            [*groups, *(self._tap_plan(name, count) for name in self._taps)],
            self._source,
            self._capacity,
            self._unit_rows,
            mixed_views=mixed,
            fingerprint_side=min(self._ensemble.sizes),
        )
        return ViewsEstimate(
            views=count,
            bytes=found.bytes + (self._images.bytes_of(count) if self._images else 0),
            files=found.files,
            minutes={n: len(self._keys) * d.precompute(count) / 60 for n, d in devices.items()},
            break_even_epochs={
                n: break_even_epochs(d.precompute(count), d.teach, self._fetch)
                for n, d in devices.items()
            },
        )

    def _outputs_plan(self, name: str, encoding: Encoding, views: int) -> GroupPlan:
        outputs = self._outputs[name]
        row_bytes = outputs.row_bytes(encoding)
        plan = self._group(name, views, encoding.specs(), outputs.specs(encoding), row_bytes)
        fitted = encoding.to_json().keys() - encoding.settings().keys()
        attribute_bytes = sum(len(str(encoding.to_json()[key])) for key in fitted)
        return replace(plan, attribute_bytes=attribute_bytes)

    def _tap_plan(self, name: str, views: int) -> GroupPlan:
        tap = self._taps[name]
        wanted = self._config.teachers[teacher_of(name)].features[str(tap_of(name))].views
        specs = tap.encoding.specs()
        return self._group(name, min(views, wanted or views), specs, specs, tap.row_bytes)

    def _group(
        self,
        name: str,
        views: int,
        cut_by: Mapping[str, ArraySpec],
        specs: Mapping[str, ArraySpec],
        row_bytes: float,
    ) -> GroupPlan:
        """Return a group whose unit size follows from the bytes of the arrays in ``cut_by``."""
        raw = sum(spec.row_bytes for spec in cut_by.values())
        unit_rows = group_unit_rows(self._unit_rows, raw)
        return GroupPlan(teacher_group(name), views, unit_rows, specs, row_bytes)
