"""Images of a cache in their views, with the outputs of all teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from logitcache.report.gallery import Gallery
from logitcache.report.predictions import top_predictions
from logitcache.targets.images.image_rows import match_rows
from logitcache.targets.images.image_source import images_of
from logitcache.views.sheet import png_bytes
from logitcache.views.spec import parse_view

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache
    from logitcache.data.readers import ImageSet
    from logitcache.report.predictions import Prediction

__all__ = ["Shown", "render_views", "show_rows"]

_MOST_PIXELS = 128


@dataclass(frozen=True)
class Shown:
    """An image in one view.

    Attributes:
        key: Name of the image.
        label: Name of its class; empty without one.
        view_number: Number of the view in the cache.
        predictions: Most probable classes by teacher.
        png: The view as PNG; None if the image is not available.
    """

    key: str
    label: str
    view_number: int
    predictions: Mapping[str, Sequence[Prediction]]
    png: bytes | None


def show_rows(
    cache: Cache, wanted: Sequence[tuple[int, str]], pngs: Mapping[tuple[int, str], bytes]
) -> dict[tuple[int, str], Shown]:
    """Return images in views, with the outputs of all teachers that have the view.

    Args:
        cache: The cache.
        wanted: Rows and ids of views.
        pngs: Pictures of those that are available.
    """
    found: dict[tuple[int, str], Shown] = {}
    numbers = {view: number for number, view in enumerate(cache.views)}
    for view in dict.fromkeys(view for _, view in wanted):
        rows = np.array(sorted({row for row, of in wanted if of == view}), dtype=np.int64)
        keys, labels = _keys_and_labels(cache, rows)
        tops = {
            name: top
            for name in cache.teachers
            if (top := top_predictions(cache, name, view, rows, labels)) is not None
        }
        for index, row in enumerate(rows.tolist()):
            label = int(labels[index])
            found[row, view] = Shown(
                key=keys[index],
                label=cache.class_names[label] if label >= 0 else "",
                view_number=numbers[view],
                predictions={name: top[index] for name, top in tops.items()},
                png=pngs.get((row, view)),
            )
    return found


def _keys_and_labels(
    cache: Cache, rows_B: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return names and classes of some rows; -1 for images without a class."""
    keys, labels = [], []
    for row in rows_B.tolist():
        samples = cache.samples_of(row // cache.unit_rows)
        keys.append(str(samples.keys[row - samples.start]))
        labels.append(int(samples.labels[row - samples.start]))
    return keys, np.array(labels, dtype=np.int64)


def render_views(
    cache: Cache, data: ImageSet | None, wanted: Sequence[tuple[int, str]], *, size: int
) -> dict[tuple[int, str], bytes]:
    """Render images in views, as PNG; those whose images are missing are left out.

    Args:
        cache: The cache.
        data: The images; None for those in the cache.
        wanted: Rows and ids of views.
        size: Side in pixels of the views; larger ones are rendered at 128 pixels.

    Raises:
        LogitcacheError: There are no images, or they are not those of the cache.
    """
    source = images_of(cache, data)
    known = match_rows(cache, source, subset=True)
    found: dict[tuple[int, str], bytes] = {}
    for view_id in dict.fromkeys(view for _, view in wanted):
        rows = np.array(sorted({row for row, of in wanted if of == view_id}), dtype=np.int64)
        positions = known.find(rows)
        here = positions >= 0
        view = parse_view(cache.views[view_id], cache.url)
        gallery = Gallery(source, known, positions[here], [view], cache)
        if here.any():
            squares = gallery.squares(view, min(size, _MOST_PIXELS))
            pngs = [png_bytes(square) for square in squares]
            found |= dict(zip(((row, view_id) for row in rows[here].tolist()), pngs, strict=True))
    return found
