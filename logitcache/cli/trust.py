"""``logitcache verify`` and ``logitcache repair``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from logitcache.cache.reader import open_cache
from logitcache.cache.verify import verify
from logitcache.cli.interrupt import StopRequest
from logitcache.cli.options import print_json, teachers
from logitcache.cli.progress import ProgressLine
from logitcache.cli.tables import print_audits, print_images, print_repair, print_verify
from logitcache.data.readers import open_source
from logitcache.errors import LogitcacheError, UsageError, ViewDrift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.precompute.audit import TeacherAudit
    from logitcache.precompute.images import ImagesReport

__all__ = ["run_repair", "run_verify"]

_FAILED = 4


def run_verify(
    cache: str,
    *,
    quick: bool,
    data: str | None,
    named: Sequence[str],
    samples: int,
    device: str,
    as_json: bool,
) -> None:
    """Check a cache, and what it was made from as far as that is given; leave with 4 if not ok."""
    if named and data is None:
        raise UsageError("teachers need images to answer", hint="give --data too")
    with ProgressLine("verify") as line:
        report = verify(cache, quick=quick, on_progress=line.verify)
    document: dict[str, Any] = {**report.to_json(), "images": None, "audits": [], "probes": None}
    ok = report.ok
    if not as_json:
        print_verify(report)
    if data is not None and report.ok:
        images = _check_images(cache, data, quick=quick)
        audits = _audit(cache, data, named, samples, device) if named and images.ok else []
        document |= {"images": images.to_json(), "audits": [audit.to_json() for audit in audits]}
        ok = images.ok and all(audit.ok for audit in audits)
        if not as_json:
            print_images(images)
            if audits:
                print_audits(audits)
    drift: LogitcacheError | None = None
    if data is not None and ok and not quick:
        drift = _check_probes(cache, data, document)
    if as_json:
        print_json({**document, "ok": ok and drift is None})
    else:
        typer.echo(_said_of_probes(document["probes"]))
    if drift is not None:
        raise drift
    if not ok:
        raise typer.Exit(_FAILED)


def _check_images(cache: str, data: str, *, quick: bool) -> ImagesReport:
    from logitcache.precompute.images import check_images

    with ProgressLine("images") as line:
        return check_images(
            open_cache(cache), open_source(data), digests=not quick, on_progress=line.count
        )


def _check_probes(cache: str, data: str, document: dict[str, Any]) -> LogitcacheError | None:
    """Render the probes again; return the drift that was found."""
    from logitcache.targets.probes import check_probes

    try:
        document["probes"] = check_probes(open_cache(cache), open_source(data)).to_json()
    except ViewDrift as drift:
        return drift
    return None


def _said_of_probes(report: dict[str, Any] | None) -> str:
    if report is None:
        return "probes: not checked"
    return f"probes: {report['checked']} alike, {report['skipped']} skipped"


def _audit(
    cache: str, data: str, named: Sequence[str], samples: int, device: str
) -> list[TeacherAudit]:
    from logitcache.precompute.audit import audit_teachers

    with ProgressLine("audit") as line:
        return audit_teachers(
            cache,
            open_source(data),
            teachers(named) or {},
            samples=samples,
            device=device,
            on_progress=line.count,
        )


def run_repair(
    cache: str,
    data: str,
    named: Sequence[str],
    *,
    device: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Mend a cache and leave with 4 if anything is left."""
    from logitcache.precompute.repair import RepairConfig, repair_cache

    values = {
        "cache": cache,
        "data": data,
        "teachers": teachers(named) or {},
        "device": device,
        "threads": threads,
    }
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
