"""What is refused or measured before and after: images, locks, room, accuracy, answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.cache.format.names import NO_VIEW, SAMPLES, commit_key, sha256
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.writer import CacheWriter
from logitcache.check.audit import audit_teachers
from logitcache.check.images import check_images
from logitcache.check.stored_rows import StoredReader, StoredRows
from logitcache.data.readers import open_source
from logitcache.errors import CacheError, DataMismatch, NetworkError, StorageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.environment import versions
from logitcache.precompute.plan.preflight import accuracy_floor, check_accuracy
from logitcache.precompute.plan.teacher_lock import lock_differences
from logitcache.teachers.ensemble import Ensemble
from logitcache.teachers.member import Member, TeacherConfig
from tests.conftest import jpeg, shape_image, write_images, write_teacher

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.precompute.build import Summary

Teachers = dict[str, dict[str, str]]


def precompute(cache: Path, images: Path, teachers: Teachers, **fields: object) -> Summary:
    values = {"cache": str(cache), "data": str(images), "teachers": teachers, "unit_rows": 16}
    values |= {"views": {"count": 2}, "batch_size": 8, "threads": 2}
    return build_cache(PrecomputeConfig.parse({**values, **fields}, ""))


@pytest.fixture(scope="module")
def cache(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trust") / "cache"
    precompute(path, images, {"cnn": teachers["cnn"]})
    precompute(path, images, {"red": teachers["red"]}, encoding={"top_k": 1})
    return path


@pytest.fixture
def copied(images: Path, tmp_path: Path) -> Path:
    shutil.copytree(images, tmp_path / "images")
    return tmp_path / "images"


def test_the_same_images_in_another_place_are_the_same(cache: Path, copied: Path) -> None:
    report = check_images(open_cache(cache), open_source(str(copied)))
    assert (report.ok, report.digested, report.added) == (True, 60, ())


def test_every_difference_is_named_and_counted(cache: Path, copied: Path) -> None:
    (copied / "bird/001.jpg").unlink()
    (copied / "cat/new.jpg").write_bytes(jpeg(shape_image(900)))
    (copied / "dog/002.jpg").write_bytes(jpeg(shape_image(901, (60, 60))))
    replaced = copied / "dog/003.jpg"
    content = bytearray(replaced.read_bytes())
    content[-10] ^= 1
    replaced.write_bytes(content)
    seen: list[tuple[int, int]] = []
    report = check_images(
        open_cache(cache), open_source(str(copied)), on_progress=lambda a, b: seen.append((a, b))
    )
    assert not report.ok
    assert report.missing == ("bird/001.jpg",)
    assert report.resized == ("dog/002.jpg",)
    assert report.replaced == ("dog/003.jpg",)
    assert report.added == ("cat/new.jpg",)
    assert seen[-1] == (58, 58)
    quick = check_images(open_cache(cache), open_source(str(copied)), digests=False)
    assert (quick.replaced, quick.digested) == ((), 0)


@pytest.mark.requirement("F4.10")
def test_classes_are_compared_by_name_not_by_number(cache: Path, images: Path) -> None:
    opened = open_cache(cache)
    source: Any = open_source(str(images))
    source.class_names, source.labels = ["dog", "cat", "bird"], 2 - source.labels
    assert check_images(opened, source).relabeled == ()
    source.class_names = ["cat", "dog", "bird"]
    report = check_images(opened, source, digests=False)
    assert not report.ok
    assert len(report.relabeled) == 40
    assert {key.partition("/")[0] for key in report.relabeled} == {"cat", "dog"}
    source.class_names = ["wolf", "cat", "bird"]
    assert {key[:4] for key in check_images(opened, source).relabeled} == {"dog/"}
    source.class_names, source.labels = [], np.full(60, -1, dtype=np.int32)
    assert check_images(opened, source).ok, "images without classes tell nothing"


def rotate_labels(cache: Path) -> None:
    """Give every image of a cache the next class, and seal it again."""
    writer = CacheWriter.open(locate(cache, write=True))
    for unit in sorted(writer.needed_units(16)):
        samples = writer.read_samples(unit * 16, unit * 16 + 16)
        labels = np.where(samples.labels < 0, -1, (samples.labels + 1) % 3).astype(np.int32)
        arrays = {
            "key": samples.keys,
            "hash": samples.hashes,
            "digest": samples.digests,
            "bytes": samples.sizes,
            "label": labels,
            "status": samples.status,
        }
        writer.location.delete(commit_key(SAMPLES, NO_VIEW, unit))
        writer.write_samples(unit, arrays)
    writer.reseal([(SAMPLES, NO_VIEW)])


def test_rotated_labels_are_found_with_and_without_classes(
    cache: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    assert check_images(open_cache(tmp_path / "cache"), open_source(str(images))).relisted == ()
    rotate_labels(tmp_path / "cache")
    assert verify(tmp_path / "cache").ok
    opened, source = open_cache(tmp_path / "cache"), open_source(str(images))
    report = check_images(opened, source)
    assert not report.ok
    assert (len(report.relabeled), report.relisted) == (60, (0,))
    unlabeled: Any = open_source(str(images))
    unlabeled.class_names, unlabeled.labels = [], np.full(60, -1, dtype=np.int32)
    report = check_images(opened, unlabeled)
    assert (report.ok, report.relabeled, report.relisted) == (False, (), (0,))


def test_a_lock_differs_field_by_field() -> None:
    locked = {"weights_sha256": "a", "input": {"size": 8, "mean": [0.5], "crop_pct": 0.9}}
    actual = {"weights_sha256": "b", "input": {"size": 8, "mean": [0.4], "crop_pct": 1.0}}
    assert lock_differences(locked, locked) == []
    assert lock_differences(locked, actual) == [
        ("input.mean", [0.5], [0.4]),
        ("weights_sha256", "a", "b"),
    ]
    assert lock_differences({}, {"outputs": 3}) == [("outputs", "-", 3)]


@pytest.mark.requirement("F12.5")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 16}, r"input\.size 8[\s\S]*input\.size 16"),
        ({"precision": "bfloat16"}, r"precision float32[\s\S]*precision bfloat16"),
        ({"class_map": [2, 1, 0]}, r"class_map None[\s\S]*class_map \[2, 1, 0\]"),
    ],
)
def test_another_setting_under_the_same_name_is_refused(
    cache: Path, images: Path, teachers: Teachers, change: dict[str, Any], message: str
) -> None:
    teacher: Any = {**teachers["cnn"], **{k: v for k, v in change.items() if k != "precision"}}
    fields = {k: v for k, v in change.items() if k == "precision"}
    with pytest.raises(CacheError, match=message):
        precompute(cache, images, {"cnn": teacher}, **fields)


@pytest.mark.requirement("F12.6")
def test_other_versions_are_told_and_do_not_block(
    cache: Path, images: Path, teachers: Teachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = versions()
    monkeypatch.setattr(
        "logitcache.precompute.plan.declaration.versions", lambda: {**now, "torch": "9.9"}
    )
    summary = precompute(cache, images, {"cnn": teachers["cnn"]})
    assert summary.computed == 0
    assert summary.notes == (
        f"teacher cnn: library versions changed since its first unit: torch {now['torch']} -> 9.9",
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return enough labeled images to judge a teacher by."""
    return write_images(tmp_path_factory.mktemp("many"), 50)


def test_a_teacher_that_guesses_is_refused_before_it_is_declared(
    many: Path, teachers: Teachers, tmp_path: Path
) -> None:
    with pytest.raises(
        NetworkError, match=r"the accuracy of teacher .* is too low[\s\S]*min_accuracy=0"
    ):
        precompute(tmp_path / "c", many, {"red": teachers["red"]})
    assert not (tmp_path / "c").exists()
    summary = precompute(tmp_path / "c", many, {"red": teachers["red"]}, min_accuracy=0)
    assert summary.images == 150
    assert precompute(tmp_path / "c", many, {"red": teachers["red"]}).computed == 0


def test_a_teacher_that_knows_passes_and_a_floor_of_ones_own_counts(
    many: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.asarray(open_source(str(many)).labels)

    def knows(self: Ensemble, pixels: object, batches: object, names: list[str]) -> Any:
        del self, pixels, batches
        return {name: np.eye(3, dtype=np.float32)[labels] for name in names}

    ensemble = Ensemble({}, device=torch.device("cpu"), precision="float32")
    config = TeacherConfig.parse(teachers["red"], "")
    ensemble.members["red"] = Member("red", config, device=torch.device("cpu"), precision="float32")
    monkeypatch.setattr(Ensemble, "run", knows)
    source = open_source(str(many))
    assert check_accuracy(source, ensemble, ["red"], 8, None) == {"red": 1.0}
    labels[:15] = (labels[:15] + 1) % 3
    assert check_accuracy(source, ensemble, ["red"], 8, None) == {"red": 0.9}
    with pytest.raises(NetworkError, match=r"at least 95\.0%[\s\S]*90\.0%"):
        check_accuracy(source, ensemble, ["red"], 8, 0.95)


def test_guessing_hardly_ever_exceeds_the_floor() -> None:
    right = np.random.default_rng(0).binomial(256, 0.1, 20_000) / 256
    assert (right >= accuracy_floor(10, 256)).mean() < 2e-3
    assert accuracy_floor(1000, 256) < 0.01


def test_no_room_is_told_before_anything_is_computed(
    images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalLocation, "free_bytes", lambda _: 100)
    with pytest.raises(
        StorageError, match=r"not enough free space[\s\S]*estimate[\s\S]*number of views"
    ):
        precompute(tmp_path / "c", images, teachers)
    assert not list((tmp_path / "c").glob("commits/**/*.json"))
    monkeypatch.undo()
    assert precompute(tmp_path / "c", images, teachers).images == 60


def test_the_first_unit_tells_whether_the_rest_fits(
    images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = iter([10**9, 100])
    monkeypatch.setattr(LocalLocation, "free_bytes", lambda _: next(rooms))
    with pytest.raises(StorageError, match="measured on the first unit"):
        precompute(tmp_path / "c", images, {"red": teachers["red"]})
    assert len(list((tmp_path / "c").glob("commits/teachers/**/*.json"))) == 1


def test_a_store_that_forgets_is_told(
    images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalLocation.write

    def forget(self: LocalLocation, key: str, content: bytes | memoryview) -> None:
        write(self, key, bytes(len(content)) if "trial" in key else content)

    monkeypatch.setattr(LocalLocation, "write", forget)
    with pytest.raises(StorageError, match="does not return the bytes") as caught:
        precompute(tmp_path / "c", images, teachers)
    expected, got = str(caught.value.expected), str(caught.value.got)
    assert expected.startswith("65536 bytes, sha256 ")
    assert got == f"65536 bytes, sha256 {sha256(bytes(65536))}"


def test_a_sound_cache_passes_its_audit(cache: Path, images: Path, teachers: Teachers) -> None:
    source = open_source(str(images))
    dense, sparse = audit_teachers(str(cache), source, teachers, samples=60)
    for audit in (dense, sparse):
        assert audit.ok, audit
        assert (audit.samples, audit.views) == (60, 2)
        assert (audit.agreement or 0.0) > 0.98
        assert (audit.overlap or 0.0) > 0.95
        assert audit.kl is not None
        assert audit.kl < 1e-4
    assert dense.truncation == 0
    assert (sparse.truncation or 0.0) > 10 * abs(sparse.coding or 1.0), "distinguished"


def test_an_audit_finds_outputs_for_other_images(
    cache: Path, images: Path, teachers: Teachers, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = StoredReader.read

    def shifted(self: StoredReader, runs: Any) -> StoredRows:
        stored = read(self, runs)
        return replace(stored, arrays=stored.take(np.roll(np.arange(len(stored.rows)), 1)).arrays)

    monkeypatch.setattr(StoredReader, "read", shifted)
    source = open_source(str(images))
    for audit in audit_teachers(str(cache), source, teachers, samples=60):
        assert not audit.ok
        assert audit.mismatched > 40
        assert (audit.kl or 0.0) > 100 * (audit.kl_floor or 0.0)
        assert len(audit.mismatches) == 10


def test_an_audit_refuses_other_weights_and_other_images(
    cache: Path, copied: Path, teachers: Teachers, tmp_path: Path
) -> None:
    other = write_teacher(tmp_path / "other", classes=3, seed=123)
    with pytest.raises(CacheError, match=r"another teacher named 'red'[\s\S]*weights_sha256"):
        audit_teachers(
            str(cache),
            open_source(str(copied)),
            {"red": {"model": f"local-dir:{other}"}},
            samples=16,
        )
    for victim in copied.rglob("*.jpg"):
        content = bytearray(victim.read_bytes())
        content[-10] ^= 1
        victim.write_bytes(content)
    with pytest.raises(DataMismatch, match="not the one that the teachers were given"):
        audit_teachers(str(cache), open_source(str(copied)), teachers, samples=16)


@pytest.mark.requirement("F11.7", "F11.11")
def test_two_runs_share_the_work(images: Path, teachers: Teachers, tmp_path: Path) -> None:
    """A second process computes while the first one does; each unit is computed by one of them."""
    values = {
        "cache": str(tmp_path / "c"),
        "data": str(images),
        "teachers": teachers,
        "unit_rows": 16,
        "views": {"count": 12},
        "batch_size": 4,
        "threads": 1,
    }
    script = (
        "import json, sys, torch\n"
        "from logitcache.precompute.config import PrecomputeConfig\n"
        "from logitcache.precompute.build import build_cache\n"
        "torch.set_num_threads(1)\n"
        "config = PrecomputeConfig.parse(json.loads(sys.argv[1]), '')\n"
        "print(json.dumps(build_cache(config).computed))\n"
    )
    command = [sys.executable, "-c", script, json.dumps(values)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    shown = [int(run.communicate(timeout=240)[0]) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum(shown) == 60 * 12
    build_cache(PrecomputeConfig.parse({**values, "cache": str(tmp_path / "alone")}, ""))
    shared = {p.relative_to(tmp_path / "c"): p.read_bytes() for p in files(tmp_path / "c")}
    alone = {p.relative_to(tmp_path / "alone"): p.read_bytes() for p in files(tmp_path / "alone")}
    assert shared == alone


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]
