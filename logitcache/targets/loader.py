"""Batches of images and targets: what a training loop iterates over.

The order of images and the pixels are functions of the configuration alone: any number of threads,
on any machine, shows the same batches, and an epoch can be entered at any batch.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from logitcache.batch import TargetBatch
from logitcache.cache.reader import open_cache
from logitcache.data.readers import DataConfig, open_source
from logitcache.errors import UsageError
from logitcache.targets.alignment import Alignment
from logitcache.targets.gather import TargetsReader, TargetWindow, concatenate
from logitcache.targets.match import CheckedReader, ImageRows, match_rows
from logitcache.targets.order import Window, epoch_windows, view_of_epoch
from logitcache.targets.prefetch import read_ahead
from logitcache.views.render import BatchRequest, RenderedBatch, ViewRenderer
from logitcache.views.spec import View, ViewsConfig, parse_view

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.cache.reader import Cache
    from logitcache.data.source import Source

__all__ = ["Loader", "LoaderSettings", "Targets", "cached_targets", "loader"]

_DEFAULT_TARGET_MEMORY = 2**30
_WINDOWS_ALIVE = 3  # the one in use, the one read ahead, and what the renderer still holds


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made.

    Attributes:
        batch_size: Images of a batch.
        size: Side of the square images in pixels.
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        seed: Of the order.
        drop_last: Whether a last, smaller batch is left out.
        threads: Threads that decode and render; all processors by default.
        device: Where batches go.
    """

    batch_size: int
    size: int
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    seed: int = 0
    drop_last: bool = False
    threads: int | None = None
    device: torch.device | None = None


@dataclass(frozen=True)
class Targets:
    """Where the targets of a loader come from.

    Attributes:
        reader: What reads them.
        views: The views that all the teachers saw, one per epoch, by id.
        unit_rows: U.
        window_units: Units that are shuffled together.
        alignment: The alarm for answers of other images; None where they are other ones on purpose.
    """

    reader: TargetsReader
    views: dict[str, View]
    unit_rows: int
    window_units: int
    alignment: Alignment | None = None

    @classmethod
    def of(
        cls,
        cache: Cache,
        teachers: Sequence[str] | None = None,
        *,
        target_memory: int = _DEFAULT_TARGET_MEMORY,
        shuffled: bool = False,
    ) -> Targets:
        """Choose targets of a cache.

        Args:
            cache: The cache.
            teachers: Whose answers; all teachers by default.
            target_memory: Bytes that targets may take: how many units are shuffled together.
            shuffled: Whether every row gets another row's answer, as a control.

        Raises:
            UsageError: An unknown teacher, or no view that all of them saw.
        """
        names = list(cache.teachers) if teachers is None else list(teachers)
        view_ids = cache.views_of(names or list(cache.teachers))
        views = {v: parse_view(cache.views[v], f"{cache.url}, view {v}") for v in view_ids}
        if not views:
            raise UsageError(
                "no view that all of these teachers saw", where=cache.url, got=", ".join(names)
            )
        reader = TargetsReader(cache, names, shuffled=shuffled)
        affordable = target_memory // max(1, _WINDOWS_ALIVE * reader.unit_bytes)
        alignment = None if shuffled else Alignment.of(cache, names)
        return cls(reader, views, cache.unit_rows, max(1, affordable), alignment)


class Loader:
    """An iterable over batches ``(images, targets)``, one epoch after another.

    Iterating walks the epoch :attr:`next_epoch` and then moves on to the following one, so
    ``for images, targets in loader`` in a loop over epochs is all that is needed. Epoch e walks one
    view: all of them once per cycle, in an order drawn from the seed.

    Images are float32 (B, 3, S, S), normalised, on the device; targets are a
    :class:`~logitcache.batch.TargetBatch` on the same device.

    Args:
        source: The images.
        rows: Which of them, and their labels.
        settings: How batches are made.
        targets: What teachers said; None to show labels alone.
        views: How images are shown where there are no targets: epoch e draws view e + 1; the
            ``eval`` view every time if no random view is asked for.
    """

    def __init__(
        self,
        source: Source,
        rows: ImageRows,
        settings: LoaderSettings,
        *,
        targets: Targets | None = None,
        views: ViewsConfig | None = None,
    ) -> None:
        if (targets is None) == (views is None):
            raise ValueError("a loader shows either cached views or views of its own")
        self.rows = rows
        self.settings = settings
        self.next_epoch = 0
        self._targets = targets
        self._views = views
        threads = settings.threads or len(os.sched_getaffinity(0))
        self._renderer = ViewRenderer(CheckedReader(source, rows), [settings.size], threads=threads)
        device = settings.device or torch.device("cpu")
        self._device = device
        self._mean_C11 = (255.0 * torch.tensor(settings.mean)).view(-1, 1, 1).to(device)
        self._std_C11 = (255.0 * torch.tensor(settings.std)).view(-1, 1, 1).to(device)

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        whole, rest = divmod(len(self.rows), self.settings.batch_size)
        return whole + (rest > 0 and not self.settings.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, TargetBatch]]:
        epoch, self.next_epoch = self.next_epoch, self.next_epoch + 1
        return self.epoch(epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads that render."""
        self._renderer.close()

    def view(self, epoch: int) -> View:
        """Return the view that an epoch walks."""
        if self._targets is None:
            assert self._views is not None
            if self._views.count == 0:
                return self._views.eval_view()
            return self._views.random_view(epoch + 1)
        ids = list(self._targets.views)
        return self._targets.views[ids[view_of_epoch(self.settings.seed, epoch, len(ids))]]

    def epoch(self, epoch: int, *, first_batch: int = 0) -> Iterator[tuple[Tensor, TargetBatch]]:
        """Iterate over one epoch.

        Args:
            epoch: Counted from 0.
            first_batch: Batch to begin with; earlier ones are not even rendered.
        """
        view = self.view(epoch)
        waiting: deque[list[_Part]] = deque()
        for rendered in self._renderer.batches(
            self._requests(view, self._batches(epoch, view, first_batch), waiting)
        ):
            parts = waiting.popleft()
            yield self._images(rendered), self._target_batch(parts)

    def _requests(
        self, view: View, batches: Iterator[list[_Part]], waiting: deque[list[_Part]]
    ) -> Iterator[BatchRequest]:
        """Ask for the pixels of batches; their targets wait meanwhile."""
        for parts in batches:
            positions = self.rows.positions(_rows_of(parts))
            waiting.append(parts)
            yield BatchRequest(view, positions, self.rows.hashes[positions])

    def _batches(self, epoch: int, view: View, first_batch: int) -> Iterator[list[_Part]]:
        """Cut the windows of an epoch into batches; a batch may straddle two windows."""
        size = self.settings.batch_size
        parts: list[_Part] = []
        for window, rows in self._windows(epoch, view, first_batch * size):
            while len(rows):
                missing = size - sum(len(part.rows) for part in parts)
                parts.append(_Part(window, rows[:missing]))
                rows = rows[missing:]
                if len(_rows_of(parts)) == size:
                    yield parts
                    parts = []
        if parts and not self.settings.drop_last:
            yield parts

    def _windows(
        self, epoch: int, view: View, skip: int
    ) -> Iterator[tuple[TargetWindow | None, NDArray[np.int64]]]:
        """Yield the targets and rows of an epoch's windows, after the first ``skip`` rows."""
        order = _skipped(self._order(epoch), skip)
        if self._targets is None:
            for window in order:
                yield None, window.rows
            return
        reader = self._targets.reader
        for window, read in read_ahead(order, lambda window: reader.read(view.id, window.units)):
            yield read, window.rows

    def _order(self, epoch: int) -> Iterator[Window]:
        targets = self._targets
        return epoch_windows(
            self.rows.rows,
            seed=self.settings.seed,
            epoch=epoch,
            unit_rows=targets.unit_rows if targets else max(1, len(self.rows)),
            window_units=targets.window_units if targets else 1,
        )

    def _images(self, rendered: RenderedBatch) -> Tensor:
        for error in rendered.failures.values():
            raise error
        pixels = torch.from_numpy(rendered.pixels[self.settings.size])
        return (pixels.to(self._device, non_blocking=True).float() - self._mean_C11) / self._std_C11

    def _target_batch(self, parts: list[_Part]) -> TargetBatch:
        rows = _rows_of(parts)
        labels = self.rows.labels[self.rows.positions(rows)]
        windows = [(part.window, part.rows) for part in parts]
        gathered = [window.gather(part) for window, part in windows if window is not None]
        teachers = concatenate(gathered) if gathered else {}
        alignment = self._targets.alignment if self._targets else None
        if alignment is not None and not alignment.is_settled:
            alignment.see(rows, labels[:, None], teachers)
        batch = TargetBatch(torch.from_numpy(rows), torch.from_numpy(labels), teachers)
        return batch.to(self._device)


@dataclass(frozen=True)
class _Part:
    """The rows of a batch that lie in one window."""

    window: TargetWindow | None
    rows: NDArray[np.int64]


def _rows_of(parts: list[_Part]) -> NDArray[np.int64]:
    return np.concatenate([part.rows for part in parts])


def _skipped(windows: Iterator[Window], skip: int) -> Iterator[Window]:
    """Leave out the first rows; windows that are left out whole are never read."""
    for window in windows:
        if skip < len(window.rows):
            yield Window(window.units, window.rows[skip:])
        skip = max(0, skip - len(window.rows))


def cached_targets(
    url: str,
    source: Source,
    teachers: Sequence[str] | None = None,
    *,
    target_memory: int = _DEFAULT_TARGET_MEMORY,
    shuffled: bool = False,
    subset: bool = False,
) -> tuple[ImageRows, Targets]:
    """Open a cache and match it with the images at hand.

    Args:
        url: The cache.
        source: The images.
        teachers: Whose answers; all teachers by default, none for an empty list.
        target_memory: Bytes that targets may take.
        shuffled: Whether every row gets another row's answer, as a control.
        subset: Whether images of the cache may be missing.
    """
    cache = open_cache(url)
    targets = Targets.of(cache, teachers, target_memory=target_memory, shuffled=shuffled)
    return match_rows(cache, source, subset=subset), targets


def loader(
    cache: Cache,
    data: str | DataConfig | Source,
    *,
    batch_size: int = 256,
    size: int = 224,
    teachers: Sequence[str] | None = None,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    seed: int = 0,
    drop_last: bool = False,
    threads: int | None = None,
    target_memory: int = _DEFAULT_TARGET_MEMORY,
    subset: bool = False,
    device: torch.device | str | None = None,
) -> Loader:
    """Return batches of the images of a cache, as the teachers saw them, with what they said.

    Args:
        cache: An open cache.
        data: The images: a folder, a tar file, ``digits``, or any :class:`Source`.
        batch_size: Images of a batch.
        size: Side of the images in pixels; need not be any teacher's.
        teachers: Whose answers; all teachers by default.
        mean: To subtract, per channel, in units of [0, 1].
        std: To divide by, per channel, in units of [0, 1].
        seed: Of the order of images and views.
        drop_last: Whether a last, smaller batch is left out.
        threads: Threads that decode and render; all processors by default.
        target_memory: Bytes that targets may take.
        subset: Whether images of the cache may be missing from the data.
        device: Where batches go.

    Raises:
        DataMismatch: These are not the images the cache was made from.
        UsageError: An unknown teacher.
    """
    source = open_source(data) if isinstance(data, str | DataConfig) else data
    settings = LoaderSettings(
        batch_size=batch_size,
        size=size,
        mean=mean,
        std=std,
        seed=seed,
        drop_last=drop_last,
        threads=threads,
        device=torch.device(device) if device is not None else None,
    )
    targets = Targets.of(cache, teachers, target_memory=target_memory)
    return Loader(source, match_rows(cache, source, subset=subset), settings, targets=targets)
