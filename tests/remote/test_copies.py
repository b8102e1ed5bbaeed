"""Shards kept on this machine: within their bound, the least used leave, and none is believed."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from logitcache.cache.format.names import sha256
from logitcache.cache.read.shard_cache import ShardCache, default_copies


def content(number: int, size: int = 100) -> tuple[str, bytes]:
    body = (b"%d " % number * size)[:size]
    return sha256(body), body


def kept(copies: ShardCache) -> int:
    return sum(path.stat().st_size for path in copies.root.glob("*/*"))


def age(copies: ShardCache, digest: str, seconds: float) -> None:
    os.utime(copies.root / digest[:2] / digest, (seconds, seconds))


def test_the_least_used_leave_first(tmp_path: Path) -> None:
    copies = ShardCache(tmp_path, 350)
    pieces = [content(number) for number in range(5)]
    for at, piece in enumerate(pieces[:3]):
        copies.keep(*piece)
        age(copies, piece[0], 1000 + at)
    assert copies.read(pieces[0][0]) == pieces[0][1], "used, so it stays"
    copies.keep(*pieces[3])
    assert [copies.read(digest) is None for digest, _ in pieces[:4]] == [False, True, False, False]
    assert kept(copies) == 300
    copies.keep(*content(9, 400))
    assert kept(copies) == 300, "too large for all of the room: nothing is thrown away for it"


def test_what_was_damaged_is_not_believed(tmp_path: Path) -> None:
    copies = ShardCache(tmp_path, 1000)
    digest, body = content(1)
    copies.keep(digest, body)
    path = tmp_path / digest[:2] / digest
    path.write_bytes(b"x" + body[1:])
    assert copies.read(digest) is None
    assert not path.exists()
    copies.keep(digest, body)
    assert copies.read(digest) == body


def test_what_others_keep_counts(tmp_path: Path) -> None:
    ours, theirs = ShardCache(tmp_path, 400), ShardCache(tmp_path, 400)
    for number in range(4):
        theirs.keep(*content(number))
    ours.keep(*content(7))
    assert kept(ours) == 400
    assert ours.read(content(7)[0]) is not None


def test_many_threads_stay_inside_the_bound(tmp_path: Path) -> None:
    copies = ShardCache(tmp_path, 2000)
    pieces = [content(number) for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda piece: copies.keep(*piece), pieces))
        found = list(pool.map(lambda piece: copies.read(piece[0]), pieces))
    assert kept(copies) <= 2000
    assert sum(body is not None for body in found) == 20
    assert not list(tmp_path.rglob("*.partial"))


def test_abandoned_parts_are_removed(tmp_path: Path) -> None:
    copies = ShardCache(tmp_path, 1000)
    (tmp_path / "ab").mkdir()
    for name, when in (("ab/old.partial", 0), ("ab/new.partial", None)):
        (tmp_path / name).write_bytes(b"half")
        if when is not None:
            os.utime(tmp_path / name, (when, when))
    copies.keep(*content(1))
    assert {path.name for path in tmp_path.rglob("*.partial")} == {"new.partial"}


def test_a_disk_that_fails_costs_the_copies_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    copies = ShardCache(tmp_path, 1000)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match=r"no further copies of shards[\s\S]*No space left"):
        copies.keep(*content(1))
    copies.keep(*content(2))
    assert kept(copies) == 0


def test_they_go_to_another_process(tmp_path: Path) -> None:
    copies = ShardCache(tmp_path, 1000)
    copies.keep(*content(1))
    assert pickle.loads(pickle.dumps(copies)).read(content(1)[0]) == content(1)[1]


def test_they_lie_in_the_cache_folder_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_copies() == Path("/somewhere/logitcache/shards")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_copies() == Path.home() / ".cache/logitcache/shards"
