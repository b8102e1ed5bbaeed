"""What is read ahead changes when something is read, never what is shown."""

from __future__ import annotations

import math
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.batch import DenseLogits, TargetBatch
from logitcache.cache.read.reader import open_cache
from logitcache.errors import CacheDamaged
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.epochs.prefetch import ReadAhead
from logitcache.targets.loader import Loader, loader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from logitcache.targets.reader import TargetWindow
    from logitcache.views.spec import View

Teachers = dict[str, dict[str, str]]
Epoch = list[tuple["Tensor", TargetBatch]]
_PATIENCE = 20  # seconds for what a thread does at once


@pytest.fixture(scope="module")
def cache_path(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of a teacher in four units, and three views of which all mix."""
    path = tmp_path_factory.mktemp("prefetch") / "cache"
    views = {"count": 3, "mixup_alpha": 0.8}
    values = {"cache": str(path), "data": str(images), "views": views, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "teachers": {"cnn": teachers["cnn"]}}, ""))
    return path


@pytest.fixture
def opened(cache_path: Path, images: Path) -> Callable[..., Loader]:
    def open_loader(path: Path = cache_path, **options: Any) -> Loader:
        options = {"batch_size": 7, "size": 8, "threads": 1, **options}
        return loader(open_cache(path), str(images), **options)

    return open_loader


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [t.name for t in set(threading.enumerate()) - before if t.name.startswith("targets")]
    assert left == []


class Reads:
    """Requests of a loader to its reader.

    Args:
        found: The loader.
        free: Reads that are not held up until they may go on.

    Attributes:
        views: The view of every read, in the order in which they began.
        most_alive: The most windows that were in memory, the one being read among them.
        may_go_on: Lets all reads end.
    """

    def __init__(self, found: Loader, free: float = math.inf) -> None:
        assert found._targets is not None
        self.views: list[str] = []
        self.most_alive = 0
        self.may_go_on = threading.Event()
        self._free = free
        self._reader = found._targets.reader
        self._read = self._reader.read
        self._windows: list[weakref.ref[TargetWindow]] = []
        self._began = threading.Condition()
        setattr(self._reader, "read", self)  # noqa: B010  # a method, says mypy

    def __call__(self, view: View, units: tuple[int, ...], unit_rows: int) -> TargetWindow:
        with self._began:
            self.views.append(view.id)
            self._began.notify_all()
        alive = sum(window() is not None for window in self._windows)
        self.most_alive = max(self.most_alive, 1 + alive)
        assert len(self.views) <= self._free or self.may_go_on.wait(_PATIENCE)
        window = self._read(view, units, unit_rows)
        self._windows.append(weakref.ref(window))
        return window

    def begun(self, count: int) -> bool:
        """Wait until so many reads have begun; return whether they have."""
        with self._began:
            return self._began.wait_for(lambda: len(self.views) >= count, _PATIENCE)


def assert_same(ours: Epoch, theirs: Epoch) -> None:
    assert len(ours) == len(theirs)
    for (pixels, targets), (expected, wanted) in zip(ours, theirs, strict=True):
        assert torch.equal(pixels, expected)
        assert torch.equal(targets.rows, wanted.rows)
        assert torch.equal(targets.labels, wanted.labels)
        assert targets.lam is not None
        assert wanted.lam is not None
        assert torch.equal(targets.lam, wanted.lam)
        got, meant = targets.teachers["cnn"], wanted.teachers["cnn"]
        assert isinstance(got, DenseLogits)
        assert torch.equal(got.log_probs, meant.log_probs)


@pytest.mark.parametrize(("memory", "workers"), [(1, 0), (3000, 0), (2**30, 0), (1, 1)])
def test_epochs_that_follow_each_other_are_those_that_are_entered_alone(
    opened: Callable[..., Loader], memory: int, workers: int
) -> None:
    with opened(target_memory=memory, workers=workers) as found:
        followed = [list(found) for _ in range(4)]
    for number, epoch in enumerate(followed):
        with opened(target_memory=memory) as alone:
            assert_same(epoch, list(alone.epoch(number)))


@pytest.mark.parametrize(("memory", "windows"), [(1, 4), (2**30, 1)])
def test_the_next_epoch_is_asked_for_before_the_last_batch_of_this_one_is_shown(
    opened: Callable[..., Loader], memory: int, windows: int
) -> None:
    with opened(target_memory=memory) as found:
        reads = Reads(found)
        for epoch in range(3):
            batches = iter(found)
            for _ in range(8):
                next(batches)
            assert reads.begun((epoch + 1) * windows + 1)
            assert reads.views[-1] == found.view(epoch + 1).id
            assert len(list(batches)) == 1
        assert reads.begun(3 * windows + 1)
    assert reads.views == [
        view for epoch in range(3) for view in [found.view(epoch).id] * windows
    ] + [found.view(3).id]


@pytest.mark.parametrize("memory", [1, 2**30])
def test_no_more_windows_are_alive_than_are_counted(
    opened: Callable[..., Loader], memory: int
) -> None:
    """Batches are small compared with a window, as they are wherever memory matters."""
    from logitcache.targets import selection as module

    with opened(target_memory=memory, batch_size=2) as found:
        reads = Reads(found)
        for _ in range(4):
            for _ in found:
                pass
    assert 2 <= reads.most_alive <= module._WINDOWS_ALIVE


def test_an_epoch_that_is_not_followed_reads_nothing_but_itself(
    opened: Callable[..., Loader],
) -> None:
    with opened(target_memory=1) as found:
        reads = Reads(found)
        assert len(list(found.epoch(1))) == 9
        assert found._thread is not None
        found._thread.submit(int).result()  # all requests have been read
        assert reads.views == [found.view(1).id] * 4


@pytest.mark.parametrize(("epoch", "first_batch"), [(3, 0), (1, 4), (0, 0), (0, 9)])
def test_another_epoch_than_the_one_read_ahead_is_read_as_always(
    opened: Callable[..., Loader], epoch: int, first_batch: int
) -> None:
    with opened(target_memory=1) as alone:
        expected = list(alone.epoch(epoch, first_batch=first_batch))
    with opened(target_memory=1) as found:
        list(found.epoch(0, followed=True))
        assert_same(list(found.epoch(epoch, first_batch=first_batch)), expected)


def test_an_epoch_may_be_left_at_any_batch(opened: Callable[..., Loader]) -> None:
    with opened(target_memory=1) as alone:
        expected = list(alone.epoch(1))
    for left_after in (1, 5, 8):
        with opened(target_memory=1) as found:
            batches = iter(found)
            for _ in range(left_after):
                next(batches)
            batches.close()  # type: ignore[attr-defined]  # a generator
            assert_same(list(found), expected)


@pytest.mark.parametrize("memory", [1, 2**30])
def test_an_error_is_raised_where_its_epoch_is_entered(
    opened: Callable[..., Loader], cache_path: Path, tmp_path: Path, memory: int
) -> None:
    shutil.copytree(cache_path, tmp_path / "c")
    with opened(tmp_path / "c", target_memory=memory) as found:
        damaged = found.view(1).id
        number = open_cache(tmp_path / "c").teacher("cnn").view_ids.index(damaged)
        for shard in (tmp_path / f"c/teachers/cnn/logp/c/{number}").glob("*/*"):
            shard.write_bytes(b"")
        assert len(list(found)) == 9
        with pytest.raises(CacheDamaged, match=f"logp/c/{number}"):
            next(iter(found))
        with pytest.raises(CacheDamaged, match=f"logp/c/{number}"):
            next(found.epoch(1))
        assert len(list(found.epoch(2))) == 9, "the other epochs are as good as ever"


def test_closing_waits_for_the_read_under_way_and_for_no_other(
    opened: Callable[..., Loader],
) -> None:
    found = opened(target_memory=1)
    reads = Reads(found, free=2)
    batches = found.epoch(0)  # kept: its requests are cancelled with it
    next(batches)
    assert reads.begun(3)
    found._begin(5)
    threading.Timer(0.3, reads.may_go_on.set).start()
    found.close()
    assert reads.may_go_on.is_set()
    assert len(reads.views) == 3


def read_ten(item: int) -> int:
    if item == 3:
        raise OSError("gone")
    return 10 * item


def test_reading_ahead_keeps_order_and_raises_at_its_item() -> None:
    with ThreadPoolExecutor(1) as thread:
        ahead = ReadAhead(range(6), read_ten, thread).walk()
        assert [next(ahead) for _ in range(3)] == [(0, 0), (1, 10), (2, 20)]
        with pytest.raises(OSError, match="gone"):
            next(ahead)
        assert list(ReadAhead([], read_ten, thread).walk()) == []
        late = ReadAhead(range(3, 5), read_ten, thread)
        late.begin()
        with pytest.raises(OSError, match="gone"):
            next(late.walk())


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_who_walks_is_told_before_the_last_item_is_yielded(count: int) -> None:
    calls: list[str] = []
    with ThreadPoolExecutor(1) as thread:
        reading = ReadAhead(range(count), str, thread)
        seen = [bool(calls) for _ in reading.walk(lambda: calls.append("last"))]
    assert seen == [False] * (count - 1) + [True] * (count > 0)
    assert calls == ["last"]


def test_what_is_dropped_is_not_read() -> None:
    read: list[int] = []
    gate = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        thread.submit(gate.wait, _PATIENCE)
        dropped = ReadAhead([1], read.append, thread)
        dropped.begin()
        dropped.drop()
        left = ReadAhead([2, 3], read.append, thread)
        left.begin()
        gate.set()
        walk = left.walk()
        assert next(walk) == (2, None)
        walk.close()  # type: ignore[attr-defined]  # a generator
    assert read[0] == 2
    assert 1 not in read
