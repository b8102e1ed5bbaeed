"""Timing of the precompute pipeline on a few hundred images.

Shapes: N images that could be read, C classes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.names import tap_of, teacher_of
from logitcache.errors import DataError
from logitcache.platforms import available_processors
from logitcache.precompute.sample.trial import spread_requests
from logitcache.teachers.ensemble import Tap
from logitcache.views.render import ViewRenderer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.teachers.ensemble import Ensemble
    from logitcache.views.render import RenderedBatch
    from logitcache.views.spec import View

__all__ = ["Rehearsal", "rehearse"]


@dataclass(frozen=True)
class Rehearsal:
    """Result of running teachers on some images.

    Attributes:
        logits: By teacher, raw, float32 (N, C).
        features: Of the taps, by name of the group, float32 (N, ...).
        labels: int32 (N,), -1 without one.
        show: Seconds of an image and view: rendering and all forwards, overlapping as they do.
        show_decoded: The same of a further view, whose images are decoded already.
        teach: Seconds of a forward of one image, by teacher.
    """

    logits: dict[str, NDArray[np.float32]]
    features: dict[str, NDArray[np.float32]]
    labels: NDArray[np.int32]
    show: float
    show_decoded: float
    teach: dict[str, float]


def rehearse(
    source: Source,
    ensemble: Ensemble,
    views: Sequence[View],
    taps: Mapping[str, FeatureEncoding],
    *,
    images: int,
    batch: int,
    threads: int | None,
    image_memory: int,
) -> Rehearsal:
    """Show images spread over the listing, each in one of the views in rotation.

    Args:
        source: The images.
        ensemble: The teachers.
        views: Which views; images are mixed with one of the same batch.
        taps: What is kept of networks besides, by name of its group; the first tokens of each.
        images: How many, at most.
        batch: Images of one forward.
        threads: Threads that decode and render; all processors by default.
        image_memory: Bytes of decoded images that are kept for a further view.

    Raises:
        DataError: None of them can be read.
    """
    requests = spread_requests(source, views, images, batch)
    kept = {name: encoding.kept for name, encoding in taps.items()}
    kept = {**dict.fromkeys(ensemble.members), **kept}
    ensemble.keep(
        {name: Tap(teacher_of(name), str(tap_of(name)), tap) for name, tap in taps.items()}
    )
    with ViewRenderer(
        source.read,
        ensemble.sizes,
        threads=threads or available_processors(),
        image_memory=image_memory,
    ) as renderer:
        (first,) = renderer.batches(requests[:1])
        _answer(ensemble, first, kept)  # what is done once, when a network first runs
        renderer.forget_images()  # the first batch was only shown to warm up
        started = time.perf_counter()
        shown = [(b, _answer(ensemble, b, kept)) for b in renderer.batches(requests)]
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        for again in renderer.batches(requests):
            _answer(ensemble, again, kept)
        seconds_decoded = time.perf_counter() - started
    total = sum(len(request.indices) for request in requests)
    read = [np.setdiff1d(np.arange(len(b.request.indices)), list(b.failures)) for b, _ in shown]
    indices = np.concatenate([b.request.indices[r] for (b, _), r in zip(shown, read, strict=True)])
    if not len(indices):
        raise DataError("none of the first images can be read", where=source.description)
    return Rehearsal(
        logits={
            name: np.concatenate([a[name][r] for (_, a), r in zip(shown, read, strict=True)])
            for name in ensemble.members
        },
        features={
            name: np.concatenate([a[name][r] for (_, a), r in zip(shown, read, strict=True)])
            for name in taps
        },
        labels=np.asarray(source.labels)[indices],
        show=seconds / total,
        show_decoded=min(seconds, seconds_decoded) / total,
        teach={name: _forward_seconds(ensemble, shown[-1][0], name) for name in ensemble.members},
    )


def _answer(
    ensemble: Ensemble, batch: RenderedBatch, kept: Mapping[str, int | None]
) -> dict[str, NDArray[np.float32]]:
    """Ask for outputs and taps, by how many tokens of each are kept."""
    rows = len(batch.request.indices)
    kept_patches = {
        name: None if tokens is None else np.tile(np.arange(tokens), (rows, 1))
        for name, tokens in kept.items()
    }
    return ensemble.answer(batch.pixels, dict.fromkeys(kept_patches, rows), kept_patches)


def _forward_seconds(ensemble: Ensemble, batch: RenderedBatch, name: str) -> float:
    """Return the seconds of one teacher's forward of one image, the shorter of two tries."""
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        _answer(ensemble, batch, {name: None})
        seconds.append(time.perf_counter() - started)
    # the shorter one: the first call of a shape may choose algorithms or compile
    return min(seconds) / len(batch.request.indices)
