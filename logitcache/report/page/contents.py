"""What a report is about: the caches and training runs that its paths lead to."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from logitcache.report.trained_on import trained_on

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from logitcache.cache.format.card import CardConfig
    from logitcache.errors import LogitcacheError
    from logitcache.report.describe import CacheDescription
    from logitcache.training.result import TrainResult

__all__ = ["LABELS", "CacheContents", "Contents", "Network", "Origin", "Run", "StageTime"]

LABELS = "labels"
"""What a network without a cache is trained on."""


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
    """

    origin: Origin
    seconds: float
    data_wait: float | None


@dataclass
class Contents:
    """Everything that a report is about.

    Attributes:
        paths: Paths as the user gave them.
        caches: The caches.
        runs: The training runs.
        times: Durations of stages.
        problems: What could not be read: a path or the title of a section, and why.
    """

    paths: Sequence[str]
    caches: list[CacheContents] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    times: list[StageTime] = field(default_factory=list)
    problems: list[tuple[str, LogitcacheError]] = field(default_factory=list)

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

    def name_of(self, origin: Origin) -> str:
        """Return the name of a cache or run, with its seed if there are several."""
        return f"{origin.name}, {origin.seed}" if origin.seed else origin.name


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
