"""Printing of text with escaped control characters."""

from __future__ import annotations

import io
import sys

from logitcache.text import visible

__all__ = ["accept_all_characters", "echo"]


def echo(text: object, *, err: bool = False) -> None:
    """Print one line, its control characters escaped; on stderr with ``err``."""
    stream = sys.stderr if err else sys.stdout
    stream.write(f"{visible(text)}\n")
    stream.flush()  # raises BrokenPipeError here, where it is handled, and not at exit


def accept_all_characters() -> None:
    """Escape characters that the encoding of stdout or stderr lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
