"""WebDataset shards behind a URL: the same set as the shards in a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from logitcache.data.readers import open_source, shard_copies
from logitcache.errors import DataError, StorageError, UsageError
from tests.conftest import write_images
from tests.data.forms import write_shards
from tests.remote.servers import FaultyServer, from_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with three shards; copies go to another one."""
    monkeypatch.setenv(shard_copies.PLACE, str(tmp_path / "copies"))
    write_images(tmp_path / "images", 4)
    (tmp_path / "served").mkdir()
    pattern = str(tmp_path / "served" / "x-{:03d}.tar")
    write_shards(tmp_path / "images", pattern, 3, lambda label: ("cls", label.encode()))
    return tmp_path / "served"


def served(folder: Path) -> FaultyServer:
    return FaultyServer(from_folder(folder))


def test_shards_behind_a_url_are_those_of_the_folder(folder: Path) -> None:
    local = open_source(str(folder / "x-{000..002}.tar"))
    with served(folder) as server:
        distant = open_source(f"{server.url}/x-{{000..002}}.tar")
        assert distant.keys == local.keys
        assert list(distant.labels) == list(local.labels)
        assert [distant.read(i) for i in range(len(distant.keys))] == [
            local.read(i) for i in range(len(local.keys))
        ]
        server.log.clear()
        open_source(f"wds/{server.url}/x-001.tar")
        assert {request.method for request in server.log} == {"HEAD"}, "copied twice"
    assert not list(folder.parent.glob("copies/*/*.partial"))


def test_a_shard_that_has_changed_is_copied_again(folder: Path) -> None:
    with served(folder) as server:
        before = open_source(f"wds/{server.url}/x-000.tar")
        (folder / "x-001.tar").replace(folder / "x-000.tar")
        with (folder / "x-000.tar").open("ab") as file:
            file.write(bytes(10240))  # a tar file may end with more blocks of zeros
        after = open_source(f"wds/{server.url}/x-000.tar")
    assert set(before.keys).isdisjoint(after.keys)


def test_a_shard_that_does_not_exist_is_named(folder: Path) -> None:
    with (
        served(folder) as server,
        pytest.raises(DataError, match=r"does not exist\n  where:    http.*/x-003.tar"),
    ):
        open_source(f"{server.url}/x-{{002..003}}.tar")


def test_urls_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot be read\n  where:    nothing://x"):
        open_source("wds/nothing://x/x.tar")


def test_a_folder_behind_a_url_is_not_listed() -> None:
    with pytest.raises(UsageError, match="cannot be listed"):
        open_source("wds/https://host.invalid/folder")


def test_an_interrupted_copy_is_an_error_and_is_continued(folder: Path) -> None:
    with served(folder) as server:
        open_source(f"wds/{server.url}/x-000.tar")
        server.behavior.cut = 1.0
        with pytest.raises((StorageError, DataError), match="run the same command again"):
            open_source(f"{server.url}/x-{{000..002}}.tar")
        assert not list(folder.parent.glob("copies/*/*.partial"))
        server.behavior.cut = 0.0
        server.log.clear()
        assert len(open_source(f"{server.url}/x-{{000..002}}.tar").keys) == 12
        copied = [request.path for request in server.log if request.method == "GET"]
    assert copied == ["/x-001.tar", "/x-002.tar"]
