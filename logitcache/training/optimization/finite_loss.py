"""Detection of losses that are not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.errors import NonFiniteLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from logitcache.training.distributed import DistributedContext

__all__ = ["FiniteLoss"]

_TOTAL = "loss"


@dataclass(frozen=True)
class _Step:
    """Losses of one step of a process by name, and whether all logits are finite."""

    number: int
    losses: dict[str, Tensor]
    logits_finite: Tensor

    @property
    def is_finite(self) -> bool:
        return bool(self.losses[_TOTAL].isfinite())


class FiniteLoss:
    """Check that the loss of every step is finite.

    On an accelerator the loss of a step is read during the next step: reading it at once would make
    the CPU wait for the accelerator. On a CPU it is read before the weights are updated.

    Args:
        ranks: The processes of the run.
        precision: Mixed precision of accelerate, for the advice in messages.
    """

    def __init__(self, ranks: DistributedContext, precision: str) -> None:
        self._ranks = ranks
        self._precision = precision
        self._late = ranks.accelerator.device.type != "cpu"
        self._last: _Step | None = None
        self._checked: _Step | None = None

    def see(self, step: int, losses: Mapping[str, Tensor], logits_BC: Tensor) -> bool:
        """Record the losses of a step and return whether the step that is checked now is finite.

        Args:
            step: Number of the step, from 1.
            losses: This process's part of the loss and of its terms, by name.
            logits_BC: Outputs of the network.
        """
        detached = {name: value.detach() for name, value in losses.items()}
        now = _Step(step, detached, logits_BC.detach().isfinite().all())
        self._checked, self._last = self._last if self._late else now, now
        return self._checked is None or self._checked.is_finite

    def check_last(self, epoch: int) -> None:
        """Check the last step; collective, so every process has to call this.

        Raises:
            NonFiniteLoss: The loss of the last step is not finite.
        """
        self._checked = self._last
        (broken,) = self._ranks.any(self._checked is not None and not self._checked.is_finite)
        if broken:
            raise self.error(epoch)

    def error(self, epoch: int) -> NonFiniteLoss:
        """Return the error of the step that was checked; collective, as :meth:`check_last`."""
        step = self._checked
        assert step is not None
        # the terms have the same names in the same order on all ranks
        losses = {name: float(self._ranks.total(value)) for name, value in step.losses.items()}
        (bad_logits,) = self._ranks.any(not bool(step.logits_finite))
        broken = [n for n, v in losses.items() if n != _TOTAL and not math.isfinite(v)]
        return NonFiniteLoss(
            f"the loss is not a finite number: {', '.join(broken) or 'the weighted sum'}",
            where=f"step {step.number}, epoch {epoch}",
            expected="finite losses"
            if bad_logits
            else "finite losses, since all outputs of the network are finite",
            got=", ".join(f"{name} {value:.4g}" for name, value in losses.items()),
            hint=self._advice(step.number, bad_logits),
        )

    def _advice(self, step: int, bad_logits: bool) -> str:
        if not bad_logits:
            return (
                "the term cannot be computed for this batch: check the stored targets with "
                "logitcache verify, or change the options of the term"
            )
        if self._precision == "fp16":
            return "outputs beyond 65504 do not fit into fp16: use precision bf16 or no"
        if step <= 1:
            return (
                "the network's first outputs are not finite, so its weights or images are the "
                "cause: check the weights it starts from"
            )
        return "the weights grew without bound: lower optimizer.lr, or set optimizer.clip_grad"
