"""Processes of a distributed training run, and their communication.

``torchrun`` starts the processes; accelerate connects them and averages gradients. Each rank
processes its slice of every global batch, so a mean over rows is weighted by the number of rows
that a rank has: then the sum over ranks is the mean over the batch, and the result of a run does
not depend on the number of processes (with exceptions for operations across rows, see
``docs/training-on-several-processes.md``). In a run of a single process nothing is communicated.

Collective operations have to be called by all ranks in the same order; a rank that leaves one out
makes the others wait until the timeout.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed

from logitcache.draws import Purpose, words
from logitcache.errors import LogitcacheError, RankLost
from logitcache.platforms import available_processors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor, nn

__all__ = ["DistributedContext"]

_PATIENCE = timedelta(minutes=10)  # timeout for a rank that is alive but does not respond
_MAX_SEED = 2**63
Result = TypeVar("Result")


class DistributedContext:
    """The processes of one training run.

    Args:
        device: ``auto`` for an accelerator if there is one, or ``cpu``.
        precision: Mixed precision of accelerate: ``no``, ``bf16`` or ``fp16``.

    Attributes:
        accelerator: The accelerate ``Accelerator``.
        count: Number of processes.
        rank: Rank of this process, from 0.
    """

    def __init__(self, device: str, precision: str) -> None:
        with _rank_loss_as_error():
            self.accelerator = _accelerator(device == "cpu", precision)
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        # flags and Python objects are exchanged between CPUs: with the backend of the gradients
        # each of these small messages would wait for the accelerator
        self._control: Any = (
            distributed.new_group(backend="gloo", timeout=_PATIENCE) if self.count > 1 else None
        )
        self._untouched: list[tuple[nn.Parameter, bool]] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the training log, checkpoints and the export."""
        return self.rank == 0

    @property
    def processors(self) -> int:
        """Number of processors for each of the processes on this machine."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count)) if self.count > 1 else 1
        return max(1, available_processors() // here)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Return a context that reports the loss of another process as an error.

        Raises:
            RankLost: Another process has ended.
        """
        with _rank_loss_as_error():
            yield

    def first(self, function: Callable[[], Result]) -> Result:
        """Call a function in the first process and return its result in all of them.

        Args:
            function: Function to call. Its errors of :mod:`logitcache.errors` are raised in all
                processes.
        """
        if self._control is None:
            return function()
        message: list[Any] = [None]
        if self.is_first:
            try:
                message = [function()]
            except LogitcacheError as error:  # sent, since the others wait in the broadcast
                message = [error]
        distributed.broadcast_object_list(message, src=0, group=self._control)
        if isinstance(message[0], LogitcacheError):
            raise message[0]
        result: Result = message[0]
        return result

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in any process."""
        if self._control is None:
            return flags
        votes = torch.tensor([int(flag) for flag in flags])
        distributed.all_reduce(votes, group=self._control)
        return tuple(bool(count) for count in votes.tolist())

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.count == 1:
            return values
        summed: Tensor = self.accelerator.reduce(values, reduction="sum")
        return summed

    def own_part(self, means: Mapping[str, Tensor], counts: Mapping[str, int | Tensor]) -> Any:
        """Weight means over rows of this process so that their sum over processes is the mean.

        Args:
            means: Means by name, each over some rows of this process.
            counts: Number of these rows, by name.

        Returns:
            The means by name, each times this process's share of the rows of all processes.
        """
        if self.count == 1:
            return means
        device = self.accelerator.device
        # one collective for all terms; clamped for terms that no process has a row for
        own = torch.stack([torch.as_tensor(counts[name], device=device) for name in means]).double()
        shares = (own / self.total(own).clamp(min=1)).float()
        return {name: shares[i] * mean for i, (name, mean) in enumerate(means.items())}

    def backward(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradient of the sum of the losses of all processes.

        Args:
            loss: Loss of this process; it depends on the same parameters in every step.
            parameters: All parameters that are trained. Those that no loss depends on, such as the
                classifier if only features are compared, get no gradient, as in a single process.
        """
        if self.count == 1:
            self.accelerator.backward(loss)
            return
        if self._untouched is None:
            self._untouched = self._find_untouched(loss, parameters)
        # DistributedDataParallel waits for a gradient of every parameter, so those that the loss
        # does not depend on get one of zero; and it averages, so the loss is multiplied
        zeros = [0.0 * parameter.sum() for parameter, _ in self._untouched]
        self.accelerator.backward(sum(zeros, start=loss * self.count))
        for parameter, anywhere in self._untouched:
            if not anywhere:  # with a gradient of zero the optimizer would apply weight decay
                parameter.grad = None

    def _find_untouched(
        self, loss: Tensor, parameters: Iterable[nn.Parameter]
    ) -> list[tuple[nn.Parameter, bool]]:
        """Return parameters that this loss does not depend on, and whether one elsewhere does."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        reached = _leaves_below(loss)
        here = torch.tensor([id(parameter) in reached for parameter in trained], dtype=torch.int)
        anywhere = here.clone()
        distributed.all_reduce(anywhere, group=self._control)
        found = zip(trained, here.tolist(), anywhere.tolist(), strict=True)
        return [(parameter, bool(any_)) for parameter, own, any_ in found if not own]

    def share_buffers(self, network: nn.Module) -> None:
        """Copy the buffers of the first process, the statistics of batch norm, to all others.

        Each process updates them with its own rows, but all have to evaluate the same network.
        """
        if self.count > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)

    def gather(self, value: object) -> list[Any]:
        """Return the values of all processes, by rank."""
        if self._control is None:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=self._control)
        return values

    def reseed(self, seed: int, step: int) -> None:
        """Set a different random stream in every rank but the first, for dropout.

        The first rank keeps its stream, so that a run of a single process does not change.

        Args:
            seed: Random seed of the run.
            step: Step from which the stream is used.
        """
        if not self.is_first:
            word = words(seed, self.rank, draw=step, purpose=Purpose.RANK_STREAM, count=1)[0, 0]
            torch.manual_seed(int(word) % _MAX_SEED)


def _accelerator(cpu: bool, precision: str) -> Accelerator:
    """Return an Accelerator with these settings."""
    # without an accelerator and cpu=True, accelerate would run every rank as a separate training
    cpu = cpu or not torch.accelerator.is_available()
    wanted: dict[str, Any] = {
        "cpu": cpu,
        "mixed_precision": precision,
        "kwargs_handlers": [InitProcessGroupKwargs(timeout=_PATIENCE)],
    }
    try:
        return Accelerator(**wanted)
    except ValueError:  # an earlier run of this process had other settings, which are a singleton
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(**wanted)


def _leaves_below(loss: Tensor) -> set[int]:
    """Return the ids of the parameters that a loss depends on, by a walk through its graph."""
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [below for below, _ in node.next_functions]
    return {id(node.variable) for node in seen if hasattr(node, "variable")}


@contextmanager
def _rank_loss_as_error() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and nccl raise; gloo has no class of its own
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
        raise RankLost(
            "another process of this training has ended, or cannot be reached",
            got=str(error).split("\n")[0][:300],
            hint="the message of that process has the cause; continue with --resume, on any "
            "number of processes",
        ) from error
