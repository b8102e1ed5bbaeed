"""What a report is about: the caches and training runs that its paths lead to."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeGuard

from logitcache.data.readers import DataConfig
from logitcache.errors import LogitcacheError
from logitcache.report.page.cache_outputs import CacheOutputs, ReportSettings
from logitcache.report.page.pictures import show_rows
from logitcache.report.trained_on import trained_on

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from logitcache.cache.format.card import CardConfig
    from logitcache.data.readers import ImageSet
    from logitcache.report.describe import CacheDescription
    from logitcache.report.output_sample import OutputSample
    from logitcache.report.page.pictures import Shown
    from logitcache.training.run.result import TrainResult

__all__ = [
    "CacheContents",
    "Contents",
    "Network",
    "Origin",
    "Run",
    "StageTime",
    "is_from",
]

_PIXELS = 64
_PICKLES = "torch/"


@dataclass(frozen=True)
class Origin:
    """Where something in a report comes from.

    Attributes:
        path: Its folder or URL.
        name: Its name: that of a stage, the same for all seeds, or of a folder.
        pipeline: The folder of its pipeline, without the seed; empty outside of one.
        seed: Its seed as the folders of the pipeline name it; empty without several.
    """

    path: str
    name: str
    pipeline: str = ""
    seed: str = ""

    @property
    def group(self) -> tuple[str, str]:
        """What runs of one network with several seeds have in common."""
        return (self.pipeline, self.name) if self.pipeline else (self.path, self.name)


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        origin: Where it comes from.
        settings: Its settings, checked; empty if they are not kept.
        events: Events of its log, oldest first.
        result: Its result; None if it is not finished.
    """

    origin: Origin
    settings: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    result: TrainResult | None

    @property
    def score(self) -> float | None:
        """Accuracy or mean average precision of the finished run; None if not evaluated."""
        if self.result is None or self.result.evaluation is None:
            return None
        return self.result.evaluation.score

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Return the steps and values of a quantity in the log, where it is a finite number."""
        pairs = ((event.get("step"), event.get(name)) for event in self.events)
        return [(float(s), float(v)) for s, v in pairs if _is_number(s) and _is_number(v)]


@dataclass(frozen=True)
class Network:
    """Runs of one network that differ in their seeds.

    Attributes:
        name: Its name.
        runs: The runs.
    """

    name: str
    runs: Sequence[Run]

    @property
    def trained_on(self) -> str:
        """What it was trained on, in a few words."""
        return trained_on(self.runs[0].settings) if self.runs[0].settings else "not recorded"

    @property
    def is_shuffled(self) -> bool:
        """Whether it is a control: every image has the targets of another one."""
        return bool(self.runs[0].settings.get("shuffle_targets"))

    @property
    def uses_cache(self) -> bool:
        """Whether its targets come from a cache."""
        return bool(self.runs[0].settings.get("cache"))

    @property
    def model(self) -> str:
        """Name of its architecture."""
        student = self.runs[0].settings.get("student") or {}
        return str(student.get("model", "")) if isinstance(student, dict) else ""

    @property
    def scores(self) -> list[float]:
        """Results of the finished runs that were evaluated."""
        return [score for run in self.runs if (score := run.score) is not None]


@dataclass(frozen=True)
class CacheContents:
    """A cache.

    Attributes:
        origin: Where it comes from.
        description: Its description.
        facts: What people have stated about it.
    """

    origin: Origin
    description: CacheDescription
    facts: CardConfig


@dataclass(frozen=True)
class StageTime:
    """Time that a stage took.

    Attributes:
        origin: Where it comes from.
        seconds: Its duration.
        data_wait: Share of it that was spent waiting for batches; None where nothing waits.
        outputs: Number of images times views that it computed outputs for.
        forward_seconds: Seconds of the forward passes of all teachers per image and view; None
            where they were not measured.
    """

    origin: Origin
    seconds: float
    data_wait: float | None
    outputs: int = 0
    forward_seconds: float | None = None


@dataclass
class Contents:
    """Everything that a report is about.

    Attributes:
        paths: Paths as the user gave them.
        caches: The caches.
        runs: The training runs.
        times: Durations of stages.
        problems: What could not be read: a path or the title of a section, and why.
        settings: What is read of caches.
        unread: Number of runs with a setting that this version does not know, by its name.
    """

    paths: Sequence[str]
    settings: ReportSettings = field(default_factory=ReportSettings)
    caches: list[CacheContents] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    times: list[StageTime] = field(default_factory=list)
    problems: list[tuple[str, LogitcacheError]] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)
    _outputs: dict[str, CacheOutputs] = field(default_factory=dict)
    _samples: dict[str, OutputSample | None] = field(default_factory=dict)

    @property
    def networks(self) -> list[Network]:
        """The runs by network, in the order of their stages."""
        groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
        for run in self.runs:
            groups[run.origin.group].append(run)
        names = [name for _, name in groups]
        return [
            Network(name if names.count(name) == 1 else f"{where}: {name}", runs)
            for (where, name), runs in groups.items()
        ]

    @property
    def first_caches(self) -> list[CacheContents]:
        """One cache of each name: that of the first seed, which stands for the others."""
        first: dict[tuple[str, str], CacheContents] = {}
        for cache in self.caches:
            first.setdefault(cache.origin.group, cache)
        return list(first.values())

    def sample_of(self, cache: CacheContents) -> OutputSample | None:
        """Return a sample of the outputs of a cache; None if they cannot be read."""
        path = cache.origin.path
        if path not in self._samples:
            self._samples[path] = self._read_sample(cache)
        return self._samples[path]

    @property
    def sampled(self) -> str:
        """What measurements on the outputs of caches were made on, in a sentence or two."""
        found = [(cache, self._samples.get(cache.origin.path)) for cache in self.first_caches]
        parts = [
            f"{len(sample)} of {sample.population} outputs of each teacher of “{cache.origin.name}”"
            for cache, sample in found
            if sample is not None and not sample.is_complete
        ]
        if parts:
            return f"Measured on a sample: {', '.join(parts)}."
        counts = {str(len(sample)) for _, sample in found if sample is not None}
        return f"Measured on all outputs of each teacher ({', '.join(sorted(counts))})."

    def shown(
        self, cache: CacheContents, wanted: Sequence[tuple[int, str]]
    ) -> dict[tuple[int, str], Shown]:
        """Return images of a cache in views, with pictures if the images are available."""
        outputs = self._outputs_of(cache)
        size = max((t.input_size for t in cache.description.teachers), default=0) or _PIXELS
        try:
            return outputs.shown(wanted, self._images_of(cache), size=size)
        except LogitcacheError as error:
            if self.settings.data is not None:
                self.problems.append((self.settings.data, error))
            return show_rows(outputs.cache, wanted, {})

    def report_damage(self, path: str, detail: str) -> None:
        """Add a file that cannot be read to the problems, once."""
        if path not in [where for where, _ in self.problems]:
            self.problems.append((path, LogitcacheError("a file is damaged", got=detail)))

    def _outputs_of(self, cache: CacheContents) -> CacheOutputs:
        path = cache.origin.path
        return self._outputs.setdefault(path, CacheOutputs(path, self.settings))

    def _read_sample(self, cache: CacheContents) -> OutputSample | None:
        if cache.description.revision is None or not self.settings.rows:
            return None
        try:
            return self._outputs_of(cache).sample
        except LogitcacheError as error:
            self.problems.append((cache.description.url, error))
            return None

    def _images_of(self, cache: CacheContents) -> ImageSet | None:
        """Return the images of a cache: those of the settings, in it, or of a run from it."""
        if self.settings.data is not None or cache.description.images_in_cache is not None:
            return self.settings.data
        for run in self.runs:
            data = run.settings.get("data")
            # torchvision's sets are pickles, which run code when they are read
            if is_from(run, cache) and isinstance(data, dict) and "name" in data:
                found = DataConfig.model_validate(data)
                return None if found.name.startswith(_PICKLES) else found
        return None

    def name_of(self, origin: Origin) -> str:
        """Return the name of a cache or run, with its seed if there are several."""
        return f"{origin.name}, {origin.seed}" if origin.seed else origin.name


def is_from(run: Run, cache: CacheContents) -> bool:
    """Return whether a run has its targets from a cache; in a pipeline, from that of its seed."""
    location = str(run.settings.get("cache") or "")
    if run.origin.pipeline:
        same = (run.origin.pipeline, run.origin.seed) == (cache.origin.pipeline, cache.origin.seed)
        return same and PurePath(location.removeprefix("stage:")).name == cache.origin.name
    return location == cache.origin.path


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
