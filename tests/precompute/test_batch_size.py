"""Batches that fit, batches that are fast, and networks that run otherwise."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.errors import CacheError, NetworkError, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.sample.batch_size import choose_batch
from logitcache.teachers.ensemble import Ensemble
from logitcache.teachers.member import Member, TeacherConfig
from tests.precompute.test_building import commits, config

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make every forward of more than 4 images run out of memory; return the batches tried."""
    tried: list[int] = []
    start = Member.start

    def limited(self: Member, pixels: Any, taps: Any, shown: Any) -> Any:
        tried.append(len(pixels))
        if len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return start(self, pixels, taps, shown)

    monkeypatch.setattr(Member, "start", limited)
    return tried


def test_a_batch_is_halved_until_it_fits_and_recorded(
    images: Path, teachers: Teachers, tmp_path: Path, small_device: list[int]
) -> None:
    summary = build_cache(config(tmp_path / "halved", images, teachers, batch_size=16))
    assert small_device[:3] == [16, 8, 4]
    assert set(small_device[2:]) == {4}, "all of it at the batch that fits"
    assert "batches of 4 images: not enough device memory for 16" in summary.notes
    records = read_manifest(locate(tmp_path / "halved")).teachers
    assert {record.canonical_batch for record in records.values()} == {4}
    build_cache(config(tmp_path / "requested", images, teachers, batch_size=4))
    assert commits(tmp_path / "halved") == commits(tmp_path / "requested")


def test_a_resumed_run_keeps_the_recorded_batch(
    images: Path, teachers: Teachers, tmp_path: Path, small_device: list[int]
) -> None:
    build_cache(config(tmp_path / "c", images, teachers, batch_size=16, views={"count": 1}))
    del small_device[:]
    build_cache(config(tmp_path / "c", images, teachers, batch_size=16))
    assert set(small_device) == {4}, "nothing is tried again"


def test_no_room_for_a_single_image_is_told(
    images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(self: Member, pixels: Any, taps: Any, shown: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Member, "start", refusing)
    with pytest.raises(NetworkError, match=r"batch of one image[\s\S]*cnn, red[\s\S]*--device"):
        build_cache(config(tmp_path / "c", images, teachers))
    assert not (tmp_path / "c").exists()


def test_memory_that_runs_out_later_keeps_what_is_committed(
    images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, left = Member.start, [9]

    def failing(self: Member, pixels: Any, taps: Any, shown: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return start(self, pixels, taps, shown)

    monkeypatch.setattr(Member, "start", failing)
    with pytest.raises(NetworkError, match=r"out of device memory[\s\S]*committed data is intact"):
        build_cache(config(tmp_path / "c", images, teachers))
    kept = commits(tmp_path / "c")
    assert kept
    monkeypatch.undo()
    build_cache(config(tmp_path / "c", images, teachers))
    assert kept.items() <= commits(tmp_path / "c").items()


def test_the_fastest_batch_is_found(teachers: Teachers, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: an image is cheaper in larger batches, up to 64."""
    configs = {"cnn": TeacherConfig.parse(teachers["cnn"], "")}
    ensemble = Ensemble(configs, device=torch.device("cpu"), precision="float32")
    now = [0.0]

    def clocked(self: Member, pixels: Any, taps: Any, shown: Any) -> Any:
        now[0] += 0.001 * len(pixels) * max(1.0, 64 / len(pixels))
        return partial(np.zeros, (len(pixels), 3), dtype=np.float32), {}

    monkeypatch.setattr(Member, "start", clocked)
    monkeypatch.setattr("logitcache.precompute.sample.batch_size.time.perf_counter", lambda: now[0])
    assert choose_batch(ensemble, ["cnn"], "auto")[0] == 64
    assert choose_batch(ensemble, [], "auto")[0] == 16


@pytest.mark.requirement("F3.10")
def test_auto_is_kept_by_a_cache(images: Path, teachers: Teachers, tmp_path: Path) -> None:
    build_cache(config(tmp_path / "c", images, teachers, batch_size="auto", unit_rows=64))
    (batch,) = {t.canonical_batch for t in open_cache(tmp_path / "c").manifest.teachers.values()}
    assert batch >= 16
    assert 64 % batch == 0


@pytest.mark.parametrize("wrong", [3, 0, "fast", -4])
def test_no_batch(images: Path, teachers: Teachers, tmp_path: Path, wrong: object) -> None:
    with pytest.raises(UsageError, match="batch_size"):
        config(tmp_path, images, teachers, batch_size=wrong)


@pytest.mark.requirement("F12.4", "F12.5")
@pytest.mark.parametrize("how", ["channels_last", "compile"])
def test_how_a_network_runs_is_locked(
    images: Path,
    teachers: Teachers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    compiled: list[Any] = []

    def compiling(network: Any) -> Any:
        compiled.append(network)
        return network

    monkeypatch.setattr(torch, "compile", compiling)
    other: Any = {"cnn": {**teachers["cnn"], how: True}}
    plain: Any = {"cnn": teachers["cnn"]}
    build_cache(config(tmp_path / "c", images, other, views={"count": 1}))
    assert len(compiled) == (how == "compile")
    lock = read_manifest(locate(tmp_path / "c")).teachers["cnn"].lock
    assert lock[how] is True
    with pytest.raises(CacheError, match=f"{how} True"):
        build_cache(config(tmp_path / "c", images, plain))
    build_cache(config(tmp_path / "plain", images, plain, views={"count": 1}))
    assert how not in read_manifest(locate(tmp_path / "plain")).teachers["cnn"].lock
    view = open_cache(tmp_path / "c").views_of(["cnn"])[0]
    ours, theirs = (
        open_cache(tmp_path / name).read("cnn", view, 0, 60)["lse"] for name in ("c", "plain")
    )
    np.testing.assert_allclose(np.asarray(ours, float), np.asarray(theirs, float), rtol=1e-4)


def test_a_compiled_network_has_no_taps(teachers: Teachers) -> None:
    with pytest.raises(UsageError, match="compiled network: remove compile"):
        TeacherConfig.parse({**teachers["cnn"], "compile": True, "features": {"layer1": {}}}, "")
