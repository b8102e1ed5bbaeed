from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.open import locate
from logitcache.errors import CacheDamaged, StorageError, UsageError


def test_what_is_written_is_there_whole(tmp_path: Path) -> None:
    location = locate(tmp_path / "c")
    location.write("a/b/c.json", b"one")
    location.write("a/b/c.json", b"two")
    assert location.read("a/b/c.json") == b"two"
    assert location.size("a/b/c.json") == 3
    assert location.names("a/b") == ["c.json"]
    location.delete("a/b/c.json")
    location.delete("a/b/c.json")
    assert location.read("a/b/c.json") is None
    assert location.size("a/b/c.json") is None
    assert location.names("nowhere") == []


def test_a_url_is_a_path_or_a_file_url(tmp_path: Path) -> None:
    assert str(locate(f"file://{tmp_path}/x%20y")) == f"{tmp_path}/x y"
    assert str(locate(tmp_path)) == str(tmp_path)
    with pytest.raises(UsageError, match=r"ftp://[\s\S]*http"):
        locate("ftp://host/cache")


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "no space left"), (errno.EIO, "refused")]
)
def test_a_failing_disk_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    location = LocalLocation(tmp_path)
    location.write("kept", b"before")

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=message):
        location.write("kept", b"after")
    monkeypatch.undo()
    assert location.read("kept") == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.requirement("F11.6")
def test_files_and_their_folder_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = LocalLocation(tmp_path)
    order: list[str] = []
    sync, rename = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        order.append(kind)
        sync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        order.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    location.write("x", b"1")
    assert order == ["file", "rename", "folder"]


@pytest.mark.parametrize("path", [r"C:\caches\flowers", "C:/caches/flowers", r"\\server\share\x"])
def test_a_path_of_windows_is_no_url(path: str) -> None:
    assert isinstance(locate(path), LocalLocation)


@pytest.mark.parametrize("key", ["C:/x/zarr.json", "c:zarr.json", "../x", "/x", "a\\x", "a\0"])
def test_a_key_that_leads_out_of_a_cache_is_refused_on_every_system(
    tmp_path: Path, key: str
) -> None:
    with pytest.raises(CacheDamaged, match="leads out of the cache"):
        LocalLocation(tmp_path).write(key, b"")
