from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from logitcache.cache.verify.integrity import verify
from logitcache.errors import (
    CacheDamaged,
    CacheUnsealed,
    Interrupted,
    NonFiniteLoss,
    StorageError,
    UsageError,
)
from logitcache.objectives.term import Needs
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.describe import describe
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.run.checkpoint import latest_checkpoint
from logitcache.training.run.journal import read_journal
from logitcache.training.run.result import read_result
from tests.cache.building import start_cache

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.batch import TargetBatch
    from logitcache.training.run.progress import TrainProgress

Teachers = dict[str, dict[str, str]]

VIT = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "drop_path_rate": 0.2,
    },
}


@pytest.fixture(scope="module")
def cache(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("train") / "cache"
    values = {"cache": str(path), "data": str(images), "teachers": teachers, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 2}}, ""))
    return path


def config(out: Path, images: Path, **fields: object) -> TrainConfig:
    values: dict[str, object] = {
        "out": str(out),
        "data": str(images),
        "val": str(images),
        "student": VIT,
        "epochs": 3,
        "batch_size": 16,
        "crop_pct": 1.0,
        "threads": 1,
        **fields,
    }
    return TrainConfig.parse(values, "train")


def weights(out: Path) -> dict[str, torch.Tensor]:
    network = timm.create_model(f"local-dir:{out / 'export'}", pretrained=True)
    return dict(network.state_dict())


def untimed(out: Path) -> list[dict[str, Any]]:
    """Return the journal without what a clock says."""
    clocked = {"images_per_second", "data_wait"}
    return [{k: v for k, v in e.items() if k not in clocked} for e in read_journal(out)]


def assert_equal_runs(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert untimed(a) == untimed(b)


def stop_after(steps: int) -> Any:
    """Return a wish to stop that comes after that many steps."""
    left = [steps]

    def stop_requested() -> bool:
        left[0] -= 1
        return left[0] <= 0

    return stop_requested


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("stops", [[3], [4], [1, 6, 2]])
def test_a_resumed_run_ends_with_the_very_same_weights(
    images: Path, cache: Path, tmp_path: Path, ema: float | None, stops: list[int]
) -> None:
    """Stopped inside an epoch, at its end, and three times; with dropped paths and labels."""
    fields: dict[str, object] = {
        "cache": str(cache),
        "objectives": ["soft", {"label": {"weight": 0.5}}],
        "labels": 20,
        "ema": ema,
        "target_memory": 1,
    }
    train_student(config(tmp_path / "whole", images, **fields))
    for index, steps in enumerate(stops):
        with pytest.raises(Interrupted, match="a checkpoint is written") as caught:
            train_student(
                config(tmp_path / "cut", images, **fields),
                resume=index > 0,
                should_stop=stop_after(steps),
            )
        assert caught.value.exit_code == 3
    train_student(config(tmp_path / "cut", images, **fields), resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    images: Path, tmp_path: Path
) -> None:
    for name, seed, threads in (("a", 1, 1), ("b", 1, 3), ("c", 2, 1)):
        train_student(config(tmp_path / name, images, seed=seed, threads=threads, epochs=1))
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(
        weights(tmp_path / "a")["head.weight"], weights(tmp_path / "c")["head.weight"]
    )


def test_child_processes_that_render_do_not_change_dropped_paths(
    images: Path, tmp_path: Path
) -> None:
    train_student(config(tmp_path / "threads", images, epochs=1))
    train_student(config(tmp_path / "workers", images, epochs=1, workers=1))
    assert_equal_runs(tmp_path / "threads", tmp_path / "workers")


def test_sparse_targets_at_a_high_temperature_are_told_of_once(
    images: Path, teachers: Teachers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"cache": str(tmp_path / "c"), "data": str(images), "teachers": teachers}
    sparse = {**values, "unit_rows": 16, "encoding": {"top_k": 2}, "views": {"count": 1}}
    build_cache(PrecomputeConfig.parse(sparse, ""))
    measured = describe(tmp_path / "c").teachers[0].fidelity
    assert measured is not None
    cached: dict[str, object] = {"cache": str(tmp_path / "c"), "steps": 1, "epochs": None}
    hot = {"soft": {"temperature": 4.0, "teachers": {"cnn": 1.0}}}
    result = train_student(config(tmp_path / "hot", images, **cached, objectives=[hot, hot]))
    (note,) = result.notes
    assert note == caplog.records[-1].message
    assert len(caplog.records) == 1
    lost = measured["temperatures"]["4"]
    assert "cnn: the cache has 2 of 3 classes" in note
    assert f"{lost['kl_truncation'] + lost['kl_coding']:.2g} nats" in note
    assert f"{lost['gradient_error']:.0%}" in note
    assert f"on {measured['rows']} rows" in note
    assert result == read_result(tmp_path / "hot")
    warm = {"soft": {"temperature": 2.0}}
    both = train_student(config(tmp_path / "warm", images, **cached, objectives=[warm]))
    assert [note.split()[1] for note in both.notes] == ["cnn:", "red:"]
    plain = train_student(config(tmp_path / "plain", images, **cached, objectives=["soft"]))
    assert plain.notes == ()


def test_what_a_run_leaves_behind(images: Path, cache: Path, tmp_path: Path) -> None:
    seen: list[TrainProgress] = []
    result = train_student(
        config(tmp_path, images, cache=str(cache), epochs=4), on_progress=seen.append
    )
    assert result == read_result(tmp_path)
    assert result.evaluation is not None
    assert (result.steps, result.images, result.set_images, result.labeled) == (16, 240, 60, 60)
    assert (tmp_path / "config.yaml").read_text().startswith("out:")
    with (tmp_path / "journal.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[-1]["top1"]) == result.evaluation.top1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert not list(tmp_path.rglob("*.pkl"))
    assert [(p.phase, p.step, p.loss) for p in seen[:1]] == [("training", 0, None)]
    assert [(p.phase, p.step) for p in seen[-1:]] == [("exporting", 16)]
    assert all(0 <= p.data_wait <= 1 and (p.steps, p.epochs) == (16, 4) for p in seen)
    installed = importlib.util.find_spec("tensorboard") is not None
    assert (tmp_path / "tensorboard").exists() == installed


def test_the_export_is_what_was_evaluated(images: Path, tmp_path: Path) -> None:
    """The average of the weights where there is one, and the data configuration with it."""
    from logitcache.data.readers import open_source
    from logitcache.networks.build import NetworkConfig, build_network, input_spec
    from logitcache.training.evaluation.evaluator import Evaluator

    result = train_student(config(tmp_path, images, ema=0.8, epochs=2))
    network = build_network(NetworkConfig(model=f"local-dir:{tmp_path / 'export'}"))
    spec = input_spec(network)
    assert (spec.size, spec.crop_pct) == (8, 1.0)
    evaluator = Evaluator(
        open_source(str(images)), spec, batch_size=60, device=torch.device("cpu"), threads=1
    )
    again = evaluator(network)
    evaluator.close()
    assert result.evaluation is not None
    assert again.top1 == result.evaluation.top1
    assert again.loss == pytest.approx(result.evaluation.loss, rel=1e-5)


def test_views_of_the_cache_can_be_chosen(images: Path, cache: Path, tmp_path: Path) -> None:
    runs = {}
    for name, views in {"all": [], "0": "0", "1": [1], "both": "1,0"}.items():
        chosen = config(tmp_path / name, images, cache=str(cache), epochs=2, use_views=views)
        train_student(chosen)
        runs[name] = weights(tmp_path / name)
    first = {name: next(iter(found.values())) for name, found in runs.items()}
    assert not torch.equal(first["0"], first["1"])
    assert not torch.equal(first["all"], first["0"])
    with pytest.raises(UsageError, match="give a cache"):
        config(tmp_path, images, use_views="0")


def test_a_finished_run_is_not_repeated(images: Path, tmp_path: Path) -> None:
    first = train_student(config(tmp_path, images, epochs=1))
    assert train_student(config(tmp_path, images, epochs=1), resume=True) == first


def test_a_folder_with_a_run_is_not_overwritten(images: Path, tmp_path: Path) -> None:
    train_student(config(tmp_path, images, epochs=1))
    with pytest.raises(UsageError, match="--resume"):
        train_student(config(tmp_path, images, epochs=1))
    with pytest.raises(UsageError, match=r"a different configuration[\s\S]*batch_size 16"):
        train_student(config(tmp_path, images, epochs=1, batch_size=8), resume=True)


def test_it_learns_digits_from_a_cache_of_answers_it_never_saw_labels_of(tmp_path: Path) -> None:
    """A teacher of 200 labels, a student of none; with shuffled answers it stays near chance."""
    val = {"name": "digits", "split": "val", "limit": 200}
    data = {"name": "digits", "limit": 600}
    views = {"scale": [0.8, 1.0], "hflip": 0.0}
    cnn = {
        "model": "resnet10t",
        "kwargs": {"channels": [32, 64, 64, 64], "stem_width": 16},
        "size": 16,
    }
    shared: dict[str, Any] = {
        "data": data,
        "val": val,
        "batch_size": 64,
        "crop_pct": 1.0,
        "optimizer": {"lr": 3e-3},
        "student": cnn,
        "eval_every": 100,
    }

    def train(name: str, **fields: Any) -> float:
        values = {**shared, "out": str(tmp_path / name), **fields}
        result = train_student(TrainConfig.parse(values, name))
        assert result.evaluation is not None
        return result.evaluation.score

    labeled = {"count": 200, "images": "labeled"}
    teacher = train("teacher", labels=labeled, views=views, steps=60)
    cache = {
        "cache": str(tmp_path / "cache"),
        "data": data,
        "teachers": {"cnn": {"model": f"local-dir:{tmp_path / 'teacher' / 'export'}"}},
        "views": {"count": 3, **views},
    }
    build_cache(PrecomputeConfig.parse(cache, "cache"))
    student = train("student", cache=cache["cache"], steps=60)
    control = train("control", cache=cache["cache"], steps=60, shuffle_targets=True)
    assert teacher > 0.8
    assert student > 0.7
    assert control < 0.35


def test_labels_are_hidden_but_for_the_ones_that_may_be_seen(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    cached = train_student(
        config(tmp_path / "a", images, cache=str(cache), labels=7, objectives="label", epochs=1)
    )
    assert (cached.labeled, cached.set_images) == (7, 60)
    only = {"count": 7, "images": "labeled"}
    alone = train_student(config(tmp_path / "b", images, labels=only, epochs=1))
    assert (alone.labeled, alone.set_images) == (7, 7)
    with pytest.raises(UsageError, match="larger than the number of labeled images"):
        train_student(config(tmp_path / "c", images, labels=61, epochs=1))


def test_cached_and_uncached_runs_hide_the_same_labels(images: Path, cache: Path) -> None:
    from logitcache.training.images import training_images

    def seen(**fields: object) -> set[int]:
        rows, _ = training_images(config(images, images, labels=9, **fields), Needs())
        return set(rows.indices[rows.labels_of(np.arange(len(rows))) >= 0].tolist())

    assert seen() == seen(cache=str(cache))
    assert seen() != seen(seed=3)
    assert len(seen()) == 9


def test_a_live_teacher_can_stand_in_for_the_cache(
    images: Path, cache: Path, teachers: Teachers, tmp_path: Path
) -> None:
    """The control of every result: the same batches, answered now instead of then."""
    from logitcache.batch import DenseLogits, TargetBatch
    from logitcache.networks.build import NetworkConfig, build_network

    network: Any = build_network(NetworkConfig(**teachers["red"])).eval()
    cfg = network.pretrained_cfg
    ratio = [s / t for s, t in zip((0.5,) * 3, cfg["std"], strict=True)]
    shift = [(0.5 - m) / t for m, t in zip(cfg["mean"], cfg["std"], strict=True)]
    scale, offset = torch.tensor(ratio).view(3, 1, 1), torch.tensor(shift).view(3, 1, 1)

    def answer(batch: torch.Tensor, targets: TargetBatch) -> TargetBatch:
        with torch.no_grad():
            log_probs = network(batch * scale + offset).log_softmax(1)
        return TargetBatch(targets.rows, targets.labels, {"red": DenseLogits(log_probs)})

    fields: dict[str, Any] = {
        "cache": str(cache),
        "objectives": [{"soft": {"teachers": {"red": 1.0}}}],
        "epochs": 2,
    }
    train_student(config(tmp_path / "cached", images, **fields))
    train_student(config(tmp_path / "live", images, **fields), answer=answer)
    cached, live = untimed(tmp_path / "cached"), untimed(tmp_path / "live")
    for ours, theirs in zip(cached, live, strict=True):
        assert ours["soft"] == pytest.approx(theirs["soft"], rel=2e-2, abs=2e-3)
    with pytest.raises(UsageError, match="need outputs of teachers"):
        train_student(config(tmp_path / "none", images, objectives="soft", epochs=1))


@pytest.mark.parametrize("precision", ["bf16"])
def test_half_precision_trains(images: Path, tmp_path: Path, precision: str) -> None:
    result = train_student(config(tmp_path, images, precision=precision, epochs=1))
    assert result.evaluation is not None
    exported = weights(tmp_path)
    assert all(v.dtype == torch.float32 for v in exported.values() if v.is_floating_point())


def test_a_loss_that_is_not_finite_stops_the_run(images: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss, match=r"lower optimizer\.lr"):
        train_student(config(tmp_path, images, optimizer={"name": "sgd", "lr": 1e30}))


def test_gradients_can_be_clipped_and_optimizers_chosen(images: Path, tmp_path: Path) -> None:
    optimizer = {"name": "sgd", "lr": 0.1, "clip_grad": 1e-9, "weight_decay": 0.0}
    schedule = {"name": "constant", "warmup": 0.0}
    train_student(config(tmp_path / "a", images, optimizer=optimizer, schedule=schedule, epochs=1))
    torch.manual_seed(0)
    from logitcache.networks.build import NetworkConfig, build_network

    fresh = build_network(NetworkConfig.model_validate(VIT), 3).state_dict()
    trained = weights(tmp_path / "a")
    assert all(torch.allclose(fresh[n], trained[n], atol=1e-6) for n in fresh)


def test_an_unknown_optimizer_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown optimizer 'adamx'[\s\S]*did you mean"):
        train_student(config(tmp_path, images, optimizer={"name": "adamx"}))
    with pytest.raises(UsageError, match=r"unknown schedule 'cosin'[\s\S]*'cosine'"):
        train_student(config(tmp_path, images, schedule={"name": "cosin"}))


def test_an_unfinished_cache_is_refused(images: Path, tmp_path: Path) -> None:
    start_cache(tmp_path / "c", 40)
    with pytest.raises(CacheUnsealed):
        train_student(config(tmp_path / "t", images, cache=str(tmp_path / "c")))


def test_a_full_disk_keeps_the_earlier_checkpoint(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_student(config(whole, images))
    save, calls = save_file, 0

    def full(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args)

    monkeypatch.setattr("logitcache.training.run.checkpoint.save_file", full)
    with pytest.raises(StorageError, match=r"cannot be written[\s\S]*--resume"):
        train_student(config(cut, images))
    monkeypatch.undo()
    found = latest_checkpoint(cut)
    assert found is not None
    assert found.name == "000000004"
    train_student(config(cut, images), resume=True)
    assert_equal_runs(whole, cut)


def test_half_a_line_in_the_journal_is_forgotten(images: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train_student(config(tmp_path, images), should_stop=stop_after(6))
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"event": "epo')
    train_student(config(tmp_path, images), resume=True)
    assert [event["epoch"] for event in read_journal(tmp_path)] == [0, 1, 2]
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 12


def test_a_damaged_unit_stops_the_run_with_the_words_of_verify(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    for shard in (copy / "teachers/red/logp/c").glob("*/2/0"):
        shard.write_bytes(shard.with_name("0").parent.parent.joinpath("1/0").read_bytes())
    faults = verify(copy).faults
    assert [fault.cause for fault in faults] == ["another unit's shard"] * 2
    with pytest.raises(CacheDamaged, match="another unit's shard") as caught:
        train_student(config(tmp_path / "t", images, cache=str(copy)))
    assert any(f.detail in str(caught.value) and f.place in str(caught.value) for f in faults)
    assert "logitcache repair" in str(caught.value)


def test_what_is_not_shown_is_counted(images: Path, cache: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    (fewer / "bird/004.jpg").unlink()
    shutil.copy(images / "cat/001.jpg", fewer / "cat/another.jpg")
    fields: dict[str, object] = {"data": str(fewer), "cache": str(cache), "subset": True}
    result = train_student(config(tmp_path / "t", images, **{**fields, "epochs": 1}))
    assert (result.missing, result.left_out, result.unreadable, result.withdrawn) == (1, 1, 0, 0)
    assert result.set_images == 59
    assert read_result(tmp_path / "t") == result
