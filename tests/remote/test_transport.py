"""A server that fails says nothing about what it stores: exit 3, and never a fault to repair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.check.repair import RepairConfig, repair_cache
from logitcache.cli.app import main
from logitcache.encoding.dense import DenseEncoding
from logitcache.errors import CacheDamaged, StorageError
from logitcache.report.describe import describe
from tests.cache.building import VIEW, make_cache
from tests.remote.servers import Answer, Behavior, FaultyServer, from_folder, from_upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROWS = 40
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 30)).astype(np.float32)
SHARDS = "/teachers/a/logp/c/"


class Failing:
    """Puts an answer in the place of those whose path has a part.

    Args:
        backend: What answers otherwise.
    """

    def __init__(self, backend: Callable[[Any, Behavior], Answer]) -> None:
        self.backend = backend
        self.part = ""
        self.methods: set[str] = set()
        self.answer = Answer(503, {}, b"busy")

    def __call__(self, request: Any, behavior: Behavior) -> Answer:
        self.methods.add(request.command)
        found = self.backend(request, behavior)  # it reads the body of the request
        return self.answer if self.part and self.part in request.path else found


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Failing]]:
    """Serve a cache at /c over HTTP."""
    make_cache(tmp_path / "c", {"a": (DenseEncoding(30), LOGITS)}, ROWS)
    failing = Failing(from_folder(tmp_path))
    with FaultyServer(failing) as server:
        yield f"{server.url}/c", failing


@pytest.fixture
def bucket(
    s3: str, s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Failing]]:
    """Put a cache into a bucket whose server stands between us and it."""
    assert s3
    url = "s3://bucket/transport"
    location = locate(url, write=True)
    if location.is_empty():  # the first test of this process
        make_cache(location, {"a": (DenseEncoding(30), LOGITS)}, ROWS)
    failing = Failing(from_upstream(s3_server))
    with FaultyServer(failing) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield url, failing


def read_all(url: str) -> None:
    cache = open_cache(url, local_copy_bytes=0)
    assert len(cache.samples.keys) == ROWS
    cache.read("a", VIEW, 0, 48)


DOCUMENTS: dict[str, tuple[Callable[[str], object], ...]] = {
    "/c/zarr.json": (verify, describe, read_all),
    "/revisions/": (verify, read_all),
    "/ledger/": (verify, read_all),
    "/commits/": (verify,),
    "/teachers/a/zarr.json": (verify, describe, read_all),
    "/samples/": (verify, describe, read_all),
    "/withdrawn/": (verify, describe, read_all),
}
READERS: dict[str, Callable[[str], object]] = {
    "verify": verify,
    "verify --quick": lambda url: verify(url, quick=True),
    "read": read_all,
}
ANSWERS = [Answer(status, {"Content-Type": "application/xml"}, b"") for status in (503, 403, 400)]


@pytest.mark.usefixtures("fleeting")
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_shards_that_cannot_be_had_are_no_faults(
    web: tuple[str, Failing], reader: Callable[[str], object]
) -> None:
    url, server = web
    server.part = SHARDS
    for answer in ANSWERS:
        server.answer = answer
        with pytest.raises(StorageError) as caught:
            reader(url)
        assert caught.value.exit_code == 3
        assert f"{url}{SHARDS}" in str(caught.value.where)
        assert "repair" not in str(caught.value)


@pytest.mark.usefixtures("fleeting")
@pytest.mark.parametrize("part", DOCUMENTS)
def test_documents_that_cannot_be_had_are_no_faults(web: tuple[str, Failing], part: str) -> None:
    url, server = web
    server.part = part
    for reader in DOCUMENTS[part]:
        with pytest.raises(StorageError, match="busy or failing"):
            reader(url)


@pytest.mark.usefixtures("fleeting")
def test_nothing_is_repaired_while_a_store_fails(bucket: tuple[str, Failing]) -> None:
    url, server = bucket
    server.part, server.methods = SHARDS, set()
    config = RepairConfig.parse({"cache": url, "data": "digits"}, "")
    for work in (lambda: verify(url, quick=True), lambda: repair_cache(config)):
        with pytest.raises(StorageError, match=rf"busy or failing[\s\S]*{url}{SHARDS}"):
            work()
    assert server.methods == {"GET", "HEAD"}


@pytest.mark.usefixtures("fleeting")
@pytest.mark.parametrize("command", ["verify", "verify --quick", "inspect", "status", "train"])
def test_commands_leave_with_3_where_a_server_fails(
    command: str,
    web: tuple[str, Failing],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    url, server = web
    server.part = "/samples/"
    arguments = [*command.split(), url, "--json"]
    if command == "train":
        arguments = ["train", "--cache", url, "--data", "digits", "--out", str(tmp_path / "o")]
        arguments += ["--student", "resnet10t", "--steps", "1"]
    monkeypatch.setattr("sys.argv", ["logitcache", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    message = capsys.readouterr().err
    assert left.value.code == 3, message
    assert "busy or failing" in message
    assert "Traceback" not in message


def test_a_page_in_the_place_of_an_object_is_damage(web: tuple[str, Failing]) -> None:
    """A server that answers 200 has an answer, and its digest is not the committed one."""
    url, server = web
    server.part, server.answer = SHARDS, Answer(200, {}, b"<html>please log in</html>")
    assert {fault.key for fault in verify(url).faults} == {
        f"{SHARDS[1:]}0/{unit}/0" for unit in range(3)
    }
    with pytest.raises(CacheDamaged):
        read_all(url)


def test_a_file_that_the_disk_does_not_give_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cache(tmp_path / "c", {"a": (DenseEncoding(30), LOGITS)}, ROWS)
    bad = tmp_path / f"c{SHARDS}0/1/0"
    opened = type(bad).open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == bad:
            raise OSError(5, "Input/output error")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(type(bad), "open", refuse)
    assert [str(fault.cause) for fault in verify(tmp_path / "c").faults] == ["unreadable"]
