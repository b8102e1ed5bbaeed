"""Several processes of one training, as ``torchrun`` would start them, without its seconds.

A fork server imports torch once; the processes are its children. They meet at a store that the test
holds, so no port is chosen beforehand.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its stubs

from logitcache.errors import LogitcacheError

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

__all__ = ["Failed", "forking", "run_ranks"]

_SECONDS = 120


@dataclass(frozen=True)
class Failed:
    """A process that raised.

    Attributes:
        kind: Name of the class.
        text: The message; of an error that is not ours, with its traceback.
    """

    kind: str
    text: str


def forking() -> Any:
    """Return the context of the one fork server of this process, whoever starts it first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    return context


def run_ranks(count: int, function: Callable[..., Any], *arguments: object) -> list[Any]:
    """Call a function in each of some processes and return the results by rank.

    Args:
        count: How many.
        function: Of a module; called with the rank and the arguments.
        arguments: Can be pickled.

    Returns:
        Results, :class:`Failed` where one raised, None where it was killed.
    """
    context = forking()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    for rank in range(count):
        ours, theirs = context.Pipe(duplex=False)
        values = (theirs, rank, count, store.port, function, arguments)
        processes.append(context.Process(target=_work, args=values))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    results = [_received(pipe) for pipe in pipes]
    for process in processes:
        process.join(_SECONDS)
        assert process.exitcode is not None, "a process did not end"
    return results


def _received(pipe: Connection) -> Any:
    assert pipe.poll(_SECONDS), "a process is silent"
    try:
        return pipe.recv()
    except EOFError:
        return None


def _work(
    pipe: Connection,
    rank: int,
    count: int,
    port: int,
    function: Callable[..., Any],
    arguments: tuple[object, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    torch.set_num_threads(1)
    torch.distributed.distributed_c10d.default_pg_timeout = timedelta(seconds=_SECONDS)
    try:
        pipe.send(function(rank, *arguments))
    except LogitcacheError as error:
        pipe.send(Failed(type(error).__name__, str(error)))
    except Exception as error:  # shown by the test
        pipe.send(Failed(type(error).__name__, traceback.format_exc()))
