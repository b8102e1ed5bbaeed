"""What could not be read, runs that are not finished, and notes of those that are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.errors import first_of
from logitcache.report.page.blocks import Note, Section

if TYPE_CHECKING:
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import Contents

__all__ = ["problems", "run_notes"]


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


def run_notes(contents: Contents) -> Section | None:
    """Return the notes of the finished runs, each once."""
    runs: dict[str, list[str]] = {}
    for run in contents.runs:
        for note in run.result.notes if run.result is not None else ():
            runs.setdefault(note, []).append(run.origin.path)
    notes: list[Block] = [Note(f"{note} ({first_of(paths)})") for note, paths in runs.items()]
    return Section("Notes of the runs", notes) if notes else None
