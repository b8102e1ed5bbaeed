"""What a run survives: failing evaluations, small batches, bad images, non-finite losses."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.errors import Interrupted, NonFiniteLoss, UnreadableImage, UsageError
from logitcache.objectives.combine import WeightedSum, build_objective
from logitcache.students.build import build_student
from logitcache.training import loop
from logitcache.training.config import TrainConfig
from logitcache.training.distributed import DistributedContext
from logitcache.training.evaluation.evaluator import Evaluator
from logitcache.training.loop import train_student
from logitcache.training.optimization.finite_loss import FiniteLoss
from logitcache.training.optimization.trainable_student import TrainableStudent
from logitcache.training.run.journal import Journal, read_journal
from logitcache.training.run.result import read_result
from tests.conftest import jpeg, shape_image, write_images
from tests.training.test_loop import assert_equal_runs, config, stop_after, weights

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitcache.training.run.progress import TrainProgress

CNN = {"model": "resnet10t", "kwargs": {"channels": [16] * 4, "stem_width": 16}, "size": 32}


class Broken(Exception):
    """Stands for any error of an evaluation."""


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> list[int]:
    """Let one call of a method fail; return a list that counts the calls."""
    calls = [0]
    original = getattr(owner, name)

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Broken
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize(("owner", "name"), [(Evaluator, "__call__"), (Journal, "epoch")])
def test_an_error_after_an_epoch_loses_no_training(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    call: int,
) -> None:
    train_student(config(tmp_path / "whole", images))
    with monkeypatch.context() as patch:
        fail_at(patch, owner, name, call)
        with pytest.raises(Broken):
            train_student(config(tmp_path / "broken", images))
    steps = fail_at(monkeypatch, WeightedSum, "parts", -1)
    train_student(config(tmp_path / "broken", images), resume=True)
    assert steps == [(3 - call) * 4], "steps of the evaluated epoch were done once more"
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")
    epochs = [event["epoch"] for event in read_journal(tmp_path / "broken")]
    assert epochs == [0, 1, 2]


def test_an_evaluation_that_is_in_the_journal_is_not_repeated(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_student(config(tmp_path / "whole", images))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "export_network", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_student(config(tmp_path / "broken", images))
    evaluations = fail_at(monkeypatch, Evaluator, "__call__", -1)
    result = train_student(config(tmp_path / "broken", images), resume=True)
    assert evaluations == [0]
    assert result.evaluation == read_result(tmp_path / "whole").evaluation  # type: ignore[union-attr]
    assert_equal_runs(tmp_path / "whole", tmp_path / "broken")


CONSTANT = {"schedule": {"name": "constant", "warmup": 0.0}, "ema": None}


def test_a_finished_run_can_be_made_longer(images: Path, tmp_path: Path) -> None:
    whole = train_student(config(tmp_path / "whole", images, epochs=4, **CONSTANT))
    train_student(config(tmp_path / "grown", images, epochs=2, **CONSTANT))
    grown = train_student(config(tmp_path / "grown", images, epochs=4, **CONSTANT), resume=True)
    assert (grown.steps, grown.evaluation) == (whole.steps, whole.evaluation)
    assert_equal_runs(tmp_path / "whole", tmp_path / "grown")
    again = train_student(config(tmp_path / "grown", images, epochs=4, **CONSTANT), resume=True)
    assert again == grown


def test_growth_that_was_interrupted_goes_on(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_student(config(tmp_path / "whole", images, epochs=3, **CONSTANT))
    train_student(config(tmp_path / "grown", images, epochs=1, **CONSTANT))
    with monkeypatch.context() as patch:
        fail_at(patch, WeightedSum, "parts", 2)  # before any checkpoint of the longer run
        with pytest.raises(Broken):
            train_student(config(tmp_path / "grown", images, epochs=3, **CONSTANT), resume=True)
    assert read_result(tmp_path / "grown") is None
    train_student(config(tmp_path / "grown", images, epochs=3, **CONSTANT), resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "grown")


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"epochs": 1}, "longer but not shorter"),
        ({"epochs": None, "steps": 100}, "longer but not shorter"),
        ({"seed": 1}, "local-dir:"),
        ({"epochs": 4, "seed": 1}, "local-dir:"),
    ],
)
def test_a_run_that_cannot_go_on_names_the_way(
    images: Path, tmp_path: Path, fields: dict[str, Any], advice: str
) -> None:
    first = train_student(config(tmp_path, images, epochs=2))
    with pytest.raises(UsageError, match=advice):
        train_student(config(tmp_path, images, **{"epochs": 2, **fields}), resume=True)
    assert read_result(tmp_path) == first


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("nine"), 3)


def test_a_last_batch_of_one_image_is_joined_where_batch_norm_needs_two(
    nine: Path, tmp_path: Path
) -> None:
    joined = train_student(config(tmp_path / "a", nine, student=CNN, batch_size=4))
    assert (joined.steps, joined.images) == (6, 27)
    assert any("joined" in note for note in joined.notes)
    alone = train_student(config(tmp_path / "b", nine, batch_size=4))  # no batch norm
    assert (alone.steps, alone.images) == (9, 27)
    assert not any("joined" in note for note in alone.notes)
    larger = train_student(
        config(tmp_path / "c", nine, student={**CNN, "size": 64}, batch_size=4, epochs=1)
    )
    assert larger.steps == 3, "maps of more than one position have a variance"


def test_a_joined_batch_is_resumed(nine: Path, tmp_path: Path) -> None:
    train_student(config(tmp_path / "a", nine, student=CNN, batch_size=4))
    for stop in (1, 2, 9):
        try:
            train_student(
                config(tmp_path / "b", nine, student=CNN, batch_size=4),
                resume=True,
                should_stop=stop_after(stop),
            )
        except Interrupted:
            continue
    assert_equal_runs(tmp_path / "a", tmp_path / "b")


def test_batches_of_one_image_are_refused_before_the_first_step(nine: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch norm") as found:
        train_student(config(tmp_path / "a", nine, student=CNN, batch_size=1))
    assert "at least 2" in str(found.value)
    assert not (tmp_path / "a").exists()


def test_looking_for_the_smallest_batch_changes_nothing(nine: Path, tmp_path: Path) -> None:
    """The weights of a run do not depend on whether it was looked for."""
    values = config(tmp_path, nine, student={**CNN, "kwargs": {**CNN["kwargs"], "drop_rate": 0.5}})  # type: ignore[dict-item]
    network = build_student(values.student, 3)
    found = TrainableStudent(network, build_objective(values.terms), size=32, features={})
    before = {name: value.clone() for name, value in found.state_dict().items()}
    random = torch.get_rng_state()
    assert found.smallest_batch(32) == 2
    assert found.smallest_batch(64) == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())
    assert found.training


def test_a_rate_that_is_too_high_is_blamed_on_the_rate(images: Path, tmp_path: Path) -> None:
    values = {"optimizer": {"name": "sgd", "lr": 1e30}, **CONSTANT}
    with pytest.raises(NonFiniteLoss, match=r"optimizer\.lr") as found:
        train_student(config(tmp_path, images, **values))
    assert "step 2," in str(found.value)
    assert "label" in found.value.what


def test_a_term_that_breaks_is_named_while_the_weights_are_whole(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = WeightedSum.parts
    steps = [0]

    def parts(self: WeightedSum, *args: Any) -> Any:
        steps[0] += 1
        found = original(self, *args)
        return {n: v * torch.nan for n, v in found.items()} if steps[0] == 6 else found

    monkeypatch.setattr(WeightedSum, "parts", parts)
    with pytest.raises(NonFiniteLoss, match="logitcache verify") as found:
        train_student(config(tmp_path, images))
    assert steps == [6]
    assert "step 6, epoch 1" in str(found.value)
    assert "label nan" in str(found.value)
    monkeypatch.undo()
    result = train_student(config(tmp_path, images), resume=True)
    assert result.steps == 12, "the checkpoint before it is intact"


def test_on_an_accelerator_the_loss_is_looked_at_one_step_later() -> None:
    finite = FiniteLoss(DistributedContext("cpu", "no"), "fp16")
    finite._late = True
    good, bad = torch.tensor(1.0), torch.tensor(torch.inf)
    logits = torch.zeros(2, 3)
    assert finite.see(1, {"loss": good, "soft": good}, logits)
    assert finite.see(2, {"loss": bad, "soft": bad}, logits / 0)
    assert not finite.see(3, {"loss": good, "soft": good}, logits)
    error = finite.error(4)
    assert "step 2, epoch 4" in str(error)
    assert "soft" in error.what
    assert "bf16" in str(error.hint)
    finite.see(4, {"loss": bad, "soft": bad}, logits)
    with pytest.raises(NonFiniteLoss, match="step 4"):
        finite.check_last(4)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    root = write_images(tmp_path / "damaged", 6)
    whole = jpeg(shape_image(5))
    (root / "cat" / "001.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "003.jpg").write_bytes(b"no image")
    return root


@pytest.mark.parametrize("where", ["data", "val"])
def test_images_that_cannot_be_decoded_are_left_out_on_request(
    damaged: Path, nine: Path, tmp_path: Path, where: str
) -> None:
    sets = {"data": str(nine), "val": str(nine), where: str(damaged)}
    values = TrainConfig.parse(
        {**config(tmp_path / "run", nine).model_dump(), **sets, "batch_size": 4}, ""
    )
    with pytest.raises(UnreadableImage, match=r"cat/001.jpg|dog/003.jpg"):
        train_student(values)
    skipping = values.model_copy(update={"on_bad_image": "skip"})
    result = train_student(skipping, resume=True)
    assert (result.skipped, result.skipped_val) == ((2, 0) if where == "data" else (0, 2))
    (note,) = [note for note in result.notes if "could not be decoded" in note]
    assert "cat/001.jpg" in note
    assert result.evaluation is not None
    assert result.evaluation.images == (9 if where == "data" else 16)


def test_progress_goes_by_time_through_every_phase(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainProgress] = []
    watch: Callable[[TrainProgress], None] = seen.append
    monkeypatch.setattr(loop, "_REPORT_SECONDS", 0.0)
    train_student(config(tmp_path, images, epochs=2), on_progress=watch)
    training = [p for p in seen if p.phase == "training"]
    assert [p.done for p in training] == list(range(9))
    assert [p.loss is None for p in training] == [True] + [False] * 8
    evaluating = [(p.done, p.total) for p in seen if p.phase == "evaluating"]
    assert evaluating == 2 * [(0, 60), (16, 60), (32, 60), (48, 60)]
    assert seen[-1].phase == "exporting"
    assert {p.epochs for p in seen} == {2}
    shutil.rmtree(tmp_path)
    seen.clear()
    monkeypatch.setattr(loop, "_REPORT_SECONDS", 3600.0)
    train_student(config(tmp_path, images, epochs=2), on_progress=watch)
    assert [p.done for p in seen if p.phase == "training"] == [0, 1]


def test_weights_are_finite_after_growth(images: Path, tmp_path: Path) -> None:
    train_student(config(tmp_path, images, epochs=1))
    train_student(config(tmp_path, images, epochs=2), resume=True)
    assert all(bool(torch.isfinite(v).all()) for v in weights(tmp_path).values())
