"""A run on several processes is the run on one: same losses, same rows, same weights."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from logitcache.cli.launch import refuse_ranks
from logitcache.errors import UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training import loop
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.run.checkpoint import latest_checkpoint, read_checkpoint
from logitcache.training.run.journal import read_journal
from tests.processes import Failed, run_ranks

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TargetBatch
    from logitcache.training.run.progress import TrainProgress

Teachers = dict[str, dict[str, str]]
VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
CNN = {"model": "resnet10t", "kwargs": {"channels": [16] * 4, "stem_width": 16}, "size": 32}
EPOCHS, STEPS = 13, 52  # 60 images in batches of 16, 16, 16 and 12


@pytest.fixture(scope="module")
def cache(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "cache"
    views = {"count": 2, "mixup_alpha": 0.8}
    values = {"cache": str(path), "data": str(images), "teachers": teachers, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "views": views}, ""))
    return path


@dataclass
class Record:
    """What a process saw of its run."""

    losses: list[float] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    top1: float | None = None


def train(
    rank: int,
    values: dict[str, Any],
    resume: bool = False,
    stop_at: int = 0,
    stop_rank: int = 0,
    kill_at: int = 0,
) -> Record:
    """Train as one process of several; stopped or killed at some step."""
    record = Record()
    loop._REPORT_SECONDS = 0.0

    def see(progress: TrainProgress) -> None:
        if progress.loss is not None:
            record.losses.append(progress.loss)

    def note(images: Tensor, targets: TargetBatch) -> TargetBatch:
        record.rows.append(targets.rows.tolist())
        if kill_at and rank == stop_rank and len(record.rows) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return targets

    def stop_requested() -> bool:
        return bool(stop_at) and rank == stop_rank and len(record.rows) >= stop_at

    config = TrainConfig.parse(values, "")
    result = train_student(
        config, resume=resume, on_progress=see, should_stop=stop_requested, answer=note
    )
    record.top1 = result.evaluation.top1 if result.evaluation else None
    return record


def config(out: Path, images: Path, cache: Path, **fields: object) -> dict[str, Any]:
    return {
        "out": str(out),
        "data": str(images),
        "cache": str(cache),
        "student": VIT,
        "objectives": ["soft", {"label": {"weight": 0.5}}],
        "labels": 25,
        "epochs": EPOCHS,
        "batch_size": 16,
        "optimizer": {"clip_grad": 0.5},
        "ema": 0.9,
        "device": "cpu",
        "threads": 1,
        "checkpoint_every": 100,
        **fields,
    }


def alone(values: dict[str, Any], **how: Any) -> Record:
    before = loop._REPORT_SECONDS
    try:
        return train(0, values, **how)
    finally:
        loop._REPORT_SECONDS = before


def weights(out: Path) -> dict[str, torch.Tensor]:
    network = timm.create_model(f"local-dir:{out / 'export'}", pretrained=True)
    return dict(network.state_dict())


def assert_close(ours: Path, theirs: Path) -> None:
    expected = weights(theirs)
    for name, value in weights(ours).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("ranks", "batch_size"), [(2, 16), (3, 59)])
def test_the_losses_are_those_of_one_process(
    images: Path, cache: Path, tmp_path: Path, ranks: int, batch_size: int
) -> None:
    """Few labels, unevenly spread; slices of unequal length; last, a batch of one row for three."""
    fields: dict[str, object] = {"batch_size": batch_size, "val": str(images), "eval_every": 6}
    whole = alone(config(tmp_path / "one", images, cache, **fields))
    parts = run_ranks(ranks, train, config(tmp_path / "many", images, cache, **fields))
    assert not [part for part in parts if isinstance(part, Failed)], parts
    assert len(whole.losses) == EPOCHS * -(-60 // batch_size)
    for part in parts:
        assert part.losses[:50] == pytest.approx(whole.losses[:50], rel=1e-4)
        assert part.top1 == whole.top1
    for step, shown in enumerate(whole.rows):
        slices = [part.rows[step] for part in parts]
        if len(shown) >= ranks:
            assert [row for rows in slices for row in rows] == shown
            assert max(map(len, slices)) - min(map(len, slices)) <= 1
        else:
            assert slices == [shown] * ranks
    assert_close(tmp_path / "many", tmp_path / "one")
    ours, theirs = (read_journal(tmp_path / name) for name in ("many", "one"))
    for ours_epoch, theirs_epoch in zip(ours, theirs, strict=True):
        for name in ("soft", "label", "loss", "lr"):
            assert ours_epoch[name] == pytest.approx(theirs_epoch[name], rel=1e-4)


def test_half_precision_and_batch_norm_train_together(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    """Batch norm sees a slice, so losses differ; what is evaluated is what is exported."""
    fields = {"student": CNN, "precision": "bf16", "val": str(images), "crop_pct": 1.0, "epochs": 2}
    values = config(tmp_path, images, cache, **{**fields, "ema": None})
    first, second = run_ranks(2, train, values)
    assert isinstance(first, Record), first
    assert first.losses == second.losses
    assert first.top1 == second.top1
    exported = weights(tmp_path)
    assert all(torch.isfinite(v).all() for v in exported.values())
    found = latest_checkpoint(tmp_path)
    assert found is not None
    kept = read_checkpoint(found).modules["model"]
    assert all(torch.equal(kept[f"network.{name}"], exported[name]) for name in exported)


def test_a_wish_of_one_stops_all_and_any_number_goes_on(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    whole = alone(config(tmp_path / "whole", images, cache, epochs=3))
    cut = config(tmp_path / "cut", images, cache, epochs=3)
    stopped = run_ranks(2, train, cut, False, 3, 1)
    assert [found.kind for found in stopped] == ["Interrupted"] * 2
    assert "stopped at step 3 of 12" in stopped[0].text
    stopped = run_ranks(3, train, cut, True, 4, 0)
    assert [found.kind for found in stopped] == ["Interrupted"] * 3
    assert "stopped at step 7 of 12" in stopped[0].text
    rest = alone(cut, resume=True)
    assert rest.rows == whole.rows[7:]
    assert rest.losses == pytest.approx(whole.losses[7:], rel=1e-4)
    assert_close(tmp_path / "cut", tmp_path / "whole")
    assert [event["epoch"] for event in read_journal(tmp_path / "cut")] == [0, 1, 2]


def test_all_processes_fall_back_to_the_same_checkpoint(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    whole = alone(config(tmp_path / "whole", images, cache, epochs=3))
    cut = config(tmp_path / "cut", images, cache, epochs=3, checkpoint_every=1)
    run_ranks(2, train, cut, False, 10, 0)
    found = latest_checkpoint(tmp_path / "cut")
    assert found is not None
    assert found.name == "000000010"
    (found / "tensors.safetensors").write_bytes(b"half")
    first, second = run_ranks(2, train, cut, True)
    assert isinstance(first, Record), first
    assert isinstance(second, Record), second
    both = [sorted(ours + theirs) for ours, theirs in zip(first.rows, second.rows, strict=True)]
    assert both == [sorted(rows) for rows in whole.rows[8:]]
    assert_close(tmp_path / "cut", tmp_path / "whole")


def test_as_many_processes_go_on_with_the_very_same_dropout(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    dropping = {**VIT, "kwargs": {**VIT["kwargs"], "drop_path_rate": 0.4}}
    fields: dict[str, object] = {"student": dropping, "epochs": 2, "ema": None}
    run_ranks(2, train, config(tmp_path / "whole", images, cache, **fields))
    cut = config(tmp_path / "cut", images, cache, **fields)
    run_ranks(2, train, cut, False, 3)
    run_ranks(2, train, cut, True)
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(v, expected[name]) for name, v in weights(tmp_path / "cut").items())


def test_the_others_say_that_one_was_lost(images: Path, cache: Path, tmp_path: Path) -> None:
    """Killed in the second epoch: the first one's checkpoint is there to go on from."""
    values = config(tmp_path / "t", images, cache, epochs=3, checkpoint_every=1)
    started = time.monotonic()
    found = run_ranks(2, train, values, False, 0, 1, 6)
    assert time.monotonic() - started < 60
    assert found[1] is None
    assert found[0].kind == "RankLost", found[0].text
    assert "--resume" in found[0].text
    rest = alone(values, resume=True)
    assert len(rest.rows) == 8
    for shown in (rest.rows[:4], rest.rows[4:]):
        assert Counter(row for rows in shown for row in rows) == Counter(range(60))
    with pytest.raises(UsageError, match="this folder already contains a run"):
        alone(values)
    refused = run_ranks(2, train, values)
    assert [error.kind for error in refused] == ["UsageError"] * 2


def test_a_pipeline_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"2 processes started together[\s\S]*logitcache train"):
        refuse_ranks("run")
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_ranks("run")


def start(*flags: object) -> subprocess.Popen[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    run += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "logitcache"]
    command = [*run, *map(str, flags)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children_of(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return sorted(found)


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_torchrun(images: Path, tmp_path: Path) -> None:
    """One process is killed; the same command goes on; SIGTERM to one stops both."""
    sets = [p for k, v in VIT["kwargs"].items() for p in ("--set", f"student.kwargs.{k}={v}")]
    flags = ["train", "--data", images, "--student", VIT["model"], *sets]
    flags += ["--out", tmp_path / "t", "--batch-size", 16, "--device", "cpu", "--resume"]
    process = start(*flags, "--epochs", 100000)
    kill_after_checkpoint(process, tmp_path / "t", signal.SIGKILL)
    _, err = process.communicate(timeout=90)
    assert "another process of this training has ended" in err
    first = latest_checkpoint(tmp_path / "t")
    assert first is not None
    process = start(*flags, "--epochs", 100000)
    kill_after_checkpoint(process, tmp_path / "t", signal.SIGTERM, beyond=first.name)
    _, err = process.communicate(timeout=90)
    assert len(re.findall(r"error: stopped at step", err)) == 2, err
    # torchrun names those that ended before it stopped the others
    assert set(re.findall(r"exitcode\s+: (-?\d+)", err)) == {"3"}, err
    last = latest_checkpoint(tmp_path / "t")
    assert last is not None
    assert last.name > first.name


def kill_after_checkpoint(
    process: subprocess.Popen[str], out: Path, number: signal.Signals, beyond: str = ""
) -> None:
    deadline = time.monotonic() + 120
    while not any(p.name > beyond for p in (out / "checkpoints").glob("0????????")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(children_of(process.pid)[-1], number)
