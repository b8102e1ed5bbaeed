"""Garbage collection removes what was dropped or replaced, and nothing that anybody needs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write import drop
from logitcache.cache.write.claims import Claims
from logitcache.cache.write.drop import drop_from_cache
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import CacheDamaged, CacheError, StorageError, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.share import garbage
from logitcache.share.garbage import collect_garbage
from tests.share.caches import MIXED, VIEWS, Part, build, files_of, keys_of
from tests.share.killed_collections import age, content_of, kill_collections

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS = keys_of(40)


@pytest.fixture
def dropped(tmp_path: Path) -> Path:
    """Return a cache of which a teacher, a tap and views were dropped, two days ago."""
    build(tmp_path / "cache", Part([KEYS], [*VIEWS, *MIXED]))
    drop_from_cache(tmp_path / "cache", teachers=["sparse"])
    drop_from_cache(tmp_path / "cache", features=["dense/b"], views=["0", "2"])
    (tmp_path / "cache/by-hand.txt").write_text("by hand")
    age(tmp_path / "cache")
    return tmp_path / "cache"


def test_what_was_dropped_is_listed_and_then_removed(dropped: Path) -> None:
    before, content = files_of(dropped), content_of(open_cache(dropped))
    listed = collect_garbage(dropped)
    assert files_of(dropped) == before
    assert not listed.removed
    assert (listed.kept, listed.young, listed.other) == ((5,), 0, 1)
    names = [found.key for found in listed.objects]
    assert any(name.startswith("teachers/sparse/codes/c/") for name in names)
    assert any(name.startswith("teachers/dense/features/b/values/c/") for name in names)
    assert any(name.startswith("teachers/dense/logp/c/0/") for name in names)
    assert any(name.startswith(f"views/{next(iter(MIXED))}/partner/c/") for name in names)
    assert not any(name.startswith("teachers/dense/logp/c/1/") for name in names)
    assert {"revisions/1.json", "revisions/1.copies.json", "revisions/4.json"} <= set(names)
    removed = collect_garbage(dropped, remove=True)
    assert removed.objects == listed.objects
    assert removed.bytes == sum(len(before[name]) for name in names)
    assert files_of(dropped) == {n: c for n, c in before.items() if n not in names}
    assert content_of(open_cache(dropped)) == content
    report = verify(dropped)
    assert report.ok, report.faults
    assert [orphan.key for orphan in report.orphans] == ["by-hand.txt"]
    assert not collect_garbage(dropped).objects


def test_kept_revisions_can_still_be_read(dropped: Path) -> None:
    everything = collect_garbage(dropped, keep=5)
    assert everything.kept == (1, 2, 3, 4, 5)
    assert not everything.objects
    some = collect_garbage(dropped, keep=3)
    assert some.kept == (3, 4, 5)
    names = {found.key for found in some.objects}
    assert "revisions/2.json" in names
    assert "revisions/3.json" not in names
    assert any(name.startswith("teachers/sparse/") for name in names)
    assert not any(name.startswith("teachers/dense/features/b/") for name in names)


def test_young_objects_and_revisions_that_were_just_replaced_are_spared(tmp_path: Path) -> None:
    build(tmp_path / "cache", Part([KEYS], list(VIEWS)))
    age(tmp_path / "cache")
    reader = open_cache(tmp_path / "cache")
    content = content_of(open_cache(tmp_path / "cache"))
    drop_from_cache(tmp_path / "cache", teachers=["sparse"])
    report = collect_garbage(tmp_path / "cache", remove=True)
    assert report.kept == (1, 2, 3)
    assert not report.objects
    assert content_of(reader) == content, "a reader of the replaced revision goes on"
    later = collect_garbage(tmp_path / "cache", remove=True, grace_seconds=0)
    assert later.kept == (3,)
    assert later.objects
    assert verify(tmp_path / "cache").ok


def test_units_that_are_still_to_be_committed_keep_their_shards(tmp_path: Path) -> None:
    """A run that was interrupted, or is between two claims, writes under the same keys."""
    build(tmp_path / "cache", Part([KEYS], list(VIEWS)[:1], ["dense"], []))
    writer = CacheWriter.open(locate(tmp_path / "cache"))
    writer.add_views(VIEWS)
    writer.extend_group("dense", list(VIEWS))
    stray = tmp_path / "cache/teachers/dense/logp/c/1/0/0"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"a shard without its commit")
    age(tmp_path / "cache")
    assert not collect_garbage(tmp_path / "cache", remove=True).objects
    assert stray.exists()


def test_a_run_at_work_refuses_the_collection(dropped: Path) -> None:
    with Claims(locate(dropped)).claimed("teachers+dense-0"):
        with pytest.raises(CacheError, match="a run is at work"):
            collect_garbage(dropped, remove=True)
        assert collect_garbage(dropped).objects
    with Claims(locate(dropped)).claimed("manifest"):
        waits: list[str] = []

        def waiting(wait: object) -> None:
            waits.append(str(wait))
            raise StorageError("enough", where=dropped)

        with pytest.raises(StorageError, match="enough"):
            collect_garbage(dropped, remove=True, on_wait=waiting)
    assert "the manifest of the cache" in waits[0]


def test_claims_of_runs_that_were_killed_are_swept(dropped: Path) -> None:
    claim = dropped / "claims/unit.json"
    claim.parent.mkdir()
    holder = {"host": os.uname().nodename, "pid": 1, "token": "x", "boot": "id:gone"}
    claim.write_text(json.dumps(holder))
    collect_garbage(dropped, remove=True)
    assert not claim.exists()


def test_an_object_that_has_become_young_is_spared(
    dropped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have written it between the listing and the removal."""
    refuse = garbage._remove

    def renewed(
        location: object, claims: Claims, report: garbage.GarbageReport, grace: float
    ) -> None:
        (dropped / report.objects[-1].key).touch()
        refuse(locate(dropped), claims, report, grace)

    monkeypatch.setattr(garbage, "_remove", renewed)
    report = collect_garbage(dropped, remove=True)
    left = {found.key for found in report.objects} & files_of(dropped).keys()
    assert left == {report.objects[-1].key}


def test_a_lock_that_was_taken_over_ends_the_removal(
    dropped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(dropped)
    monkeypatch.setattr(Claims, "holds", lambda claims, name: False)
    with pytest.raises(StorageError, match="has taken over"):
        collect_garbage(dropped, remove=True)
    assert files_of(dropped) == before


def test_a_kept_revision_that_cannot_be_read_refuses_the_collection(dropped: Path) -> None:
    kept = [p.key for p in open_cache(dropped).revision.ledgers.values() if "dense/" in p.key]
    ledger = dropped / kept[0]
    ledger.write_bytes(ledger.read_bytes() + b" ")
    before = files_of(dropped)
    with pytest.raises(CacheDamaged):
        collect_garbage(dropped, remove=True)
    assert files_of(dropped).keys() == before.keys()


def test_an_unfinished_drop_is_finished_first(
    dropped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(drop, "finish_drops", stopping_after_the_root())
        with pytest.raises(KeyboardInterrupt):
            drop_from_cache(dropped, features=["dense/a"])
    age(dropped)
    assert list((dropped / "commits/teachers/dense/features/a").rglob("*.json"))
    collect_garbage(dropped, remove=True, grace_seconds=0)
    assert not list((dropped / "commits/teachers/dense/features").rglob("*.json"))
    assert not (dropped / "teachers/dense/features/a").exists()
    assert verify(dropped).ok


def stopping_after_the_root() -> Callable[[CacheWriter], None]:
    """Return a function that does nothing when a drop begins, and then stops it."""
    calls: list[CacheWriter] = []

    def finish(writer: CacheWriter) -> None:
        calls.append(writer)
        if len(calls) == 2:
            raise KeyboardInterrupt

    return finish


def test_unusable_arguments_are_refused(dropped: Path) -> None:
    with pytest.raises(UsageError, match="at least one revision"):
        collect_garbage(dropped, keep=0)


def test_an_unsealed_cache_loses_nothing(tmp_path: Path) -> None:
    build(tmp_path / "cache", Part([KEYS], list(VIEWS)[:1], ["dense"], []))
    root = tmp_path / "cache/zarr.json"
    document = json.loads(root.read_bytes())
    document["attributes"]["logitcache"]["revision"] = None
    root.write_text(json.dumps(document))
    age(tmp_path / "cache")
    report = collect_garbage(tmp_path / "cache", remove=True)
    assert report.kept == ()
    assert not report.objects


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_collection_that_is_killed_beside_a_run_and_a_reader_loses_nothing(
    tmp_path: Path,
) -> None:
    """``python -m tests.share.killed_collections`` does the same with more kills."""
    found = kill_collections(tmp_path, 3, seed=1)
    assert found["failures"] == []
    assert found["ended"]["killed"] == 3


def test_images_in_a_cache_are_no_garbage(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    values = {
        "cache": str(tmp_path / "cache"),
        "data": str(images),
        "teachers": {"cnn": teachers["cnn"]},
        "images": "packed:16",
        "unit_rows": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    age(tmp_path / "cache")
    report = collect_garbage(tmp_path / "cache", remove=True)
    assert not report.objects
    assert report.other == 0
