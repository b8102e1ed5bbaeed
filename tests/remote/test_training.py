"""Stage 1 to an object store and stage 2 from one: the same bytes and the same weights."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cli.app import main
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.describe import describe
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.cache.building import make_cache
from tests.remote.servers import Behavior, FaultyServer, from_folder, from_upstream
from tests.remote.test_locations import ENCODINGS
from tests.remote.traffic import stored_targets, traffic_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from logitcache.cache.format.ledger import StoredArray

Teachers = dict[str, dict[str, str]]
STUDENT = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
READ = ("class_ids", "codes", "tail", "label_logp")
CUT = Behavior(latency=0.03, failing=0.1)


def build(url: str, images: Path, teachers: Teachers) -> None:
    values: dict[str, Any] = {
        "cache": url,
        "data": str(images),
        "teachers": {"red": teachers["red"]},
        "views": {"count": 2},
        "encoding": {"top_k": 2},
        "unit_rows": 32,
    }
    build_cache(PrecomputeConfig.parse(values, ""))


@pytest.fixture(scope="module")
def local(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    build(str(root / "c"), images, teachers)
    return root


def train(url: str, out: Path, images: Path, **fields: object) -> dict[str, torch.Tensor]:
    """Train for two epochs, one a view, and return the weights."""
    values: dict[str, object] = {
        "out": str(out),
        "data": str(images),
        "cache": url,
        "student": STUDENT,
        "epochs": 2,
        "batch_size": 16,
        "threads": 1,
    }
    train_student(TrainConfig.parse({**values, **fields}, ""))
    network = timm.create_model(f"local-dir:{out / 'export'}", pretrained=True)
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def expected(local: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(str(local / "c"), tmp_path_factory.mktemp("expected"), images)


def assert_equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


@pytest.fixture
def web(local: Path) -> Iterator[FaultyServer]:
    with FaultyServer(from_folder(local)) as server:
        yield server


def expect_shards_once(server: FaultyServer, local: Path) -> None:
    """Each shard of both views was sent once, and nothing else of the teacher.

    Of shards with equal bytes one may be enough: copies are known by their content.
    """
    stored = stored_of(local)
    traffic = traffic_of(server.log)
    assert len(traffic.targets) == len(set(traffic.targets))
    sent = {stored[key].sha256 for key in traffic.targets}
    assert sent == {one.sha256 for one in stored.values()}
    assert traffic.target_bytes == sum(stored[key].bytes for key in traffic.targets)
    assert traffic.failed == server.injected


def stored_of(local: Path) -> dict[str, StoredArray]:
    """Return all shards that training reads, by key."""
    cache = open_cache(local / "c")
    return {k: s for view in cache.views for k, s in stored_targets(cache, view, READ).items()}


def test_a_cache_on_s3_is_the_one_in_a_folder(
    s3: str,
    s3_server: tuple[str, int],
    local: Path,
    images: Path,
    teachers: Teachers,
    expected: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Precompute, verify, describe and train, with every tenth request failing."""
    assert s3
    url = "s3://bucket/whole/story"
    with FaultyServer(from_upstream(s3_server), Behavior(failing=0.1)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        build(url, images, teachers)
        assert server.injected > 10
        assert verify(url).ok
        assert describe(url).complete
        location = locate(url)
        on_disk = {p.relative_to(local / "c"): p for p in (local / "c").rglob("*") if p.is_file()}
        assert {str(path) for path in on_disk} == set(location.keys())
        for path, file in on_disk.items():
            assert location.read(str(path)) == file.read_bytes(), path
        server.clear()
        server.behavior = CUT
        assert_equal(train(url, tmp_path / "out", images), expected)
        expect_shards_once(server, local)


def test_training_over_http_reads_each_shard_once(
    web: FaultyServer, local: Path, images: Path, expected: Any, tmp_path: Path
) -> None:
    web.behavior = CUT
    url = f"{web.url}/c"
    assert_equal(train(url, tmp_path / "one", images), expected)
    expect_shards_once(web, local)
    web.clear()
    assert_equal(train(url, tmp_path / "two", images), expected)
    traffic = traffic_of(web.log)
    assert (traffic.targets, traffic.samples) == ((), 0), "copies on this machine are enough"


def test_without_a_local_copy_shards_come_again(
    web: FaultyServer, local: Path, images: Path, expected: Any, tmp_path: Path
) -> None:
    web.behavior = Behavior(ranges=False)
    url, fields = f"{web.url}/c", {"local_copy_bytes": 0, "local_copy": str(tmp_path / "here")}
    assert_equal(train(url, tmp_path / "one", images, **fields), expected)
    stored, traffic = stored_of(local), traffic_of(web.log)
    assert sorted(traffic.targets) == sorted(stored), "the shards of a view, once an epoch"
    assert traffic.target_bytes == sum(one.bytes for one in stored.values())
    train(url, tmp_path / "two", images, **fields)
    assert sorted(traffic_of(web.log).targets) == sorted([*stored, *stored])
    assert not (tmp_path / "here").exists()
    assert not any(request.ranged for request in web.log)


def test_child_processes_decode_images_while_the_parent_reads(
    web: FaultyServer, local: Path, images: Path, expected: Any, tmp_path: Path
) -> None:
    assert_equal(train(f"{web.url}/c", tmp_path / "out", images, workers=2), expected)
    expect_shards_once(web, local)


def test_documents_do_not_grow_in_number_with_the_rows(tmp_path: Path) -> None:
    counts = []
    for name, rows in (("small", 20), ("large", 40)):
        encoding, logits = ENCODINGS["a"]
        make_cache(tmp_path / name, {"a": (encoding, logits[:rows])}, rows)
        with FaultyServer(from_folder(tmp_path)) as server:
            cache = open_cache(f"{server.url}/{name}", local_copy_bytes=0)
            assert cache.samples.rows.size == rows
            for view in cache.views:
                cache.read_units("a", view, range(-(-rows // 16)))
            found = traffic_of(server.log)
            counts.append(found.metadata)
            assert len(found.targets) == len(set(found.targets)) == 5 * -(-rows // 16)
            assert found.samples == 6 * -(-rows // 16)
    assert counts[0] == counts[1]


def test_the_command_line_takes_urls(
    web: FaultyServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{web.url}/c"
    for command in (["inspect"], ["status"], ["verify"], ["verify", "--quick"]):
        monkeypatch.setattr("sys.argv", ["logitcache", *command, url, "--json"])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 0
        assert json.loads(capsys.readouterr().out)["url"] == url


def test_a_secret_in_a_url_is_in_no_output(
    web: FaultyServer, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{web.url.replace('://', '://me:hidden-word@')}/c?sig=hidden-word"
    train(url, tmp_path / "out", images, epochs=1)
    assert "hidden-word" not in repr(open_cache(url))
    captured = capsys.readouterr()
    assert "hidden-word" not in captured.out + captured.err
    for folder, _, files in os.walk(tmp_path):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:  # noqa: PTH123, PTH118
                assert b"hidden-word" not in file.read(), name
    assert any("sig=hidden-word" in request.path for request in web.log)
