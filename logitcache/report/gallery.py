"""Views of a few images, from a cache or from settings: parameters and pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.read.reader import Cache, open_cache
from logitcache.cache.read.view_selection import choose_views
from logitcache.data.decode import decode
from logitcache.data.readers import open_source
from logitcache.errors import UsageError, nearest
from logitcache.targets.images.fingerprint_check import check_fingerprints
from logitcache.targets.images.image_rows import CheckedReader, ImageRows, match_rows, number_rows
from logitcache.targets.images.image_source import images_of
from logitcache.targets.mixing_pairs import Pairs, find_pairs
from logitcache.targets.reader import TargetsReader
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.environment import rendering_versions
from logitcache.views.golden import check_vectors, golden_files
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import View, ViewsConfig, parse_view

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.data.source import Source
    from logitcache.views.parameters import Parameters

__all__ = ["Gallery", "check_machine", "open_gallery"]

_MOST_VIEWS = 12


@dataclass(frozen=True)
class Gallery:
    """Images and views of a sheet.

    Attributes:
        source: The images.
        rows: All images, by row.
        positions: Positions of the chosen images in ``rows``, int64 (B,).
        views: The chosen views.
        cache: Cache of the views; None for configured ones.
        numbers: Numbers of the views by id, in the cache or in the configuration.
    """

    source: Source
    rows: ImageRows
    positions: NDArray[np.int64]
    views: list[View]
    cache: Cache | None
    numbers: Mapping[str, int] = field(default_factory=dict)

    def key(self, position: int) -> str:
        """Return the name of an image."""
        return self.rows.key(position)

    def pairs(self, view: View) -> Pairs | None:
        """Return the mixing partners of a view; None where it does not mix."""
        reader = None if self.cache is None else TargetsReader(self.cache, [])
        return find_pairs(view, self.rows, reader)

    def parameters(self) -> list[dict[str, Any]]:
        """Return the parameters of each image and view, as JSON values."""
        return [self._of_image(int(position)) for position in self.positions]

    def squares(self, view: View, size: int) -> NDArray[np.uint8]:
        """Render a view of the chosen images: uint8 (B, 3, S, S)."""
        chosen, hashes_of, pairs = self.positions, self.rows.hashes_of, self.pairs(view)
        partners = None if pairs is None else pairs.positions_of(chosen)
        if partners is not None:  # an image whose partner is missing is not mixed
            partners = np.where(partners < 0, chosen, partners)
        request = self.rows.shown(
            BatchRequest(
                view,
                chosen,
                hashes_of(chosen),
                partners=partners,
                partner_hashes=None if partners is None else hashes_of(partners),
            )
        )
        reader = CheckedReader(self.rows)
        with ViewRenderer(reader, [size], threads=1, table=self.rows.table) as renderer:
            (rendered,) = renderer.batches([request])
        for error in rendered.failures.values():
            raise reader.named(error)
        return rendered.pixels[size]

    def label(self, position: int) -> int:
        """Return the class of an image, -1 without one."""
        return int(self.rows.labels_of(np.array([position]))[0])

    def image(self, position: int) -> NDArray[np.uint8]:
        """Return a decoded image, uint8 (3, H, W)."""
        return np.asarray(decode(CheckedReader(self.rows)(position), self.rows.table))

    def drawn(self, view: View, position: int, height: int, width: int) -> Parameters:
        """Return the parameters of an image of this size in a view."""
        floats = view_floats(view, self.rows.hashes_of(np.array([position])))
        return parameters(view, [row[0].tolist() for row in floats], height, width)

    def partner(self, view: View, position: int) -> int | None:
        """Return the position of the image that is mixed in, None without one."""
        pairs = self.pairs(view)
        found = -1 if pairs is None else int(pairs.positions_of(np.array([position]))[0])
        return found if found >= 0 else None

    def _of_image(self, position: int) -> dict[str, Any]:
        height, width = self.image(position).shape[1:]
        return {
            "key": self.key(position),
            "row": int(self.rows.numbers.take(np.array([position]))[0]),
            "height": height,
            "width": width,
            "views": [self._drawn(view, position, height, width) for view in self.views],
        }

    def _drawn(self, view: View, position: int, height: int, width: int) -> dict[str, Any]:
        partner = self.partner(view, position)
        return {
            "view": view.id,
            "number": self.numbers[view.id],
            "draw": view.draw,
            "seed": view.seed,
            "operations": [operation.name for operation in view.operations],
            "parameters": self.drawn(view, position, height, width).to_json(),
            "partner": None if partner is None else self.key(partner),
        }


def open_gallery(
    data: str,
    cache: str | None,
    values: dict[str, Any],
    *,
    keys: Sequence[str],
    rows: Sequence[int],
    wanted: Sequence[str],
    images: int,
) -> Gallery:
    """Choose images and views.

    Args:
        data: The images.
        cache: The cache with the views; those of ``values`` without one.
        values: Fields of a :class:`~logitcache.views.spec.ViewsConfig`.
        keys: Names of images.
        rows: Rows of images; the first ``images`` rows if neither is given.
        wanted: Views, as for :func:`.choose_views`; all, up to a dozen, if none is given.
        images: Number of images by default.

    Raises:
        UsageError: A key, row or view does not exist; the message names the nearest ones.
    """
    if cache is not None and values:
        raise UsageError(
            "the views of a cache cannot be configured",
            where=cache,
            got=", ".join(values),
            hint="leave out these settings, or --cache",
        )
    opened = None if cache is None else open_cache(cache)
    source = open_source(data) if opened is None else images_of(opened, data)
    if opened is None:
        known, shown = number_rows(source), ViewsConfig.parse(values, "views").views()
    else:
        _refuse_stored_views(opened)
        known = match_rows(opened, source, subset=True)
        shown = [parse_view(recipe, opened.url) for recipe in opened.views.values()]
    numbers = {view.id: number for number, view in enumerate(shown)}
    gallery = Gallery(source, known, np.arange(min(images, len(known))), shown, opened, numbers)
    positions = _positions(gallery, keys, rows) if keys or rows else gallery.positions
    return replace(gallery, positions=positions, views=_choose(shown, wanted))


def _refuse_stored_views(cache: Cache) -> None:
    """Raise an error if a cache contains its views: parameters depend on sizes of originals."""
    if cache.squares is not None:
        raise UsageError(
            "the parameters of views cannot be shown without the original images",
            where=cache.url,
            got="a cache that contains rendered views",
            hint="logitcache report shows images of it",
        )


def _positions(gallery: Gallery, keys: Sequence[str], rows: Sequence[int]) -> NDArray[np.int64]:
    by_key = {gallery.key(position): position for position in range(len(gallery.rows))}
    at = gallery.rows.find(np.array(rows, dtype=np.int64))
    for key in keys:
        if key not in by_key:
            raise UsageError(f"no image {key!r} in the data", hint=nearest(key, by_key))
    for row, position in zip(rows, at, strict=True):
        if position < 0:
            last = gallery.rows.numbers.take(np.array([len(gallery.rows) - 1]))[0]
            raise UsageError(
                f"no readable image in row {row}", expected=f"a row of an image below {last + 1}"
            )
    return np.array([*(by_key[key] for key in keys), *at])


def _choose(views: list[View], wanted: Sequence[str]) -> list[View]:
    by_id = {view.id: view for view in views}
    chosen = choose_views(list(by_id), wanted)
    return [by_id[view_id] for view_id in (chosen if wanted else chosen[:_MOST_VIEWS])]


def check_machine(cache: str | None, data: str | None, tolerance: int) -> dict[str, Any]:
    """Compare the golden vectors and, for a cache, the view fingerprints; return JSON values.

    Raises:
        UsageError: Images are given without a cache, or a cache without images.
        ViewDrift: The fingerprints differ on this machine.
    """
    if cache is None and data is not None:
        what = "the comparison of view fingerprints requires a cache and its images"
        raise UsageError(what, hint="give both --cache and --data")
    probes = None
    if cache is not None:
        opened = open_cache(cache)
        source = images_of(opened, data)
        probes = check_fingerprints(opened, source, tolerance=tolerance).to_json()
    golden = check_vectors(golden_files())
    return {"versions": rendering_versions(), "golden": golden.to_json(), "probes": probes}
