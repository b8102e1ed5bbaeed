"""How long each stage took, and how much of it was spent waiting for data."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean
from typing import TYPE_CHECKING

from logitcache.report.page.axis import Axis
from logitcache.report.page.blocks import Section, Table
from logitcache.report.page.charts import Bars, Charts
from logitcache.report.quantities import seconds_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.report.page.contents import Contents, StageTime

__all__ = ["time"]

_MOST_BARS = 40


def time(contents: Contents) -> Section | None:
    """Return the duration of all stages that recorded one."""
    stages: dict[tuple[str, str], list[StageTime]] = defaultdict(list)
    for one in contents.times:
        stages[one.origin.group].append(one)
    if not stages:
        return None
    rows = [
        [
            contents.name_of(one.origin),
            seconds_text(one.seconds),
            "-" if one.data_wait is None else f"{one.data_wait:.0%}",
        ]
        for one in contents.times
    ]
    shown = [(name, *_means(times)) for (_, name), times in [*stages.items()][:_MOST_BARS]]
    several = ", mean over seeds" if len(stages) < len(contents.times) else ""
    chart = Bars(
        "Time by stage",
        f"Duration of the stages{several}; of training, also the part spent waiting for batches.",
        Axis("time", 0.0, max(sum(parts) for _, *parts in shown) or 1.0, seconds_text),
        table=Table("Durations of all stages.", ["stage", "time", "data wait"], rows),
        rows=[(f"{name}: {seconds_text(sum(parts))}", parts) for name, *parts in shown],
        parts=["computing", "waiting for data"],
    )
    return Section("Time", [Charts([chart])])


def _means(times: Sequence[StageTime]) -> tuple[float, float]:
    """Return the mean time of computing, and of waiting for data, in seconds."""
    waited = [one.seconds * (one.data_wait or 0.0) for one in times]
    return mean(one.seconds for one in times) - mean(waited), mean(waited)
