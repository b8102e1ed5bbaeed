"""Outputs of teachers for a sample of images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from logitcache.encoding.logits import log_softmax
from logitcache.errors import DataError
from logitcache.platforms import available_processors
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.teachers.ensemble import Ensemble, Tap

__all__ = ["TRIAL_IMAGES", "run_teachers", "sample_features", "sample_log_probs"]

TRIAL_IMAGES = 256
_MOST_NUMBERS = 2**26  # of a sample of features
_SAMPLE = "sample"


def run_teachers(
    source: Source,
    ensemble: Ensemble,
    kept_patches: Mapping[str, NDArray[np.int64] | None],
    indices_N: NDArray[np.int64],
    batch: int,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Show the ``eval`` view of some images to some teachers.

    Args:
        source: The images.
        ensemble: The teachers.
        kept_patches: As in :meth:`.Ensemble.answer`, patches for each of the N images.
        indices_N: Positions in the source.
        batch: Images of one forward.

    Returns:
        Logits (N, C) and features (N, ...) by name, and which of the N could be read.
    """
    hashes_N = np.zeros(len(indices_N), dtype=np.uint64)  # nothing is drawn
    request = BatchRequest(ViewsConfig().eval_view(), indices_N, hashes_N)
    threads = available_processors()
    with ViewRenderer(source.read, ensemble.sizes, threads=threads) as renderer:
        (rendered,) = renderer.batches([request])
    outputs = ensemble.answer(rendered.pixels, dict.fromkeys(kept_patches, batch), kept_patches)
    return outputs, np.setdiff1d(np.arange(len(indices_N)), list(rendered.failures))


def sample_log_probs(
    source: Source, ensemble: Ensemble, name: str, batch: int
) -> NDArray[np.float64]:
    """Return teacher outputs of images spread over the listing: log-probabilities (N, C).

    Raises:
        DataError: None of them can be read.
    """
    indices_N = _spread(source, TRIAL_IMAGES)
    outputs, read = run_teachers(source, ensemble, {name: None}, indices_N, batch)
    return log_softmax(outputs[name][_some(source, read)])[0]


def sample_features(
    source: Source, ensemble: Ensemble, tap: Tap, batch: int
) -> NDArray[np.float32]:
    """Return what is kept of a tap for images spread over the listing: float32 (N, ...).

    Fewer images where rows are large; the first patches of each where only some are kept.

    Raises:
        DataError: None of them can be read.
    """
    encoding = tap.encoding
    most = max(1, min(TRIAL_IMAGES, _MOST_NUMBERS // math.prod(encoding.shape)))
    indices_N = _spread(source, most)
    positions = None
    if encoding.kept is not None:
        positions = np.tile(np.arange(encoding.kept), (len(indices_N), 1))
    ensemble.keep({_SAMPLE: tap})
    outputs, read = run_teachers(source, ensemble, {_SAMPLE: positions}, indices_N, batch)
    return outputs[_SAMPLE][_some(source, read)]


def _spread(source: Source, count: int) -> NDArray[np.int64]:
    """Return positions of images spread evenly over the listing."""
    step = max(1, len(source.keys) // count)
    return np.arange(0, len(source.keys), step, dtype=np.int64)[:count]


def _some(source: Source, read: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(read):
        raise DataError("none of the first images can be read", where=source.description)
    return read
