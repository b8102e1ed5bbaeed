"""Every fault is found and named; an intact cache gives no alarm."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.cache.format import names as cache_format
from logitcache.cache.format.manifest import Segment
from logitcache.cache.read.diagnose import Cause
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import VerifyProgress, verify
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheDamaged, CacheError, UnsupportedFormat
from tests.cache.building import (
    MORE_VIEWS,
    UNIT,
    VIEW,
    declare,
    encode,
    make_cache,
    samples_of,
    start_cache,
    write_samples,
)
from tests.cache.damage import DAMAGES, Damage, edit_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = 40
SECOND, THIRD = MORE_VIEWS
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 30)).astype(np.float32)
SPARSE, DENSE = SparseEncoding(30, 5), DenseEncoding(30)
ARRAY = "teachers/a/codes"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache whose shards have 16 inner chunks each; two views of teacher a."""
    path = tmp_path_factory.mktemp("verify") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_format, "_MAX_INNER_ROWS", 1)
        samples = make_cache(path, {"a": (SPARSE, LOGITS), "b": (DENSE, LOGITS)}, ROWS, (3,))
        writer = CacheWriter.open(locate(path))
        writer.add_views({SECOND: MORE_VIEWS[SECOND]})
        writer.extend_group("a", [SECOND])
        group = writer.teachers()["a"]
        arrays = encode(group, LOGITS[:, ::-1].copy(), samples)
        for unit in range(3):
            rows = slice(unit * UNIT, (unit + 1) * UNIT)
            content = {name: array[rows] for name, array in arrays.items()}
            writer.write_unit(group, SECOND, unit, content, Conditions())
    shutil.rmtree(path / "revisions")
    shutil.rmtree(path / "ledger")

    def unseal(values: dict[str, dict[str, dict[str, object]]]) -> None:
        values["attributes"]["logitcache"]["revision"] = None

    edit_json(path / "zarr.json", unseal)
    CacheWriter.open(locate(path)).seal("fingerprint", {"a": {VIEW: 0.5}})
    return path


@pytest.fixture
def cache(intact: Path, tmp_path: Path) -> Path:
    shutil.copytree(intact, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("quick", [False, True])
def test_an_intact_cache_gives_no_alarm(cache: Path, quick: bool) -> None:
    seen: list[VerifyProgress] = []
    report = verify(cache, quick=quick, on_progress=seen.append)
    assert report.ok, report.faults
    assert report.orphans == ()
    assert (report.revision, report.units) == (1, 3 + 3 * 3)
    named = sum(p.stat().st_size for p in cache.rglob("c/**/*") if p.is_file())
    assert report.bytes == named == seen[-1].done
    assert {progress.total for progress in seen} == {named}, "the total is known from the start"


@pytest.mark.requirement("F11.14", "F11.28")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_fault_is_found_and_named(cache: Path, name: str) -> None:
    damage: Damage = DAMAGES[name]
    damage.inject(cache, ARRAY)
    report = verify(cache)
    assert not report.ok
    assert {fault.cause for fault in report.faults} == {damage.cause}, report.faults
    places = {fault.place for fault in report.faults}
    assert all(damage.place in fault.place + fault.key for fault in report.faults), places
    keys = {fault.key for fault in report.faults}
    assert len(keys) == (5 if name == "a commit without its shards" else 1), keys
    assert report.orphans == (), "a damaged file is not an orphan"


SEEN_BY_SIZES = {"missing object", "empty object", "truncated", "zeros of the same size"}


@pytest.mark.parametrize("name", [*sorted(SEEN_BY_SIZES), "one bit of the index"])
def test_sizes_and_headers_find_what_changes_them(cache: Path, name: str) -> None:
    DAMAGES[name].inject(cache, ARRAY)
    assert [f.cause for f in verify(cache, quick=True).faults] == [DAMAGES[name].cause]


# commits are there for writers: a reader believes the ledger, and needs neither them nor copies
UNSEEN_BY_READERS = {"shards without their commit", "an edited commit", "one bit of the copies"}


def read_everything(cache: Path) -> None:
    opened = open_cache(cache)
    assert opened.samples.rows.size
    opened.read("a", VIEW, 0, 48)


@pytest.mark.requirement("F11.28")
@pytest.mark.parametrize("name", sorted(DAMAGES.keys() - UNSEEN_BY_READERS))
def test_a_reader_stops_with_the_same_words(cache: Path, name: str) -> None:
    DAMAGES[name].inject(cache, ARRAY)
    fault = verify(cache).faults[0]
    with pytest.raises(CacheError) as caught:
        read_everything(cache)
    if fault.cause in {Cause.LEDGER, Cause.REVISION, Cause.MANIFEST}:
        assert fault.detail.split(":")[0] in str(caught.value)
    else:
        assert str(fault.cause) in str(caught.value)
        assert fault.place in str(caught.value)


@pytest.mark.requirement("F11.28")
def test_a_reader_sees_what_is_replaced_while_it_reads(cache: Path) -> None:
    opened = open_cache(cache)
    opened.read("a", VIEW, 0, 48)
    DAMAGES["a shard of another position"].inject(cache, ARRAY)
    with pytest.raises(CacheDamaged, match="another unit's shard"):
        opened.read("a", VIEW, 0, 48)


def test_several_faults_are_all_named(cache: Path) -> None:
    DAMAGES["missing object"].inject(cache, ARRAY)
    DAMAGES["zeros of the same size"].inject(cache, "teachers/b/logp")
    DAMAGES["samples missing"].inject(cache, ARRAY)
    DAMAGES["an edited manifest"].inject(cache, ARRAY)
    found = {(str(f.cause), f.group) for f in verify(cache).faults}
    assert found == {
        ("missing", "teachers/a"),
        ("zeros", "teachers/b"),
        ("missing", "samples"),
        ("manifest", ""),
    }


@pytest.mark.requirement("F11.17")
def test_an_edited_manifest_is_told_field_by_field(cache: Path) -> None:
    DAMAGES["an edited manifest"].inject(cache, ARRAY)
    (fault,) = verify(cache).faults
    assert 'data {"description": "thin air"' in fault.detail


@pytest.mark.requirement("F11.8", "F11.16", "F11.17")
def test_growth_since_the_seal_is_no_damage(cache: Path) -> None:
    writer = CacheWriter.open(locate(cache))
    writer.add_views({THIRD: MORE_VIEWS[THIRD]})
    writer.extend_group("a", [THIRD])
    writer.add_segment(Segment(start=48, rows=10))
    declare(writer, "c", DENSE)
    assert verify(cache).ok
    assert open_cache(cache).read("a", VIEW, 0, 48)
    codes = cache / "teachers/a/codes/c/2/1/0"
    codes.parent.mkdir(parents=True)
    codes.write_bytes(b"a shard under way")
    report = verify(cache)
    assert report.ok
    assert [(x.key, "without a commit" in x.why) for x in report.orphans] == [
        ("teachers/a/codes/c/2/1/0", True)
    ]


def test_a_cache_that_was_never_sealed(tmp_path: Path) -> None:
    writer, samples = start_cache(tmp_path, ROWS), samples_of(ROWS)
    write_samples(writer, samples)
    group = declare(writer, "a", DENSE)
    arrays = {name: array[:UNIT] for name, array in encode(group, LOGITS, samples).items()}
    writer.write_unit(group, VIEW, 0, arrays, Conditions())
    report = verify(tmp_path)
    assert (report.ok, report.revision, report.units) == (True, None, 4)
    (tmp_path / "teachers/a/logp/c/0/0/0").write_bytes(b"")
    (tmp_path / "commits/samples/-/1.json").write_bytes(b"{}")
    faults = {(f.cause, f.group, f.unit, f.recompute) for f in verify(tmp_path).faults}
    assert faults == {
        (Cause.EMPTY, "teachers/a", 0, True),
        (Cause.COMMIT, "samples", 1, True),
    }


def _other_unit(commit: dict[str, object]) -> None:
    commit["unit"] = 2


def _other_rows(commit: dict[str, object]) -> None:
    commit["rows"] = [0, 48]


def _outside(commit: dict[str, dict[str, dict[str, str]]]) -> None:
    commit["arrays"]["samples/hash"]["key"] = "../../secret"


@pytest.mark.requirement("F3.8", "F11.33")
@pytest.mark.parametrize("change", [_other_unit, _other_rows, _outside])
def test_a_commit_must_describe_its_own_unit(
    tmp_path: Path, change: Callable[[object], None]
) -> None:
    write_samples(start_cache(tmp_path, ROWS), samples_of(ROWS))
    edit_json(tmp_path / "commits/samples/-/1.json", change)
    (fault,) = verify(tmp_path).faults
    assert (fault.cause, fault.unit) == (Cause.COMMIT, 1)


def test_orphans_are_not_damage(cache: Path) -> None:
    for key in (
        "teachers/a/codes/c/0/1/0.host_1_ab.partial",
        "claims/v0-1.json",
        "revisions/2.json",
        f"ledger/teachers/a/{SECOND}.2.json",
        "notes.txt",
    ):
        (cache / key).parent.mkdir(exist_ok=True)
        (cache / key).write_bytes(b"{}")
    report = verify(cache)
    assert report.ok
    assert {orphan.key: orphan.why.split()[-1] for orphan in report.orphans} == {
        "teachers/a/codes/c/0/1/0.host_1_ab.partial": "progress",
        "claims/v0-1.json": "process)",
        "revisions/2.json": "interrupted",
        f"ledger/teachers/a/{SECOND}.2.json": "interrupted",
        "notes.txt": "cache",
    }
    assert open_cache(cache).read("a", VIEW, 0, 48)


def test_no_cache_is_no_damage(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(CacheError, match="no cache here"):
        verify(tmp_path / "nowhere")
    edit_json(cache / "zarr.json", lambda v: v["attributes"]["logitcache"].update(format=3))
    with pytest.raises(UnsupportedFormat):
        verify(cache)
