"""Sheets of views of a few images, from a cache or from settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.read.reader import Cache, open_cache
from logitcache.cache.read.view_selection import choose_views
from logitcache.data.decode import decode
from logitcache.data.readers import open_source
from logitcache.errors import UsageError, nearest
from logitcache.targets.fingerprint_check import check_fingerprints
from logitcache.targets.image_rows import CheckedReader, ImageRows, match_rows, number_rows
from logitcache.targets.image_source import images_of
from logitcache.targets.mixing_pairs import Pairs, find_pairs
from logitcache.targets.reader import TargetsReader
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.environment import rendering_versions
from logitcache.views.golden import check_vectors, golden_files
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.sheet import Cell, SheetRow, write_sheet
from logitcache.views.spec import View, ViewsConfig, parse_view

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.data.source import Source

__all__ = ["Gallery", "check_machine", "draw_sheet", "open_gallery"]

_TOP = 5
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
    """

    source: Source
    rows: ImageRows
    positions: NDArray[np.int64]
    views: list[View]
    cache: Cache | None

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
        request = BatchRequest(
            view,
            chosen,
            hashes_of(chosen),
            partners=partners,
            partner_hashes=None if partners is None else hashes_of(partners),
        )
        reader = CheckedReader(self.rows)
        with ViewRenderer(reader, [size], threads=1, table=self.rows.table) as renderer:
            (rendered,) = renderer.batches([request])
        for error in rendered.failures.values():
            raise reader.named(error)
        return rendered.pixels[size]

    def _of_image(self, position: int) -> dict[str, Any]:
        image = decode(CheckedReader(self.rows)(position), self.rows.table)
        height, width = image.shape[1:]
        return {
            "key": self.key(position),
            "row": int(self.rows.numbers.take(np.array([position]))[0]),
            "height": height,
            "width": width,
            "views": [self._drawn(view, position, height, width) for view in self.views],
        }

    def _drawn(self, view: View, position: int, height: int, width: int) -> dict[str, Any]:
        floats = view_floats(view, self.rows.hashes_of(np.array([position])))
        how = parameters(view, [row[0].tolist() for row in floats], height, width)
        pairs = self.pairs(view)
        partner = -1 if pairs is None else int(pairs.positions_of(np.array([position]))[0])
        return {
            "view": view.id,
            "draw": view.draw,
            "seed": view.seed,
            "operations": [operation.name for operation in view.operations],
            "parameters": how.to_json(),
            "partner": self.key(partner) if partner >= 0 else None,
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
        known = match_rows(opened, source, subset=True)
        shown = [parse_view(recipe, opened.url) for recipe in opened.views.values()]
    gallery = Gallery(source, known, np.arange(min(images, len(known))), shown, opened)
    positions = _positions(gallery, keys, rows) if keys or rows else gallery.positions
    return Gallery(source, known, positions, _choose(shown, wanted), opened)


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


def draw_sheet(gallery: Gallery, out: Path, *, size: int, teacher: str | None) -> None:
    """Draw the views of a gallery, with the outputs of a teacher for each.

    Args:
        gallery: Images and views.
        out: PNG file to write.
        size: Side of a view in pixels.
        teacher: Name of the teacher; the first one of the cache by default.
    """
    classes = {view.id: _top_classes(gallery, view, teacher) for view in gallery.views}
    squares = {view.id: gallery.squares(view, size) for view in gallery.views}
    columns = [(view.id, _title(view)) for view in gallery.views]
    rows = [
        SheetRow(
            gallery.key(int(position)) + _label(gallery, int(position)),
            [Cell(squares[v.id][index], classes[v.id][index]) for v in gallery.views],
        )
        for index, position in enumerate(gallery.positions)
    ]
    write_sheet(out, columns, rows)


def _title(view: View) -> str:
    if not view.is_random:
        return "eval"
    return f"draw {view.draw}{', ' + view.operations[-1].name if view.base else ''}"


def _label(gallery: Gallery, position: int) -> str:
    label, names = int(gallery.rows.labels_of(np.array([position]))[0]), gallery.rows.class_names
    return f"  [{names[label]}]" if label >= 0 and label < len(names) else ""


def _top_classes(gallery: Gallery, view: View, teacher: str | None) -> list[list[str]]:
    """Return the most probable classes of each chosen image, as lines; empty without a cache."""
    cache = gallery.cache
    if cache is None:
        if teacher is not None:
            raise UsageError(
                "teacher outputs can be shown for the views of a cache only",
                where=f"--teacher {teacher}",
                hint="give --cache, or leave out --teacher",
            )
        return [[] for _ in gallery.positions]
    name = teacher or next(iter(cache.teachers), None)
    if name is None:  # features alone
        return [[] for _ in gallery.positions]
    if view.id not in cache.views_of([name]):
        return [[f"no outputs of {name}"] for _ in gallery.positions]
    rows = gallery.rows.numbers.take(gallery.positions)
    reader = TargetsReader(cache, [name])
    units = tuple(sorted({int(row) // reader.unit_rows for row in rows}))
    outputs = reader.read(view, units, reader.unit_rows).gather(rows).teachers[name]
    log_probs_BK, ids_BK = outputs.top_classes(_TOP)
    names = cache.teacher(name).class_names or cache.class_names
    return [
        [
            f"{p:5.1%} {names[c] if c < len(names) else f'class {c}'}"
            for p, c in zip(shares, ids, strict=True)
            if c >= 0
        ]
        for shares, ids in zip(log_probs_BK.exp().tolist(), ids_BK.tolist(), strict=True)
    ]


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
