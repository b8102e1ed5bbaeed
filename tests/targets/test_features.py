"""Features reach a student with the rows, views and tokens they are of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.cache.format import names as cache_format
from logitcache.cache.read.reader import Cache, open_cache
from logitcache.encoding.dense import DenseEncoding
from logitcache.errors import UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.loader import loader
from logitcache.targets.selection import Targets
from logitcache.views.spec import parse_view
from logitcache.views.tokens import kept_tokens
from tests.cache.building import make_cache

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.batch import TargetBatch

Teachers = dict[str, dict[str, Any]]

UNIT, SMALL = 16, 4
FEATURES: dict[str, Any] = {
    "layer1": {"values": "int8", "scale": "channel"},
    "stem": {"tokens": 6},
    "pre_logits": {"views": 1},
}


@pytest.fixture(scope="module")
def path(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of two views whose maps lie in smaller units than its logits."""
    path = tmp_path_factory.mktemp("features") / "cache"
    red = {**teachers["red"], "features": FEATURES}
    values = {
        "cache": str(path),
        "data": str(images),
        "views": {"count": 2},
        "unit_rows": UNIT,
        "batch_size": 8,
        "teachers": {"cnn": teachers["cnn"], "red": red},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_format, "MAX_UNIT_BYTES", 128 * 8 * 8 * SMALL + 2**11)
        build_cache(PrecomputeConfig.parse(values, ""))
    return path


@pytest.fixture
def cache(path: Path) -> Cache:
    return open_cache(path)


def _epoch(cache: Cache, images: Path, epoch: int, **options: Any) -> list[TargetBatch]:
    options = {"batch_size": 10, "size": 8, "threads": 1, **options}
    with loader(cache, str(images), **options) as batches:
        return [targets for _, targets in batches.epoch(epoch)]


def test_units_are_as_large_as_their_rows_allow(cache: Cache) -> None:
    assert cache.teacher("red").unit_rows == UNIT
    assert cache.tap("red/layer1").unit_rows == SMALL
    assert cache.tap("red/pre_logits").unit_rows == UNIT
    assert cache.manifest.teachers["red"].canonical_batch == SMALL
    assert cache.manifest.teachers["cnn"].canonical_batch == 8


@pytest.mark.parametrize("target_memory", [1, 2**20, 2**30])
def test_every_row_gets_its_own_features(cache: Cache, images: Path, target_memory: int) -> None:
    names = ["red/layer1", "red/stem"]
    seen: list[int] = []
    for epoch in range(2):
        for targets in _epoch(
            cache, images, epoch, features=names, target_memory=target_memory, teachers=["red"]
        ):
            view_id = _view_of(cache, images, epoch, names)
            view = parse_view(cache.views[view_id], "")
            for name in names:
                group = cache.tap(name)
                whole = group.encoding.decode(cache.read(group.name, view_id, 0, 64))
                features = targets.features[name]
                assert features.layout == group.encoding.layout
                np.testing.assert_array_equal(features.values, whole[targets.rows])
            positions = targets.features["red/stem"].positions
            assert positions is not None
            hashes = cache.samples.hashes[targets.rows]
            np.testing.assert_array_equal(positions, kept_tokens(view, hashes, 64, 6))
            assert targets.features["red/layer1"].positions is None
            seen += targets.rows.tolist()
    assert sorted(seen) == sorted([*cache.samples.readable.tolist()] * 2)


def test_larger_units_are_kept_while_the_next_epoch_is_read(cache: Cache, images: Path) -> None:
    """Windows are cut of units of logits, of another view as soon as the next epoch is read."""
    options: dict[str, Any] = {"batch_size": 10, "size": 8, "threads": 1, "target_memory": 1}
    with loader(cache, str(images), features=["red/layer1"], **options) as batches:
        followed = [[targets for _, targets in batches] for _ in range(3)]
    for epoch, got in enumerate(followed):
        expected = _epoch(cache, images, epoch, features=["red/layer1"], target_memory=1)
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours.rows, theirs.rows)
            held, kept = ours.features["red/layer1"], theirs.features["red/layer1"]
            assert torch.equal(held.values, kept.values)
            for name, logits in theirs.teachers.items():
                assert torch.equal(ours.teachers[name].log_probs, logits.log_probs)


def _view_of(cache: Cache, images: Path, epoch: int, names: list[str]) -> str:
    with loader(cache, str(images), features=names, size=8) as batches:
        return batches.view(epoch).id


def test_epochs_walk_the_views_that_all_taps_have(cache: Cache, images: Path) -> None:
    assert len(Targets.of(cache, ["red"]).views) == 2
    assert len(Targets.of(cache, ["red"], ["red/pre_logits"]).views) == 1
    first = _epoch(cache, images, 0, features=["red/pre_logits"], teachers=[])
    second = _epoch(cache, images, 1, features=["red/pre_logits"], teachers=[])
    rows = {int(r): v for t in first for r, v in _pooled(t)}
    for targets in second:
        assert not targets.teachers
        for row, values in _pooled(targets):
            torch.testing.assert_close(values, rows[int(row)], rtol=0, atol=0)


def _pooled(targets: TargetBatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(targets.rows, targets.features["red/pre_logits"].values, strict=True))


def test_the_control_moves_features_with_their_tokens(cache: Cache) -> None:
    names = ["red/stem", "red/layer1"]
    targets = Targets.of(cache, ["red"], names, shuffled=True)
    own = Targets.of(cache, ["red"], names)
    view = next(iter(own.views.values()))
    rows = cache.samples.readable[:UNIT]
    units = tuple(sorted({int(row) // SMALL for row in rows}))
    moved = targets.reader.read(view, units, SMALL).gather(rows)
    still = own.reader.read(view, units, SMALL).gather(rows)
    values, all_values = moved.features["red/stem"].values, still.features["red/stem"].values
    positions = moved.features["red/stem"].positions
    assert positions is not None
    assert still.features["red/stem"].positions is not None
    others = 0
    for row in range(len(rows)):
        same = [i for i in range(len(rows)) if torch.equal(values[row], all_values[i])]
        assert len(same) == 1
        others += same[0] != row
        torch.testing.assert_close(positions[row], still.features["red/stem"].positions[same[0]])
    assert others > 0


def test_an_unknown_tap_offers_the_nearest(cache: Cache) -> None:
    with pytest.raises(UsageError, match="did you mean 'red/layer1'"):
        Targets.of(cache, ["red"], ["red/layer2"])


def test_memory_sets_the_window_and_counts_the_larger_units(cache: Cache) -> None:
    reader = Targets.of(cache, ["red"], ["red/layer1"]).reader
    assert reader.unit_rows == SMALL
    assert reader.held_bytes == UNIT * (3 * 2)  # float16 logits of three classes
    assert reader.row_bytes == 128 * 8 * 8 + 128 * 2 + 3 * 2
    assert Targets.of(cache, ["red"], ["red/layer1"], target_memory=1).window_rows == 1
    other_bytes = 40  # digest, partner, and place in the order
    enough = 3 * 100 * (reader.row_bytes + other_bytes) + reader.held_bytes
    few = Targets.of(cache, ["red"], ["red/layer1"], target_memory=enough)
    assert few.window_rows == 100


def test_a_cache_without_taps_says_how_to_add_one(tmp_path: Path) -> None:
    logits_BC = np.zeros((UNIT, 3), dtype=np.float32)
    make_cache(tmp_path / "c", {"red": (DenseEncoding(3), logits_BC)}, UNIT)
    with pytest.raises(UsageError, match="--feature red=layer1") as caught:
        open_cache(tmp_path / "c").tap("red/layer1")
    assert caught.value.what == "no features 'red/layer1' in this cache"
