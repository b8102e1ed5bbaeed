"""Check that this machine renders the views of a cache with the same pixels."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.data.identity import key_hash
from logitcache.data.join import check_content
from logitcache.errors import (
    CacheDamaged,
    ParameterDrift,
    PixelDrift,
    UsageError,
)
from logitcache.targets.images.image_rows import match_rows
from logitcache.targets.unit_cache import UnitCache
from logitcache.views.environment import rendering_versions
from logitcache.views.fingerprints import (
    Fingerprint,
    FingerprintImage,
    fingerprint_difference,
    make_fingerprint,
)
from logitcache.views.spec import View, parse_view
from logitcache.views.stored import finishing, stored_under

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.cache.read.reader import Cache
    from logitcache.data.source import Source
    from logitcache.targets.images.image_rows import ImageRows

__all__ = ["FingerprintReport", "check_fingerprints", "checked_rows"]

_MALFORMED = "a view fingerprint in the cache is malformed"


@dataclass(frozen=True)
class FingerprintReport:
    """Comparison of view fingerprints in a cache with those rendered on this machine.

    Attributes:
        checked: Number of fingerprints that were rendered again.
        skipped: Number of fingerprints whose image is not available.
        drifted: Number of fingerprints with different pixels.
        largest: Largest difference between pixel values, 0 to 255.
        seconds: Duration of the check.
        made_with: Versions of the libraries that rendered the fingerprints in the cache; of the
            first that differs, if any does.
        here: Versions of the same libraries on this machine.
    """

    checked: int
    skipped: int
    drifted: int
    largest: int
    seconds: float
    made_with: dict[str, str]
    here: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def checked_rows(
    cache: Cache, source: Source, *, subset: bool = False, tolerate_pixel_drift: int = 0
) -> ImageRows:
    """Match the available images with a cache, and check that views are rendered as for it.

    See :func:`.match_rows` and :func:`check_fingerprints`, whose errors this raises.
    """
    rows = match_rows(cache, source, subset=subset)
    check_fingerprints(cache, source, rows=rows, tolerance=tolerate_pixel_drift)
    return rows


def check_fingerprints(
    cache: Cache, source: Source, *, rows: ImageRows | None = None, tolerance: int = 0
) -> FingerprintReport:
    """Render the view fingerprints of a cache again, without a teacher, in about a second.

    Args:
        cache: The cache.
        source: The images.
        rows: The images of the source that are matched with rows, if that was done before;
            fingerprints of other images are skipped.
        tolerance: Largest accepted difference between pixel values, 0 to 255. Different parameters
            are never accepted.

    Raises:
        ParameterDrift: This machine draws different augmentation parameters.
        PixelDrift: The parameters are the same, but pixels differ by more than the tolerance.
        DataMismatch: An image is not the one the cache was computed from.
        CacheDamaged: The fingerprints in the cache were changed.
    """
    check = _Check(cache, source, rows or match_rows(cache, source, subset=True))
    for document in cache.probes():
        for values in document.probes:
            try:
                probe = Fingerprint.from_json(values)
            except ValueError as error:
                raise CacheDamaged(_MALFORMED, where=cache.url, got=str(error)) from None
            if probe.view_id in cache.manifest.views:  # it may have been dropped
                check.one(probe, document.versions)
    report = check.report()
    if report.largest > tolerance:
        raise _pixel_drift(cache, report)
    return report


class _Check:
    """Running result of the comparison of fingerprints, one after the other."""

    def __init__(self, cache: Cache, source: Source, rows: ImageRows) -> None:
        self._cache, self._source = cache, source
        self._rows = rows
        self._digests = UnitCache(partial(cache.sample_unit, "digest"), cache.unit_rows)
        self._started = time.monotonic()
        self._here = rendering_versions()
        self._made_with: dict[str, str] = {}
        self._checked = self._skipped = self._drifted = self._largest = 0

    def one(self, probe: Fingerprint, versions: Mapping[str, str]) -> None:
        needed = np.array([row for row in (probe.row, probe.partner) if row is not None])
        positions = self._rows.find(needed)
        if (positions < 0).any():
            self._skipped += 1
            return
        where = f"{self._cache.url}, view {probe.view_id}"
        view = parse_view(self._cache.manifest.views[probe.view_id], where)
        image, *others = (
            self._image(view, *both)
            for both in zip(needed.tolist(), positions.tolist(), strict=True)
        )
        try:
            view.check_sizes([probe.size])
        except UsageError as error:
            raise CacheDamaged(
                _MALFORMED, where=where, expected=error.expected, got=error.got
            ) from None
        partner = others[0] if others else None
        shown = view if self._rows.squares is None else finishing(view)
        now = make_fingerprint(shown, probe.size, image, partner, self._cache.decoding)
        difference = fingerprint_difference(probe, now)
        if difference is None:
            raise self._parameter_drift(probe, self._rows.key(int(positions[0])), versions)
        self._checked += 1
        if not self._made_with or (difference and not self._drifted):
            # the versions of the first fingerprint that differs explain the difference
            self._made_with = {name: versions.get(name, "unknown") for name in self._here}
        self._drifted += difference > 0
        self._largest = max(self._largest, difference)

    def report(self) -> FingerprintReport:
        return FingerprintReport(
            checked=self._checked,
            skipped=self._skipped,
            drifted=self._drifted,
            largest=self._largest,
            seconds=time.monotonic() - self._started,
            made_with=self._made_with,
            here=self._here,
        )

    def _image(self, view: View, row: int, position: int) -> FingerprintImage:
        rows = self._rows
        if rows.squares is not None:
            square = rows.squares.read(stored_under(view), row)
            return FingerprintImage(row, square, key_hash(rows.key(position)))
        stored = self._source.read(int(rows.indices[position]))
        check_content(stored, self._digests.at(row), rows.key(position))
        return FingerprintImage(row, stored, key_hash(rows.key(position)))

    def _parameter_drift(
        self, probe: Fingerprint, key: str, versions: Mapping[str, str]
    ) -> ParameterDrift:
        return ParameterDrift(
            "this machine draws other augmentation parameters than those the cache was computed "
            "with",
            where=f"{self._cache.url}, view {probe.view_id}, {key}",
            expected=f"parameters as drawn by logitcache {versions.get('logitcache', 'unknown')}",
            got="different crops, flips, colors or mixtures, which no option tolerates",
            hint="install the logitcache version that computed the cache, or precompute it again",
        )


def _pixel_drift(cache: Cache, report: FingerprintReport) -> PixelDrift:
    there, here = (
        ", ".join(f"{name} {version}" for name, version in versions.items())
        for versions in (report.made_with, report.here)
    )
    return PixelDrift(
        "this machine renders other pixels than those the cache was computed with",
        where=cache.url,
        expected=f"pixels as rendered with {there}",
        got=f"{report.drifted} of {report.checked} view fingerprints differ, by up to "
        f"{report.largest} of 255, with {here}",
        hint=f"{_remedy(report)}or accept the difference: --tolerate-pixel-drift {report.largest}",
    )


def _remedy(report: FingerprintReport) -> str:
    """Return what to install to get the same pixels; empty if all versions are the same."""
    wanted = {n: v for n, v in report.made_with.items() if v != report.here[n]}
    processor = wanted.pop("cpu", None)
    remedies = [f"use a processor of class {processor}; "] if processor else []
    if wanted:
        remedies.append(f"install {', '.join(f'{n} {v}' for n, v in wanted.items())}; ")
    return "".join(remedies)
