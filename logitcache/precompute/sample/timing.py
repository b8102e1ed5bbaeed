"""Timing of the precompute pipeline on a few hundred images.

Shapes: N readable images, C classes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.names import tap_of, teacher_of
from logitcache.platforms import available_processors
from logitcache.precompute.sample.batch_size import fastest_of_two
from logitcache.precompute.sample.trial import spread_requests, unreadable_sample
from logitcache.teachers.ensemble import Tap
from logitcache.views.render import ViewRenderer
from logitcache.views.tokens import shown_patches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.teachers.ensemble import Ensemble
    from logitcache.views.render import RenderedBatch
    from logitcache.views.spec import View

__all__ = ["SampleRun", "run_sample"]


@dataclass(frozen=True)
class SampleRun:
    """Result of running teachers on a sample.

    Attributes:
        logits: Raw logits by teacher, float32 (N, C); C is 0 for teachers without logits.
        features: Reduced features by name of the group, float32 (N, ...).
        labels: Labels, int32 (N,); -1 without one.
        show: Seconds per image and view: decoding, rendering and all forward passes, overlapping as
            in a run.
        show_decoded: The same for a further view, whose images are already decoded.
        teach: Seconds per image of a forward pass, by teacher.
    """

    logits: dict[str, NDArray[np.float32]]
    features: dict[str, NDArray[np.float32]]
    labels: NDArray[np.int32]
    show: float
    show_decoded: float
    teach: dict[str, float]


def run_sample(
    source: Source,
    ensemble: Ensemble,
    views: Sequence[View],
    taps: Mapping[str, FeatureEncoding],
    *,
    images: int,
    batch: int,
    threads: int | None,
    image_memory: int,
) -> SampleRun:
    """Run teachers on images spread evenly over the listing, and measure the time.

    Args:
        source: Image set.
        ensemble: The teachers.
        views: Views, each for some of the batches; images are mixed within a batch.
        taps: Encodings of the layers whose features are returned, by name of the group; of kept
            tokens, the first ones of each image are used.
        images: Maximum number of images.
        batch: Images per forward pass.
        threads: Number of decoding and rendering threads; all processors by default.
        image_memory: Maximum memory for decoded images, in bytes.

    Raises:
        DataError: None of the images can be read.
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
        _run(ensemble, first, kept)  # warm-up: what a network does once, in its first forward pass
        renderer.forget_images()  # so that the images of the warm-up are decoded again
        started = time.perf_counter()
        shown = [(b, _run(ensemble, b, kept)) for b in renderer.batches(requests)]
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        for again in renderer.batches(requests):
            _run(ensemble, again, kept)
        seconds_decoded = time.perf_counter() - started
    total = sum(len(request.indices) for request in requests)
    read = [np.setdiff1d(np.arange(len(b.request.indices)), list(b.failures)) for b, _ in shown]
    indices = np.concatenate([b.request.indices[r] for (b, _), r in zip(shown, read, strict=True)])
    if not len(indices):
        raise unreadable_sample(source, total)
    return SampleRun(
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


def _run(
    ensemble: Ensemble, batch: RenderedBatch, kept: Mapping[str, int | None]
) -> dict[str, NDArray[np.float32]]:
    """Return logits and features of a batch, by name.

    Args:
        ensemble: The teachers.
        batch: Rendered images.
        kept: Number of kept tokens by name; None for teachers, and for layers that keep all.
    """
    rows = len(batch.request.indices)
    kept_patches = {
        name: None if tokens is None else np.tile(np.arange(tokens), (rows, 1))
        for name, tokens in kept.items()
    }
    shown = shown_patches(batch.request.view, batch.request.hashes)
    sizes = dict.fromkeys(kept_patches, rows)
    return ensemble.run(batch.pixels, sizes, kept_patches, shown)


def _forward_seconds(ensemble: Ensemble, batch: RenderedBatch, name: str) -> float:
    """Return the seconds per image of a forward pass of one teacher, the minimum of two passes."""
    seconds = fastest_of_two(lambda: _run(ensemble, batch, {name: None}))
    return seconds / len(batch.request.indices)
