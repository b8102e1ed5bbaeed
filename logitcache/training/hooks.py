"""Training hooks: user code that runs after steps and epochs, with its state in checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from logitcache.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from logitcache.batch import Outputs, TargetBatch

__all__ = ["Hook", "Hooks", "Step"]


@dataclass(frozen=True)
class Step:
    """A training step that has just been completed.

    Attributes:
        number: Number of steps of the run so far, including this one.
        epoch: Index of the epoch of the step, from 0.
        network: The student, after the step.
        images: Normalized images of this process, float32 (B, 3, S, S).
        targets: Targets of these images.
        outputs: Outputs of the student for these images before the step, without a graph.
        losses: This process's part of the loss (``loss``) and of each of its terms, without
            gradient.
    """

    number: int
    epoch: int
    network: nn.Module
    images: Tensor
    targets: TargetBatch
    outputs: Outputs
    losses: Mapping[str, Tensor]


class Hook(Protocol):
    """An extension of a training run with its own state, such as a second optimizer.

    Hooks run in every process of a run. The first process writes the state into checkpoints, and
    every process loads it, so it has to be the same in all processes: average over processes what
    depends on the images of one.
    """

    def on_step(self, step: Step) -> None:
        """Called after every optimizer step, before a checkpoint of that step is written."""
        ...

    def on_epoch(self, epoch: int) -> None:
        """Called once after the last step of every epoch, before its checkpoint is written."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers, strings and lists or dicts of these, as PyTorch modules do.

        Called in every process.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; called before the first step of a resumed run."""
        ...


class Hooks:
    """The hooks of a run, in the order in which they are called.

    Args:
        hooks: Hooks by name; the names are part of the checkpoint.
    """

    def __init__(self, hooks: Mapping[str, Hook] | None) -> None:
        self._hooks = dict(hooks or {})

    def add(self, name: str, hook: Hook) -> None:
        """Add a hook of the run itself.

        Raises:
            UsageError: The user has a hook of this name.
        """
        if name in self._hooks:
            raise UsageError(
                f"a hook has the name {name!r}, which a hook of the run itself has",
                where="hooks",
                hint="choose another name",
            )
        self._hooks[name] = hook

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def on_step(self, step: Step) -> None:
        """Call all hooks after a step."""
        for hook in self._hooks.values():
            hook.on_step(step)

    def on_epoch(self, epoch: int) -> None:
        """Call all hooks after an epoch."""
        for hook in self._hooks.values():
            hook.on_epoch(epoch)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the states of all hooks by name."""
        return {name: hook.state_dict() for name, hook in self._hooks.items()}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]], where: str) -> None:
        """Restore the states of all hooks.

        Args:
            states: States by name, as a checkpoint has them.
            where: The checkpoint, for messages.

        Raises:
            UsageError: The checkpoint was written with other hooks.
            StorageError: A hook cannot load its state.
        """
        if states.keys() != self._hooks.keys():
            raise UsageError(
                "the run in this folder was started with other hooks",
                where=where,
                expected=", ".join(states) or "no hooks",
                got=", ".join(self._hooks) or "no hooks",
                hint="pass the same hooks to train_student, or choose another folder",
            )
        for name, hook in self._hooks.items():
            try:
                hook.load_state_dict(states[name])
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise StorageError(
                    f"hook {name!r} cannot load its state", where=where, got=str(error)[:300]
                ) from error
