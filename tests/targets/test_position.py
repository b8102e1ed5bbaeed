"""Where a loader is: epochs, positions to resume from, and which process gets what."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import distributed

from logitcache.data.readers import open_source
from logitcache.errors import UnreadableImage, UsageError
from logitcache.targets.images.image_rows import number_rows
from logitcache.targets.loader import Loader, loader
from logitcache.targets.settings import LoaderSettings
from logitcache.training.batches import images_in
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from logitcache.cache.read.reader import Cache

BATCH = 7  # of the 60 images of the cache: eight whole batches and one of four


def make(cache: Cache, images: Path, **kwargs: Any) -> Loader:
    return loader(cache, str(images), **{"batch_size": BATCH, "size": 8, "threads": 1, **kwargs})


def rows_of(batches: Any) -> list[list[int]]:
    return [targets.rows.tolist() for _, targets in batches]


@pytest.fixture
def epochs(cache: Cache, images: Path) -> list[list[list[int]]]:
    with make(cache, images) as found:
        return [rows_of(found) for _ in range(3)]


def test_an_iterator_that_is_not_used_changes_nothing(
    cache: Cache, images: Path, epochs: list[list[list[int]]]
) -> None:
    with make(cache, images) as found:
        for _ in range(3):
            iter(found)
        assert rows_of(found) == epochs[0]
        iter(found)
        assert rows_of(found) == epochs[1]


def test_an_epoch_that_is_left_is_not_gone_on_with(
    cache: Cache, images: Path, epochs: list[list[list[int]]]
) -> None:
    with make(cache, images) as found:
        for _ in found:
            break
        assert rows_of(found) == epochs[1]


def test_the_epoch_can_be_chosen(cache: Cache, images: Path, epochs: list[list[list[int]]]) -> None:
    with make(cache, images) as found:
        for epoch in (2, 0, 0, 1):
            found.sampler.set_epoch(epoch)
            assert rows_of(found) == epochs[epoch]


@pytest.mark.parametrize("shown", [0, 1, 5, 9, 10, 18, 20])
def test_a_state_resumes_at_the_next_batch(
    cache: Cache, images: Path, epochs: list[list[list[int]]], shown: int
) -> None:
    every = [batch for epoch in epochs for batch in epoch]
    with make(cache, images) as found:
        batches = endless(found)
        assert rows_of(next(batches) for _ in range(shown)) == every[:shown]
        state = json.loads(json.dumps(found.state_dict()))
    with make(cache, images) as resumed:
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        # a framework names the epoch once more, and makes iterators that it does not use
        resumed.set_epoch(state["epoch"])
        iter(resumed)
        batches = endless(resumed)
        left = len(every) - shown
        assert rows_of(next(batches) for _ in range(left)) == every[shown:]


def endless(found: Loader) -> Iterator[Any]:
    while True:
        yield from found


@pytest.mark.parametrize("other", [{"batch_size": 8}, {"seed": 1}])
def test_a_state_of_other_batches_is_refused(
    cache: Cache, images: Path, other: dict[str, int]
) -> None:
    with make(cache, images) as found, make(cache, images, **other) as another:
        with pytest.raises(UsageError, match=next(iter(other))):
            another.load_state_dict(found.state_dict())
        with pytest.raises(UsageError, match="version"):
            found.load_state_dict({"epoch": 0, "batch": 0})


def test_a_pickled_loader_goes_on_where_the_first_one_was(
    cache: Cache, images: Path, epochs: list[list[list[int]]]
) -> None:
    with make(cache, images) as found:
        assert rows_of(found) == epochs[0]
        with pickle.loads(pickle.dumps(found)) as copy:  # of our own
            assert rows_of(copy) == epochs[1]
        assert rows_of(found) == epochs[1]


def test_a_closed_loader_can_be_used_again(
    cache: Cache, images: Path, epochs: list[list[list[int]]]
) -> None:
    found = make(cache, images)
    with found:
        assert rows_of(found) == epochs[0]
    with found:
        assert rows_of(found) == epochs[1]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("batch_size", [7, 8, 59, 60, 61])
def test_processes_show_every_row_once(
    cache: Cache, images: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, batch_size: int
) -> None:
    shown: Counter[int] = Counter()
    lengths = []
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    for rank in range(ranks):
        with make(cache, images, batch_size=batch_size) as found:
            monkeypatch.setenv("RANK", str(rank))  # long after the loader was made
            batches = rows_of(found)
            assert len(batches) == len(found)
        lengths.append(len(batches))
        assert all(batches), "a process got no image"
        shown.update(row for batch in batches for row in batch)
    assert len(set(lengths)) == 1
    assert sorted(shown) == list(range(60))
    assert set(shown.values()) == {1}


def test_torch_distributed_comes_before_the_environment(
    cache: Cache, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with make(cache, images) as found:
        assert sum(map(len, rows_of(found))) == 34
        method = (tmp_path / "store").as_uri()
        distributed.init_process_group("gloo", init_method=method, rank=0, world_size=1)
        try:
            assert sum(map(len, rows_of(found))) == 60
        finally:
            distributed.destroy_process_group()


def test_an_environment_that_names_no_number_is_refused(
    cache: Cache, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "zero")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with make(cache, images) as found, pytest.raises(UsageError, match="RANK=zero"):
        list(found)


def test_more_processes_than_images_are_refused(cache: Cache, images: Path) -> None:
    with make(cache, images, rank=0, ranks=61) as found, pytest.raises(UsageError, match="fewer"):
        list(found)


class Pictures:
    """A source of small gray squares."""

    description, class_names = "squares", ("a", "b")

    def __init__(self, count: int) -> None:
        self.keys = [f"{number:03d}" for number in range(count)]
        self.sizes = np.full(count, -1)
        self.labels = np.arange(count, dtype=np.int32) % 2

    def read(self, index: int) -> Any:
        return np.full((8, 8, 3), index, dtype=np.uint8)


def plain(count: int, **kwargs: Any) -> Loader:
    settings = LoaderSettings(**{"batch_size": 4, "size": 8, "threads": 1, **kwargs})
    views = ViewsConfig.model_validate({"count": 0, "eval": True})
    return Loader(number_rows(Pictures(count)), settings, views=views)


@pytest.mark.parametrize(
    ("images", "least", "expected"),
    [
        (9, 0, [4, 4, 1]),
        (9, 1, [4, 4, 1]),
        (9, 2, [4, 5]),
        (10, 2, [4, 4, 2]),
        (5, 2, [5]),
        (4, 2, [4]),
        (3, 2, [3]),
    ],
)
def test_a_last_batch_that_is_too_small_is_joined_to_the_one_before(
    images: int, least: int, expected: list[int]
) -> None:
    with plain(images, least=least) as found:
        assert list(map(len, rows_of(found))) == expected
        assert found.batches_of(0) == len(expected)
        assert images_in(found, len(expected)) == images
        assert images_in(found, 2 * len(expected)) == 2 * images
        first = len(expected) - 1
        assert rows_of(found.epoch(0, first_batch=first)) == rows_of(found.epoch(0))[first:]
    with plain(images, least=least, drop_last=True) as found:
        assert set(map(len, rows_of(found))) <= {4}


def test_images_that_cannot_be_decoded_are_left_out_on_request(images: Path) -> None:
    source = open_source(str(images))
    bad = {3, 30, 31}

    class Damaged:
        def __getattr__(self, name: str) -> Any:
            return getattr(source, name)

        def read(self, index: int) -> Any:
            return b"\xff\xd8no image" if index in bad else source.read(index)

    def opened(on_bad_image: Any) -> Loader:
        settings = LoaderSettings(
            batch_size=7, size=8, threads=2, on_bad_image=on_bad_image, rank=0, ranks=1
        )
        return Loader(number_rows(Damaged()), settings, views=ViewsConfig())

    with opened("error") as found, pytest.raises(UnreadableImage):
        list(found)
    with opened("skip") as found:
        for _ in range(2):
            shown = 0
            for pixels, targets in found:
                assert len(pixels) == len(targets.rows) == len(targets.labels)
                assert bool((pixels.flatten(1).std(1) > 0).all())
                expected = found.rows.labels_of(targets.rows.numpy())
                assert torch.equal(targets.labels, torch.from_numpy(expected))
                shown += len(targets)
            assert shown == 57
        assert len(found.skipped) == 3
        keys = {source.keys[index] for index in bad}
        assert {error.where for error in found.skipped.values()} == keys
