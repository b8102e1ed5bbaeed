"""Push to a bucket, pull from a bucket and a web server; a student trains from what was pushed."""

from __future__ import annotations

import os
import random
import re
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.errors import CacheError, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.share.sign import sign_cache
from logitcache.share.transfer import pull, push
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.remote.servers import Behavior, FaultyServer, from_folder, from_upstream
from tests.share.growing import build, contents, files, grow, in_a_child, same_contents
from tests.share.signing import write_keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URL = "s3://bucket/deep/cache"
SHARD = re.compile(r"/(teachers|samples|views)/.*/c/[\d/]+$")


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("young") / "cache")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grow(build(tmp_path_factory.mktemp("grown") / "cache"))


@pytest.fixture
def bucket(
    s3: str, s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyServer]:
    """Return a server in front of the bucket, which logs requests and fails some of them."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3)
    for entry in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=entry["Key"])
    with FaultyServer(from_upstream(s3_server)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def sent(server: FaultyServer) -> list[str]:
    """Return the keys of the objects that were stored, claims left out."""
    paths = [r.path.partition("?")[0] for r in server.log if r.method == "PUT" and r.status == 200]
    keys = [path.removeprefix("/bucket/deep/cache/") for path in paths]
    return [key for key in keys if not key.startswith("claims/")]


def test_a_cache_is_pushed_and_pulled_through_a_bucket(
    young: Path, grown: Path, bucket: FaultyServer, tmp_path: Path
) -> None:
    push(young, URL)
    assert sorted(sent(bucket)) == sorted([*files(young), "transfer.json"])
    assert sent(bucket)[-1] == "zarr.json"
    bucket.clear()
    assert push(young, URL).objects == 0
    assert sent(bucket) == []
    assert not [r for r in bucket.log if r.method == "GET" and SHARD.search(r.path)]
    push(grown, URL)
    new = {key for key in files(grown).keys() - files(young).keys() if "/c/" in key}
    assert {key for key in sent(bucket) if "/c/" in key} == new
    assert verify(URL).ok
    pull(URL, tmp_path / "copy")
    assert same_contents(contents(tmp_path / "copy"), contents(grown))
    assert verify(tmp_path / "copy").ok


def test_requests_that_fail_are_repeated(grown: Path, bucket: FaultyServer, tmp_path: Path) -> None:
    bucket.behavior.failing, bucket.behavior.cut = 0.1, 0.05
    push(grown, URL)
    pull(URL, tmp_path / "copy")
    assert bucket.injected > 5
    assert same_contents(contents(tmp_path / "copy"), contents(grown))


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_push_that_is_killed_resumes_and_sends_nothing_twice(
    grown: Path, bucket: FaultyServer, tmp_path: Path
) -> None:
    kill_at = random.randrange(200)
    assert not in_a_child(lambda: push(grown, URL), tmp_path / "log", kill_at)
    before = sent(bucket)
    if "zarr.json" not in before:
        with pytest.raises(CacheError):
            open_cache(URL)
    bucket.clear()
    assert in_a_child(lambda: push(grown, URL), tmp_path / "log")
    assert set(before) & set(sent(bucket)) <= {"transfer.json"}
    assert same_contents(contents(URL), contents(grown))
    assert verify(URL).ok


def test_a_part_is_pulled_from_a_web_server(grown: Path, tmp_path: Path) -> None:
    with FaultyServer(from_folder(grown), Behavior(latency=0.002)) as server:
        pull(server.url, tmp_path / "copy", views=2, teachers=["b"])
        whole = contents(grown)
        order = list(open_cache(grown).views)[:2]
        expected = {f"b/{view}": whole[f"b/{view}"] for view in order}
        assert same_contents(contents(tmp_path / "copy"), expected)
        assert verify(tmp_path / "copy").ok
        fetched = [m[0] for r in server.log if (m := SHARD.search(r.path)) and r.method == "GET"]
        assert fetched
        assert not [path for path in fetched if path.startswith("/teachers/a/")]
        assert len(fetched) == len(set(fetched))
        pull(server.url, tmp_path / "whole")
        with pytest.raises(UsageError, match="can only be read"):
            push(grown, server.url)
    assert same_contents(contents(tmp_path / "whole"), whole)


def test_a_student_is_trained_from_one_url_as_on_the_machine_of_the_cache(
    images: Path, teachers: dict[str, dict[str, str]], bucket: FaultyServer, tmp_path: Path
) -> None:
    """The cache carries its images and is pushed; who trains has the URL and the key alone."""
    private, public = write_keys(tmp_path / "keys", "alice")
    values: dict[str, Any] = {
        "cache": str(tmp_path / "cache"),
        "data": str(images),
        "teachers": teachers,
        "views": {"count": 2},
        "images": "packed:32",
        "unit_rows": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    sign_cache(tmp_path / "cache", private)
    push(tmp_path / "cache", URL)
    pull(URL, tmp_path / "part", views=2, teachers=["red"])
    assert verify(tmp_path / "part").ok
    assert open_cache(tmp_path / "part").revision.ledgers.keys() < (
        open_cache(URL).revision.ledgers.keys()
    )

    def weights(cache: str, out: str, **more: object) -> list[Any]:
        student = {"model": "resnet10t", "kwargs": {"channels": [16] * 4, "stem_width": 16}}
        values = {"out": str(tmp_path / out), "cache": cache, "student": student, "epochs": 2}
        config = {**values, "batch_size": 16, "threads": 1, "device": "cpu", **more}
        train_student(TrainConfig.parse(config, ""))
        network = timm.create_model(f"local-dir:{tmp_path / out / 'export'}", pretrained=True)
        return list(network.state_dict().values())

    local = weights(str(tmp_path / "cache"), "local")
    bucket.behavior.latency = 0.005
    remote = weights(URL, "remote", signed_by=str(public))
    assert all(torch.equal(a, b) for a, b in zip(local, remote, strict=True))
