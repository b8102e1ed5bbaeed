"""A few images shown to teachers before they are asked about all of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from logitcache.encoding.logits import log_softmax
from logitcache.errors import DataError
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.teachers.ensemble import Ensemble

__all__ = ["TRIAL_IMAGES", "ask", "sample_log_probs"]

TRIAL_IMAGES = 256


def ask(
    source: Source,
    ensemble: Ensemble,
    names: Collection[str],
    indices_N: NDArray[np.int64],
    batch: int,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Show the ``eval`` view of some images to some teachers.

    Args:
        source: The images.
        ensemble: Who answers.
        names: Which of them.
        indices_N: Positions in the source.
        batch: Images of one forward.

    Returns:
        Logits (N, C) by name, and which of the N could be read.
    """
    hashes_N = np.zeros(len(indices_N), dtype=np.uint64)  # nothing is drawn
    request = BatchRequest(ViewsConfig().eval_view(), indices_N, hashes_N)
    threads = len(os.sched_getaffinity(0))
    with ViewRenderer(source.read, ensemble.sizes, threads=threads) as renderer:
        (rendered,) = renderer.batches([request])
    answers = ensemble.answer(rendered.pixels, dict.fromkeys(names, batch), list(names))
    return answers, np.setdiff1d(np.arange(len(indices_N)), list(rendered.failures))


def sample_log_probs(
    source: Source, ensemble: Ensemble, name: str, batch: int
) -> NDArray[np.float64]:
    """Return what a teacher says of images spread over the listing: log-probabilities (N, C).

    Raises:
        DataError: None of them can be read.
    """
    step = max(1, len(source.keys) // TRIAL_IMAGES)
    indices_N = np.arange(0, len(source.keys), step, dtype=np.int64)[:TRIAL_IMAGES]
    answers, read = ask(source, ensemble, [name], indices_N, batch)
    if not len(read):
        raise DataError("none of the first images can be read", where=source.description)
    return log_softmax(answers[name][read])[0]
