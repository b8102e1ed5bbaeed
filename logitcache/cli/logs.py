"""Logs of a command: decisions with their reasons on stderr, everything in a file, or less of both.

The package logs decisions as ``logging.INFO`` of ``logitcache.*``. Progress is no log, but a file
that is kept has it as well, one line every few seconds.
"""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING

from logitcache.errors import UsageError, redacted
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["PROGRESS", "configure", "is_quiet"]

PROGRESS = logging.getLogger("logitcache.cli.progress")
"""Lines of progress, which have been printed already: for the file alone."""

_ROOT = logging.getLogger("logitcache")
_state = {"quiet": False}


def configure(
    *, quiet: bool, verbose: bool, file: Path | None, arguments: Sequence[str] = ()
) -> None:
    """Configure the logs of this process.

    Args:
        quiet: Whether to print no progress; results, warnings and errors are printed.
        verbose: Whether to print decisions and their reasons to stderr.
        file: File to which everything is appended, with the time.
        arguments: Arguments of the command, for the first line of the file.

    Raises:
        UsageError: ``quiet`` and ``verbose`` exclude each other, or the file cannot be written.
    """
    if quiet and verbose:
        raise UsageError("--quiet and --verbose exclude each other")
    _state["quiet"] = quiet
    if verbose:
        handler = logging.StreamHandler()
        handler.addFilter(lambda record: record.name != PROGRESS.name)
        handler.setFormatter(_Visible("%(message)s"))
        _ROOT.addHandler(handler)
    if file is not None:
        _ROOT.addHandler(_file_handler(file))
    if verbose or file is not None:
        _ROOT.setLevel(logging.INFO)
        command = redacted(shlex.join(["logitcache", *arguments]))
        from importlib.metadata import version

        PROGRESS.info("logitcache %s: %s", version("logitcache"), command)


def is_quiet() -> bool:
    """Return whether no progress is printed."""
    return _state["quiet"]


class _Visible(logging.Formatter):
    """A formatter that escapes control characters in every line; see :func:`.visible`."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(visible(line) for line in super().format(record).splitlines())


def _file_handler(path: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            "the log file cannot be written",
            where=f"--log-file {path}",
            got=error.strerror,
            hint="name a file in a folder that exists",
        ) from None
    handler.setFormatter(_Visible("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler
