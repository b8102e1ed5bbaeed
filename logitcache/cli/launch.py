"""Environment variables that ``torchrun`` sets, read without importing torch."""

from __future__ import annotations

import os

from logitcache.errors import UsageError

__all__ = ["is_launched", "launched_rank", "refuse_ranks"]


def launched_rank() -> int:
    """Return the rank of this process; 0 for a single process."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def is_launched() -> bool:
    """Return whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def refuse_ranks(command: str) -> None:
    """Raise an error if several processes would do the same work at once.

    Args:
        command: Name of the command, for the message.

    Raises:
        UsageError: There are several processes.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1":
        raise UsageError(
            f"logitcache {command} runs in a single process",
            got=f"{count} processes started together (WORLD_SIZE)",
            hint="start it without torchrun, which is only for logitcache train",
        )
