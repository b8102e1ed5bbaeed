"""Trackers of a training run; those whose packages are not installed are replaced by a recorder."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.errors import Interrupted, UsageError
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.run import trackers
from logitcache.training.run.journal import read_journal
from tests.training.test_loop import config, stop_after

CNN = {"model": "resnet10t"}

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Recorder:
    """A tracker of accelerate that keeps what it is given."""

    def __init__(self, *, breaks_at: int | None = None) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.settings: dict[str, Any] = {}
        self.finished = False
        self._breaks_at = breaks_at

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int) -> None:
        if self._breaks_at is not None and step >= self._breaks_at:
            raise ConnectionError("the server is away")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def recorders(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Make wandb a recorder; returns the runs that were started and what each was made from."""
    made: list[Any] = []

    def make(run: Any) -> Recorder:
        run.ids.setdefault("wandb", f"id {len(made)}")
        recorder = Recorder()
        made.append((recorder, run.ids["wandb"], run.project, run.step))
        return recorder

    monkeypatch.setitem(trackers.TRACKERS, "wandb", make)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name == "wandb" or None)
    return made


def test_a_tracker_gets_the_numbers_of_the_log_and_the_settings(
    images: Path, tmp_path: Path, recorders: list[Any]
) -> None:
    run = config(tmp_path / "run", images, epochs=2, log_with="wandb", project="birds")
    train_student(run)
    ((recorder, _, project, step),) = recorders
    assert (project, step, recorder.finished) == ("birds", 0, True)
    epochs = [event for event in read_journal(tmp_path / "run") if event["event"] == "epoch"]
    assert [step for step, _ in recorder.logged] == [event["step"] for event in epochs]
    for (_, values), event in zip(recorder.logged, epochs, strict=True):
        assert values["epoch/loss"] == event["loss"]
        assert values["epoch/top1"] == event["top1"]
    assert recorder.settings["optimizer.lr"] == run.optimizer.lr
    assert recorder.settings["log_with"] == '["wandb"]'
    assert "revision" not in recorder.settings


def test_a_resumed_run_continues_the_run_of_the_tracker(
    images: Path, tmp_path: Path, recorders: list[Any]
) -> None:
    with pytest.raises(Interrupted):
        train_student(
            config(tmp_path / "run", images, log_with=["wandb"]), should_stop=stop_after(5)
        )
    train_student(config(tmp_path / "run", images, log_with=["wandb"]), resume=True)
    (_, first, *_), (recorder, second, _, step) = recorders
    assert first == second
    assert step == 5
    assert [step for step, _ in recorder.logged] == [8, 12]


def test_a_run_is_resumed_with_other_trackers(
    images: Path, tmp_path: Path, recorders: list[Any]
) -> None:
    train_student(config(tmp_path / "run", images, epochs=1, log_with=[]))
    assert not recorders
    train_student(config(tmp_path / "run", images, epochs=2, log_with=["wandb"]), resume=True)
    assert len(recorders) == 1


def test_a_tracker_that_fails_does_not_stop_the_training(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    recorders: list[Any],
) -> None:
    failing = Recorder(breaks_at=8)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda _: failing)
    with caplog.at_level(logging.WARNING):
        train_student(config(tmp_path / "run", images, log_with="wandb"))
    assert [step for step, _ in failing.logged] == [4]
    assert caplog.text.count("tracker wandb has failed") == 1
    assert "the server is away" in caplog.text
    assert len(read_journal(tmp_path / "run")) >= 3
    assert not recorders


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_absent_is_one_clear_message(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=rf"needs the package {name}[\s\S]*logitcache\[trackers\]"):
        train_student(config(tmp_path / "run", images, log_with=name))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_be_started_is_one_clear_message(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorders: list[Any]
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("no account\nand more")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", broken)
    with pytest.raises(
        UsageError, match=r"wandb cannot be started[\s\S]*no account\n[\s\S]*offline"
    ):
        train_student(config(tmp_path / "run", images, log_with="wandb"))
    assert not recorders


def test_names_of_trackers_are_known(tmp_path: Path) -> None:
    values = {"out": str(tmp_path), "data": "x", "student": CNN, "epochs": 1}
    parsed = TrainConfig.parse({**values, "log_with": "tensorboard, mlflow"}, "train")
    assert parsed.log_with == ["tensorboard", "mlflow"]
    with pytest.raises(UsageError, match="tensorboard"):
        TrainConfig.parse({**values, "log_with": "visdom"}, "train")


def _tensorboard_values(out: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing import event_accumulator

    board = event_accumulator.EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    return {event.step: event.value for event in board.Scalars("epoch/loss")}


def _wandb_values(out: Path) -> dict[int, float]:
    (offline, *_) = sorted((out / "wandb").glob("offline-run-*"))
    assert list(offline.glob("*.wandb"))
    return {}


def _mlflow_values(out: Path) -> dict[int, float]:
    import mlflow

    (run,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.data.params["optimizer.lr"] == "0.001"
    metrics = mlflow.MlflowClient().get_metric_history(run.info.run_id, "epoch/loss")
    return {metric.step: metric.value for metric in metrics}


@pytest.mark.filterwarnings("default")  # of these packages
@pytest.mark.parametrize(
    ("name", "values_of"),
    [("tensorboard", _tensorboard_values), ("wandb", _wandb_values), ("mlflow", _mlflow_values)],
)
def test_the_real_tracker_has_the_losses_of_the_log(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    values_of: Callable[[Path], dict[int, float]],
) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train_student(config(out, images, log_with=name), should_stop=stop_after(6))
    train_student(config(out, images, log_with=name), resume=True)
    epochs = [event for event in read_journal(out) if event["event"] == "epoch"]
    found = values_of(out)
    if name != "wandb":  # whose file only its own program reads
        assert found == pytest.approx({event["step"]: event["loss"] for event in epochs})
