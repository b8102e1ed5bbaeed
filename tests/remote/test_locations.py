"""One contract for every place a cache may lie in, and the URLs that name them."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import time
import uuid
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pytest

from logitcache.cache.format.documents import numbers
from logitcache.cache.format.ledger import Commit, StoredArray, read_commits, write_commit
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.claims import Claims
from logitcache.cache.write.exclude import withdraw_images
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheDamaged, StorageError, UsageError, redacted
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.describe import describe
from logitcache.testing import LocationContract
from logitcache.training.config import TrainConfig
from tests.cache.building import VIEW, encode, make_cache
from tests.precompute import null
from tests.remote.servers import Behavior, FaultyServer, from_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.cache.store.base import Location
    from logitcache.encoding.kinds import Encoding

ROWS = 40
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 30)).astype(np.float32)
ENCODINGS: dict[str, tuple[Encoding, NDArray[np.float32]]] = {
    "a": (SparseEncoding(30, 5), LOGITS),
    "b": (DenseEncoding(30), LOGITS),
}


@pytest.fixture(params=["folder", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    name = f"cache-{uuid.uuid4().hex}"
    if request.param == "s3":
        request.getfixturevalue("s3")
    yield {"folder": f"{tmp_path}/{name}", "memory": f"memory://{name}"}.get(
        request.param, f"s3://bucket/deep/{name}"
    )
    if request.param == "memory":
        with contextlib.suppress(FileNotFoundError):
            fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


class TestLocations(LocationContract):
    @pytest.fixture
    def location(self, url: str) -> Location:
        return locate(url, write=True)


def test_numbered_documents_are_counted(url: str) -> None:
    location = locate(url, write=True)
    for key in ("x/1.json", "x/10.json", "x/2.json", "x/more/3.json", "x/3.txt"):
        location.write(key, b"12")
    assert numbers(location, "x") == [1, 2, 10]


def test_a_claim_is_no_content(url: str) -> None:
    location = locate(url, write=True)
    assert location.is_empty()
    with Claims(location).claimed("x") as won, Claims(location).claimed("x") as lost:
        assert (won, lost) == (True, False)
        assert location.is_empty()
    assert list(location.keys()) == []


def test_a_cache_is_written_verified_described_and_read(url: str) -> None:
    sparse = {"a": ENCODINGS["a"]}
    samples = make_cache(locate(url, write=True), sparse, ROWS, (3,))
    report = verify(url)
    assert (report.ok, report.orphans, report.objects) == (True, (), 18 + 3 * 5)
    assert verify(url, quick=True).ok
    found = describe(url)
    assert (found.complete, found.images, found.unreadable, found.url) == (True, ROWS, 1, url)
    cache = open_cache(url)
    assert f"{url}:" in repr(cache)
    expected = encode(cache.teacher("a"), LOGITS, samples)
    for array, content in cache.read("a", VIEW, 0, 48).items():
        np.testing.assert_array_equal(content, expected[array])
    assert cache.samples.keys[5] == samples["key"][5]
    location = locate(url)
    key = "teachers/a/codes/c/0/1/0"
    whole = location.read(key) or b""
    location.write(key, whole[:-1] + b"?")
    with pytest.raises(CacheDamaged, match=rf"{key} [\s\S]*unit 1, array codes"):
        open_cache(url, local_copy_bytes=0).read("a", VIEW, 0, 48)
    location.delete(key)
    with pytest.raises(CacheDamaged, match=rf"missing[\s\S]*{url}/{key}"):
        open_cache(url, local_copy_bytes=0).read("a", VIEW, 0, 48)
    assert [str(fault.cause) for fault in verify(url).faults] == ["missing"]


def test_an_interrupted_run_goes_on(url: str) -> None:
    """Two views of two teachers; the second run finds the first one's units."""
    location = locate(url, write=True)
    with pytest.raises(KeyboardInterrupt):
        null.run(location, {"t": 32}, rows=80, after_batch=_stop_after(6))
    kept = {key: location.read(key) for key in location.keys("commits")}
    assert kept
    null.run(location, {"t": 32}, rows=80)
    assert kept.items() <= {key: location.read(key) for key in location.keys("commits")}.items()
    assert verify(url).ok


def _stop_after(batches: int) -> Callable[[int], None]:
    left = [batches]

    def stop(_: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    return stop


def commit_of(location: Location, content: bytes, versions: str) -> Commit:
    location.write("x", content)
    digest = location.digest("x", most=2**20)
    assert digest is not None
    arrays = {"g/a": StoredArray("x", *digest, content_sha256="")}
    return Commit("g", "v", 0, (0, 16), arrays, versions={"by": versions})


@pytest.mark.requirement("F11.7")
def test_of_two_commits_the_true_one_stays(s3: str) -> None:
    location = locate(f"s3://bucket/{uuid.uuid4().hex}", write=True)
    ours, theirs = commit_of(location, b"1", "us"), commit_of(location, b"2", "them")
    write_commit(location, ours)
    assert read_commits(location, "g", "v", [0]) == {0: ours}
    write_commit(location, theirs)  # what is stored is theirs
    assert read_commits(location, "g", "v", [0]) == {0: theirs}
    write_commit(location, ours)
    assert read_commits(location, "g", "v", [0]) == {0: theirs}
    location.write("x", b"a mixture of both")
    with pytest.raises(StorageError, match="two runs"):
        write_commit(location, ours)
    assert read_commits(location, "g", "v", [0]) == {}
    assert s3


def test_a_claim_of_a_dead_run_is_taken_over(s3: str) -> None:
    location = locate(f"s3://bucket/{uuid.uuid4().hex}", write=True)
    theirs = json.dumps({"host": "another", "pid": 1, "token": "theirs"}).encode()
    location.write("claims/x.json", theirs)
    claims = Claims(location, stale_seconds=0.2)
    for look in range(20):  # at which nothing has changed
        with claims.claimed("x") as won:
            assert look or not won
            if won:
                assert b"theirs" not in (location.read("claims/x.json") or b"")
                break
        time.sleep(0.05)
    assert won
    assert location.is_empty()
    assert s3


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[FaultyServer, Path]]:
    make_cache(tmp_path / "c", ENCODINGS, ROWS)
    with FaultyServer(from_folder(tmp_path)) as server:
        yield server, tmp_path / "c"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cache_is_read_over_http(served: tuple[FaultyServer, Path], ranges: bool) -> None:
    server, path = served
    server.behavior = Behavior(ranges=ranges)
    url = f"{server.url}/c"
    cache, local = open_cache(url), open_cache(path)
    for name in ENCODINGS:
        for array, content in cache.read(name, VIEW, 0, 48).items():
            np.testing.assert_array_equal(content, local.read(name, VIEW, 0, 48)[array])
    assert cache.samples.keys[5] == local.samples.keys[5]
    assert verify(url).ok
    assert describe(url).to_json() == {
        **describe(path).to_json(),
        "url": url,
        "teachers": [
            {**teacher, "stored_bytes": shard_bytes(path, teacher["name"])}
            for teacher in describe(path).to_json()["teachers"]
        ],
    }
    if ranges:
        assert verify(url, quick=True).ok
        return
    assert not any(request.ranged for request in server.log), "whole objects were enough"
    with pytest.raises(StorageError, match="does not support Range requests") as caught:
        verify(url, quick=True)
    assert caught.value.exit_code == 3


def shard_bytes(path: Path, teacher: str) -> int:
    """Return the bytes of a teacher's shards alone: documents cannot be listed over HTTP."""
    shards = path.glob(f"teachers/{teacher}/*/c/**/*")
    return sum(p.stat().st_size for p in shards if p.is_file())


@pytest.mark.requirement("F5.2", "F11.25")
def test_withdrawals_are_seen_over_http(served: tuple[FaultyServer, Path]) -> None:
    server, path = served
    for name in ("img/000001.jpg", "img/000002.jpg"):
        withdraw_images(path, [name], "")
    assert open_cache(f"{server.url}/c").samples.withdrawn == 2


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/c", "hf://datasets/some/one"])
def test_what_can_only_be_read_is_not_written(url: str) -> None:
    with pytest.raises(UsageError, match="can only be read"):
        locate(url, write=True)


def test_nothing_is_computed_for_a_place_that_can_only_be_read(
    images: Path, teachers: dict[str, dict[str, str]]
) -> None:
    values = {"cache": "http://127.0.0.1:1/c", "data": str(images), "teachers": teachers}
    with pytest.raises(UsageError, match="can only be read"):
        build_cache(PrecomputeConfig.parse(values, ""))


def test_a_location_goes_to_another_process_without_its_connections(url: str) -> None:
    location = locate(url, write=True)
    location.write("x", b"1")
    if url.startswith("memory"):
        with pytest.raises(UsageError, match="one process"):
            pickle.dumps(location)
        return
    assert pickle.loads(pickle.dumps(location)).read("x") == b"1"


def test_a_forked_child_opens_its_own_connections(url: str) -> None:
    """A child that is forked after its parent has read must read too, and not hang."""
    location = locate(url, write=True)
    location.write("x", b"1")
    assert location.read("x") == b"1"
    child = os.fork()
    if child == 0:
        try:
            found = location.read("x")
            os._exit(0 if found == b"1" else 1)
        except UsageError:
            os._exit(7)
        finally:
            os._exit(9)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == (7 if url.startswith("memory") else 0)


def test_memory_is_refused_where_there_are_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert locate("memory://c").is_empty()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"memory://c[\s\S]*several processes"):
        locate("memory://c")


SECRETS = [
    ("https://me:pass@host/c", "https://***@host/c"),
    ("https://host/c?sig=abc&X=1#f", "https://host/c?sig=***&X=***#f"),
    ("s3://key:secret@bucket/c", "s3://***@bucket/c"),
    ("https://me:p@ss@host/c", "https://***@host/c"),
]


@pytest.mark.parametrize(("url", "shown"), [*SECRETS, ("/a/b?c=d", "/a/b?c=d")])
def test_secrets_are_not_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"), [SECRETS[0], ("https://host/c?sig=abc&X=1", "https://host/c?sig=***&X=***")]
)
def test_secrets_are_used_and_kept_out_of_messages_and_configurations(url: str, shown: str) -> None:
    location = locate(url)
    assert str(location) == shown.rstrip("/")
    config = TrainConfig.parse(
        {"out": "o", "data": "digits", "cache": url, "student": {"model": "resnet18"}, "steps": 1},
        "",
    )
    assert (config.cache, config.model_dump()["cache"]) == (url, shown)
    pre = PrecomputeConfig.parse(
        {"cache": url, "data": "digits", "teachers": {"a": {"model": "resnet18"}}}, ""
    )
    assert (pre.cache, pre.model_dump(mode="json")["cache"]) == (url, shown)


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/c", "s3://bucket/c?versionId=3"])
def test_buckets_take_no_credentials_in_the_url(url: str) -> None:
    with pytest.raises(UsageError, match="environment") as caught:
        locate(url)
    assert "secret" not in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ImportError("Install gcsfs", name="gcsfs")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UsageError, match=r"gs://[\s\S]*pip install 'logitcache\[gcs\]'"):
        locate("gs://bucket/c")


@pytest.mark.parametrize("url", ["s3://", "memory://", "https://", "http:///"])
def test_a_url_names_a_place(url: str) -> None:
    with pytest.raises(UsageError, match="the URL has no bucket or host"):
        locate(url)
