"""``logitcache verify`` and ``logitcache repair``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from pydantic import Field

from logitcache.cache.read.reader import open_cache
from logitcache.cache.read.view_selection import choose_views
from logitcache.cache.verify.integrity import verify
from logitcache.cli.echo import echo
from logitcache.cli.interrupt import StopRequest
from logitcache.cli.options import gather, print_json, teachers
from logitcache.cli.progress import ProgressLine
from logitcache.cli.tables import print_audits, print_images, print_repair, print_verify
from logitcache.config import Config
from logitcache.data.readers import DataConfig, open_source
from logitcache.errors import LogitcacheError, UsageError, ViewDrift

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from logitcache.cache.read.reader import Cache
    from logitcache.check.audit import TeacherAudit
    from logitcache.check.images import ImagesReport
    from logitcache.data.source import Source

__all__ = ["run_repair", "run_verify"]

_FAILED = 4


class VerifyConfig(Config):
    """What a cache is compared with beyond its own digests.

    Attributes:
        data: The images it was made from.
        teachers: Fields of a :class:`~logitcache.teachers.member.TeacherConfig` by name.
        threads: Threads that read, decode and render; all processors by default.
    """

    data: DataConfig | None = None
    teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    threads: int | None = Field(default=None, ge=1)


def run_verify(
    cache: str,
    *,
    data: str | None,
    named: Sequence[str],
    sets: Sequence[str],
    quick: bool,
    samples: int | None,
    views: Sequence[str],
    revision: str | None,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Check a cache, and what it was made from as far as that is given; leave with 4 if not ok.

    Args:
        cache: The cache.
        data: The images it was made from.
        named: ``NAME=MODEL[@WEIGHTS]`` of the teachers to audit.
        sets: ``a.b=value`` assignments to fields of a :class:`VerifyConfig`.
        quick: Whether to read sizes and headers only.
        samples: Rows to compare; None for all.
        views: Ids and numbers of the views to audit; all if empty.
        revision: sha256 of the revision that the cache must have.
        device: Where teachers run.
        threads: Threads that read, decode and render.
        as_json: Whether to print one document instead of text.
    """
    flags = {"data": data, "teachers": teachers(named), "threads": threads}
    config = VerifyConfig.parse(gather(None, flags, sets), "verify")
    _check_usage(config, audits_some=samples is None or bool(views))
    with ProgressLine("verify") as line:
        report = verify(cache, quick=quick, revision=revision, on_progress=line.verify)
    document: dict[str, Any] = {**report.to_json(), "images": None, "audits": [], "probes": None}
    if not as_json:
        print_verify(report)
    ok, drift = report.ok, None
    if config.data is not None and ok:
        made = _MadeFrom(cache, config, config.data)
        ok = made.check(document, quick=quick, samples=samples, views=views, device=device)
        if not as_json:
            made.show()
        if ok and not quick:
            drift = made.check_fingerprints(document)
    if as_json:
        print_json({**document, "ok": ok and drift is None})
    else:
        echo(_fingerprints_text(document["probes"]))
    if drift is not None:
        raise drift
    if not ok:
        raise typer.Exit(_FAILED)


def _check_usage(config: VerifyConfig, *, audits_some: bool) -> None:
    """Refuse options that need others.

    Args:
        config: What is compared.
        audits_some: Whether rows to audit were chosen.
    """
    if config.teachers and config.data is None:
        raise UsageError("recomputing teacher outputs needs the images", hint="give --data too")
    if audits_some and not config.teachers:
        raise UsageError(
            "--full and --views choose rows to compare with a teacher, and none is given",
            hint="give --teachers NAME=MODEL[@WEIGHTS] too",
        )


class _MadeFrom:
    """What a cache was made from: images, and teachers that are at hand.

    Args:
        url: The cache.
        config: What it is compared with.
        data: The images among that.
    """

    def __init__(self, url: str, config: VerifyConfig, data: DataConfig) -> None:
        self._url, self._config = url, config
        self._cache: Cache = open_cache(url)
        for name in config.teachers:
            self._cache.teacher(name)  # before hours of reading
        self._source: Source = open_source(data, listing=self._cache.listing)
        self._images: ImagesReport | None = None
        self._audits: list[TeacherAudit] = []

    def check(
        self,
        document: dict[str, Any],
        *,
        quick: bool,
        samples: int | None,
        views: Sequence[str],
        device: str,
    ) -> bool:
        """Compare images, then teachers; put both into the document, return whether all is well."""
        view_ids = self._view_ids(views)
        images = self._images = self._check_images(digests=not quick)
        if images.ok and self._config.teachers:
            self._audits = self._audit(samples, view_ids, device)
        document["images"] = images.to_json()
        document["audits"] = [audit.to_json() for audit in self._audits]
        return images.ok and all(audit.ok for audit in self._audits)

    def check_fingerprints(self, document: dict[str, Any]) -> LogitcacheError | None:
        """Render the probes again; return the drift that was found."""
        from logitcache.targets.fingerprint_check import check_fingerprints

        try:
            document["probes"] = check_fingerprints(self._cache, self._source).to_json()
        except ViewDrift as drift:
            return drift
        return None

    def show(self) -> None:
        """Print what the comparisons found."""
        if self._images is not None:
            print_images(self._images)
        if self._audits:
            print_audits(self._audits)
        elif self._config.teachers:
            echo("teachers: not compared, because the images are not those of the cache")

    def _view_ids(self, views: Sequence[str]) -> list[str] | None:
        """Return the ids of the views to audit, None for all."""
        return choose_views(list(self._cache.views), views) if views else None

    def _check_images(self, *, digests: bool) -> ImagesReport:
        from logitcache.check.images import check_images

        with ProgressLine("images") as line:
            return check_images(
                self._cache,
                self._source,
                digests=digests,
                threads=self._config.threads,
                on_progress=line.count,
            )

    def _audit(
        self, samples: int | None, view_ids: Sequence[str] | None, device: str
    ) -> list[TeacherAudit]:
        from logitcache.check.audit import audit_teachers

        with ProgressLine("audit") as line:
            return audit_teachers(
                self._url,
                self._source,
                self._config.teachers,
                samples=samples,
                views=view_ids,
                device=device,
                threads=self._config.threads,
                on_progress=line.count,
            )


def _fingerprints_text(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "probes: not checked"
    return f"probes: {report['checked']} alike, {report['skipped']} skipped"


def run_repair(
    flags: Mapping[str, Any], named: Sequence[str], sets: Sequence[str], *, as_json: bool
) -> None:
    """Repair a cache and leave with 4 if any damage is left.

    Args:
        flags: Fields of a :class:`~logitcache.check.repair.RepairConfig`.
        named: ``NAME=MODEL[@WEIGHTS]`` of the teachers of damaged units.
        sets: ``a.b=value`` assignments to its fields.
        as_json: Whether to print one document instead of text.
    """
    from logitcache.check.repair import RepairConfig, repair_cache

    values = gather(None, {**flags, "teachers": teachers(named)}, sets)
    config = RepairConfig.parse(values, "repair")
    with StopRequest() as stop, ProgressLine("verify") as checks, ProgressLine("repair") as line:
        summary = repair_cache(
            config, on_verify=checks.verify, on_progress=line.precompute, should_stop=stop
        )
    if as_json:
        print_json(summary.to_json())
    else:
        print_repair(summary)
    if summary.remaining:
        raise typer.Exit(_FAILED)
