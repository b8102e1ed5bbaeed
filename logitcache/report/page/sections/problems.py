"""What could not be read, and runs that are not finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.report.page.blocks import Note, Section

if TYPE_CHECKING:
    from logitcache.report.page.contents import Contents

__all__ = ["problems"]


def problems(contents: Contents) -> Section | None:
    """Return notes on paths that could not be read, and on runs without a result."""
    notes = []
    for where, error in contents.problems:
        parts = {"expected": error.expected, "got": error.got, "next": error.hint}
        known = "; ".join(f"{name}: {text}" for name, text in parts.items() if text is not None)
        notes.append(Note(f"{where}: {error.what}{f' ({known})' if known else ''}"))
    notes += [
        Note(
            f"{run.origin.path}: this run is not finished; its curves end at step "
            f"{max((int(x) for x, _ in run.curve('loss')), default=0)}. Continue it with "
            f"logitcache train --resume --out {run.origin.path}"
        )
        for run in contents.runs
        if run.result is None
    ]
    if contents.unread:
        names = ", ".join(f"{name} ({count} runs)" for name, count in contents.unread.items())
        notes.append(Note(f"Settings of another version of logitcache are not read: {names}"))
    return Section("What is missing", notes) if notes else None
