"""Everything that verify finds, repair mends: to the byte on the machine that made the cache."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.cache.format import names as cache_format
from logitcache.cache.format.manifest import Segment
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.exclude import withdraw_images
from logitcache.cache.write.writer import CacheWriter
from logitcache.check.repair import RepairConfig, RepairSummary, repair_cache
from logitcache.encoding import sparse
from logitcache.errors import CacheDamaged, CacheError, DataMismatch, Interrupted, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.cache.damage import DAMAGES
from tests.conftest import write_teacher

if TYPE_CHECKING:
    from collections.abc import Iterator

Teachers = dict[str, dict[str, str]]
ARRAY = "teachers/red/codes"


def precompute(cache: Path, images: Path, teachers: Teachers, **fields: object) -> None:
    values = {"cache": str(cache), "data": str(images), "teachers": teachers, "unit_rows": 16}
    values |= {"views": {"count": 2}, "batch_size": 8, "threads": 2}
    build_cache(PrecomputeConfig.parse({**values, **fields}, ""))


def repair(cache: Path, images: Path, teachers: Teachers) -> RepairSummary:
    values = {"cache": str(cache), "data": str(images), "teachers": teachers, "threads": 1}
    return repair_cache(RepairConfig.parse(values, "repair"))


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def intact(
    images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Return a cache of a sparse and a dense teacher; sixteen inner chunks to a shard."""
    path = tmp_path_factory.mktemp("repair") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_format, "_MAX_INNER_ROWS", 1)
        both = {"red": teachers["red"], "cnn": teachers["cnn"]}
        precompute(path, images, both, encoding={"top_k": 2, "bits": 8})
    yield path
    assert verify(path).ok, "no test may touch it"


@pytest.fixture
def cache(intact: Path, tmp_path: Path) -> Path:
    shutil.copytree(intact, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("name", DAMAGES)
def test_a_fault_is_mended_to_the_byte(
    intact: Path, cache: Path, images: Path, teachers: Teachers, name: str
) -> None:
    DAMAGES[name].inject(cache, ARRAY)
    before = {str(p) for p in cache.rglob("*") if p.is_file()}
    times = {path: Path(path).stat().st_mtime_ns for path in before}
    summary = repair(cache, images, {"red": teachers["red"]})
    assert summary.remaining == ()
    assert summary.found
    assert summary.differing == 0
    got, expected = snapshot(cache), snapshot(intact)
    root = got.pop("zarr.json"), expected.pop("zarr.json")
    assert got == expected
    assert open_cache(cache).manifest == open_cache(intact).manifest, root
    touched = {path for path in before if Path(path).stat().st_mtime_ns != times[path]}
    units = {path for path in touched if "/c/" in path}
    recomputed = {(f.group, f.view, f.unit) for f in summary.found if f.recompute}
    assert summary.recomputed == len(recomputed)
    assert all(f"{unit}" in Path(p).parts for p in units for _, _, unit in recomputed), units


@pytest.mark.requirement("F6.5.1")
@pytest.mark.parametrize("relative", [False, True])
def test_codes_stay_relative_or_absolute_when_a_cache_is_extended_and_repaired(
    images: Path,
    teachers: Teachers,
    tmp_path: Path,
    relative: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Codes of 5 bits are absolute in caches that were begun before codes could be relative."""
    red, encoding = {"red": teachers["red"]}, {"top_k": 2, "bits": 5}
    cache, whole = tmp_path / "cache", tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(sparse, "_ABSOLUTE_BITS", 8 if relative else 4)
        precompute(whole, images, red, encoding=encoding)
        precompute(cache, images, red, encoding=encoding, views={"count": 1})
    assert open_cache(cache).teacher("red").encoding.to_json().get("relative", False) is relative
    precompute(cache, images, red, encoding={"top_k": 2})
    DAMAGES["missing object"].inject(cache, ARRAY)
    assert repair(cache, images, red).remaining == ()
    got, expected = snapshot(cache), snapshot(whole)
    for name in expected:
        if name.startswith("teachers/"):
            assert got[name] == expected[name], name


def test_many_faults_at_once(intact: Path, cache: Path, images: Path, teachers: Teachers) -> None:
    for number, name in enumerate(DAMAGES):
        if name not in {"half a manifest", "one bit of the copies", "an edited revision"}:
            try:
                DAMAGES[name].inject(cache, (ARRAY, "teachers/cnn/tail")[number % 2])
            except (FileNotFoundError, KeyError, ValueError, IndexError, CacheDamaged):
                continue  # an earlier fault has left nothing to damage
    assert len(verify(cache).faults) > 5
    summary = repair(cache, images, teachers)
    assert summary.remaining == ()
    got, expected = snapshot(cache), snapshot(intact)
    assert got.keys() == expected.keys()
    assert all(got[name] == expected[name] for name in got if "/c/" in name)


def test_an_intact_cache_is_left_alone(cache: Path, images: Path) -> None:
    before = snapshot(cache)
    summary = repair(cache, images, {})
    assert (summary.found, summary.restored, summary.recomputed) == ((), 0, 0)
    assert snapshot(cache) == before


def test_other_weights_are_refused_and_nothing_is_given_up(
    cache: Path, images: Path, tmp_path: Path
) -> None:
    DAMAGES["zeros of the same size"].inject(cache, ARRAY)
    before = snapshot(cache)
    other = write_teacher(tmp_path / "other", classes=3, seed=77)
    with pytest.raises(CacheError, match=r"another teacher named 'red'[\s\S]*weights_sha256"):
        repair(cache, images, {"red": {"model": f"local-dir:{other}"}})
    assert snapshot(cache) == before


def test_a_teacher_that_is_needed_must_be_named(cache: Path, images: Path) -> None:
    DAMAGES["zeros of the same size"].inject(cache, ARRAY)
    with pytest.raises(UsageError, match="--teacher red=MODEL@WEIGHTS"):
        repair(cache, images, {})


def changed_copy(images: Path, to: Path, *, bit: bool) -> Path:
    shutil.copytree(images, to)
    for victim in sorted((to / "dog").iterdir()):
        content = bytearray(victim.read_bytes())
        if bit:
            content[-10] ^= 1
        victim.write_bytes(content if bit else content + b"x")
    return to


@pytest.mark.parametrize("name", ["zeros of the same size", "samples missing"])
@pytest.mark.parametrize("bit", [True, False])
def test_other_images_are_refused(
    cache: Path, images: Path, teachers: Teachers, tmp_path: Path, name: str, bit: bool
) -> None:
    DAMAGES[name].inject(cache, ARRAY)
    other = changed_copy(images, tmp_path / "other", bit=bit)
    with pytest.raises(DataMismatch, match=r"(changed|not the images|are not the ones)[\s\S]*"):
        repair(cache, other, {"red": teachers["red"]})
    assert not verify(cache).ok
    assert repair(cache, images, {"red": teachers["red"]}).remaining == ()


def test_stopped_in_the_middle_it_goes_on(
    intact: Path, cache: Path, images: Path, teachers: Teachers
) -> None:
    for unit in range(4):
        (cache / f"teachers/red/codes/c/0/{unit}/0").write_bytes(b"")
    values = {"cache": str(cache), "data": str(images), "teachers": {"red": teachers["red"]}}
    requested = iter(range(100))
    with pytest.raises(Interrupted):
        repair_cache(RepairConfig.parse(values, ""), should_stop=lambda: next(requested) > 3)
    assert 0 < len(verify(cache).faults) < 8
    assert repair(cache, images, {"red": teachers["red"]}).remaining == ()
    got, expected = snapshot(cache), snapshot(intact)
    assert {n: c for n, c in got.items() if n != "zarr.json"} == {
        n: c for n, c in expected.items() if n != "zarr.json"
    }


def slightly_otherwise(start: Any) -> Any:
    def started(self: Any, pixels: Any, taps: Any, shown: Any) -> Any:
        logits, kept = start(self, pixels, taps, shown)
        return (lambda: logits() + np.float32(1e-3)), kept

    return started


def test_other_bits_are_sealed_anew(
    cache: Path, images: Path, teachers: Teachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine rounds differently: the unit is new, the rest of the cache is not."""
    from logitcache.teachers.member import Member

    monkeypatch.setattr(Member, "start", slightly_otherwise(Member.start))
    DAMAGES["missing object"].inject(cache, ARRAY)
    summary = repair(cache, images, {"red": teachers["red"]})
    assert (summary.differing, summary.remaining) == (1, ())
    opened = open_cache(cache)
    assert opened.revision.number == 2
    view = opened.teacher("red").view_ids[0]
    assert opened.read("red", view, 0, 64)["lse"].shape == (64,)


def test_a_cache_that_was_extended_and_not_finished(
    cache: Path, images: Path, teachers: Teachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitcache.teachers.member import Member

    writer = CacheWriter.open(locate(cache))
    writer.add_segment(Segment(start=64, rows=5))
    monkeypatch.setattr(Member, "start", slightly_otherwise(Member.start))
    DAMAGES["missing object"].inject(cache, ARRAY)
    with pytest.raises(DataMismatch, match="more rows than the data has images"):
        repair(cache, images, {"red": teachers["red"]})


def test_a_precision_of_its_own(images: Path, teachers: Teachers, tmp_path: Path) -> None:
    """Each teacher is computed again as it was, whatever the others were."""
    cache = tmp_path / "c"
    precompute(cache, images, {"red": teachers["red"]})
    precompute(cache, images, {"cnn": teachers["cnn"]}, precision="bfloat16")
    expected = snapshot(cache)
    (cache / "teachers/red/lse/c/0/1").unlink()
    (cache / "teachers/cnn/lse/c/1/2").unlink()
    (cache / "samples/key/c/0").unlink()
    assert repair(cache, images, teachers).remaining == ()
    assert snapshot(cache) == expected


@pytest.mark.requirement("F11.25", "F11.27")
def test_withdrawn_images_may_be_gone(
    cache: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    (fewer / "cat" / "003.jpg").unlink()
    shards = {name: content for name, content in snapshot(cache).items() if "/c/" in name}
    with pytest.raises(DataMismatch, match=r"1 missing: cat/003\.jpg[\s\S]*logitcache exclude"):
        precompute(cache, fewer, teachers, views={"count": 3}, encoding={"top_k": 2, "bits": 8})
    with pytest.raises(UsageError, match=r"did you mean[\s\S]*'cat/003\.jpg'"):
        withdraw_images(cache, ["cat/03.jpg"], "a typo")
    assert withdraw_images(cache, ["cat/003.jpg"], "a face") == 1
    precompute(cache, fewer, teachers, views={"count": 3}, encoding={"top_k": 2, "bits": 8})
    opened = open_cache(cache)
    (row,) = np.flatnonzero(opened.samples.keys == "cat/003.jpg")
    assert row not in opened.samples.readable
    assert (opened.samples.withdrawn, opened.samples.unreadable) == (1, 0)
    views = opened.teacher("red").view_ids
    assert np.isnan(opened.read("red", views[2], 0, 64)["lse"][row]), "computed without it"
    assert not np.isnan(opened.read("red", views[0], 0, 64)["lse"][row]), "never touched"
    assert shards.items() <= snapshot(cache).items()
    assert verify(cache).ok
    (cache / "withdrawn/1.json").write_bytes(b'{"keys": []}')
    (fault,) = verify(cache).faults
    assert fault.cause == "withdrawal"


@pytest.mark.requirement("F12.6")
def test_threads_and_device_never_block(cache: Path, images: Path, teachers: Teachers) -> None:
    torch.set_num_threads(2)
    try:
        precompute(
            cache, images, teachers, device="cpu", threads=1, encoding={"top_k": 2, "bits": 8}
        )
    finally:
        torch.set_num_threads(1)
