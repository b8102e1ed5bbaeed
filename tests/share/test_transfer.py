"""Push and pull between folders: what moves, what a part is, kills, and readers in between."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.format.ledger import (
    Ledger,
    parse_ledger,
    read_copies,
    read_revision,
    write_copies,
    write_ledger,
    write_revision,
)
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.exclude import withdraw_images
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import (
    CacheDamaged,
    CacheError,
    CacheUnsealed,
    Interrupted,
    LogitcacheError,
    StorageError,
    UsageError,
)
from logitcache.share import transfer
from logitcache.share.destination import MARKER
from logitcache.share.transfer import pull, push
from tests.cache.building import MORE_VIEWS, VIEW, start_cache
from tests.golden.caches_of import unpack
from tests.golden.test_caches import SEALED, named
from tests.share.growing import (
    build,
    contents,
    files,
    grow,
    in_a_child,
    same_contents,
    watch_writes,
    written,
)

if TYPE_CHECKING:
    from pathlib import Path

no_kills = pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("young") / "cache")


@pytest.fixture(scope="module")
def grown(young: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same cache with two further views and a second revision."""
    path = tmp_path_factory.mktemp("grown") / "cache"
    shutil.copytree(young, path)
    return grow(path)


def digest_of(path: Path) -> str:
    return open_cache(path).revision_sha256


def test_a_copy_has_the_same_files_and_is_written_once(young: Path, tmp_path: Path) -> None:
    first = push(young, tmp_path / "copy")
    assert files(tmp_path / "copy") == files(young)
    assert (first.present, first.revision) == (0, digest_of(young))
    done: list[tuple[int, int]] = []
    again = push(young, tmp_path / "copy", on_progress=lambda *counts: done.append(counts))
    assert (again.objects, again.bytes) == (0, 0)
    assert done[-1] == (again.present_bytes, again.present_bytes)
    assert again.present_bytes == sum(
        len(content) for key, content in files(young).items() if "/c/" in key
    )


def test_an_update_writes_only_what_is_new(young: Path, grown: Path, tmp_path: Path) -> None:
    push(young, tmp_path / "copy")
    before = files(tmp_path / "copy")
    done: list[tuple[int, int]] = []
    found = push(grown, tmp_path / "copy", on_progress=lambda *counts: done.append(counts))
    assert files(tmp_path / "copy") == files(grown)
    shards = [key for key in files(grown).keys() - before.keys() if "/c/" in key]
    documents = [key for key in files(grown) if key.endswith("zarr.json")]
    assert len(shards) < found.objects <= len(shards) + len(documents) + 10
    assert done[-1] == (
        done[-1][1],
        found.present_bytes + sum(map(len, map(files(grown).__getitem__, shards))),
    )
    assert verify(tmp_path / "copy").ok


@pytest.mark.parametrize("golden", SEALED, ids=named)
def test_caches_of_every_released_version_are_copied(golden: Path, tmp_path: Path) -> None:
    source = unpack(golden.with_suffix(".tar.xz"), tmp_path / "golden")
    push(source, tmp_path / "copy")
    ours, theirs = files(tmp_path / "copy"), files(source)
    revision = open_cache(source).revision
    named_keys = {*revision.metadata, "zarr.json", f"revisions/{revision.number}.json"}
    assert all(ours[key] == theirs[key] for key in named_keys)
    assert all(ours[key] == theirs[key] for key in theirs if "/c/" in key and key in ours)
    assert same_contents(contents(tmp_path / "copy"), contents(source))
    assert verify(tmp_path / "copy").ok


def test_an_earlier_revision_is_copied_by_its_digest(
    young: Path, grown: Path, tmp_path: Path
) -> None:
    pull(grown, tmp_path / "copy", revision=digest_of(young)[:12])
    ours, theirs = files(tmp_path / "copy"), files(young)
    # the root is written from the second copy, whose fields have another order; some
    # versions of zarr write a field without a value as well
    roots = [json.loads(of.pop("zarr.json")) for of in (ours, theirs)]
    assert roots[0] == {name: value for name, value in roots[1].items() if value is not None}
    assert ours == theirs
    assert verify(tmp_path / "copy").ok
    pull(grown, tmp_path / "copy")
    assert files(tmp_path / "copy") == files(grown)
    with pytest.raises(CacheDamaged, match="another revision"):
        pull(young, tmp_path / "other", revision=digest_of(grown))
    with pytest.raises(UsageError, match="not the sha256"):
        pull(young, tmp_path / "other", revision="newest")


def test_a_revision_is_copied_as_it_was_sealed_while_the_cache_grows(
    young: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(young, source)
    writer = CacheWriter.open(locate(source, write=True))
    writer.add_views(MORE_VIEWS)
    writer.extend_group("a", list(MORE_VIEWS))
    push(source, tmp_path / "copy")
    assert verify(tmp_path / "copy").ok
    assert read_manifest(locate(tmp_path / "copy")).views.keys() == {VIEW}
    with pytest.raises(CacheError, match="has been extended"):
        push(young, source)


@pytest.mark.parametrize(
    ("views", "teachers"), [(1, ()), (2, ("a",)), (None, ("b",)), (3, ("a", "b"))]
)
def test_a_part_is_a_valid_cache(
    grown: Path, tmp_path: Path, views: int | None, teachers: tuple[str, ...]
) -> None:
    path = tmp_path / "part"
    found = pull(grown, path, views=views, teachers=teachers)
    whole = contents(grown)
    order = list(open_cache(grown).views)[:views]
    names = {f"{t}/{view}" for t in teachers or ("a", "b") for view in order}
    assert same_contents(contents(path), {n: whole[n] for n in names})
    assert verify(path).ok
    assert not verify(path).orphans
    shards = {key for key in files(path) if "/c/" in key}
    assert all(files(path)[key] == files(grown)[key] for key in shards)
    again = pull(grown, path, views=views, teachers=teachers)
    assert (again.objects, again.revision) == (0, found.revision)
    if len(names) == len(whole):
        assert found.revision == digest_of(grown)
    else:
        assert len(shards) < sum("/c/" in key for key in files(grown))
        assert open_cache(path).revision.parents == (digest_of(grown),)


def test_a_part_is_updated_to_a_later_revision(young: Path, grown: Path, tmp_path: Path) -> None:
    path = tmp_path / "part"
    pull(young, path, teachers=["a"])
    pull(grown, path, teachers=["a"])
    assert set(open_cache(path).teachers) == {"a"}
    assert len(open_cache(path).views) == 3
    assert verify(path).ok


def test_another_part_of_one_revision_needs_another_folder(grown: Path, tmp_path: Path) -> None:
    pull(grown, tmp_path / "part", views=1)
    with pytest.raises(CacheError, match="not a continuation"):
        pull(grown, tmp_path / "part", views=2)
    with pytest.raises(CacheError, match="not a continuation"):
        pull(grown, tmp_path / "part")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": ["c"]}, "no teacher 'c'"),
        ({"views": 4}, "no such number of views"),
        ({"views": 0}, "no such number of views"),
    ],
)
def test_parts_that_do_not_exist_are_refused(
    grown: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pull(grown, tmp_path / "part", **options)
    assert not (tmp_path / "part").exists()


def test_places_with_anything_else_are_refused(young: Path, grown: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("mine")
    with pytest.raises(CacheError, match="neither a cache nor empty"):
        push(young, tmp_path / "notes")
    assert (tmp_path / "notes/README.md").read_text() == "mine"
    start_cache(tmp_path / "unfinished", 40)
    with pytest.raises(CacheError, match="unfinished"):
        push(young, tmp_path / "unfinished")
    with pytest.raises(CacheUnsealed):
        push(tmp_path / "unfinished", tmp_path / "new")
    push(grown, tmp_path / "newer")
    with pytest.raises(CacheError, match="not a continuation"):
        push(young, tmp_path / "newer")
    push(young, tmp_path / "changed")
    withdraw_images(tmp_path / "changed", ["img/000001.jpg"], "mine alone")
    with pytest.raises(CacheError, match="not a continuation"):
        push(grown, tmp_path / "changed")


def test_a_copy_is_updated_by_a_source_that_has_removed_its_old_revision(
    young: Path, grown: Path, tmp_path: Path
) -> None:
    push(young, tmp_path / "copy")
    shutil.copytree(grown, tmp_path / "source")
    (tmp_path / "source/revisions/1.json").unlink()
    (tmp_path / "source/revisions/1.copies.json").unlink()
    push(tmp_path / "source", tmp_path / "copy")
    assert open_cache(tmp_path / "copy").revision_sha256 == digest_of(grown)


def test_exclusions_and_their_revision_are_copied(young: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(young, source)
    push(source, tmp_path / "copy")
    withdraw_images(source, ["img/000001.jpg"], "blurred")
    push(source, tmp_path / "copy")
    assert open_cache(tmp_path / "copy").withdrawn == {"img/000001.jpg"}
    assert files(tmp_path / "copy") == files(source)


@pytest.mark.requirement("F11.22.1")
def test_every_revision_names_the_one_before_it(grown: Path, young: Path) -> None:
    assert open_cache(young).revision.parents == ()
    assert open_cache(grown).revision.parents == (digest_of(young),)
    document = json.loads((young / "revisions/1.json").read_bytes())
    assert "parents" not in document


@pytest.mark.parametrize("what", ["shard", "ledger", "revision", "copies"])
def test_a_damaged_source_is_refused_and_nothing_is_published(
    young: Path, tmp_path: Path, what: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(young, source)
    pattern = {
        "shard": "teachers/a/codes/c/**/0",
        "ledger": "ledger/teachers/a/*.json",
        "revision": "revisions/1.json",
        "copies": "revisions/1.copies.json",
    }[what]
    path = next(p for p in source.glob(pattern) if p.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CacheDamaged):
        push(source, tmp_path / "copy")
    assert not (tmp_path / "copy/zarr.json").exists()
    push(young, tmp_path / "copy")  # what was copied before is of use
    assert files(tmp_path / "copy") == files(young)


@pytest.mark.parametrize("seed", range(20))
def test_a_source_that_was_changed_at_random_is_copied_whole_or_refused(
    grown: Path, tmp_path: Path, seed: int
) -> None:
    source, draw = tmp_path / "source", random.Random(seed)
    shutil.copytree(grown, source)
    for _ in range(draw.randrange(1, 4)):
        path = draw.choice(sorted(p for p in source.rglob("*") if p.is_file()))
        content = bytearray(path.read_bytes())
        if content and draw.random() < 0.7:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            content = content[: len(content) // 2]
        path.write_bytes(content)
    try:
        push(source, tmp_path / "copy")
    except LogitcacheError:
        assert not (tmp_path / "copy/zarr.json").exists()
    else:  # what was changed is not part of the revision, or was copied from a second copy
        assert same_contents(contents(tmp_path / "copy"), contents(grown))
        assert verify(tmp_path / "copy").ok


def test_a_ledger_cannot_name_objects_outside_of_its_group(young: Path, tmp_path: Path) -> None:
    """A source may come from anybody; this one is consistent and names another file as a shard."""
    source = tmp_path / "source"
    shutil.copytree(young, source)
    location = locate(source, write=True)
    manifest = read_manifest(location)
    assert manifest.revision is not None
    revision = read_revision(location, manifest.revision)
    name = f"teachers/a/{VIEW}"
    ledger = parse_ledger(location, revision.ledgers[name])
    commit = ledger.commits[0]
    path, stored = next(iter(commit.arrays.items()))
    arrays = {**commit.arrays, path: replace(stored, key="README.md")}
    commits = {**ledger.commits, 0: replace(commit, arrays=arrays)}
    pointer = write_ledger(location, Ledger(ledger.group, ledger.view, commits), 1)
    ledgers = {**revision.ledgers, name: pointer}
    digest = write_revision(location, replace(revision, ledgers=ledgers))
    root = (source / "zarr.json").read_text()
    (source / "zarr.json").write_text(root.replace(manifest.revision.sha256, digest))
    with pytest.raises(CacheDamaged, match="outside of its group"):
        push(source, tmp_path / "copy")
    assert not (tmp_path / "copy/README.md").exists()


@pytest.mark.parametrize(
    "key",
    ["claims/zarr.json", "C:/x/zarr.json", "../x/zarr.json", "/x/zarr.json", "probes", "zarr.json"],
)
def test_a_revision_cannot_name_documents_that_a_cache_does_not_have(
    young: Path, tmp_path: Path, key: str
) -> None:
    """A source may come from anybody; this one is consistent and has another document."""
    source = tmp_path / "source"
    shutil.copytree(young, source)
    location = locate(source, write=True)
    manifest = read_manifest(location)
    assert manifest.revision is not None
    revision = read_revision(location, manifest.revision)
    copies = read_copies(location, revision)
    assert copies is not None
    copies = replace(copies, documents={**copies.documents, key: "{}"})
    metadata = {**revision.metadata, key: hashlib.sha256(b"{}").hexdigest()}
    digest = write_copies(location, revision.number, copies)
    changed = replace(revision, metadata=metadata, copies_sha256=digest)
    root = (source / "zarr.json").read_text()
    pointer = write_revision(location, changed)
    (source / "zarr.json").write_text(root.replace(manifest.revision.sha256, pointer))
    with pytest.raises(CacheDamaged, match="not part of a cache"):
        push(source, tmp_path / "copy")
    assert not list((tmp_path / "copy").rglob("*.json"))


def test_no_more_is_in_memory_than_the_budget(
    young: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = transfer._Budget(10)
    taken: list[int] = []

    def hold(size: int) -> None:
        with budget.held(size):
            taken.append(size)
            assert budget._left >= 0
            taken.remove(size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [3, 9, 1, 10, 12, 4] * 20))
    assert (budget._left, taken) == (10, [])
    monkeypatch.setattr(transfer, "MEMORY_BYTES", 1)
    push(young, tmp_path / "copy")
    assert files(tmp_path / "copy") == files(young)


def test_a_full_disk_is_reported_before_anything_is_copied(
    young: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalLocation, "free_bytes", lambda self: 100)
    with pytest.raises(StorageError, match="too little space"):
        push(young, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_transfer_that_is_stopped_goes_on_later(young: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        push(young, tmp_path / "copy", should_stop=lambda: True)
    assert caught.value.exit_code == 3
    with pytest.raises(CacheError):
        open_cache(tmp_path / "copy")
    assert push(young, tmp_path / "copy").present > 0
    assert files(tmp_path / "copy") == files(young)


@no_kills
@pytest.mark.parametrize("seed", range(4))
def test_a_transfer_that_is_killed_resumes_and_writes_nothing_twice(
    young: Path, grown: Path, tmp_path: Path, seed: int
) -> None:
    def work() -> None:
        push(grown, tmp_path / "copy")

    if seed % 2:
        push(young, tmp_path / "copy")
        push(young, tmp_path / "expected")
    push(grown, tmp_path / "expected")
    kill_at = random.Random(seed).randrange(60)
    assert not in_a_child(work, tmp_path / "first.log", kill_at)
    if seed % 2:
        assert same_contents(contents(tmp_path / "copy"), contents(young))
    assert in_a_child(work, tmp_path / "second.log")
    twice = set(written(tmp_path / "first.log")) & set(written(tmp_path / "second.log"))
    assert twice <= {MARKER}
    left = {k: v for k, v in files(tmp_path / "copy").items() if not k.endswith(".partial")}
    assert left == files(tmp_path / "expected")
    assert verify(tmp_path / "copy").ok


def test_readers_find_the_old_revision_or_the_new_one_at_every_moment(
    young: Path, grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    push(young, copy)
    old, new = contents(young), contents(grown)
    seen: list[int] = []

    def look(location: Any, key: str, after: bool) -> None:
        if after and str(location) == str(copy):
            number = open_cache(copy).revision.number
            assert same_contents(contents(copy), {1: old, 2: new}[number]), key
            assert verify(copy).ok, key
            seen.append(number)

    watch_writes(monkeypatch, look)
    push(grown, copy)
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}
    assert seen.count(1) > 20
