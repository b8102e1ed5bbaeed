"""Parts of files that stay open."""

from __future__ import annotations

import pickle
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.cache.store import open_files
from logitcache.cache.store.local import LocalLocation
from logitcache.errors import CacheDamaged
from logitcache.files import write_file

if TYPE_CHECKING:
    from pathlib import Path


def test_parts_are_those_of_whole_reads(tmp_path: Path) -> None:
    location = LocalLocation(tmp_path)
    location.write("a/b", bytes(range(200)))
    for start, stop in ((0, 200), (0, 1), (199, 200), (7, 90), (190, 300), (300, 400), (5, 5)):
        expected = location.read("a/b", start, stop)
        assert location.read_part("a/b", start, stop) == expected == bytes(range(200))[start:stop]
    assert location.read_part("a/nothing", 0, 1) is None
    with pytest.raises(CacheDamaged, match="leads out"):
        location.read_part("../b", 0, 1)


def test_a_copy_for_another_process_opens_files_for_itself(tmp_path: Path) -> None:
    location = LocalLocation(tmp_path)
    location.write("a", b"content")
    location.read_part("a", 0, 3)
    assert pickle.loads(pickle.dumps(location)).read_part("a", 0, 3) == b"con"


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while several threads read: a file is closed after the last read of it."""
    monkeypatch.setattr(open_files, "_MOST", 2)
    location = LocalLocation(tmp_path)
    for number in range(8):
        location.write(str(number), bytes([number]) * 100)
    wrong: list[int] = []

    def work(seed: int) -> None:
        numbers = np.random.default_rng(seed).integers(0, 8, 300).tolist()
        wrong.extend(n for n in numbers if location.read_part(str(n), 10, 20) != bytes([n]) * 10)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(location._open._files) == 2


def test_without_reads_at_a_position_files_are_opened_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "_CAN_READ_PARTS", False)
    location = LocalLocation(tmp_path)
    location.write("a", b"content")
    assert location.read_part("a", 2, 4) == b"nt"
    assert not location._open._files


def test_a_file_that_was_replaced_is_read_as_it_was_until_it_is_read_afresh(
    tmp_path: Path,
) -> None:
    location = LocalLocation(tmp_path)
    location.write("a", b"before")
    location.read_part("a", 0, 6)
    write_file(tmp_path / "a", b"behind")
    assert location.read("a", 0, 6) == b"behind"
    assert location.read_part("a", 0, 6) in {b"before", b"behind"}
