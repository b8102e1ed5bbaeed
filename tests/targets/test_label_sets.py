"""Label sets in batches: of the loader, of rows, of the map-style data set; mixed and hidden."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import logitcache
from logitcache import CachedDataset, DataConfig, open_cache
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.images.image_rows import match_rows, number_rows
from tests.conftest import write_teacher
from tests.label_set_images import TAGS, sets_of, write_listing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from logitcache.batch import TargetBatch
    from logitcache.targets.cache_targets import Cache

Made = tuple[Any, DataConfig, dict[str, list[str] | None]]


@pytest.fixture(scope="module", params=[{}, {"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def made(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    """Return a cache of label sets whose only view may mix images, its images and their sets."""
    root = tmp_path_factory.mktemp("sets")
    teacher = write_teacher(root / "teacher", classes=len(TAGS), model="cnn")
    data = write_listing(images, root / "t.jsonl")
    config = {
        "cache": str(root / "cache"),
        "data": data,
        "teachers": {"t": {"model": f"local-dir:{teacher}"}},
        "unit_rows": 16,
        "views": {"count": 1, **request.param},
    }
    build_cache(PrecomputeConfig.parse(config, ""))
    return open_cache(root / "cache"), DataConfig(**data), sets_of(images)


def by_hand(cache: Cache, sets: dict[str, list[str] | None], targets: TargetBatch) -> torch.Tensor:
    """Return the label sets of a batch, from the names of the classes of each image."""

    def indicator(row: int) -> torch.Tensor:
        tags = sets[cache.samples.keys[row]]
        if tags is None:
            return torch.full((len(TAGS),), torch.nan)
        return torch.tensor([float(tag in tags) for tag in TAGS])

    rows = targets.rows.tolist()
    if targets.lam is None:
        return torch.stack([indicator(row) for row in rows])
    partners = cache.partners(next(iter(cache.views)))
    found = []
    for row, share in zip(rows, targets.lam.tolist(), strict=True):
        own = indicator(row)
        found.append(own if share == 1 else share * own + (1 - share) * indicator(partners[row]))
    return torch.stack(found)


def assert_equal(found: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=1e-6)


def test_batches_of_the_loader_have_sets(made: Made) -> None:
    cache, data, sets = made
    seen = 0
    with logitcache.loader(cache, data, batch_size=16, size=8) as batches:
        for _, targets in batches.epoch(0):
            assert (targets.labels == -1).all()
            assert_equal(targets.label_sets, by_hand(cache, sets, targets))
            seen += len(targets)
    assert seen == 60


def test_targets_of_rows_and_the_data_set_have_the_same_sets(made: Made) -> None:
    cache, data, sets = made
    rows = cache.samples.readable[::-1].copy()
    found = cache.targets(rows)
    expected = by_hand(cache, sets, found)
    assert_equal(found.label_sets, expected)
    items: Any = pickle.loads(pickle.dumps(CachedDataset(cache, data, size=8)))
    order = items.rows.numbers.find(rows)
    _, joined = CachedDataset.collate([items[int(place)] for place in order])
    assert_equal(joined.label_sets, expected)
    assert_equal(items.__getitems__(order.tolist()).targets.label_sets, expected)
    assert items.label_sets == cache.samples.label_sets.take(items.rows.numbers.take(np.arange(60)))


def test_hidden_sets_are_unknown(made: Made) -> None:
    cache, data, sets = made
    rows = match_rows(cache, logitcache.open_source(data))
    known = rows.is_labeled(np.arange(len(rows)))
    assert rows.labeled == sum(tags is not None for tags in sets.values())
    rows.visible = np.arange(len(rows)) % 2 == 0
    assert (rows.is_labeled(np.arange(len(rows))) == known & rows.visible).all()


def test_sets_of_a_source_need_no_cache(images: Path, tmp_path: Path) -> None:
    source = logitcache.open_source(DataConfig(**write_listing(images, tmp_path / "t.jsonl")))
    rows, sets = number_rows(source), sets_of(images)
    found = rows.label_sets_of(np.arange(len(rows)))
    for position in range(len(rows)):
        tags, labels = sets[rows.key(position)], found[position]
        assert (None if labels is None else [TAGS[n] for n in labels]) == tags


def test_images_with_one_class_have_no_sets(cache: Cache, images: Path) -> None:
    def batches() -> Iterator[TargetBatch]:
        with logitcache.loader(cache, str(images), batch_size=16, size=8) as found:
            yield next(iter(found))[1]
        yield logitcache.open_cache(cache.url).targets([0, 1])

    for targets in batches():
        assert targets.label_sets is None
        assert (targets.labels >= 0).all()
    assert CachedDataset(cache, str(images), size=8).label_sets is None
