"""The moving average of the weights against a loop over the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from logitcache.training.loop import train_student
from tests.training.test_loop import config, weights

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.training.hooks import Step

DECAY, CONSTANT_FROM = 0.6, 4  # 1 - 4^(-2/3) = 0.603


class EachStep:
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_step(self, step: Step) -> None:
        """Copy the weights, in float64."""
        state = step.network.state_dict()
        self.weights.append({name: tensor.double() for name, tensor in state.items()})

    def on_epoch(self, epoch: int) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """No state: the run is not resumed."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """No state."""


def test_the_decay_grows_with_the_steps_up_to_the_configured_one(
    images: Path, tmp_path: Path
) -> None:
    hook = EachStep()
    train_student(config(tmp_path, images, ema=DECAY, epochs=3), hooks={"each": hook})
    assert len(hook.weights) > CONSTANT_FROM
    average = hook.weights[0]
    for step, now in enumerate(hook.weights[1:], start=2):
        decay = min(DECAY, 1 - step ** (-2 / 3))
        average = {n: decay * old + (1 - decay) * now[n] for n, old in average.items()}
    exported = weights(tmp_path)
    assert exported.keys() == average.keys()
    for name, expected in average.items():
        torch.testing.assert_close(exported[name].double(), expected, atol=1e-6, rtol=1e-5)
    assert any((exported[n] - now[n]).abs().max() > 1e-4 for n in exported)
