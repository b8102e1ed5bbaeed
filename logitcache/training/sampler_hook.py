"""The sampler of views of a run as a hook: outputs of the student become its scores.

Shapes: B rows of a batch, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.targets.view_scores import ViewSampler
    from logitcache.training.distributed import DistributedContext
    from logitcache.training.hooks import Step

__all__ = ["SamplerHook"]

_LEAST = 1e-8  # added to a probability before its logarithm, as in TST's code


class SamplerHook:
    """A hook that notes the student's probabilities of labels, and ends the sampler's epochs.

    Every process notes the rows of all processes, so the sampler is the same in all of them.

    Args:
        sampler: The sampler of the loader.
        ranks: The processes of the run.
    """

    def __init__(self, sampler: ViewSampler, ranks: DistributedContext) -> None:
        self._sampler = sampler
        self._ranks = ranks
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_step(self, step: Step) -> None:
        """Keep the probabilities of a step, on the device: reading them would wait for it."""
        targets = step.targets
        assert targets.chosen is not None
        known_B = (targets.chosen >= 0) & (targets.labels >= 0)
        logits_BC, labels_B = step.outputs.logits[known_B].float(), targets.labels[known_B]
        right_B = logits_BC.softmax(1).gather(1, labels_B[:, None])[:, 0]
        wrong_B = (1 - right_B + _LEAST).log()
        self._waiting.append((targets.rows[known_B], targets.chosen[known_B], wrong_B))

    def on_epoch(self, epoch: int) -> None:
        """Note the probabilities of the epoch, and end it."""
        self._note()
        self._sampler.end_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampler; collective, so every process has to call this."""
        self._note()
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the sampler."""
        self._sampler.load_state_dict(state)

    def _note(self) -> None:
        """Note what all processes have kept, in the order of their ranks."""
        columns = zip(*self._waiting, strict=True)
        own = [torch.cat(column).cpu().numpy() for column in columns]
        self._waiting = []
        for found in filter(None, self._ranks.gather(own)):
            self._sampler.note(*found)
