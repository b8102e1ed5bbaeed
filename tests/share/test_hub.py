"""Caches are pushed to the Hugging Face Hub: a server that speaks its protocol stands for it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.hub import HubLocation
from logitcache.cache.store.open import locate_receiver
from logitcache.cache.store.remote import RemoteLocation
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.drop import drop_from_cache
from logitcache.errors import CacheError, StorageError, UsageError
from logitcache.share.transfer import pull, push
from tests.reliability.hub_pushes import kill_hub_pushes
from tests.reliability.pulls import kill_hub_pulls
from tests.share.caches import files_of
from tests.share.hub_server import FakeHub, use_hub, write_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME, URL = "team/photos", "hf://datasets/team/photos/v1"
MARKER = "transfer.json"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the demo cache in a folder."""
    path = tmp_path_factory.mktemp("demo") / "cache"
    pull("demo:digits", path)
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Return a hub that all clients of this process use."""
    with FakeHub() as found:
        use_hub(monkeypatch, found)
        yield found


def test_a_pushed_cache_equals_its_source(cache: Path, hub: FakeHub, tmp_path: Path) -> None:
    done = push(cache, URL)
    found = hub.repositories[NAME]
    assert found.private is True
    assert done.objects == len(found.files) - 1 - len(list(cache.glob("commits/**/*.json")))
    root, marker = found.commits
    assert root[1][-1] == "v1/zarr.json"
    assert len(root[1]) > 30
    assert marker[1] == [f"v1/{MARKER}"]
    assert verify(URL).ok
    assert open_cache(URL).revision_sha256 == open_cache(cache).revision_sha256
    pull(URL, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(cache)
    again = push(cache, URL)
    assert (again.objects, len(found.commits)) == (0, 2)


def test_a_reader_of_any_commit_finds_the_old_revision_or_the_new_one(
    cache: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitcache.cache.store.hub._MOST_OBJECTS", 7)
    shutil.copytree(cache, tmp_path / "grown")
    push(tmp_path / "grown", URL)
    drop_from_cache(tmp_path / "grown", views=["1"])
    push(tmp_path / "grown", URL)
    seen = []
    for number, state in enumerate(hub.repositories[NAME].states):
        folder = write_state(state, tmp_path / str(number))
        if not (folder / "zarr.json").exists():
            continue
        report = verify(folder)
        assert report.ok, report.faults
        assert report.revision is not None
        seen.append(report.revision)
    assert len(set(seen)) == 2
    assert (seen[0], seen[-1]) == (1, open_cache(tmp_path / "grown").revision.number)
    assert seen == sorted(seen, key=int)


def test_a_push_that_fails_anywhere_is_continued_and_sends_nothing_twice(
    cache: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitcache.cache.store.hub._MOST_OBJECTS", 6)
    for commits in range(1, 5):
        hub.fail_after = commits
        with pytest.raises(StorageError):
            push(cache, URL)
        assert "v1/zarr.json" not in hub.repositories[NAME].files
    hub.fail_after = None
    push(cache, URL)
    assert verify(URL).ok
    assert len(set(hub.uploads)) == len(hub.uploads) > 5
    assert f"v1/{MARKER}" not in hub.repositories[NAME].files


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_killed_push_is_continued_and_sends_nothing_twice(tmp_path: Path) -> None:
    """``python -m tests.reliability hub`` kills more, and updates as well."""
    assert kill_hub_pushes(tmp_path, 1, seed=4)["failures"] == []


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_killed_pull_is_continued_and_requests_nothing_twice(tmp_path: Path) -> None:
    """``python -m tests.reliability pull`` and ``hub-pull`` kill more, and updates as well."""
    found = kill_hub_pulls(tmp_path, 2, seed=4)
    assert found["failures"] == []
    assert found["most_shards_requested_twice"] <= RemoteLocation.in_flight


def test_a_repository_that_changes_meanwhile_is_refused(
    cache: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitcache.cache.store.hub._MOST_OBJECTS", 6)
    commit = hub.commit

    def with_another(name: str, lines: list[dict[str, object]]) -> str | None:
        head = commit(name, lines)
        if hub.commits == 2:
            commit(name, [{"key": "header", "value": {"summary": "by somebody else"}}])
        return head

    monkeypatch.setattr(hub, "commit", with_another)
    with pytest.raises(StorageError, match="has changed since"):
        push(cache, URL)
    push(cache, URL)
    assert verify(URL).ok


def test_other_files_are_not_overwritten(cache: Path, hub: FakeHub) -> None:
    push(cache, URL)
    hub.repositories[NAME].files["v2/notes.txt"] = b"by hand"
    with pytest.raises(CacheError, match="neither a cache nor empty"):
        push(cache, "hf://datasets/team/photos/v2")
    push(cache, "hf://datasets/team/photos/v3")
    assert hub.repositories[NAME].files["v2/notes.txt"] == b"by hand"


def test_objects_that_are_not_committed_yet_are_read(hub: FakeHub) -> None:
    location = locate_receiver("hf://datasets/team/new")
    assert isinstance(location, HubLocation)
    assert location.is_empty()
    location.write("a/b.json", b"content")
    assert (location.read("a/b.json"), location.read("a/b.json", 0, 3)) == (b"content", b"con")
    assert location.size("a/b.json") == 7
    assert list(location.keys("a")) == ["a/b.json"]
    assert location.names("a") == ["b.json"]
    assert not location.create("a/b.json", b"other")
    assert location.create("claims/unit.json", b"held")
    assert location.names("claims") == ["unit.json"]
    assert location.modified("claims/unit.json") is not None
    location.delete("claims/unit.json")
    assert location.size("claims/unit.json") is None
    assert not hub.repositories
    location.write("zarr.json", b"{}")
    assert hub.commits == 1
    assert "team/new" in hub.repositories
    assert location.read("a/b.json") == b"content"


@pytest.mark.parametrize("url", ["hf://datasets/team", "hf://datasets/a/b@main/c"])
def test_addresses_without_a_repository_are_refused(cache: Path, url: str) -> None:
    with pytest.raises(UsageError, match="no repository that can be written to"):
        push(cache, url)
