"""Processes of a distributed training run, and what they exchange.

``torchrun`` starts them; accelerate joins them and averages gradients. Each rank shows its slice of
every global batch, so whatever is a mean over rows must be weighed by how many rows of it a rank
has: then the mean over ranks is the mean over the batch, and a run does not depend on how many
processes it has (but for what looks across rows, see ``docs/training-on-several-processes.md``).
Everything here does nothing in a process of its own.
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

_PATIENCE = timedelta(minutes=10)  # with a rank that is silent but not gone
_MAX_SEED = 2**63
Result = TypeVar("Result")


class DistributedContext:
    """The processes of one training.

    Args:
        device: ``auto``, or ``cpu`` to leave an accelerator alone.
        precision: ``no``, ``bf16`` or ``fp16``, as accelerate has it.

    Attributes:
        accelerator: accelerate's handle.
        count: How many processes there are.
        rank: Which of them this is, from 0.
    """

    def __init__(self, device: str, precision: str) -> None:
        with _named_loss():
            self.accelerator = _accelerator(device == "cpu", precision)
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        # flags and checkpoints travel between processors, whatever gradients do
        self._control: Any = (
            distributed.new_group(backend="gloo", timeout=_PATIENCE) if self.count > 1 else None
        )
        self._untouched: list[tuple[nn.Parameter, bool]] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the journal, checkpoints and the export."""
        return self.rank == 0

    @property
    def processors(self) -> int:
        """Processors that each of the processes on this machine may keep busy."""
        here = int(os.environ.get("LOCAL_WORLD_SIZE", self.count)) if self.count > 1 else 1
        return max(1, available_processors() // here)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Turn the loss of another process into an error that names it.

        Raises:
            RankLost: Another process has ended.
        """
        with _named_loss():
            yield

    def first(self, ask: Callable[[], Result]) -> Result:
        """Call a function in the first process and return its result in all of them.

        Args:
            ask: What it raises of :mod:`logitcache.errors` is raised in all of them.
        """
        if self._control is None:
            return ask()
        answer: list[Any] = [None]
        if self.is_first:
            try:
                answer = [ask()]
            except LogitcacheError as error:
                answer = [error]
        distributed.broadcast_object_list(answer, src=0, group=self._control)
        if isinstance(answer[0], LogitcacheError):
            raise answer[0]
        result: Result = answer[0]
        return result

    def any(self, *wishes: bool) -> tuple[bool, ...]:
        """Return, for each of some wishes, whether any process has it."""
        if self._control is None:
            return wishes
        votes = torch.tensor([int(wish) for wish in wishes])
        distributed.all_reduce(votes, group=self._control)
        return tuple(bool(count) for count in votes.tolist())

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.count == 1:
            return values
        summed: Tensor = self.accelerator.reduce(values, reduction="sum")
        return summed

    def own_part(self, means: Mapping[str, Tensor], counts: Mapping[str, int | Tensor]) -> Any:
        """Weigh means over the rows of this process, so that their sum is that over all rows.

        Args:
            means: By name, each over some rows of this process.
            counts: How many rows those are.

        Returns:
            The means by name, each times this process's share of all such rows.
        """
        if self.count == 1:
            return means
        device = self.accelerator.device
        own = torch.stack([torch.as_tensor(counts[name], device=device) for name in means]).double()
        shares = (own / self.total(own).clamp(min=1)).float()
        return {name: shares[i] * mean for i, (name, mean) in enumerate(means.items())}

    def backward(self, loss: Tensor, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradient of the sum of all processes' losses, which accelerate averages.

        Args:
            loss: This process's part; depends on the same parameters in every step.
            parameters: All that are trained. What no loss depends on, the head where features alone
                are requested, gets no gradient, as in a process of its own.
        """
        if self.count == 1:
            self.accelerator.backward(loss)
            return
        if self._untouched is None:
            self._untouched = self._find_untouched(loss, parameters)
        # averaging waits for a gradient of every parameter
        waited_for = [0.0 * parameter.sum() for parameter, _ in self._untouched]
        self.accelerator.backward(sum(waited_for, start=loss * self.count))
        for parameter, anywhere in self._untouched:
            if not anywhere:
                parameter.grad = None

    def _find_untouched(
        self, loss: Tensor, parameters: Iterable[nn.Parameter]
    ) -> list[tuple[nn.Parameter, bool]]:
        """Return what a loss does not depend on here, and whether it does in another process."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        reached = _leaves_below(loss)
        here = torch.tensor([id(parameter) in reached for parameter in trained], dtype=torch.int)
        anywhere = here.clone()
        distributed.all_reduce(anywhere, group=self._control)
        found = zip(trained, here.tolist(), anywhere.tolist(), strict=True)
        return [(parameter, bool(any_)) for parameter, own, any_ in found if not own]

    def share_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's buffers: the statistics of batch norm."""
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
        """Give every rank but the first a random stream of its own, for dropout.

        Args:
            seed: Of the run.
            step: From which the stream is used.
        """
        if not self.is_first:
            word = words(seed, self.rank, draw=step, purpose=Purpose.RANK_STREAM, count=1)[0, 0]
            torch.manual_seed(int(word) % _MAX_SEED)


def _accelerator(cpu: bool, precision: str) -> Accelerator:
    """Return accelerate's handle; it keeps one setting per process, so another one starts again."""
    # without an accelerator accelerate would start every rank as a training of its own
    cpu = cpu or not torch.accelerator.is_available()
    wanted: dict[str, Any] = {
        "cpu": cpu,
        "mixed_precision": precision,
        "kwargs_handlers": [InitProcessGroupKwargs(timeout=_PATIENCE)],
    }
    try:
        return Accelerator(**wanted)
    except ValueError:
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(**wanted)


def _leaves_below(loss: Tensor) -> set[int]:
    """Return the ids of the parameters that a loss depends on."""
    seen: set[Any] = set()
    waiting: list[Any] = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [below for below, _ in node.next_functions]
    return {id(node.variable) for node in seen if hasattr(node, "variable")}


@contextmanager
def _named_loss() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo and nccl raise; gloo has no class of its own
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
            raise
        raise RankLost(
            "another process of this training has ended, or cannot be reached",
            got=str(error).split("\n")[0][:300],
            hint="see its own message for the cause; continue with --resume, with any number of "
            "processes",
        ) from error
