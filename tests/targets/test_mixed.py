"""Mixed, turned, masked and low-resolution views: the student sees what the teachers saw."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.cache.read.reader import open_cache
from logitcache.data.decode import decode
from logitcache.data.readers import open_source
from logitcache.errors import CacheDamaged, UnreadableImage, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.run import source_renderer as feed
from logitcache.targets.images.image_rows import match_rows, number_rows
from logitcache.targets.loader import Loader, loader
from logitcache.targets.mixing_pairs import find_pairs
from logitcache.targets.settings import LoaderSettings
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.render import finish, picture
from logitcache.views.spec import View, ViewsConfig, parse_view
from tests.conftest import jpeg, shape_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.batch import TargetBatch
    from logitcache.cache.read.reader import Cache

Teachers = dict[str, dict[str, str]]

VIEWS = {
    "count": 2,
    "eval": True,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "re_prob": 0.5,
    "re_mode": "rand",
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "derive": ["rot90(1)", "mask(0.5)", "lowres(2)"],
}


class Spy:
    """Keeps what the teachers are shown, by view and row; in two sizes."""

    def __init__(self) -> None:
        self.shown: dict[tuple[str, int], NDArray[np.uint8]] = {}

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        batches = feed.SourceRenderer.batches
        shown = self.shown

        def watched(self: Any, view_id: str, starts: Any, block: Any) -> Iterator[Any]:
            for batch in batches(self, view_id, starts, block):
                for position, pixels in enumerate(batch.pixels[8]):
                    if block.digests.any():
                        shown[view_id, batch.start + position] = pixels.copy()
                yield batch

        monkeypatch.setattr(feed.SourceRenderer, "batches", watched)


@pytest.fixture(scope="module")
def built(
    images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Spy]:
    path, spy = tmp_path_factory.mktemp("mixed") / "cache", Spy()
    values = {
        "cache": str(path),
        "data": str(images),
        "teachers": {"cnn": teachers["cnn"]},
        "views": VIEWS,
        "unit_rows": 16,
        "batch_size": 8,
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        spy.watch(monkeypatch)
        build_cache(PrecomputeConfig.parse(values, ""))
    return path, spy


@pytest.fixture
def cache(built: tuple[Path, Spy]) -> Cache:
    return open_cache(built[0])


def all_epochs(cache: Cache, images: Path, **settings: Any) -> dict[tuple[str, int], Any]:
    """Return (pixels, labels, partner's labels, share, answers) by view and row."""
    found = loader(cache, str(images), size=8, mean=(0, 0, 0), std=(1 / 255,) * 3, **settings)
    shown = {}
    with found:
        for epoch in range(len(cache.views)):
            view = found.view(epoch)
            for pixels, targets in found.epoch(epoch):
                for i, row in enumerate(targets.rows.tolist()):
                    shown[view.id, row] = (pixels[i], *of_row(targets, i))
    return shown


def of_row(targets: TargetBatch, i: int) -> tuple[Tensor, ...]:
    mixed = () if targets.lam is None else (targets.partner_labels[i], targets.lam[i])  # type: ignore[index]  # they come together
    answers = tuple(t.log_probs[i] for t in targets.teachers.values())
    return (targets.labels[i], *mixed, *answers)


@pytest.mark.requirement("V1.1", "V4.21")
def test_students_see_the_teachers_pixels(
    cache: Cache, built: tuple[Path, Spy], images: Path
) -> None:
    """Every view, every row, to the byte; and mixed ones are really mixed."""
    shown = all_epochs(cache, images)
    assert len(shown) == 60 * len(cache.views) == 60 * 9
    for (view_id, row), (pixels, *_) in shown.items():
        assert torch.equal(pixels.round().byte(), torch.from_numpy(built[1].shown[view_id, row]))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 7, "threads": 1, "target_memory": 1},
        {"seed": 3, "threads": 4},
        {"batch_size": 9, "workers": 2, "seed": 5},
    ],
)
def test_batches_order_threads_and_workers_change_nothing(
    cache: Cache, images: Path, settings: dict[str, Any]
) -> None:
    expected = all_epochs(cache, images)
    got = all_epochs(cache, images, **settings)
    assert got.keys() == expected.keys()
    for address, values in expected.items():
        torch.testing.assert_close(got[address], values, rtol=0, atol=0)


@pytest.mark.requirement("V4.19")
def test_labels_and_shares_are_those_of_the_pairs(cache: Cache, images: Path) -> None:
    source = open_source(str(images))
    label = dict(zip(source.keys, source.labels.tolist(), strict=True))
    keys = cache.samples.keys
    for (view_id, row), (_, own, *rest) in all_epochs(cache, images).items():
        view = parse_view(cache.views[view_id], "")
        assert int(own) == label[keys[row]]
        if view.mixing is None:
            assert len(rest) == 1
            continue
        partner = int(cache.partners(view_id)[row])
        assert partner // 16 == row // 16
        assert int(rest[0]) == label[keys[partner]]
        assert 0 <= float(rest[1]) <= 1


def by_hand(view: View, size: int, images: Path, cache: Cache, row: int) -> Tensor:
    """Render one row with nothing but functions of one image."""
    source, samples = open_source(str(images)), cache.samples
    position = {key: index for index, key in enumerate(source.keys)}

    def one(row: int) -> Any:
        image = decode(source.read(position[samples.keys[row]]))
        floats = view_floats(view, samples.hashes[row : row + 1])
        how = parameters(view, [f[0].tolist() for f in floats], *image.shape[1:])
        return how, picture(image, how, size, view.interpolation)

    how, own = one(row)
    partner = int(cache.partners(view.id)[row])
    other = None if partner == row else one(partner)[1]
    return finish(own, how, view.interpolation, other)


@pytest.mark.requirement("V4.9", "V4.18")
def test_two_sizes_share_shares_and_boxes(cache: Cache, images: Path) -> None:
    mixed = [parse_view(r, "") for r in cache.views.values()]
    view = next(v for v in mixed if v.mixing and v.base is None)
    shown: dict[int, dict[int, Any]] = {8: {}, 24: {}}
    for size, rows in shown.items():
        found = loader(cache, str(images), size=size, mean=(0, 0, 0), std=(1 / 255,) * 3)
        epoch = [found.view(e).id for e in range(9)].index(view.id)
        with found:
            for pixels, targets in found.epoch(epoch):
                for i, row in enumerate(targets.rows.tolist()):
                    rows[row] = (pixels[i], *of_row(targets, i))
    for row in shown[8]:
        torch.testing.assert_close(shown[8][row][1:], shown[24][row][1:], rtol=0, atol=0)
    for row in list(shown[24])[::9]:
        expected = by_hand(view, 24, images, cache, row)
        assert torch.equal(shown[24][row][0].round().byte(), expected)


@pytest.mark.requirement("V4.23")
def test_derived_views_share_partners_and_shares(cache: Cache, images: Path) -> None:
    views = {view_id: parse_view(recipe, "") for view_id, recipe in cache.views.items()}
    shown = all_epochs(cache, images)
    for view_id, view in views.items():
        if view.base is None:
            continue
        assert (cache.partners(view_id) == cache.partners(view.base)).all()
        for row in cache.samples.readable.tolist():
            pixels, base = shown[view_id, row], shown[view.base, row]
            torch.testing.assert_close(pixels[1:4], base[1:4], rtol=0, atol=0)
            if view.operations[-1].name == "rot90":
                assert torch.equal(pixels[0], torch.rot90(base[0], 1, (1, 2)))


def test_pairs_are_shown_together(cache: Cache, images: Path) -> None:
    found = loader(cache, str(images), batch_size=60, size=8)
    with found:
        for epoch in range(9):
            view = found.view(epoch)
            ((_, targets),) = found.epoch(epoch)
            if view.mixing is None:
                continue
            rows, partners = targets.rows.tolist(), cache.partners(view.id)
            apart = [abs(rows.index(int(partners[row])) - rows.index(row)) for row in rows]
            assert max(apart) <= 1


@pytest.mark.requirement("V4.22")
def test_a_subset_drops_rows_that_lost_their_partner(
    cache: Cache, images: Path, tmp_path: Path
) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    for name in ("bird/004.jpg", "cat/011.jpg", "dog/000.jpg"):
        (fewer / name).unlink()
    gone = {
        row for row in cache.samples.rows.tolist() if not (fewer / cache.samples.keys[row]).exists()
    }
    with loader(cache, str(fewer), size=8, batch_size=5, subset=True) as found:
        for epoch in range(9):
            view = found.view(epoch)
            rows = [row for _, targets in found.epoch(epoch) for row in targets.rows.tolist()]
            lost = set() if view.mixing is None else {int(cache.partners(view.id)[g]) for g in gone}
            assert set(rows) == set(cache.samples.readable.tolist()) - gone - lost
            assert found.images_of(epoch) == len(rows)
            assert found.batches_of(epoch) == -(-len(rows) // 5)


def test_without_a_cache_all_images_are_matched(images: Path) -> None:
    source = open_source(str(images))
    views = ViewsConfig(mixup_alpha=1.0)
    settings = LoaderSettings(batch_size=60, size=8)
    with Loader(number_rows(source), settings, views=views) as found:
        ((_, targets),) = found.epoch(0)
    assert targets.lam is not None
    assert 0.2 < float(targets.lam.mean()) < 0.8
    assert len(set(targets.lam.tolist())) > 50


@pytest.mark.requirement("F5.7", "V4.20")
def test_a_block_with_an_unreadable_image_pairs_the_others(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    """The very first view mixes, so samples come first: a partner must be known to be readable."""
    damaged = tmp_path / "damaged"
    shutil.copytree(images, damaged)
    victim = damaged / "cat" / "007.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    values = {
        "cache": str(tmp_path / "c"),
        "data": str(damaged),
        "teachers": {"cnn": teachers["cnn"]},
        "views": {"count": 1, "mixup_alpha": 1.0},
        "unit_rows": 16,
        "batch_size": 8,
        "on_bad_image": "skip",
    }
    summary = build_cache(PrecomputeConfig.parse(values, ""))
    assert (summary.unreadable, summary.accuracy) == (1, {"cnn": {}})
    cache = open_cache(tmp_path / "c")
    (view_id,) = cache.views
    partners, readable = cache.partners(view_id), cache.samples.readable
    assert (partners[partners[readable]] == readable).all()
    assert (np.delete(partners, readable) == -1).all()
    (damaged / "bird" / "new.jpg").write_bytes(jpeg(shape_image(77)))
    build_cache(PrecomputeConfig.parse(values, ""))
    grown = open_cache(tmp_path / "c")
    assert (grown.partners(view_id)[: len(partners)] == partners).all()
    assert len(grown.samples.readable) == len(readable) + 1
    found = find_pairs(
        parse_view(grown.views[view_id], ""), match_rows(grown, open_source(str(damaged))), None
    )
    assert found is not None


def test_damaged_partners_are_not_used(
    built: tuple[Path, Spy], images: Path, tmp_path: Path
) -> None:
    shutil.copytree(built[0], tmp_path / "c")
    (shard, *_) = sorted((tmp_path / "c" / "views").glob("*/partner/c/1"))
    content = bytearray(shard.read_bytes())
    content[8] ^= 255
    shard.write_bytes(content)
    cache = open_cache(tmp_path / "c")
    with pytest.raises(CacheDamaged, match="partner"):
        cache.partners(shard.parts[-4])
    shard.write_bytes(b"")
    with pytest.raises(CacheDamaged, match="is damaged: empty"):
        cache.partners(shard.parts[-4])


def test_an_image_that_cannot_be_decoded_is_named(images: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(images, other)
    victim = other / "dog" / "011.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    source = open_source(str(other))
    settings = LoaderSettings(batch_size=60, size=8)
    views = ViewsConfig(mixup_alpha=1.0)
    with (
        Loader(number_rows(source), settings, views=views) as found,
        pytest.raises(UnreadableImage, match=r"dog/011\.jpg"),
    ):
        list(found.epoch(0))


@pytest.mark.requirement("V4.17")
def test_pixel_noise_needs_one_size(images: Path, teachers: Teachers, tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "cache": str(tmp_path / "c"),
        "data": str(images),
        "teachers": {"cnn": teachers["cnn"]},
        "views": {"re_prob": 1.0, "re_mode": "pixel", "re_size": 24},
    }
    with pytest.raises(UsageError, match=r"one size only[\s\S]*24 pixels[\s\S]*8 pixels"):
        build_cache(PrecomputeConfig.parse(values, ""))
