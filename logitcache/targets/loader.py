"""Batches of images and targets: what a training loop iterates over.

The order of images and the pixels are functions of the configuration alone: any number of threads,
on any machine, shows the same batches, and an epoch can be entered at any batch.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from logitcache.data.readers import open_source_for
from logitcache.errors import UsageError
from logitcache.targets.alignment import Alignment
from logitcache.targets.epoch import Epoch
from logitcache.targets.gather import TargetsReader
from logitcache.targets.match import CheckedReader, ImageRows
from logitcache.targets.order import view_of_epoch
from logitcache.targets.pairs import Pairs, find_pairs
from logitcache.targets.probes import checked_rows
from logitcache.views.spec import View, ViewsConfig, parse_view
from logitcache.views.workers import make_renderer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from logitcache.batch import TargetBatch
    from logitcache.cache.reader import Cache
    from logitcache.data.readers import DataConfig
    from logitcache.data.source import Source
    from logitcache.targets.epoch import Part
    from logitcache.views.render import BatchRequest, RenderedBatch

__all__ = ["DEFAULT_TARGET_MEMORY", "Loader", "LoaderSettings", "Targets", "loader"]

DEFAULT_TARGET_MEMORY = 2**30
# the one in use, the one read ahead (of the next epoch, at the end), what the renderer still holds
_WINDOWS_ALIVE = 3
_ROW_BYTES = 40  # of a window beside its targets: digest, partner, and its place in the order


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are made.

    Attributes:
        batch_size: Images of a batch, of all ranks together.
        size: Side of the square images in pixels.
        mean: Per channel, in units of [0, 1].
        std: Per channel, in units of [0, 1].
        seed: Of the order.
        drop_last: Whether a last, smaller batch is left out.
        threads: Threads that decode and render; all processors by default.
        workers: Child processes that do it instead.
        device: Where batches go.
        rank: Which of several processes this is; each shows its slice of every batch.
        ranks: How many there are.

    Raises:
        UsageError: A batch, an image or a rank that cannot be.
    """

    batch_size: int
    size: int
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    seed: int = 0
    drop_last: bool = False
    threads: int | None = None
    workers: int = 0
    device: torch.device | None = None
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "size", "ranks"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"a loader cannot have this {name}",
                    expected="1 or more",
                    got=getattr(self, name),
                )
        if not 0 <= self.rank < self.ranks:
            raise UsageError(
                "there is no such rank", expected=f"0 to {self.ranks - 1}", got=self.rank
            )


@dataclass(frozen=True)
class Targets:
    """Where the targets of a loader come from.

    Attributes:
        reader: What reads them.
        views: The views that all the teachers and taps have, one per epoch, by id.
        window_rows: Rows that are shuffled together, if they lie in whole units.
        alignment: The alarm for answers of other images; None where they are other ones on purpose.
    """

    reader: TargetsReader
    views: dict[str, View]
    window_rows: int
    alignment: Alignment | None = None

    @classmethod
    def of(
        cls,
        cache: Cache,
        teachers: Sequence[str] | None = None,
        features: Sequence[str] = (),
        *,
        target_memory: int = DEFAULT_TARGET_MEMORY,
        shuffled: bool = False,
    ) -> Targets:
        """Choose targets of a cache.

        Args:
            cache: The cache.
            teachers: Whose answers; all teachers by default.
            features: Which taps, as ``<teacher>/<tap>``.
            target_memory: Bytes that targets may take: how many rows are shuffled together.
            shuffled: Whether every row gets another row's answer, as a control.

        Raises:
            UsageError: An unknown teacher or tap, or no view that all of them have.
        """
        names = list(cache.teachers) if teachers is None else list(teachers)
        anyone = names if names or features else list(cache.teachers)
        view_ids = cache.views_of(anyone, features)
        views = {v: parse_view(cache.views[v], f"{cache.url}, view {v}") for v in view_ids}
        if not views:
            raise UsageError(
                "no view that all of these teachers saw",
                where=cache.url,
                got=", ".join([*names, *features]),
            )
        reader = TargetsReader(cache, names, features, shuffled=shuffled)
        left = target_memory - reader.held_bytes
        affordable = left // (_WINDOWS_ALIVE * (reader.row_bytes + _ROW_BYTES))
        alignment = None if shuffled else Alignment.of(cache, names)
        return cls(reader, views, max(1, affordable), alignment)

    def window_units(self, unit_rows: int) -> int:
        """Return how many units of that many rows make a window."""
        return max(1, self.window_rows // unit_rows)

    @property
    def blocks_alive(self) -> int:
        """The most blocks of U rows that the windows in memory may have rows of."""
        return _WINDOWS_ALIVE * self.window_units(self.reader.unit_rows) + 1

    def unit_rows(self, view: View) -> int:
        """Return the rows of a unit of the windows: whole blocks where images are mixed."""
        return self.reader.unit_rows if view.mixing is None else self.reader.block_rows


class Loader:
    """An iterable over batches ``(images, targets)``, one epoch after another.

    Iterating walks the epoch :attr:`next_epoch` and then moves on to the following one, so
    ``for images, targets in loader`` in a loop over epochs is all that is needed. Epoch e walks one
    view: all of them once per cycle, in an order drawn from the seed.

    While the last targets of an epoch are shown, the first ones of the next are read, so that it
    need not begin by waiting. Who iterates does not say which epoch is the last: its successor's
    first targets are read in vain, unless :meth:`close` comes first.

    Images are float32 (B, 3, S, S), normalised, on the device; targets are a
    :class:`~logitcache.batch.TargetBatch` on the same device.

    Args:
        rows: The images, and their labels.
        settings: How batches are made.
        targets: What teachers said; None to show labels alone.
        views: How images are shown where there are no targets: epoch e draws view e + 1; the
            ``eval`` view every time if no random view is asked for.
    """

    def __init__(
        self,
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
        for of_rows in (rows.digests, rows.labels):
            if targets is not None and of_rows is not None:
                of_rows.keep = targets.blocks_alive
        self._reader = CheckedReader(rows)
        self._renderer = make_renderer(
            self._reader,
            [settings.size],
            threads=settings.threads,
            workers=settings.workers,
            table=rows.table,
        )
        self._images_of: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="targets")
        self._begun: Epoch | None = None
        device = settings.device or torch.device("cpu")
        self._device = device
        self._mean_C11 = (255.0 * torch.tensor(settings.mean)).view(-1, 1, 1).to(device)
        self._std_C11 = (255.0 * torch.tensor(settings.std)).view(-1, 1, 1).to(device)

    def __len__(self) -> int:
        """Return the batches of an epoch that shows every image; see :meth:`batches_of`."""
        whole, rest = divmod(len(self.rows), self.settings.batch_size)
        return whole + (rest > 0 and not self.settings.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, TargetBatch]]:
        epoch, self.next_epoch = self.next_epoch, self.next_epoch + 1
        return self.epoch(epoch, followed=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what renders and what reads; a read under way is waited for, and forgotten."""
        self._begun = None
        self._thread.shutdown(wait=True, cancel_futures=True)
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

    def epoch(
        self, epoch: int, *, first_batch: int = 0, followed: bool = False
    ) -> Iterator[tuple[Tensor, TargetBatch]]:
        """Iterate over one epoch.

        Args:
            epoch: Counted from 0.
            first_batch: Batch to begin with; earlier ones are not even rendered.
            followed: Whether the next epoch will be asked for after this one: its first targets are
                read while the last ones of this are shown. An error of that is raised there.
        """
        entered = self._enter(epoch, first_batch)
        begin_next = partial(self._begin, epoch + 1) if followed else None
        waiting: deque[list[Part]] = deque()
        for rendered in self._renderer.batches(_requests(entered, begin_next, waiting)):
            parts = waiting.popleft()
            yield self._images(rendered), entered.target_batch(parts).to(self._device)

    def images_of(self, epoch: int) -> int:
        """Return how many images an epoch shows: all whose partner, if any, is at hand."""
        view = self.view(epoch)
        if view.mixing is None:
            return len(self.rows)
        if view.id not in self._images_of:
            pairs = self._pairs(view)
            self._images_of[view.id] = len(self.rows) if pairs is None else pairs.count()
        return self._images_of[view.id]

    def batches_of(self, epoch: int) -> int:
        """Return how many batches an epoch has."""
        whole, rest = divmod(self.images_of(epoch), self.settings.batch_size)
        return whole + (rest > 0 and not self.settings.drop_last)

    def batches_in(self, epochs: int) -> int:
        """Return how many batches the first epochs have together."""
        return sum(self.batches_of(epoch) for epoch in range(epochs))

    def images_in(self, batches: int) -> int:
        """Return how many images the first batches show, one in every epoch counted again."""
        shown, epoch = 0, 0
        while batches > 0:
            here = min(batches, self.batches_of(epoch))
            shown += min(here * self.settings.batch_size, self.images_of(epoch))
            batches, epoch = batches - here, epoch + 1
        return shown

    def without_partner(self, epochs: int) -> int:
        """Return how many images the poorest of the first epochs leaves out."""
        return len(self.rows) - min(self.images_of(epoch) for epoch in range(epochs))

    def _pairs(self, view: View) -> Pairs | None:
        pairs = find_pairs(view, self.rows, self._targets.reader if self._targets else None)
        if pairs is not None and self._targets is not None:
            pairs.partners.keep = self._targets.blocks_alive
        return pairs

    def _enter(self, epoch: int, first_batch: int) -> Epoch:
        """Return the epoch that was begun, if it is this one; otherwise forget it."""
        begun, self._begun = self._begun, None
        if begun is None:
            return self._prepared(epoch, first_batch)
        if (begun.number, begun.first_batch) == (epoch, first_batch):
            return begun
        begun.drop()
        return self._prepared(epoch, first_batch)

    def _begin(self, epoch: int) -> None:
        """Begin to read an epoch before it is entered."""
        if self._begun is not None:
            self._begun.drop()
        self._begun = self._prepared(epoch, 0)
        self._begun.begin()

    def _prepared(self, epoch: int, first_batch: int) -> Epoch:
        view = self.view(epoch)
        return Epoch(
            epoch,
            first_batch,
            view=view,
            pairs=self._pairs(view),
            rows=self.rows,
            settings=self.settings,
            targets=self._targets,
            thread=self._thread,
        )

    def _images(self, rendered: RenderedBatch) -> Tensor:
        for error in rendered.failures.values():
            raise self._reader.named(error)
        pixels = torch.from_numpy(rendered.pixels[self.settings.size])
        return (pixels.to(self._device, non_blocking=True).float() - self._mean_C11) / self._std_C11


def _requests(
    epoch: Epoch, at_last: Callable[[], None] | None, waiting: deque[list[Part]]
) -> Iterator[BatchRequest]:
    """Ask for the pixels of batches; their targets wait meanwhile."""
    for parts in epoch.batches(at_last):
        waiting.append(parts)
        yield epoch.request(parts)


def loader(
    cache: Cache,
    data: str | DataConfig | Source,
    *,
    batch_size: int = 256,
    size: int = 224,
    teachers: Sequence[str] | None = None,
    features: Sequence[str] = (),
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    seed: int = 0,
    drop_last: bool = False,
    threads: int | None = None,
    workers: int = 0,
    target_memory: int = DEFAULT_TARGET_MEMORY,
    subset: bool = False,
    tolerate_pixel_drift: int = 0,
    device: torch.device | str | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Loader:
    """Return batches of the images of a cache, as the teachers saw them, with what they said.

    Args:
        cache: An open cache.
        data: The images: a folder, a tar file, ``digits``, or any :class:`Source`.
        batch_size: Images of a batch, of all ranks together.
        size: Side of the images in pixels; need not be any teacher's.
        teachers: Whose answers; all teachers by default.
        features: Which taps of their networks, as ``<teacher>/<tap>``.
        mean: To subtract, per channel, in units of [0, 1].
        std: To divide by, per channel, in units of [0, 1].
        seed: Of the order of images and views.
        drop_last: Whether a last, smaller batch is left out.
        threads: Threads that decode and render; all processors by default.
        workers: Child processes that do it instead.
        target_memory: Bytes that targets may take.
        subset: Whether images of the cache may be missing from the data.
        tolerate_pixel_drift: Largest difference of a level, 0 to 255, between the cache's probes
            and what this machine makes of them.
        device: Where batches go.
        rank: Which of several processes this is; each shows its slice of every batch.
        ranks: How many there are.

    Raises:
        DataMismatch: These are not the images the cache was made from.
        ViewDrift: This machine shows them otherwise.
        UsageError: An unknown teacher, or a batch, a size or a rank that cannot be.
    """
    source = open_source_for(data, (), "", listing=cache.listing)
    settings = LoaderSettings(
        batch_size=batch_size,
        size=size,
        mean=mean,
        std=std,
        seed=seed,
        drop_last=drop_last,
        threads=threads,
        workers=workers,
        device=torch.device(device) if device is not None else None,
        rank=rank,
        ranks=ranks,
    )
    targets = Targets.of(cache, teachers, features, target_memory=target_memory)
    rows = checked_rows(cache, source, subset=subset, tolerate_pixel_drift=tolerate_pixel_drift)
    return Loader(rows, settings, targets=targets)
