"""Outputs of teachers for a sample of images.

Shapes: B images of a batch, N rows, C classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.identity import key_hash
from logitcache.encoding.logits import log_softmax
from logitcache.errors import DataError
from logitcache.platforms import available_processors
from logitcache.views.mix import match_partners
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig
from logitcache.views.tokens import shown_patches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.teachers.ensemble import Ensemble, Tap
    from logitcache.views.spec import View

__all__ = [
    "TRIAL_IMAGES",
    "run_teachers",
    "sample_features",
    "sample_log_probs",
    "spread",
    "spread_requests",
    "unreadable_sample",
]

TRIAL_IMAGES = 256
_MOST_NUMBERS = 2**26  # numbers in a sample of features
_SAMPLE = "sample"


def run_teachers(
    source: Source,
    ensemble: Ensemble,
    kept_patches: Mapping[str, NDArray[np.int64] | None],
    indices_N: NDArray[np.int64],
    batch: int,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Run some teachers on the ``eval`` view of some images.

    Args:
        source: Image set.
        ensemble: The teachers.
        kept_patches: Names of teachers and layers, with the patches to keep of each of the N
            images; see :meth:`.Ensemble.run`.
        indices_N: Positions of the images in the source.
        batch: Images per forward pass.

    Returns:
        Logits (N, C) and features (N, ...) by name, and the indices of the N images that could be
        read.
    """
    hashes_N = np.zeros(len(indices_N), dtype=np.uint64)  # the eval view draws nothing
    request = BatchRequest(ViewsConfig().eval_view(), indices_N, hashes_N)
    threads = available_processors()
    with ViewRenderer(source.read, ensemble.sizes, threads=threads) as renderer:
        (rendered,) = renderer.batches([request])
    outputs = ensemble.run(rendered.pixels, dict.fromkeys(kept_patches, batch), kept_patches)
    return outputs, np.setdiff1d(np.arange(len(indices_N)), list(rendered.failures))


def sample_log_probs(
    source: Source,
    ensemble: Ensemble,
    name: str,
    views: Sequence[View],
    *,
    rows: int,
    batch: int,
) -> NDArray[np.float64]:
    """Return log-probabilities (N, C) of a teacher for images spread evenly over the listing.

    Args:
        source: Image set.
        ensemble: The teachers.
        name: Name of the teacher.
        views: Views, each for some of the batches; a small set is used in several of them.
        rows: Approximate number of pairs of an image and a view; small sets may have fewer.
        batch: Images per forward pass.

    Raises:
        DataError: None of the images can be read.
    """
    # a small set is rendered in several views, each image at most once in each of them
    rounds = min(len(views), max(1, rows // max(1, len(source.keys))))
    requests = [
        request
        for first in range(rounds)
        for request in spread_requests(source, views, rows, batch, first=first)
    ]
    size, found = ensemble.members[name].input.size, []
    with ViewRenderer(source.read, [size], threads=available_processors()) as renderer:
        for rendered in renderer.batches(requests):
            count = len(rendered.request.indices)
            shown = shown_patches(rendered.request.view, rendered.request.hashes)
            outputs = ensemble.run(rendered.pixels, {name: count}, {name: None}, shown)
            found.append(np.delete(outputs[name], list(rendered.failures), axis=0))
    outputs_NC = np.concatenate(found)
    if not len(outputs_NC):
        raise unreadable_sample(source, sum(len(request.indices) for request in requests))
    return log_softmax(outputs_NC)[0]


def sample_features(
    source: Source, ensemble: Ensemble, tap: Tap, batch: int
) -> NDArray[np.float32]:
    """Return features of a layer, float32 (N, ...), for images spread evenly over the listing.

    Large features are returned for fewer images. If only some patches are kept, they are the first
    ones of each image.

    Raises:
        DataError: None of the images can be read.
    """
    encoding = tap.encoding
    most = max(1, min(TRIAL_IMAGES, _MOST_NUMBERS // math.prod(encoding.shape)))
    indices_N = spread(len(source.keys), most)
    positions = None
    if encoding.kept is not None:
        positions = np.tile(np.arange(encoding.kept), (len(indices_N), 1))
    ensemble.keep({_SAMPLE: tap})
    outputs, read = run_teachers(source, ensemble, {_SAMPLE: positions}, indices_N, batch)
    return outputs[_SAMPLE][_some(source, read, len(indices_N))]


def unreadable_sample(source: Source, count: int) -> DataError:
    """Return the error for a sample of images of which none can be read."""
    return DataError(
        "none of the sampled images can be read",
        where=source.description,
        expected=f"at least one of {count} images, spread evenly over the image set",
        got="none",
        hint="check that the files are images and can be read",
    )


def _some(source: Source, read: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the indices of readable images of a sample, if there are any."""
    if not len(read):
        raise unreadable_sample(source, count)
    return read


def spread(total: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` positions below ``total``, spread evenly: int64 (N,)."""
    return np.arange(0, total, max(1, total // most), dtype=np.int64)[:most]


def spread_requests(
    source: Source, views: Sequence[View], images: int, batch: int, *, first: int = 0
) -> list[BatchRequest]:
    """Return batches of images spread evenly over the listing, each in one of the views.

    Args:
        source: Image set.
        views: Views, in rotation; images are mixed within a batch.
        images: Maximum number of images.
        batch: Images per batch.
        first: Number of the view of the first batch.
    """
    chosen = spread(len(source.keys), images)
    parts = np.split(chosen, range(batch, len(chosen), batch))
    each = max(1, len(views) // len(parts))
    return [
        _request(source, views[(first + number * each) % len(views)], part)
        for number, part in enumerate(parts)
    ]


def _request(source: Source, view: View, indices_B: NDArray[np.int64]) -> BatchRequest:
    hashes_B = np.array([key_hash(source.keys[index]) for index in indices_B], dtype=np.uint64)
    if view.mixing is None:
        return BatchRequest(view, indices_B, hashes_B)
    partners = match_partners(view.seed, view.draw, hashes_B)
    return BatchRequest(
        view,
        indices_B,
        hashes_B,
        partners=indices_B[partners],
        partner_hashes=hashes_B[partners],
    )
