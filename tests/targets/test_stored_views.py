"""Students that are shown the views in a cache: the same pixels, losses and weights everywhere."""

from __future__ import annotations

import pickle
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import simplejpeg
import torch
import zarr
from torch.utils.data import DataLoader

from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.errors import CacheDamaged, DataMismatch, PixelDrift, UsageError
from logitcache.precompute.build import build_cache
from logitcache.share.transfer import pull, push
from logitcache.targets.cached_dataset import CachedDataset
from logitcache.targets.images.fingerprint_check import check_fingerprints
from logitcache.targets.images.image_rows import match_rows
from logitcache.targets.images.image_source import images_of
from logitcache.targets.loader import loader
from tests.precompute.test_stored_views import square, stored
from tests.remote.servers import Behavior, FaultyServer, from_folder
from tests.remote.test_training import STUDENT, assert_equal
from tests.targets.test_images_in_cache import losses, train_without_data

if TYPE_CHECKING:
    from pathlib import Path

KWARGS: Any = STUDENT["kwargs"]
Teachers = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def red(teachers: Teachers) -> Teachers:
    """Return a single teacher."""
    return {"red": teachers["red"]}


@pytest.fixture(scope="module")
def cache(images: Path, red: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of stored views that mix images."""
    path = tmp_path_factory.mktemp("served") / "c"
    build_cache(stored(path, images, red, views={"count": 2, "mixup_alpha": 0.5}))
    return path


@pytest.fixture(scope="module")
def turned(images: Path, red: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of stored views and of views that are derived from them."""
    path = tmp_path_factory.mktemp("turned") / "c"
    build_cache(stored(path, images, red, views={"count": 1, "derive": ["rot90(1)"]}))
    return path


@pytest.fixture(autouse=True)
def _own_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))


def pixels_of(path: Path, view_id: str, row: int) -> Any:
    """Return a decoded square, uint8 (S, S, 3), by zarr, numpy and simplejpeg alone."""
    root: Any = zarr.open_group(str(path), mode="r")
    return simplejpeg.decode_jpeg(square(root, view_id, row), "RGB")


@pytest.mark.requirement("V9.7")
def test_a_mixed_batch_is_the_stated_mixture_of_stored_squares(cache: Path) -> None:
    """By the formula of docs/views.md, with the stored partners and the share of a batch."""
    opened = open_cache(cache)
    data = CachedDataset(opened, size=8, normalize=False)
    view_id = data.view
    partners = opened.partners(view_id)
    mixed = 0
    for index in range(len(data)):
        pixels, targets = data[index]
        row = int(targets.rows[0])
        own, other = (pixels_of(cache, view_id, r) for r in (row, int(partners[row])))
        assert targets.lam is not None
        share = round(65536 * float(targets.lam[0]))
        both = share * own.astype(np.int64) + (65536 - share) * other.astype(np.int64)
        expected = (both + 32768) // 65536
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)
        mixed += share < 65536
    assert mixed > 30


@pytest.mark.requirement("V9.7")
def test_a_batch_of_derived_views_is_turned_after_decoding(turned: Path) -> None:
    opened = open_cache(turned)
    base, derived = opened.views
    found = {}
    for view_id in (base, derived):
        data = CachedDataset(opened, size=8, normalize=False, view=view_id)
        found[view_id] = [data[index][0].permute(1, 2, 0).numpy() for index in range(len(data))]
    rows = data.rows.numbers.take(np.arange(len(data)))
    for index, row in enumerate(rows.tolist()):
        pixels = pixels_of(turned, base, row)
        np.testing.assert_array_equal(found[base][index], pixels)
        np.testing.assert_array_equal(found[derived][index], np.rot90(pixels))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_shows_a_group_of_stored_views(turned: Path, workers: int) -> None:
    with loader(
        open_cache(turned), batch_size=16, size=8, show=("base", "rot90(1)"), workers=workers
    ) as batches:
        for images, targets in batches.epoch(0):
            half = len(images) // 2
            assert torch.equal(images[half:], torch.rot90(images[:half], 1, (2, 3)))
            assert targets.views == ("base", "rot90(1)")


def test_a_map_style_data_set_reads_stored_views_in_worker_processes(cache: Path) -> None:
    data = CachedDataset(open_cache(cache), size=8)
    batches = DataLoader(data, 16, num_workers=2, collate_fn=data.collate)
    seen = torch.cat([images for images, _ in batches])
    assert torch.equal(seen, torch.stack([data[index][0] for index in range(len(data))]))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[5][0], data[5][0])


def test_other_images_are_refused_by_name(cache: Path, images: Path) -> None:
    for use in (loader, CachedDataset):
        with pytest.raises(DataMismatch, match=r"views of its images[\s\S]*omit --data"):
            use(open_cache(cache), str(images), size=8)


@pytest.mark.requirement("V9.8")
def test_another_size_is_refused_before_the_first_step(cache: Path, tmp_path: Path) -> None:
    for use in (loader, CachedDataset):
        with pytest.raises(UsageError, match=r"one size[\s\S]*8 pixels[\s\S]*16 pixels"):
            use(open_cache(cache), size=16)
    with (
        loader(open_cache(cache), size=8, batch_size=16) as batches,
        pytest.raises(UsageError, match="one size"),
    ):
        batches.set_size(12)
    with pytest.raises(UsageError, match="one size"):
        train_without_data(
            str(cache), tmp_path, student={**STUDENT, "kwargs": {**KWARGS, "img_size": 16}}
        )


@pytest.mark.requirement("V9.9")
def test_pixels_that_are_decoded_otherwise_are_found(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check needs no original image."""
    opened = open_cache(cache)
    source = images_of(opened, None)
    report = check_fingerprints(opened, source, rows=match_rows(opened, source))
    assert report.checked >= 60
    assert report.skipped == report.drifted == 0

    def darker(image: Any, table: int = 2, on_odd: Any = None) -> torch.Tensor:
        pixels = torch.from_numpy(simplejpeg.decode_jpeg(image, "RGB")).permute(2, 0, 1)
        return torch.clamp(pixels, min=1) - 1

    monkeypatch.setattr("logitcache.views.fingerprints.decode", darker)
    with pytest.raises(PixelDrift, match=r"by up to [12] of 255"):
        check_fingerprints(opened, source)


@pytest.mark.requirement("F11.28.1")
def test_a_square_with_another_digest_is_refused(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "c")
    opened = open_cache(tmp_path / "c")
    view_id = next(iter(opened.views))
    assert opened.squares is not None
    row = int(opened.samples.readable[0])
    before = opened.squares.read(view_id, row)
    shard = tmp_path / "c" / "squares" / view_id / "content" / "c" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[content.index(before) + 200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CacheDamaged, match="not the one that was committed"):
        opened.squares.read(view_id, row)


def test_losses_and_weights_from_a_distant_url_equal_those_of_a_local_run(
    cache: Path, tmp_path: Path
) -> None:
    """With 30 ms of latency, pushed first; threads here, worker processes there."""
    expected = train_without_data(str(cache), tmp_path / "local", workers=2)
    push(cache, tmp_path / "shelf" / "c")
    with FaultyServer(from_folder(tmp_path / "shelf")) as web:
        web.behavior = Behavior(latency=0.03)
        assert_equal(train_without_data(f"{web.url}/c", tmp_path / "url"), expected)
        assert any("/squares/" in request.path for request in web.log)
    assert losses(tmp_path / "url") == losses(tmp_path / "local")
    assert losses(tmp_path / "local")


def test_a_pulled_part_has_the_squares_of_its_views(turned: Path, tmp_path: Path) -> None:
    push(turned, tmp_path / "all")
    assert verify(tmp_path / "all").ok
    pull(turned, tmp_path / "part", views=1)
    assert verify(tmp_path / "part").ok
    part = open_cache(tmp_path / "part")
    assert len(part.views) == 1
    assert locate(tmp_path / "part").bytes_below("squares")
    with loader(part, batch_size=16, size=8) as batches:
        assert sum(len(targets) for _, targets in batches) == 60
