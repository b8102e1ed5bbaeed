"""Environment variables that ``torchrun`` sets, read without importing torch."""

from __future__ import annotations

import os

from logitcache.errors import UsageError

__all__ = ["is_launched", "launched_rank", "refuse_ranks"]


def launched_rank() -> int:
    """Return which of several processes this is; 0 where there is one."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def is_launched() -> bool:
    """Return whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def refuse_ranks(command: str) -> None:
    """Refuse to do the same work in several processes at once.

    Raises:
        UsageError: There are several.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise UsageError(
            f"logitcache {command} is one process",
            got=f"one of {count} that were started together",
            hint="torchrun is for logitcache train",
        )
