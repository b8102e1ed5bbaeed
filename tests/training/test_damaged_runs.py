"""Runs some of whose files are damaged: what cannot be read counts as not written."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from logitcache.cli.app import app
from logitcache.errors import StorageError
from logitcache.training.loop import train_student
from logitcache.training.run.checkpoint import latest_checkpoint, read_checkpoint
from logitcache.training.run.journal import read_journal
from logitcache.training.run.result import read_result
from tests.training.test_loop import assert_equal_runs, config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CNN = {"model": "resnet10t", "kwargs": {"channels": [16] * 4, "stem_width": 16}, "size": 32}
FIELDS: dict[str, Any] = {"student": CNN, "val": None, "epochs": 3, "batch_size": 30}


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of three epochs of two batches, with checkpoints after 4 and 6."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_student(config(out, images, **FIELDS))
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """Return the same run, killed before its result was written."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "result.json").unlink()
    return out


def resume(run: Path, images: Path, **fields: Any) -> tuple[str, ...]:
    return train_student(config(run, images, **{**FIELDS, **fields}), resume=True).notes


def edit_state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "state.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return edit


def truncate(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def flip_one_bit(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "tensors.safetensors")
    del tensors[sorted(name for name in tensors if name.startswith("model/"))[0]]
    save_file(tensors, folder / "tensors.safetensors")


def drop_all_of_the_model(folder: Path) -> None:
    """As an older version has written it, without a digest."""
    tensors = load_file(folder / "tensors.safetensors")
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith("model/")}
    save_file(left, folder / "tensors.safetensors")
    edit_state(lambda state: state.pop("tensors_sha256"))(folder)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "state missing": lambda folder: (folder / "state.json").unlink(),
    "state empty": lambda folder: (folder / "state.json").write_text(""),
    "state truncated": truncate("state.json"),
    "state a list": lambda folder: (folder / "state.json").write_text("[]"),
    "no position": edit_state(lambda state: state.pop("position")),
    "no step": edit_state(lambda state: state["position"].pop("step")),
    "step a text": edit_state(lambda state: state["position"].update(step="many")),
    "odd optimizer": edit_state(lambda state: state["optimizer"]["state"].update({"x": {}})),
    "odd evaluation": edit_state(lambda state: state["position"].update(evaluation={"top1": 1})),
    "tensors missing": lambda folder: (folder / "tensors.safetensors").unlink(),
    "tensors truncated": truncate("tensors.safetensors"),
    "tensors of zeros": lambda folder: (folder / "tensors.safetensors").write_bytes(bytes(4096)),
    "one bit": flip_one_bit,
    "a tensor missing": drop_a_tensor,
    "no model": drop_all_of_the_model,
    "empty folder": empty,
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_recognized(run: Path, what: str) -> None:
    folder = latest_checkpoint(run)
    assert folder is not None
    DAMAGE[what](folder)
    with pytest.raises(StorageError, match="a checkpoint is damaged") as caught:
        read_checkpoint(folder)
    assert caught.value.got


@pytest.mark.parametrize("what", ["state truncated", "tensors missing"])
def test_training_falls_back_to_the_older_checkpoint(
    whole: Path, run: Path, images: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = latest_checkpoint(run)
    assert folder is not None
    DAMAGE[what](folder)
    notes = resume(run, images)
    (note,) = [note for note in notes if "is damaged" in note]
    assert str(folder) in note
    assert "training resumes from 000000004" in note
    assert note in caplog.text
    assert_equal_runs(whole, run)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["000000004", "000000006"], "the damaged folder is gone"
    (run / "result.json").unlink()
    assert not any("is damaged" in note for note in resume(run, images))


def test_a_damaged_checkpoint_is_never_kept_in_the_place_of_a_good_one(
    run: Path, images: Path
) -> None:
    """Its step is larger than those of the checkpoints that follow."""
    folder = latest_checkpoint(run)
    assert folder is not None
    folder.rename(folder.with_name("000000099"))
    DAMAGE["state empty"](run / "checkpoints" / "000000099")
    resume(run, images)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["000000004", "000000006"]


def test_what_an_interrupted_run_has_left_is_tidied(run: Path, images: Path) -> None:
    folder = latest_checkpoint(run)
    assert folder is not None
    for left in ("000000002.partial", "000000004.replaced", "000000009.partial"):
        shutil.copytree(folder, folder.with_name(left))
    folder.rename(folder.with_suffix(".replaced"))  # killed before the new one had its name
    assert resume(run, images) == ()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["000000004", "000000006"]


def test_where_no_checkpoint_can_be_read_the_error_says_how_to_go_on(
    run: Path, images: Path
) -> None:
    folders = sorted((run / "checkpoints").iterdir())
    for folder in folders:
        DAMAGE["tensors truncated"](folder)
    for _ in range(2):  # nothing is renamed: the next try does not start over
        with pytest.raises(StorageError, match="no checkpoint of this run can be read") as caught:
            resume(run, images)
    assert "000000004: tensors.safetensors was changed after it was written" in str(
        caught.value.got
    )
    assert "remove this folder to start the run again" in str(caught.value.hint)
    assert sorted((run / "checkpoints").iterdir()) == folders


def test_a_checkpoint_of_another_network_is_named(run: Path, images: Path) -> None:
    folder = latest_checkpoint(run)
    assert folder is not None
    drop_a_tensor(folder)
    edit_state(lambda state: state.pop("tensors_sha256"))(folder)
    with pytest.raises(StorageError, match="does not fit the network") as caught:
        resume(run, images)
    assert "step 6" in str(caught.value.where)
    assert "Missing key" in str(caught.value.got)


@pytest.mark.parametrize(
    "content", ["", '{"out": "x"', "[]", "{}", '{"steps": "many", "evaluation": 7}', "\0" * 9]
)
def test_a_damaged_result_is_a_run_that_is_not_finished(
    whole: Path, run: Path, images: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "result.json").write_text(content)
    assert read_result(run) is None
    assert f"{run / 'result.json'} is damaged" in caplog.text
    if content in {"", "{}"}:
        resume(run, images)
        assert read_result(run) is not None
        assert_equal_runs(whole, run)


def test_a_result_of_a_newer_version_is_read(whole: Path) -> None:
    values = json.loads((whole / "result.json").read_text())
    before = read_result(whole)
    (whole / "result.json").write_text(json.dumps({**values, "more": 1}))
    assert read_result(whole) == before
    assert before is not None
    assert before.to_json() == values


def test_damaged_lines_of_a_journal_are_left_out(
    whole: Path, run: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, *rest = (run / "journal.jsonl").read_text().splitlines()
    odd = [
        "\0\0\0",
        '{"event": "ep',
        "[]",
        '{"step": 1}',
        '{"event": "epoch", "step": "x"}',
        "\x80",
    ]
    (run / "journal.jsonl").write_bytes("\n".join([first, *odd, *rest, '{"ev']).encode("latin-1"))
    assert [event["epoch"] for event in read_journal(run)] == [0, 1, 2]
    assert f"{run / 'journal.jsonl'} is damaged" in caplog.text
    assert "line 2 is not an event" in caplog.text
    (run / "journal.csv").unlink()
    resume(run, images)
    assert_equal_runs(whole, run)
    assert (run / "journal.jsonl").read_text().count("\n") == 3
    assert (run / "journal.csv").read_text().count("\n") == 4


@pytest.mark.parametrize("content", ["", "out: [", "- a", None])
def test_without_a_readable_config_the_checkpoint_has_the_settings(
    whole: Path, run: Path, content: str | None
) -> None:
    if content is None:
        (run / "config.yaml").unlink()
    else:
        (run / "config.yaml").write_text(content)
    done = CliRunner().invoke(app, ["train", "--resume", "--out", str(run)])
    assert done.exit_code == 0, done.output + str(done.exception)
    assert_equal_runs(whole, run)
    assert (run / "config.yaml").read_text().startswith("out:")
