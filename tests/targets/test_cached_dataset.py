"""Map-style access: the images and targets of the loader, in any order, in worker processes."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, Subset, WeightedRandomSampler

import logitcache
from logitcache.batch import TargetBatch
from logitcache.cache.format import names as cache_format
from logitcache.cache.write.exclude import withdraw_images
from logitcache.errors import DataMismatch, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.conftest import write_images
from tests.guides import section_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor

Teachers = dict[str, dict[str, str]]
Item = tuple["Tensor", TargetBatch]
SIZE = 8
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
"""``DataLoader`` forks by default before Python 3.14."""


@pytest.fixture(scope="module")
def mixed_path(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache with mixed and derived views, dense and sparse logits, and some tokens.

    Units of the features are smaller than those of the logits.
    """
    path = tmp_path_factory.mktemp("dataset") / "cache"
    shared = {
        "cache": str(path),
        "data": str(images),
        "views": {"count": 2, "eval": True, "cutmix_alpha": 1.0, "derive": ["rot90(1)"]},
        "unit_rows": 16,
        "batch_size": 8,
    }
    features = {"layer1": {"values": "int8", "scale": "channel"}, "stem": {"tokens": 6}}
    red = {**teachers["red"], "features": features}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_format, "MAX_UNIT_BYTES", 128 * 8 * 8 * 4 + 2**11)
        build_cache(PrecomputeConfig.parse({**shared, "teachers": {"cnn": teachers["cnn"]}}, ""))
        sparse = {**shared, "teachers": {"red": red}, "encoding": {"top_k": 2}}
        build_cache(PrecomputeConfig.parse(sparse, ""))
    return path


def leaves(value: Any) -> Iterable[Tensor]:
    """Return all tensors of a record in the order of its fields."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from leaves(value[name])
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from leaves(getattr(value, name))


def by_row(batches: Iterable[Item]) -> dict[int, list[Tensor]]:
    """Return the pixels and all targets of every row."""
    found: dict[int, list[Tensor]] = {}
    for pixels, targets in batches:
        assert len(pixels) == len(targets)
        for place, row in enumerate(targets.rows.tolist()):
            assert row not in found
            one = targets.take(torch.tensor([place]))
            found[row] = [pixels[place], *leaves(one)]
    return found


def assert_same(got: Mapping[int, list[Tensor]], expected: Mapping[int, list[Tensor]]) -> None:
    assert got.keys() == expected.keys()
    for row, tensors in expected.items():
        assert len(got[row]) == len(tensors) > 4
        for one, other in zip(got[row], tensors, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def dataset(path: Path, images: str, **settings: Any) -> logitcache.CachedDataset:
    return logitcache.CachedDataset(logitcache.open_cache(path), images, size=SIZE, **settings)


def test_every_view_has_the_images_and_targets_of_the_loader(
    mixed_path: Path, images: Path
) -> None:
    """Item by item, as a batch, and with ``cache.targets``; also where images are mixed."""
    cache = logitcache.open_cache(mixed_path)
    chosen: dict[str, Any] = {"features": ["red/layer1", "red/stem"]}
    data = dataset(mixed_path, str(images), **chosen)
    assert len(data) == 60
    assert data.views == list(cache.views)
    assert len(data.views) > 3
    mixing = 0
    for number, view in enumerate(cache.views):
        with logitcache.loader(
            cache, str(images), batch_size=7, size=SIZE, views=[view], **chosen
        ) as batches:
            expected = by_row(batches)
        data.view = number
        assert data.view == view
        some = range(59, -1, -7)
        items = by_row([data.collate([data[i] for i in some])])
        assert_same(items, {row: expected[row] for row in some})
        order = torch.randperm(60, generator=torch.Generator().manual_seed(number)).tolist()
        assert_same(by_row([data.collate(data.__getitems__(order))]), expected)
        targets = cache.targets(order, view, **chosen)
        mixing += targets.lam is not None
        assert targets.rows.tolist() == order
        assert_same(by_row([(torch.stack([expected[row][0] for row in order]), targets)]), expected)
    assert 0 < mixing < len(cache.views)


@FORKS
def test_a_loader_with_two_workers_shows_every_image_once(cache_path: Path, images: Path) -> None:
    data = dataset(cache_path, str(images), view=1)
    expected = by_row([data.collate([data[i] for i in range(60)])])
    settings: dict[str, Any] = {"shuffle": True, "collate_fn": data.collate}
    # one worker, which imports torch, for a copy by pickle
    context: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "forkserver"}
    assert_same(by_row(DataLoader(data, 7, **context, **settings)), expected)
    loader = DataLoader(data, 7, num_workers=2, **settings)
    assert_same(by_row(loader), expected)
    # workers of the next epoch get copies of the data set with the other view
    data.view = 0
    other = by_row(loader)
    assert_same(other, by_row([data.collate([data[i] for i in range(60)])]))
    assert not torch.equal(other[0][0], expected[0][0])


def test_two_ranks_share_the_rows(cache_path: Path, images: Path) -> None:
    data = dataset(cache_path, str(images))
    shown = []
    for rank in range(2):
        sampler: DistributedSampler[Item] = DistributedSampler(
            data, num_replicas=2, rank=rank, seed=3
        )
        sampler.set_epoch(1)
        loader = DataLoader(data, 7, sampler=sampler, collate_fn=data.collate)
        shown += [row for _, targets in loader for row in targets.rows.tolist()]
        assert len(shown) == 30 * (rank + 1)
    assert sorted(shown) == list(range(60))


@FORKS
def test_the_page_on_training_loops_is_right(
    cache_path: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the section is run as it is written."""
    code = section_code("docs/training-loops.md", "A data set and a sampler of your own")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/train").symlink_to(images, target_is_directory=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/cache").symlink_to(cache_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    layer = torch.nn.Linear(12, 3)
    student = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), layer)
    before = layer.weight.detach().clone()
    names: dict[str, Any] = {
        "student": student,
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
        "objective": logitcache.Soft(),
    }
    exec(code, names)
    assert not torch.equal(layer.weight, before)
    assert names["data"].view == names["data"].views[1]
    assert sorted(names["seen"]) == sorted(2 * list(range(60)))
    assert names["some"].rows.tolist() == [59, 4]
    assert len(names["named"]) == 2


def test_subsets_and_other_samplers(cache_path: Path, images: Path) -> None:
    data = dataset(cache_path, str(images))
    some = DataLoader(Subset(data, [40, 3, 9]), 2, collate_fn=data.collate)
    assert [targets.rows.tolist() for _, targets in some] == [[40, 3], [9]]
    sampler = WeightedRandomSampler((data.labels == 2).astype(float).tolist(), 20)
    balanced = DataLoader(data, 5, sampler=sampler, collate_fn=data.collate)
    assert {label for _, targets in balanced for label in targets.labels.tolist()} == {2}
    assert data[-1][1].rows.tolist() == [59]
    with pytest.raises(IndexError, match="60 of a data set of 60"):
        data[60]


def test_items_of_a_fetched_batch_are_those_of_the_data_set(cache_path: Path, images: Path) -> None:
    """Wrappers that look at single items of a fetched batch get items, not batches."""
    data = dataset(cache_path, str(images))
    fetched = data.__getitems__([5, 50, 17])
    assert len(fetched) == 3
    for index, item in zip([5, 50, 17], fetched, strict=True):
        assert item[1].views == ("base",)
        assert_same(by_row([data.collate([item])]), by_row([data.collate([data[index]])]))
    assert [targets.rows.tolist() for _, targets in fetched[1:]] == [[50], [17]]
    assert fetched[-1][1].rows.tolist() == [17]


def test_pixels_without_normalization(cache_path: Path, images: Path) -> None:
    pixels = dataset(cache_path, str(images), normalize=False)[7][0]
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, SIZE, SIZE)
    floats = dataset(cache_path, str(images), mean=(0, 0, 0), std=(1 / 255,) * 3)[7][0]
    assert torch.equal(floats.round().byte(), pixels)


def test_a_copy_in_another_process_starts_without_units(
    mixed_path: Path, cache_path: Path, images: Path
) -> None:
    data = dataset(mixed_path, str(images), features=["red/layer1"])
    size = len(pickle.dumps(data))
    expected = by_row([data.collate(data.__getitems__(range(60)))])
    kept = pickle.dumps(data)
    assert len(kept) < size + 2000, "the units in memory have 8 kB for each row"
    assert_same(by_row([data.collate(pickle.loads(kept).__getitems__(range(60)))]), expected)
    cache = logitcache.open_cache(cache_path)
    targets = cache.targets([1, 2])
    copy = pickle.loads(pickle.dumps(cache))
    for one, other in zip(leaves(targets), leaves(copy.targets([1, 2])), strict=True):
        assert torch.equal(one, other)


def test_a_unit_is_read_once(
    cache_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order; with memory for less than a unit, one unit at a time."""
    read: list[tuple[Any, ...]] = []
    original = logitcache.Cache.read_units

    def counted(self: Any, name: str, view: str, units: Any, arrays: Any = None) -> Any:
        read.append((name, view, tuple(units), tuple(arrays)))
        return original(self, name, view, units, arrays)

    monkeypatch.setattr(logitcache.Cache, "read_units", counted)
    cache = logitcache.open_cache(cache_path)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    for row in order:
        for view in (0, 1):
            cache.targets([row], view)
    assert len(read) == len(set(read)) > 0
    assert {units for _, _, units, _ in read} == {(0,), (1,), (2,), (3,)}
    read.clear()
    small = dataset(cache_path, str(images), target_memory=1)
    expected = by_row([small.collate(small.__getitems__(order))])
    assert len(read) == len(set(read))
    assert_same(by_row([small.collate(small.__getitems__(order[::-1]))]), expected)
    assert len(read) > len(set(read))


def test_keys_find_rows(cache_path: Path) -> None:
    cache = logitcache.open_cache(cache_path)
    keys = cache.samples.keys
    wanted = [str(keys[row]) for row in (31, 4, 31)]
    assert cache.targets(wanted).rows.tolist() == [31, 4, 31]
    assert cache.targets(keys[[8, 2]], 1).rows.tolist() == [8, 2]
    assert cache.targets(wanted[1]).rows.tolist() == [4]
    assert cache.targets(torch.tensor([3, 1])).rows.tolist() == [3, 1]
    assert len(cache.targets([])) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["cat/000.jpg", "cat/no.jpg"],), r"1 of 2 images are not[\s\S]*\.jpg'[\s\S]*cat/no\.jpg"),
        (([""],), r"1 of 1 images are not in this cache"),
        (([3, 60],), r"row out of range[\s\S]*0 to 59[\s\S]*60"),
        (([-1],), r"row out of range"),
        (([0.5],), r"row numbers or keys[\s\S]*float64"),
        (([[1, 2]],), r"row numbers or keys[\s\S]*\(1, 2\)"),
        (([0], 2), r"no view '2'[\s\S]*where[\s\S]*numbers up to 1"),
        (([0], "0-1"), r"one view is needed[\s\S]*2 views"),
        (([0], "none"), r"no view 'none'"),
    ],
)
def test_requests_for_what_the_cache_lacks(
    cache_path: Path, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        logitcache.open_cache(cache_path).targets(*arguments)


def test_a_view_that_a_teacher_lacks(images: Path, teachers: Teachers, tmp_path: Path) -> None:
    shared = {"cache": str(tmp_path / "c"), "data": str(images)}
    for name, count in (("cnn", 1), ("red", 2)):
        values = {**shared, "teachers": {name: teachers[name]}, "views": {"count": count}}
        build_cache(PrecomputeConfig.parse(values, ""))
    cache = logitcache.open_cache(tmp_path / "c")
    with pytest.raises(UsageError, match=r"lack outputs in this view[\s\S]*cnn, red"):
        cache.targets([0], 1)
    assert set(cache.targets([0], 1, teachers=["red"]).teachers) == {"red"}
    data = dataset(tmp_path / "c", str(images))
    with pytest.raises(UsageError, match="lack outputs in this view"):
        data.view = 1
    assert data.view == data.views[0], "a view that is refused changes nothing"
    with pytest.raises(UsageError, match="no teacher 'other'"):
        cache.targets([0], teachers=["other"])


def test_images_without_targets(teachers: Teachers, tmp_path: Path) -> None:
    """Unreadable and excluded images are no items, and a row of one is refused by its reason."""
    folder = write_images(tmp_path / "images", 8)
    (folder / "cat/003.jpg").write_bytes(b"no image")
    values = {
        "cache": str(tmp_path / "c"),
        "data": str(folder),
        "teachers": {"cnn": teachers["cnn"]},
        "views": {"count": 1, "eval": True, "mixup_alpha": 1.0},
        "unit_rows": 32,
        "on_bad_image": "skip",
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    cache = logitcache.open_cache(tmp_path / "c")
    assert len(dataset(tmp_path / "c", str(folder))) == 23
    with pytest.raises(UsageError, match="could not be decoded when the cache was computed"):
        cache.targets(["cat/003.jpg"])
    mixes = next(v for v in cache.views if cache.targets([_readable(cache)], v).lam is not None)
    alone = next(v for v in cache.views if v != mixes)
    rows, partners = cache.samples.readable, cache.partners(mixes)
    gone = next(int(row) for row in rows if partners[row] != row)
    withdraw_images(tmp_path / "c", [str(cache.samples.keys[gone])], "wrong label")
    cache = logitcache.open_cache(tmp_path / "c")
    with pytest.raises(UsageError, match=rf"excluded from training[\s\S]*row {gone}"):
        cache.targets([gone], alone)
    with pytest.raises(UsageError, match=r"mixed with an image that is excluded"):
        cache.targets([int(partners[gone])], mixes)
    cache.targets([int(partners[gone])], alone)
    assert len(dataset(tmp_path / "c", str(folder), view=alone)) == 22
    with pytest.raises(UsageError, match=r"mixes images[\s\S]*1 of 22 images"):
        dataset(tmp_path / "c", str(folder), view=mixes)


def _readable(cache: logitcache.Cache) -> int:
    return int(cache.samples.readable[0])


@FORKS
def test_images_of_other_data_and_damaged_ones(teachers: Teachers, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 4)
    values = {
        "cache": str(tmp_path / "c"),
        "data": str(folder),
        "teachers": {"cnn": teachers["cnn"]},
        "views": {"count": 1},
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    cache = logitcache.open_cache(tmp_path / "c")
    with pytest.raises(UsageError, match=r"size[\s\S]*1 or more"):
        logitcache.CachedDataset(cache, str(folder), size=0)
    data = dataset(tmp_path / "c", str(folder))
    whole = (folder / "dog/002.jpg").read_bytes()
    place = next(i for i in range(12) if data.rows.key(i) == "dog/002.jpg")
    (folder / "dog/002.jpg").write_bytes(whole[:-1] + b"x")
    with pytest.raises(DataMismatch, match=r"dog/002\.jpg"):
        data[place]
    # in a worker process, too, with its traceback
    in_worker = DataLoader(data, 12, num_workers=1, collate_fn=data.collate)
    with pytest.raises(DataMismatch, match=r"dog/002\.jpg"):
        next(iter(in_worker))
    (folder / "dog/002.jpg").unlink()
    with pytest.raises(DataMismatch, match="1 missing"):
        dataset(tmp_path / "c", str(folder))
    assert len(dataset(tmp_path / "c", str(folder), subset=True)) == 11
