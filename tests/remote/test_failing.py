"""Failures of a store: retried where that helps, and reported so that they can be fixed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.cache.store import remote
from logitcache.cache.store.failures import Failure, failure_of
from logitcache.cache.store.open import locate
from logitcache.cache.store.remote import RemoteLocation
from logitcache.cache.verify.integrity import verify
from logitcache.encoding.dense import DenseEncoding
from logitcache.errors import CacheDamaged, CacheError, StorageError
from tests.cache.building import VIEW, make_cache
from tests.remote.servers import Answer, Behavior, FaultyServer, from_folder, from_upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = 40
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 30)).astype(np.float32)
SECRET = "secret-of-nobody"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[FaultyServer]:
    """Serve a cache at /c over HTTP."""
    make_cache(tmp_path / "c", {"a": (DenseEncoding(30), LOGITS)}, ROWS)
    with FaultyServer(from_folder(tmp_path)) as server:
        yield server


@pytest.fixture
def bucket(
    s3: str, s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyServer]:
    """Stand between us and the S3 server."""
    assert s3
    with FaultyServer(from_upstream(s3_server)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def test_one_failure_in_five_is_not_noticed(web: FaultyServer) -> None:
    web.behavior = Behavior(failing=0.1, cut=0.1)
    cache = open_cache(f"{web.url}/c")
    assert cache.read("a", VIEW, 0, 48)["logp"].shape == (48, 30)
    assert verify(f"{web.url}/c").ok
    statuses = [request.status for request in web.log]
    assert statuses.count(503) > 2


def test_writing_through_failures_leaves_a_whole_cache(bucket: FaultyServer) -> None:
    bucket.behavior = Behavior(failing=0.1, cut=0.05, seed=1)
    location = locate("s3://bucket/through-failures", write=True)
    make_cache(location, {"a": (DenseEncoding(30), LOGITS)}, ROWS)
    assert isinstance(location, RemoteLocation)
    assert location.traffic["retries"] > 2
    bucket.behavior = Behavior()
    assert verify("s3://bucket/through-failures").ok


def test_a_write_whose_answer_is_lost_is_ours(
    bucket: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = locate("s3://bucket/lost-answer", write=True)
    fault = iter(["cut", None, None, None])
    monkeypatch.setattr(bucket, "fault", lambda: next(fault))
    assert location.create("claim", b"ours"), "the second attempt met the first one's object"
    assert not location.create("claim", b"theirs")
    assert location.read("claim") == b"ours"


@pytest.mark.parametrize(
    ("behavior", "message"),
    [
        (Behavior(failing=1.0), r"busy or failing[\s\S]*/c/zarr.json[\s\S]*status 503"),
        (Behavior(cut=1.0), r"was cut repeatedly[\s\S]*/c/zarr.json"),
        (Behavior(latency=0.5), r"does not respond in time[\s\S]*/c/zarr.json"),
    ],
)
@pytest.mark.parametrize("kind", ["http", "s3"])
@pytest.mark.usefixtures("fleeting")
def test_a_store_that_fails_for_good_is_named(
    web: FaultyServer,
    bucket: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
    behavior: Behavior,
    message: str,
    kind: str,
) -> None:
    location = locate("s3://bucket/c" if kind == "s3" else f"{web.url}/c")
    if kind == "s3":
        locate("s3://bucket/c", write=True).write("zarr.json", b"1" * 1000)
    monkeypatch.setattr(remote, "_READ_SECONDS", 0.2)
    for server in (web, bucket):
        server.behavior = behavior
        server.clear()
    with pytest.raises(StorageError, match=message) as caught:
        location.read("zarr.json")
    assert caught.value.exit_code == 3
    assert SECRET not in str(caught.value)
    time.sleep(0.6 if behavior.latency else 0)
    attempts = len((bucket if kind == "s3" else web).log)
    assert 2 <= attempts < 100, "each of them waits, and they end"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/c", "s3://bucket/c"])
@pytest.mark.usefixtures("fleeting")
def test_a_server_that_is_not_there_is_named(
    s3: str, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    assert s3
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"cannot be reached[\s\S]*/c/zarr.json"):
        open_cache(url)


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    assert s3
    for reach in (open_cache, verify):
        with pytest.raises(StorageError, match=r"the bucket does not exist[\s\S]*s3://nowhere/c"):
            reach("s3://nowhere/c")
    with pytest.raises(StorageError, match=r"the bucket does not exist[\s\S]*s3://nowhere/c"):
        locate("s3://nowhere/c", write=True).write("x", b"")
    with pytest.raises(CacheError, match="no cache here"):
        open_cache("s3://bucket/nowhere")


def test_a_server_that_denies_access_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3
    body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"

    def deny(request: Any, _: Behavior) -> Answer:
        request.rfile.read(int(request.headers.get("Content-Length", 0)))
        return Answer(403, {"Content-Type": "application/xml"}, body)

    with FaultyServer(deny) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        for url in ("s3://bucket/c", f"{server.url}/c"):
            with pytest.raises(StorageError, match=r"denied access[\s\S]*credentials") as caught:
                open_cache(url)
            assert SECRET not in str(caught.value)
        count = len(server.log)
        with pytest.raises(StorageError, match="denied access"):
            locate("s3://bucket/c", write=True).write("x", b"1")
        assert len(server.log) == count + 1, "asking again would not help"


def test_missing_credentials_are_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(StorageError, match=r"denied access[\s\S]*environment or profile"):
        locate("s3://bucket/c", write=True).write("x", b"1")


def test_an_object_that_vanishes_while_it_is_read_is_named(
    web: FaultyServer, tmp_path: Path
) -> None:
    cache = open_cache(f"{web.url}/c")
    cache.read("a", VIEW, 0, 16)
    (tmp_path / "c/teachers/a/logp/c/0/1/0").unlink()
    with pytest.raises(CacheDamaged, match=r"missing[\s\S]*/c/teachers/a/logp/c/0/1/0"):
        cache.read("a", VIEW, 0, 48)


def test_what_we_do_not_know_is_not_tried_again() -> None:
    assert failure_of(RuntimeError("?")) is Failure.REFUSED
    assert failure_of(FileNotFoundError()) is Failure.ABSENT
    wrapped = OSError("translated")
    wrapped.__cause__ = ConnectionResetError()
    assert failure_of(wrapped) is Failure.CUT
