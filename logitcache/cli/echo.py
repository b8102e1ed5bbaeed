"""Printing of lines in which every character is visible."""

from __future__ import annotations

import io
import sys

from logitcache.text import visible

__all__ = ["accept_all_characters", "echo"]


def echo(text: object, *, err: bool = False) -> None:
    """Print one line in which every character can be seen; on stderr with ``err``."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{visible(text)}\n")
    stream.flush()  # here a reader that is gone is noticed, not at the end


def accept_all_characters() -> None:
    """Write out what the encoding of stdout or stderr lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
