"""Small files are written whole, and what is damaged counts as missing."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from logitcache.files import read_json, remove_folder, write_file, written_together

if TYPE_CHECKING:
    from pathlib import Path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_file(path, json.dumps({"a": 1}))
    assert read_json(path) == {"a": 1}
    assert [path.name for path in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 20, b'{"a": 1', b"\xff", b"[]", b"7", b"null", b"[" * 10**5, b'{"a": 1}}'],
)
def test_what_is_damaged_counts_as_missing_and_is_named(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert read_json(path) is None
    (record,) = caplog.records
    assert f"{path} is damaged and counts as missing" in record.message
    assert record.name == "logitcache.files"


def test_what_is_missing_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "file" / "a.json") is None
    assert caplog.records == []


def test_no_more_is_read_than_a_document_can_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    assert read_json(tmp_path / "a.json") is None
    os.mkfifo(tmp_path / "b.json")
    assert read_json(tmp_path / "b.json") is None
    (tmp_path / "c.json").mkdir()
    assert read_json(tmp_path / "c.json") is None
    assert ["at most 64 MiB" in record.message for record in caplog.records] == [True] * 3


def test_files_of_a_library_are_moved_when_all_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    write_file(folder / "a", "old")
    with pytest.raises(ZeroDivisionError), written_together(folder) as partial:
        (partial / "a").write_text(str(1 // 0))
    assert (folder / "a").read_text() == "old"
    (tmp_path / "export.partial").mkdir()
    (tmp_path / "export.partial" / "c").write_text("of a process that was killed")
    with written_together(folder) as partial:
        (partial / "a").write_text("new")
        (partial / "b").write_text("b")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "new", "b": "b"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_is_being_removed_has_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    write_file(folder / "b", "b")
    (tmp_path / "a.partial").mkdir()
    removed = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: removed.append(path))
    (tmp_path / "a.partial").rmdir()
    remove_folder(folder)
    assert removed == [tmp_path / "a.partial"] * 2
    assert not folder.exists()
