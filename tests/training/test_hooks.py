"""Hooks of a training run: what they see, and their state after interruptions and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.errors import Interrupted, StorageError, UsageError
from logitcache.training.loop import train_student
from logitcache.training.run.checkpoint import latest_checkpoint
from tests.training.test_loop import assert_equal_runs, config, stop_after

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.training.config import TrainConfig
    from logitcache.training.hooks import Step

EPOCHS, BATCH = 3, 16


class LearnedTemperature:
    """A second optimizer: learns the temperature that calibrates the student on its own batches.

    Args:
        kill_at: Step at which the process kills itself.
    """

    def __init__(self, kill_at: int | None = None) -> None:
        self.log_temperature = torch.nn.Parameter(torch.zeros(()))
        self.optimizer = torch.optim.Adam([self.log_temperature], lr=0.1)
        self.steps: list[int] = []
        self.epochs: list[int] = []
        self._kill_at = kill_at

    def on_step(self, step: Step) -> None:
        """Take a step of the second optimizer."""
        if step.number == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        logits = step.outputs.logits.detach() / self.log_temperature.exp()
        known = step.targets.labels >= 0
        loss = torch.nn.functional.cross_entropy(logits[known], step.targets.labels[known])
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        assert not step.network.training or step.images.shape[0] <= BATCH
        assert step.losses.keys() >= {"loss"}
        self.steps.append(step.number)

    def on_epoch(self, epoch: int) -> None:
        """Note the end of an epoch."""
        self.epochs.append(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the parameter, the state of its optimizer, and what was seen."""
        return {
            "log_temperature": self.log_temperature.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "epochs": self.epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.log_temperature.data.copy_(state["log_temperature"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.epochs = list(state["steps"]), list(state["epochs"])


def run_config(out: Path, images: Path) -> TrainConfig:
    return config(out, images, epochs=EPOCHS, batch_size=BATCH)


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return an uninterrupted run, and its hook."""
    out, hook = tmp_path_factory.mktemp("hooks") / "run", LearnedTemperature()
    train_student(run_config(out, images), hooks={"temperature": hook})
    return out, hook


def assert_equal_hooks(found: LearnedTemperature, expected: LearnedTemperature) -> None:
    assert torch.equal(found.log_temperature, expected.log_temperature)
    assert (found.steps, found.epochs) == (expected.steps, expected.epochs)
    ours, theirs = (h.optimizer.state_dict()["state"][0] for h in (found, expected))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_hook_sees_every_step_and_every_epoch_once(whole: tuple[Path, Any]) -> None:
    _, hook = whole
    assert hook.steps == list(range(1, len(hook.steps) + 1))
    assert hook.epochs == list(range(EPOCHS))
    assert hook.log_temperature.detach().item() != 0.0


@pytest.mark.parametrize("stops", [[2], [4], [1, 5]])
def test_its_state_survives_interruptions(
    whole: tuple[Path, Any], images: Path, tmp_path: Path, stops: list[int]
) -> None:
    out, expected = whole
    for steps in stops:
        with pytest.raises(Interrupted):
            train_student(
                run_config(tmp_path / "r", images),
                resume=True,
                should_stop=stop_after(steps),
                hooks={"temperature": LearnedTemperature()},
            )
    hook = LearnedTemperature()
    hooks = {"temperature": hook}
    train_student(run_config(tmp_path / "r", images), resume=True, hooks=hooks)
    assert_equal_hooks(hook, expected)
    assert_equal_runs(tmp_path / "r", out)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_its_state_survives_a_kill(whole: tuple[Path, Any], images: Path, tmp_path: Path) -> None:
    """Killed inside the second and the third epoch; a run resumes at the last epoch's end."""
    out, expected = whole
    values = run_config(tmp_path / "r", images).model_dump(mode="json")
    script = (
        "import json, sys, torch\n"
        "from logitcache.training.config import TrainConfig\n"
        "from logitcache.training.loop import train_student\n"
        "from tests.training.test_hooks import LearnedTemperature\n"
        "torch.set_num_threads(1)\n"
        "hook = LearnedTemperature(int(sys.argv[2]))\n"
        "config = TrainConfig.parse(json.loads(sys.argv[1]), 'train')\n"
        "train_student(config, resume=True, hooks={'temperature': hook})\n"
    )
    per_epoch = len(expected.steps) // EPOCHS
    for kill_at in (per_epoch + 2, 2 * per_epoch + 1):
        command = [sys.executable, "-c", script, json.dumps(values), str(kill_at)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    hook = LearnedTemperature()
    hooks = {"temperature": hook}
    train_student(run_config(tmp_path / "r", images), resume=True, hooks=hooks)
    assert_equal_hooks(hook, expected)
    assert_equal_runs(tmp_path / "r", out)


@pytest.fixture
def stopped(images: Path, tmp_path: Path) -> Path:
    """Return a run with a hook that was interrupted after the second epoch began."""
    hooks = {"temperature": LearnedTemperature()}
    with pytest.raises(Interrupted):
        train_student(run_config(tmp_path / "r", images), should_stop=stop_after(5), hooks=hooks)
    return tmp_path / "r"


@pytest.mark.parametrize("names", [[], ["other"], ["temperature", "other"]])
def test_a_run_with_other_hooks_is_not_resumed(
    stopped: Path, images: Path, names: list[str]
) -> None:
    hooks = {name: LearnedTemperature() for name in names}
    with pytest.raises(UsageError, match="other hooks") as caught:
        train_student(run_config(stopped, images), resume=True, hooks=hooks)
    assert caught.value.expected == "temperature"


def test_a_state_that_cannot_be_loaded_names_the_hook(stopped: Path, images: Path) -> None:
    class Changed(LearnedTemperature):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("rate")

    with pytest.raises(StorageError, match="hook 'temperature' cannot load its state"):
        train_student(run_config(stopped, images), resume=True, hooks={"temperature": Changed()})


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_checkpoint_with_a_damaged_state_is_not_used(
    stopped: Path, images: Path, damage: str
) -> None:
    newest = latest_checkpoint(stopped)
    assert newest is not None
    path = newest / "hooks.pt"
    if damage == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    hook = LearnedTemperature()
    found = train_student(run_config(stopped, images), resume=True, hooks={"temperature": hook})
    assert any("damaged" in note for note in found.notes)
    assert hook.steps == list(range(1, found.steps + 1))
