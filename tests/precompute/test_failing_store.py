"""A disk that is full or fails at any write: a clear error; the same command finishes the run."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from logitcache.cache.verify.integrity import verify
from logitcache.errors import StorageError
from tests.precompute import null
from tests.reliability.kills import committed, snapshot

if TYPE_CHECKING:
    from pathlib import Path

TEACHERS = {"coarse": null.UNIT, "fine": null.UNIT // 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return an uninterrupted cache and how often it was synced."""
    path, sync, calls = tmp_path_factory.mktemp("whole") / "c", os.fsync, 0

    def counting(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counting)
        null.run(path, TEACHERS)
    return path, calls


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("tenth", range(0, 10, 3))
def test_what_was_committed_is_intact_and_the_rest_is_resumed(
    whole: tuple[Path, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    tenth: int,
) -> None:
    path, expected, syncs = tmp_path / "c", whole[0], whole[1]
    sync, left = os.fsync, [tenth * syncs // 10 + 3 * tenth]

    def failing(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    message = "no space left" if code == errno.ENOSPC else "the file system refused"
    with pytest.raises(StorageError, match=rf"{message}[\s\S]*re-run the same command") as caught:
        null.run(path, TEACHERS)
    assert caught.value.exit_code == 3
    monkeypatch.undo()
    kept = committed(path)
    if (path / "zarr.json").exists():
        assert verify(path).ok, "nothing half is committed"
    null.run(path, TEACHERS)
    assert kept.items() <= committed(path).items()
    assert snapshot(path) == snapshot(expected)
