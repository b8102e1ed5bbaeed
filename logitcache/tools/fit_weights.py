"""Weights of a teacher ensemble, fitted on labeled images of a cache.

As in "Weighted ensemble of teaching assistants" (arXiv 2206.12005), the weights maximize the
accuracy of the mixture of teacher outputs, by differential evolution over [0, 1]^M, normalized to a
sum of one. Ties, which are frequent with few images, are broken by the likelihood of the labels.

Shapes: N rows, C classes, M teachers.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from logitcache.cache.read.reader import open_cache
from logitcache.draws import Purpose, chosen
from logitcache.errors import UsageError, first_of
from logitcache.tools.cached_rows import (
    SampleConfig,
    SeenConfig,
    labeled_rows,
    shared_view,
    stored_rows,
)
from logitcache.tools.result import ToolResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.cache.format.groups import TeacherGroup
    from logitcache.cache.read.reader import Cache

__all__ = ["FitWeightsConfig", "FittedWeights", "best_weights", "fit_weights"]

_TIE = 1e-6  # weight of the log-likelihood relative to the error rate
_GENERATIONS = 200


class FitWeightsConfig(SampleConfig):
    """Settings of fitted weights: cache, teachers and images.

    Attributes:
        cache: Folder or URL of a cache with teacher outputs and labels.
        out: YAML file to write the weights to.
        teachers: Names of the teachers; all by default.
        seen: Images that the teachers were trained on, which are left out; none by default.
        seed: Random seed of the sample and of the search.
    """

    teachers: list[str] | None = Field(default=None, min_length=1)
    seen: SeenConfig | None = None


@dataclass(frozen=True)
class FittedWeights(ToolResult):
    """Weights of teachers and the accuracy of their mixture.

    Attributes:
        teachers: Weight of each teacher, summing to one, as ``soft: {teachers: …}`` takes them.
        accuracy: Accuracy of the weighted mixture.
        uniform: Accuracy of the mixture with equal weights.
        single: Accuracy of each teacher.
        rows: Number of images.
        cache: Folder or URL of the cache.
    """

    teachers: dict[str, float]
    accuracy: float
    uniform: float
    single: dict[str, float]
    rows: int
    cache: str


def fit_weights(config: FitWeightsConfig) -> FittedWeights:
    """Fit the weights of teachers and write them to a file.

    Raises:
        UsageError: A teacher is unknown, the teachers share no view, no labeled image is left, or
            scipy is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise UsageError(
            "fitting weights needs the package scipy, which is not installed",
            where="fit_weights",
            hint='pip install "logitcache[fit]"',
        )
    cache = open_cache(config.cache)
    names = _teachers(config, cache)
    view = shared_view(cache, names)
    rows = _rows(config, cache)
    labels_N = cache.samples.labels[rows]
    probs_MNC = np.stack([_probs(cache, cache.teacher(n), view, rows) for n in names])
    weights_M = best_weights(probs_MNC, labels_N, config.seed)
    alike_M = np.full(len(names), 1 / len(names))
    fitted = FittedWeights(
        teachers=dict(zip(names, (round(float(w), 4) for w in weights_M), strict=True)),
        accuracy=_accuracy(weights_M, probs_MNC, labels_N),
        uniform=_accuracy(alike_M, probs_MNC, labels_N),
        single={
            name: _accuracy(np.ones(1), probs_MNC[m : m + 1], labels_N)
            for m, name in enumerate(names)
        },
        rows=len(rows),
        cache=config.cache,
    )
    fitted.write(config.out)
    return fitted


def best_weights(
    probs_MNC: NDArray[np.float32], labels_N: NDArray[np.int32], seed: int
) -> NDArray[np.float64]:
    """Return the weights (M,), summing to one, of the mixture with the highest accuracy.

    Args:
        probs_MNC: Probabilities of each teacher.
        labels_N: Labels.
        seed: Random seed of the search.
    """
    if len(probs_MNC) == 1:
        return np.ones(1)
    likelihood_MN = probs_MNC[:, np.arange(len(labels_N)), labels_N]

    def loss_of(raw_M: NDArray[np.float64]) -> float:
        weights_M = _scaled(raw_M)
        wrong = 1.0 - _accuracy(weights_M, probs_MNC, labels_N)
        return float(wrong - _TIE * np.log(np.maximum(weights_M @ likelihood_MN, 1e-30)).mean())

    from scipy.optimize import differential_evolution

    found = differential_evolution(
        loss_of, [(0.0, 1.0)] * len(probs_MNC), rng=seed, maxiter=_GENERATIONS, polish=False
    )
    return _scaled(found.x)


def _scaled(raw_M: NDArray[np.float64]) -> NDArray[np.float64]:
    total = float(raw_M.sum())
    return raw_M / total if total > 0 else np.full(len(raw_M), 1 / len(raw_M))


def _accuracy(
    weights_M: NDArray[np.float64], probs_MNC: NDArray[np.float32], labels_N: NDArray[np.int32]
) -> float:
    mixed_NC = np.tensordot(weights_M.astype(np.float32), probs_MNC, 1)
    return float((mixed_NC.argmax(1) == labels_N).mean())


def _teachers(config: FitWeightsConfig, cache: Cache) -> list[str]:
    """Return the names of the teachers, whose classes are those of the labels."""
    names = config.teachers or list(cache.teachers)
    if not names:
        raise UsageError(
            "no teacher of this cache has logits, so there are no weights to fit",
            where=config.cache,
            hint="precompute teachers with a classifier",
        )
    own = [name for name in names if cache.teacher(name).class_names is not None]
    if own:
        raise UsageError(
            "weights are fitted on labels, which are not among the classes of these teachers",
            where=config.cache,
            got=f"teachers with classes of their own: {first_of(own)}",
            hint="choose teachers with the classes of the images (teachers: [...])",
        )
    return names


def _rows(config: FitWeightsConfig, cache: Cache) -> NDArray[np.int64]:
    """Return the labeled rows to fit the weights on, ascending."""
    labeled = labeled_rows(cache, "weights of teachers")
    if config.seen is not None:
        labeled = np.delete(labeled, config.seen.among(cache, labeled))
    if not len(labeled):
        raise UsageError(
            "no labeled image is left to fit weights on",
            where=cache.url,
            hint="precompute images with labels that the teachers were not trained on",
        )
    hashes = cache.samples.hashes[labeled]
    drawn = chosen(config.seed, hashes, config.rows, purpose=Purpose.LABELLED_ROWS)
    return np.sort(labeled[drawn])


def _probs(
    cache: Cache, group: TeacherGroup, view: str, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the probabilities of a teacher, (N, C)."""
    return group.encoding.decode(stored_rows(cache, group, view, rows)).probs()
