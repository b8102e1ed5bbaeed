"""Predictions of the teachers and networks of a report, as counts of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from logitcache.training.evaluation.prediction_counts import PredictionCounts, read_predictions

if TYPE_CHECKING:
    from logitcache.report.output_sample import OutputSample
    from logitcache.report.page.contents import Contents, Network

__all__ = ["Predictor", "predictors"]


@dataclass(frozen=True)
class Predictor:
    """A teacher or a network with its predictions on labeled images.

    Attributes:
        name: Its name.
        where: What the predictions are on, in a few words.
        counts: The predictions.
    """

    name: str
    where: str
    counts: PredictionCounts


def predictors(contents: Contents) -> list[Predictor]:
    """Return the teachers of all caches, then the networks whose runs recorded predictions."""
    found = []
    several = len(contents.first_caches) > 1
    for cache in contents.first_caches:
        sample = contents.sample_of(cache)
        if sample is None:
            continue
        for name, counts in of_teachers(sample).items():
            where = f"views of “{cache.origin.name}”"
            full = f"{cache.origin.name}/{name}" if several else name
            found.append(Predictor(f"{full} (teacher)", where, counts))
    for network in contents.networks:
        recorded = _of_network(contents, network)
        if recorded is not None:
            found.append(Predictor(network.name, "validation images", recorded))
    return found


def of_teachers(sample: OutputSample) -> dict[str, PredictionCounts]:
    """Return the predictions of the teachers whose classes are those of the labels."""
    found = {}
    for name, rows in sample.teachers.items():
        known = (sample.labels >= 0) & (rows.predicted >= 0)
        if rows.is_judged and known.any():
            counts = PredictionCounts(sample.class_names)
            counts.add(sample.labels[known], rows.predicted[known], rows.confidence[known])
            found[name] = counts
    return found


def _of_network(contents: Contents, network: Network) -> PredictionCounts | None:
    """Return the predictions of all runs of a network together."""
    parts = []
    for run in network.runs:
        try:
            counts = read_predictions(Path(run.origin.path))
        except ValueError as error:
            contents.report_damage(run.origin.path, str(error))
            continue
        if counts is not None:
            parts.append(counts)
    return PredictionCounts.total(parts) if parts else None
