"""``logitcache verify`` and ``logitcache repair``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from logitcache.cache.verify import verify
from logitcache.cli.interrupt import StopRequest
from logitcache.cli.options import print_json, teachers
from logitcache.cli.progress import ProgressLine
from logitcache.cli.tables import print_repair, print_verify

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["run_repair", "run_verify"]

_FAILED = 4


def run_verify(cache: str, *, quick: bool, as_json: bool) -> None:
    """Check a cache and leave with 4 if anything is wrong."""
    with ProgressLine("verify") as line:
        report = verify(cache, quick=quick, on_progress=line.verify)
    if as_json:
        print_json(report.to_json())
    else:
        print_verify(report)
    if not report.ok:
        raise typer.Exit(_FAILED)


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
