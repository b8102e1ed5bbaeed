"""Students that get their images from the cache: the same batches, losses and weights."""

from __future__ import annotations

import json
import pickle
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from torch.utils.data import DataLoader

from logitcache.cache.read.cached_images import CachedImages
from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.errors import CacheDamaged, DataMismatch, StorageError, UsageError
from logitcache.files import write_file
from logitcache.precompute.build import build_cache
from logitcache.share.transfer import pull
from logitcache.targets.cached_dataset import CachedDataset
from logitcache.targets.images.image_rows import CheckedReader, match_rows
from logitcache.targets.loader import loader
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.precompute.test_packing import as_folder, packed
from tests.remote.servers import Behavior, FaultyServer, from_folder
from tests.remote.test_training import STUDENT, assert_equal, train

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def cache(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache with images, of views that mix them, too."""
    path = tmp_path_factory.mktemp("served") / "c"
    views = {"count": 2, "mixup_alpha": 0.5}
    build_cache(packed(path, images, {"red": teachers["red"]}, views=views))
    return path


@pytest.fixture(scope="module")
def folder(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the images in the cache as a folder."""
    return as_folder(cache, tmp_path_factory.mktemp("folder"))


@pytest.fixture(autouse=True)
def _own_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))


@pytest.fixture(scope="module")
def expected(cache: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the losses and weights of a run that reads a folder."""
    out = tmp_path_factory.mktemp("expected")
    return train(str(cache), out, folder), losses(out)


def losses(out: Path) -> list[float]:
    """Return the losses of all epochs."""
    log = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in log if entry["event"] == "epoch"]


def train_without_data(url: str, out: Path, **fields: Any) -> dict[str, torch.Tensor]:
    """Train as ``train`` does, from the cache alone."""
    values: dict[str, Any] = {
        "out": str(out),
        "cache": url,
        "student": STUDENT,
        "epochs": 2,
        "batch_size": 16,
        "threads": 2,
    }
    train_student(TrainConfig.parse({**values, **fields}, ""))
    return dict(timm.create_model(f"local-dir:{out / 'export'}", pretrained=True).state_dict())


@pytest.mark.parametrize("workers", [0, 2])
def test_losses_and_weights_equal_those_of_a_folder(
    cache: Path, expected: Any, tmp_path: Path, workers: int
) -> None:
    weights = train_without_data(str(cache), tmp_path, workers=workers)
    assert_equal(weights, expected[0])
    assert losses(tmp_path) == expected[1]
    assert expected[1]


def test_batches_equal_those_of_a_folder(cache: Path, folder: Path) -> None:
    opened = open_cache(cache)
    with (
        loader(opened, batch_size=16, size=8) as own,
        loader(opened, str(folder), batch_size=16, size=8) as other,
    ):
        for epoch in range(2):
            pairs = zip(own.epoch(epoch), other.epoch(epoch), strict=True)
            for (images, targets), (images_2, targets_2) in pairs:
                assert torch.equal(images, images_2)
                assert torch.equal(targets.rows, targets_2.rows)
                assert torch.equal(targets.labels, targets_2.labels)


def test_items_of_a_map_style_data_set_equal_those_of_a_folder(cache: Path, folder: Path) -> None:
    opened = open_cache(cache)
    own, other = (CachedDataset(opened, data, size=8) for data in (None, str(folder)))
    assert len(own) == len(other) == 60
    batches = DataLoader(own, 16, num_workers=2, collate_fn=own.collate)
    seen = torch.cat([images for images, _ in batches])
    assert torch.equal(seen, torch.stack([other[index][0] for index in range(60)]))


def test_originals_are_refused_by_name(cache: Path, images: Path, tmp_path: Path) -> None:
    for use in (loader, CachedDataset):
        with pytest.raises(DataMismatch, match=r"original images[\s\S]*omit --data"):
            use(open_cache(cache), str(images), size=8)
    with pytest.raises(DataMismatch, match="original images"):
        train(str(cache), tmp_path, images)


def test_without_images_anywhere_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data is missing"):
        TrainConfig.parse({"out": str(tmp_path), "student": STUDENT, "epochs": 1}, "")


def test_a_copy_for_another_process_reads_the_same(cache: Path) -> None:
    source = CachedImages(open_cache(cache))
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.read(index) for index in range(60)] == [source.read(i) for i in range(60)]
    assert list(copy.keys) == list(source.keys)
    np.testing.assert_array_equal(copy.sizes, source.sizes)


@pytest.fixture
def web(cache: Path) -> Iterator[FaultyServer]:
    with FaultyServer(from_folder(cache.parent)) as server:
        yield server


def content_requests(server: FaultyServer) -> list[bool]:
    """Return whether each request for the bytes of images was for a part."""
    return [bool(r.ranged) for r in server.log if "/images/content/c/" in r.path]


def test_a_student_needs_the_url_alone(web: FaultyServer, expected: Any, tmp_path: Path) -> None:
    """With 30 ms of latency; a second run reads the copies of whole shards."""
    web.behavior = Behavior(latency=0.03)
    url = f"{web.url}/c"
    assert_equal(train_without_data(url, tmp_path / "one"), expected[0])
    assert losses(tmp_path / "one") == expected[1]
    assert True in content_requests(web), "the first images come before any whole shard"
    whole = content_requests(web).count(False)
    assert 1 <= whole <= 4, "each of the four units is copied once"
    web.clear()
    assert_equal(train_without_data(url, tmp_path / "two"), expected[0])


def test_without_room_for_copies_each_image_is_requested(
    web: FaultyServer, expected: Any, tmp_path: Path
) -> None:
    url = f"{web.url}/c"
    weights = train_without_data(url, tmp_path / "out", local_copy_bytes=200_000)
    assert_equal(weights, expected[0])
    assert set(content_requests(web)) == {True}


def test_a_server_that_sends_no_parts_is_enough(
    web: FaultyServer, expected: Any, tmp_path: Path
) -> None:
    web.behavior = Behavior(ranges=False)
    url = f"{web.url}/c"
    assert_equal(train_without_data(url, tmp_path / "out"), expected[0])
    with pytest.raises(StorageError):
        train_without_data(url, tmp_path / "none", local_copy_bytes=0)


def test_a_copy_of_some_views_contains_the_images(
    cache: Path, web: FaultyServer, tmp_path: Path
) -> None:
    pull(f"{web.url}/c", tmp_path / "part", views=1)
    part = open_cache(tmp_path / "part")
    assert verify(tmp_path / "part").ok
    assert len(part.views) == 1
    with loader(part, batch_size=16, size=8) as batches:
        assert sum(len(targets) for _, targets in batches) == 60
    own, whole = CachedImages(part), CachedImages(open_cache(cache))
    assert [own.read(index) for index in range(60)] == [whole.read(i) for i in range(60)]


@pytest.mark.requirement("F11.28.1")
def test_an_image_with_another_digest_is_refused_every_time(cache: Path, tmp_path: Path) -> None:
    """Also after it was read once: a file may change while it is used."""
    shutil.copytree(cache, tmp_path / "c")
    source = CachedImages(open_cache(tmp_path / "c"))
    before = source.read(0)
    shard = tmp_path / "c" / "images" / "content" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    at = content.index(before)
    content[at + 200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheDamaged, match="not the one that was committed"):
        source.read(0)


def test_a_repaired_shard_is_read_by_those_who_had_the_damaged_one_open(
    cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(cache, tmp_path / "c")
    shard = tmp_path / "c" / "images" / "content" / "c" / "0" / "0"
    good = shard.read_bytes()
    write_file(shard, bytes(len(good)))
    source = CachedImages(open_cache(tmp_path / "c"))
    with pytest.raises(CacheDamaged, match="not the one that was committed"):
        source.read(0)
    write_file(shard, good)
    assert source.read(0) == CachedImages(open_cache(cache)).read(0)


def test_digests_of_images_in_the_cache_itself_are_compared_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But images of another cache, given as data, are compared with the digests of this one."""
    shutil.copytree(cache, tmp_path / "c")
    own, other = open_cache(cache), open_cache(tmp_path / "c")
    assert match_rows(own, CachedImages(own)).digests is None
    rows = match_rows(own, CachedImages(other))
    monkeypatch.setattr(rows.source, "read", lambda index: b"another image")
    with pytest.raises(DataMismatch, match="not the one that the teachers were given"):
        CheckedReader(rows)(0)
