"""``logitcache verify`` and ``logitcache repair``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from logitcache.check.verify import CacheReport, VerifyConfig, verify
from logitcache.cli.echo import echo
from logitcache.cli.interrupt import StopRequest
from logitcache.cli.options import gather, print_json
from logitcache.cli.progress import PhaseLines, ProgressLine
from logitcache.cli.tables import print_audits, print_images, print_repair, print_verify
from logitcache.errors import UsageError
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


__all__ = ["run_repair", "run_verify"]

_FAILED = 4


def run_verify(
    cache: str,
    flags: Mapping[str, Any],
    sets: Sequence[str],
    *,
    quick: bool,
    samples: int | None,
    views: Sequence[str],
    revision: str | None,
    signed_by: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Verify a cache and, if given, its images and teachers; exit with code 4 on a difference.

    Args:
        cache: Folder or URL of the cache.
        flags: Fields of a :class:`VerifyConfig`.
        sets: ``a.b=value`` assignments to fields of a :class:`VerifyConfig`.
        quick: Whether to read sizes and headers only.
        samples: Number of rows to compare per teacher; None for all.
        views: Ids and numbers of the views to compare; all if empty.
        revision: sha256 of the required revision of the cache.
        signed_by: File with the public key that has to have signed it.
        device: Torch device of the teachers, or ``auto``.
        as_json: Whether to print one JSON document instead of text.
    """
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
            signed_by=signed_by,
            device=device,
            threads=config.threads,
            on_progress=lines.show,
        )
    if as_json:
        print_json(report.to_json())
    else:
        if signed_by is not None:
            echo(f"signature: valid, by the key {signed_by}")
        _print_report(report, config)
    if report.drift is not None:
        raise report.drift
    if not report.ok:
        raise typer.Exit(_FAILED)


def _print_report(report: CacheReport, config: VerifyConfig) -> None:
    print_verify(report.bytes)
    if report.index is not None:
        echo(f"index.parquet differs from the rows: {visible(report.index)}")
        return
    if report.images is not None:
        print_images(report.images)
        if report.audits:
            print_audits(report.audits)
        elif config.teachers:
            echo("teachers: not compared, because the images differ from those of the cache")
    found = report.fingerprints
    echo(
        "view fingerprints: not checked"
        if found is None
        else f"view fingerprints: {found.checked} equal, {found.skipped} skipped"
    )


def _check_usage(config: VerifyConfig, *, audits_some: bool) -> None:
    """Raise an error for options that need other options.

    Args:
        config: Images and teachers to compare with.
        audits_some: Whether rows to compare with a teacher were chosen.

    Raises:
        UsageError: A choice of rows without a teacher.
    """
    if audits_some and not config.teachers:
        raise UsageError(
            "--full and --views choose rows to compare with a teacher, but no teacher is given",
            hint="add --teachers NAME=MODEL[@WEIGHTS]",
        )


def run_repair(flags: Mapping[str, Any], sets: Sequence[str], *, as_json: bool) -> None:
    """Repair a cache, given fields of a ``RepairConfig``; exit with code 4 if damage remains."""
    from logitcache.check.repair import RepairConfig, repair_cache

    config = RepairConfig.parse(gather(None, flags, sets), "repair")
    with StopRequest() as stop, ProgressLine("verify") as checks, ProgressLine("repair") as line:
        summary = repair_cache(
            config,
            on_verify=lambda progress: checks.bytes(progress.done, progress.total),
            on_progress=line.precompute,
            should_stop=stop,
        )
    if as_json:
        print_json(summary.to_json())
    else:
        print_repair(summary)
    if summary.remaining:
        raise typer.Exit(_FAILED)
