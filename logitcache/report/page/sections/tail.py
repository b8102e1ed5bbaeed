"""Probability of the classes that are not stored, outside of the top K."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from logitcache.report.page.axis import Axis
from logitcache.report.page.blocks import Paragraph, Section, Table
from logitcache.report.page.charts import Charts, Curves, Series
from logitcache.report.quantities import percent_text, percent_tick

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.report.page.contents import Contents

__all__ = ["tail"]

_LEAST = 1e-4
_POINTS = 60


def tail(contents: Contents) -> Section | None:
    """Return the distribution of the mass outside of the top K, of teachers that have one."""
    found: dict[str, NDArray[np.float32]] = {}
    for cache in contents.first_caches:
        sample = contents.sample_of(cache)
        stored = {t.name: t.encoding for t in cache.description.teachers if t.encoding}
        for name, rows in sample.teachers.items() if sample is not None else ():
            known = rows.tail[~np.isnan(rows.tail)]
            if stored.get(name, {}).get("kind") == "sparse" and len(known):
                found[f"{cache.origin.name}/{name}, top {stored[name]['top_k']}"] = known
    if not found:
        return None
    text = (
        "Sparse targets keep the total probability of the classes that are not stored, but not "
        f"how it is divided among them. {contents.sampled}"
    )
    return Section("Mass outside of the top K", [Paragraph(text), Charts([_chart(found)])])


def _chart(found: dict[str, NDArray[np.float32]]) -> Curves:
    thresholds = np.geomspace(_LEAST, 1.0, _POINTS)
    series = []
    for number, (name, mass_N) in enumerate(found.items()):
        above = 1 - np.searchsorted(np.sort(mass_N), thresholds, side="right") / len(mass_N)
        points = [*zip(thresholds.tolist(), above.tolist(), strict=True)]
        series.append(Series(name, points, number))
    rows = [
        [
            name,
            percent_text(float(mass_N.mean())),
            *(percent_text(float(np.quantile(mass_N, q))) for q in (0.5, 0.9, 0.99)),
        ]
        for name, mass_N in found.items()
    ]
    columns = ["teacher", "mean", "median", "90th percentile", "99th percentile"]
    return Curves(
        "Mass that is not stored",
        "Share of the outputs whose mass outside of the top K is above a value.",
        Axis("mass outside", _LEAST, 1.0, percent_tick, is_log=True),
        Axis("share of outputs", 0.0, 1.0, percent_tick),
        series,
        table=Table("Mass outside of the top K.", columns, rows),
    )
