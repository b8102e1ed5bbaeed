"""Loader of batches of images and targets.

The order of images and the pixels depend on the configuration alone: any number of threads on any
machine gives the same batches, and an epoch can start at any batch.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from logitcache.errors import DataError
from logitcache.targets.epochs.epoch import batch_requests, chosen_rows, vector_batches
from logitcache.targets.epochs.order import view_of_epoch
from logitcache.targets.epochs.sampled_epoch import epoch_kind
from logitcache.targets.images.fingerprint_check import checked_rows
from logitcache.targets.images.image_rows import CheckedReader, ImageRows
from logitcache.targets.images.image_source import images_of
from logitcache.targets.mixing_pairs import Pairs, find_pairs
from logitcache.targets.selection import DEFAULT_TARGET_MEMORY, Targets
from logitcache.targets.settings import LoaderSettings, check_state
from logitcache.targets.transfer import Transfer
from logitcache.targets.view_group import BASE, ViewGroup, shown_views, student_view
from logitcache.views.workers import make_renderer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.batch import TargetBatch
    from logitcache.cache.read.reader import Cache
    from logitcache.data.class_map import ClassMaps
    from logitcache.data.readers import ImageSet
    from logitcache.errors import UnreadableImage
    from logitcache.targets.epochs.epoch import Epoch, Part
    from logitcache.views.render import RenderedBatch, ViewRenderer
    from logitcache.views.spec import View, ViewsConfig
    from logitcache.views.workers import WorkerRenderer

__all__ = ["Loader", "loader"]

_STATE_VERSION = 1


class Loader:
    """An iterable over batches ``(images, targets)``, one epoch after another.

    Each ``iter()`` runs over the next epoch, so ``for images, targets in loader`` inside a loop
    over epochs is all that is needed. An epoch starts with the first ``next()``: an iterator that
    is not used changes nothing. Each epoch shows one view; a cycle of epochs shows every view
    once, in an order drawn from the seed.

    While the last batches of an epoch are used, the first targets of the next epoch are read. This
    is wasted after the last epoch, unless :meth:`close` is called first.

    Images are float32 (B, 3, S, S), normalized, on the device; targets are a
    :class:`~logitcache.batch.TargetBatch` on the same device. Under torchrun, accelerate or
    Lightning, each process gets its slice of every batch.

    Args:
        rows: The images and their labels.
        settings: Settings of the batches.
        targets: Cached targets; None for labels alone.
        views: Views of the images if there are no targets: epoch e shows random view e + 1, or the
            ``eval`` view every time if no random view is configured.

    Attributes:
        skipped: Errors of the images that could not be decoded and were left out so far, by
            position.
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
            raise ValueError("a loader takes either targets or views, not both and not neither")
        self.rows, self.settings = rows, settings
        self.skipped: dict[int, UnreadableImage] = {}
        self._next = (0, 0)  # epoch and batch that the next iterator starts with
        self._position: tuple[int, int] | None = None  # epoch and batch of the iterator in use
        self._targets = targets
        self._views, self._size = views, settings.size
        self._images_of: dict[str, int] = {}
        if targets is not None:
            rows.keep_units(targets.blocks_alive)
        rows.check_size(settings.size)
        self._reader = CheckedReader(rows)
        self._renderer: ViewRenderer | WorkerRenderer | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._begun: Epoch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process, without threads and child processes."""
        kept = {name: value for name, value in self.__dict__.items() if name != "_transfer"}
        return {**kept, "_renderer": None, "_thread": None, "_begun": None}

    def __len__(self) -> int:
        """Return the number of batches of an epoch with all images; see :meth:`batches_of`."""
        return self.settings.batches(len(self.rows))

    def __iter__(self) -> Iterator[tuple[Tensor, TargetBatch]]:
        # a generator, so the epoch starts with the first next()
        epoch, first = self._next
        self._next, self._position = (epoch + 1, 0), (epoch, first)
        last, batches = self.batches_of(epoch), self.epoch(epoch, first_batch=first, followed=True)
        for batch, shown in enumerate(batches, first + 1):
            # set before the batch is yielded: a state saved while it is used counts it as done
            self._position = (epoch, batch) if batch < last else (epoch + 1, 0)
            yield shown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop all threads and child processes, after the read that is running."""
        self._begun = None
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
        if self._renderer is not None:
            self._renderer.close()
        self._thread = self._renderer = None

    @property
    def next_epoch(self) -> int:
        """The epoch of the next iterator."""
        return self._next[0]

    @property
    def sampler(self) -> Self:
        """This loader: frameworks call ``loader.sampler.set_epoch(epoch)``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iterator.

        It starts with the first batch, unless :meth:`load_state_dict` has set another batch of the
        same epoch: training loops call this method after a state is loaded, too.

        Args:
            epoch: Index of the epoch, from 0.
        """
        if self._next[0] != epoch:
            self._next = (epoch, 0)
        self._position = None

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch, and the settings that define the order."""
        epoch, batch = self._next if self._position is None else self._position
        return {"version": _STATE_VERSION, "epoch": epoch, "batch": batch, **self._order()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the batch after the last one before :meth:`state_dict` was called.

        The number of processes may have changed.

        Raises:
            UsageError: The state belongs to a loader with other images, or in another order.
        """
        check_state(state, {"version": _STATE_VERSION, **self._order()})
        self._next = (int(state["epoch"]), int(state["batch"]))
        self._position = None

    def set_size(self, size: int) -> None:
        """Set the side of the images in pixels, from the next epoch on; targets do not change.

        Raises:
            UsageError: The size is out of range.
        """
        self.rows.check_size(size)
        self._size = replace(self.settings, size=size).size

    def view(self, epoch: int) -> View:
        """Return the view that an epoch shows."""
        if self._targets is None:
            assert self._views is not None
            return student_view(self._views, epoch)
        ids = list(self._targets.views)
        return self._targets.views[ids[view_of_epoch(self.settings.seed, epoch, len(ids))]]

    def epoch(
        self, epoch: int, *, first_batch: int = 0, followed: bool = False
    ) -> Iterator[tuple[Tensor, TargetBatch]]:
        """Iterate over one epoch.

        Args:
            epoch: Index of the epoch, from 0.
            first_batch: Index of the batch to start with; earlier ones are not rendered.
            followed: Whether the next epoch will be used after this one. If so, its first targets
                are read in advance, and errors of that are raised when it starts.

        Raises:
            UnreadableImage: An image cannot be decoded, and ``on_bad_image`` is ``error``.
            UsageError: There are fewer images than processes.
        """
        entered, size = self._enter(epoch, first_batch), self._size
        begin_next = partial(self._begin, epoch + 1) if followed else None
        waiting: deque[list[Part]] = deque()
        images: dict[View, Tensor] = {}
        if self.settings.vectors is not None:
            yield from vector_batches(entered, self.settings.vectors, begin_next, self._transfer)
            return
        requests = batch_requests(entered, size, begin_next, waiting)
        for rendered in self._rendering().batches(requests):
            pixels = rendered.pixels[size]
            shown = self._without(rendered) if rendered.failures else None
            # converted at once: child processes may use their memory again for the next view
            view, _ = entered.rendered(waiting[0])[len(images)]
            images[view] = self._transfer.images(pixels if shown is None else pixels[shown])
            if len(images) < len(entered.rendered(waiting[0])):
                continue
            parts = waiting.popleft()
            if shown is not None:  # an image that cannot be decoded fails in every view
                parts = chosen_rows(parts, shown)
            yield entered.batch(images, self._transfer.targets(entered.target_batch(parts)))
            images = {}

    def images_of(self, epoch: int) -> int:
        """Return the number of images of an epoch: all whose mixing partner is available.

        Raises:
            DataError: There are none.
        """
        view = self.view(epoch)
        if view.mixing is None:
            return len(self.rows)
        if view.id not in self._images_of:
            pairs = self._pairs(view)
            self._images_of[view.id] = len(self.rows) if pairs is None else pairs.count()
        if not self._images_of[view.id]:
            raise DataError(
                "no image can be used: the images to mix in are missing from the data",
                where=self.rows.source.description,
                hint="use all images the cache was computed from, or views without mixing",
            )
        return self._images_of[view.id]

    def batches_of(self, epoch: int) -> int:
        """Return the number of batches of an epoch."""
        return self.settings.batches(self.images_of(epoch))

    def _order(self) -> dict[str, int]:
        """Return the settings that the order of images depends on."""
        settings = self.settings
        return {
            "images": len(self.rows),
            "views": 0 if self._targets is None else len(self._targets.views),
            "seed": settings.seed,
            "batch_size": settings.batch_size,
        }

    def _rendering(self) -> ViewRenderer | WorkerRenderer:
        if self._renderer is None:
            self._renderer = make_renderer(
                self._reader,
                [self.settings.size],
                threads=self.settings.threads,
                workers=self.settings.workers,
                table=self.rows.table,
                image_memory=self.settings.image_memory,
                values=self._transfer.values,
            )
        return self._renderer

    def _pairs(self, view: View) -> Pairs | None:
        pairs = find_pairs(view, self.rows, self._targets.reader if self._targets else None)
        if pairs is not None and self._targets is not None:
            # partners are in the same block, so the blocks of the windows in memory are enough
            pairs.partners.keep = self._targets.blocks_alive
        return pairs

    def _enter(self, epoch: int, first_batch: int) -> Epoch:
        """Return the epoch that is read in advance if it is this one, else a new one."""
        begun, self._begun = self._begun, None
        if begun is None:
            return self._prepared(epoch, first_batch)
        # the rank may have changed: a process group may be initialized after the first epoch
        place = (begun.number, begun.first_batch, begun.settings)
        if place == (epoch, first_batch, self.settings.placed()):
            return begun
        begun.drop()
        return self._prepared(epoch, first_batch)

    def _begin(self, epoch: int) -> None:
        """Start to read an epoch in advance."""
        if self._begun is not None:
            self._begun.drop()
        self._begun = self._prepared(epoch, 0)
        self._begun.begin()

    def _prepared(self, epoch: int, first_batch: int) -> Epoch:
        settings = self.settings.placed()
        settings.check_images(len(self.rows), self.rows.source.description)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="targets")
        view, show, targets = self.view(epoch), settings.show, self._targets
        return epoch_kind(targets)(
            epoch,
            first_batch,
            group=targets.group(view, epoch, show) if targets else ViewGroup.of(view, show),
            pairs=self._pairs(view),
            images=self.images_of(epoch),
            rows=self.rows,
            settings=settings,
            targets=targets,
            thread=self._thread,
        )

    def _without(self, rendered: RenderedBatch) -> NDArray[np.bool_]:
        """Return which rows of a batch were decoded, bool (B,), and count the others.

        Raises:
            UnreadableImage: ``on_bad_image`` is ``error``, or no image of the batch is left.
        """
        shown = np.ones(len(rendered.request.indices), dtype=np.bool_)
        for place, error in rendered.failures.items():
            shown[place] = False
            if self.settings.on_bad_image == "error" or not shown.any():
                raise self._reader.named(error)
            position: Any = error.where
            self.skipped[position] = self._reader.named(error)
        return shown

    @cached_property
    def _transfer(self) -> Transfer:
        device = self.settings.device or torch.device("cpu")
        return Transfer(device, self.settings.mean, self.settings.std)


def loader(
    cache: Cache,
    data: ImageSet | None = None,
    *,
    batch_size: int = 256,
    size: int = 224,
    teachers: Sequence[str] | None = None,
    features: Sequence[str] = (),
    class_map: ClassMaps | None = None,
    student_views: ViewsConfig | None = None,
    views: Sequence[str] = (),
    show: Sequence[str | Mapping[str, str]] = (BASE,),
    pixels: bool = False,
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
    seed: int = 0,
    drop_last: bool = False,
    threads: int | None = None,
    workers: int = 0,
    image_memory: int = 0,
    target_memory: int = DEFAULT_TARGET_MEMORY,
    subset: bool = False,
    tolerate_pixel_drift: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    device: torch.device | str | None = None,
    rank: int | None = None,
    ranks: int | None = None,
) -> Loader:
    """Return a loader of the images of a cache in the teachers' views, with the cached outputs.

    ``state_dict()`` and ``load_state_dict()`` save and restore the position, also in the middle of
    an epoch.

    Args:
        cache: An open cache.
        data: A name, a :class:`Source` or a map-style data set; by default images in the cache.
        batch_size: Number of images per batch, of all processes together.
        size: Side of the images in pixels; it may differ from the teachers' sizes.
        teachers: Names of the teachers; all teachers by default.
        features: Layers with cached features, as ``<teacher>/<tap>``.
        class_map: Class of the student for classes of the teachers: a file with two columns, or by
            name of the teacher a file or ``{class: [classes of the teacher]}``.
        student_views: Views that students see where those of the teachers are not known, since
            their outputs were imported; random crops and flips by default.
        views: Views of the cache: ids, numbers from 0, or ranges such as ``0-3``; by default all
            views that all of these teachers and layers have.
        show: The views of a batch: ``base``, and views derived from it, as ``rot90(1)``; or a view
            with the targets of another one, ``{"student": "lowres(4)", "targets": "base"}``. A
            batch has ``batch_size`` images for each of them, ordered view by view.
        pixels: Whether targets have the images of their views, too: ``targets.features["pixels"]``.
        mean: Mean to subtract, per channel, for pixel values in [0, 1].
        std: Standard deviation to divide by, per channel, for pixel values in [0, 1].
        seed: Random seed of the order of images and views.
        drop_last: Whether a last, smaller batch is left out. A last batch with fewer images than
            processes is joined to the batch before it.
        threads: Number of threads that decode and render; all processors by default.
        workers: Number of child processes that decode and render instead. A script that uses them
            needs ``if __name__ == "__main__":``.
        image_memory: Bytes of decoded images that threads keep for later epochs.
        target_memory: Maximum memory for targets, in bytes.
        subset: Whether images of the cache may be missing from the data.
        tolerate_pixel_drift: Largest accepted difference between pixel values, 0 to 255, of the
            view fingerprints in the cache and on this machine.
        on_bad_image: ``error``, or ``skip`` to leave out images that cannot be decoded; see
            :attr:`Loader.skipped`.
        device: Device of the batches; the CPU by default.
        rank: Index of this process; by default that of ``torch.distributed``, or else the
            environment variable ``RANK``.
        ranks: Number of processes; by default from the same place.

    Raises:
        DataMismatch: These are not the images the cache was computed from.
        ViewDrift: This machine renders the views differently.
        UsageError: An unknown teacher or class, or a batch size, image size or rank out of range.
    """
    source, group = images_of(cache, data), shown_views(show)
    settings = LoaderSettings(
        batch_size=batch_size,
        size=size,
        mean=mean,
        std=std,
        seed=seed,
        drop_last=drop_last,
        threads=threads,
        workers=workers,
        image_memory=image_memory,
        on_bad_image=on_bad_image,
        device=torch.device(device) if device is not None else None,
        rank=rank,
        ranks=ranks,
        show=group,
        pixels=pixels,
    )
    targets = Targets.of(
        cache,
        teachers,
        features,
        views,
        group,
        target_memory=target_memory,
        class_map=class_map,
        student_views=student_views,
    )
    rows = checked_rows(cache, source, subset=subset, tolerate_pixel_drift=tolerate_pixel_drift)
    return Loader(rows.in_classes(targets.reader.classes), settings, targets=targets)
