"""``logitcache verify`` and ``logitcache repair``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from logitcache.check.verify import CacheReport, VerifyConfig, verify
from logitcache.cli.echo import echo
from logitcache.cli.interrupt import StopRequest
from logitcache.cli.options import gather, print_json, teachers
from logitcache.cli.progress import PhaseLines, ProgressLine
from logitcache.cli.tables import print_audits, print_images, print_repair, print_verify
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


__all__ = ["run_repair", "run_verify"]

_FAILED = 4


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
    with PhaseLines() as lines:
        report = verify(
            cache,
            data=config.data,
            teachers=config.teachers,
            quick=quick,
            samples=samples,
            views=views,
            revision=revision,
            device=device,
            threads=config.threads,
            on_progress=lines.show,
        )
    if as_json:
        print_json(report.to_json())
    else:
        _print_report(report, config)
    if report.drift is not None:
        raise report.drift
    if not report.ok:
        raise typer.Exit(_FAILED)


def _print_report(report: CacheReport, config: VerifyConfig) -> None:
    print_verify(report.bytes)
    if report.images is not None:
        print_images(report.images)
        if report.audits:
            print_audits(report.audits)
        elif config.teachers:
            echo("teachers: not compared, because the images are not those of the cache")
    found = report.fingerprints
    echo(
        "view fingerprints: not checked"
        if found is None
        else f"view fingerprints: {found.checked} equal, {found.skipped} skipped"
    )


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
