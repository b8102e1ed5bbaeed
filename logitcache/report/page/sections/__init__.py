"""Sections of a report: one idea each, in the order of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.report.page.sections.accuracy import accuracy
from logitcache.report.page.sections.agreement import agreement
from logitcache.report.page.sections.break_even import break_even
from logitcache.report.page.sections.caches import caches
from logitcache.report.page.sections.confusion import confusion
from logitcache.report.page.sections.curves import curves
from logitcache.report.page.sections.fidelity import fidelity
from logitcache.report.page.sections.images import images
from logitcache.report.page.sections.problems import problems, run_notes
from logitcache.report.page.sections.provenance import provenance
from logitcache.report.page.sections.reliability import reliability
from logitcache.report.page.sections.repeat import repeat
from logitcache.report.page.sections.summary import summary
from logitcache.report.page.sections.tail import tail
from logitcache.report.page.sections.time import time

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.report.page.blocks import Section
    from logitcache.report.page.contents import Contents

__all__ = ["SECTIONS"]

SECTIONS: dict[str, Callable[[Contents], Section | None]] = {
    "summary": summary,
    "problems": problems,
    "notes": run_notes,
    "accuracy": accuracy,
    "curves": curves,
    "reliability": reliability,
    "confusion": confusion,
    "agreement": agreement,
    "fidelity": fidelity,
    "tail": tail,
    "images": images,
    "caches": caches,
    "time": time,
    "break-even": break_even,
    "provenance": provenance,
    "repeat": repeat,
}
"""Functions that return a section, None if it has nothing to show; in the order of the page."""
