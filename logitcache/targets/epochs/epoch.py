"""One epoch of a loader: windows of rows, cut into batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.batch import PIXELS, Features, TargetBatch
from logitcache.targets.decoding.batch_parts import visible_patches
from logitcache.targets.epochs.order import epoch_rows, epoch_windows
from logitcache.targets.epochs.prefetch import ReadAhead
from logitcache.targets.mixing_pairs import label_set_targets
from logitcache.targets.reader import DecodedTargets, TargetWindow, concatenate
from logitcache.views.render import BatchRequest

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Executor

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.targets.epochs.order import Window
    from logitcache.targets.images.image_rows import ImageRows
    from logitcache.targets.mixing_pairs import Pairs
    from logitcache.targets.selection import Targets
    from logitcache.targets.settings import LoaderSettings
    from logitcache.targets.transfer import Transfer
    from logitcache.targets.view_group import ViewGroup
    from logitcache.views.spec import View

__all__ = ["Epoch", "Part", "batch_requests", "chosen_rows", "rows_of", "vector_batches"]


@dataclass(frozen=True)
class Part:
    """The rows of a batch that belong to one window.

    Attributes:
        windows: Targets of the window for every view whose targets are read; empty without targets.
        rows: Row numbers, int64.
        chosen: Number of the view that is chosen for each row; None without a sampler.
    """

    windows: tuple[TargetWindow, ...]
    rows: NDArray[np.int64]
    chosen: NDArray[np.int64] | None = None


class Epoch:
    """One epoch of a loader, from some batch on.

    Args:
        number: Index of the epoch, from 0.
        first_batch: Index of the batch to start with.
        group: The views of a batch; the first one decides how units are read.
        pairs: Mixing partners; None if the view mixes no images.
        images: Number of images that the epoch shows.
        rows: The images and their labels.
        settings: Settings of the loader, with the rank of this process.
        targets: Cached targets; None for labels alone.
        thread: Executor with a single thread, in which targets are read.
    """

    def __init__(
        self,
        number: int,
        first_batch: int,
        *,
        group: ViewGroup,
        pairs: Pairs | None,
        images: int,
        rows: ImageRows,
        settings: LoaderSettings,
        targets: Targets | None,
        thread: Executor,
    ) -> None:
        self.number = number
        self.first_batch = first_batch
        self.group = group
        self._pairs = pairs
        self._images = images
        self._rows = rows
        self.settings = settings
        self._targets = targets
        self._reading = None if targets is None else self._reader(targets, thread)

    def begin(self) -> None:
        """Start to read the first window in the background."""
        if self._reading is not None:
            self._reading.begin()

    def drop(self) -> None:
        """Discard what :meth:`begin` has started to read."""
        if self._reading is not None:
            self._reading.drop()

    def batches(self, at_last: Callable[[], None] | None) -> Iterator[list[Part]]:
        """Yield this rank's slice of every batch.

        Args:
            at_last: Called when all windows have been requested, before the last one is used.
        """
        rank, ranks = self.settings.rank, self.settings.ranks
        assert rank is not None
        assert ranks is not None
        for parts in self._whole_batches(at_last):
            yield _slice(parts, rank, ranks)

    def with_views(self, parts: list[Part]) -> list[Part]:
        """Return a batch with the views of its rows, if they are chosen row by row."""
        return parts

    def rendered(self, parts: list[Part]) -> list[tuple[View, list[Part]]]:
        """Return the views that are rendered for a batch, and the rows that each shows.

        They are in the order of their requests.
        """
        return [(view, parts) for view in self.group.rendered(pixels=self.settings.pixels)]

    def requests(self, parts: list[Part], size: int) -> list[BatchRequest]:
        """Return one request per rendered view for the images of a batch at a size in pixels."""
        return [self._request(view, rows_of(own), size) for view, own in self.rendered(parts)]

    def _request(self, view: View, rows_B: NDArray[np.int64], size: int) -> BatchRequest:
        hashes_of, positions = self._rows.hashes_of, self._rows.positions(rows_B)
        partners = None if self._pairs is None else self._pairs.positions_of(positions)
        return self._rows.shown(
            BatchRequest(
                view,
                positions,
                hashes_of(positions),
                partners=partners,
                partner_hashes=None if partners is None else hashes_of(partners),
                sizes=(size,),
            )
        )

    def target_batch(self, parts: list[Part]) -> TargetBatch:
        """Return the labels and cached outputs of a batch, on the CPU."""
        rows_B = rows_of(parts)
        positions_B = self._rows.positions(rows_B)
        partners_B, lam = (None, None) if self._pairs is None else self._pairs.mixture(positions_B)
        read = [self._decoded(parts, number) for number in range(len(parts[0].windows))]
        views = self.group.read
        of_views = [read[views.index(view)] for view in self.group.targets] if read else []
        # a teacher may well be wrong about turned or masked images
        if of_views and self.group.targets[0].base is None:
            # one view is enough: rows of another image are wrong in all views of the group
            self._compare(rows_B, of_views[0], partners_B)
        return self._batch_of(
            rows_B,
            np.tile(np.arange(len(rows_B)), len(self.group.shown)),
            concatenate(of_views) if of_views else DecodedTargets({}, {}),
            partner_labels=partners_B,
            lam=lam,
            views=tuple(self.group.shown),
            visible=visible_patches(
                self.group.shown.values(), lambda: self._rows.hashes_of(positions_B)
            ),
        )

    def _decoded(self, parts: list[Part], number: int) -> DecodedTargets:
        """Return the targets of a batch in one of the views that are read, over all windows."""
        on_device = self.settings.decodes_on_device
        return concatenate([p.windows[number].gather(p.rows, on_device=on_device) for p in parts])

    def _compare(
        self, rows_B: NDArray[np.int64], decoded: DecodedTargets, partners_B: Tensor | None = None
    ) -> None:
        """Show labels and outputs to the test for outputs of other images, until it is settled."""
        alignment = self._targets.alignment if self._targets else None
        if alignment is None or alignment.is_settled:
            return
        labels_B = self._rows.labels_of(self._rows.positions(rows_B))
        shown = [labels_B] if partners_B is None else [labels_B, partners_B.numpy()]
        alignment.see(rows_B, np.stack(shown, axis=1), decoded.teachers)

    def _batch_of(
        self,
        rows_B: NDArray[np.int64],
        order: NDArray[np.int64],
        targets: DecodedTargets,
        **fields: Any,
    ) -> TargetBatch:
        """Return a batch of some rows, each in one or several views.

        Args:
            rows_B: The rows.
            order: Index of the row that each row of the batch is.
            targets: Outputs of teachers, in the order of the batch.
            fields: Further fields of the batch.
        """
        positions_B = self._rows.positions(rows_B)
        sets_BC = label_set_targets(self._rows, self._pairs, positions_B, fields.get("lam"))
        return TargetBatch(
            rows=torch.from_numpy(rows_B[order]),
            labels=torch.from_numpy(self._rows.labels_of(positions_B)[order]),
            teachers=targets.teachers,
            features=targets.features,
            label_sets=None if sets_BC is None else sets_BC[torch.from_numpy(order)],
            parts={
                name: torch.from_numpy(self._rows.in_part(positions_B, name)[order])
                for name in self.settings.parts
            },
            **fields,
        )

    def batch(
        self, images: Mapping[View, Tensor], targets: TargetBatch
    ) -> tuple[Tensor, TargetBatch]:
        """Return the images that the student is shown, and targets with pixels if they are needed.

        Args:
            images: Normalized images of every rendered view, (B, 3, S, S).
            targets: Targets of the batch, on the same device.
        """
        shown = tuple(self.group.shown.values())
        batch = pixels = _concatenated(images[view] for view in shown)
        if self.settings.pixels and shown != self.group.targets:  # else the memory is shared
            pixels = _concatenated(images[view] for view in self.group.targets)
        return batch, self._with_pixels(targets, pixels)

    def _with_pixels(self, targets: TargetBatch, pixels: Tensor) -> TargetBatch:
        """Return targets with the images of their views, if these are needed."""
        if not self.settings.pixels:
            return targets
        own = Features(pixels, "NCHW", grid=pixels.shape[-1])
        return replace(targets, features={**targets.features, PIXELS: own})

    def _whole_batches(self, at_last: Callable[[], None] | None) -> Iterator[list[Part]]:
        """Cut the windows into batches; a batch may consist of parts of several windows."""
        settings, images, batch = self.settings, self._images, self.first_batch
        parts: list[Part] = []
        for windows, rows in self._windows(at_last):
            while len(rows) and batch < settings.batches(images):  # fewer with drop_last
                size = settings.images_of(batch, images)
                missing = size - sum(len(part.rows) for part in parts)
                parts.append(Part(windows, rows[:missing]))
                rows = rows[missing:]
                if len(rows_of(parts)) == size:
                    yield parts
                    parts, batch = [], batch + 1

    def _windows(
        self, at_last: Callable[[], None] | None
    ) -> Iterator[tuple[tuple[TargetWindow, ...], NDArray[np.int64]]]:
        """Yield the targets and rows of the windows."""
        if self._reading is not None:
            for window, read in self._reading.walk(at_last):
                yield read, window.rows
            return
        for rows in epoch_rows(
            self._rows.numbers,
            seed=self.settings.seed,
            epoch=self.number,
            partners_of=None if self._pairs is None else self._pairs.partners_of,
            skip=self.first_batch * self.settings.batch_size,
        ):
            yield (), rows

    def _reader(
        self, targets: Targets, thread: Executor
    ) -> ReadAhead[Window, tuple[TargetWindow, ...]]:
        """Return the background reader of the windows."""
        views = self.group.read
        reader, unit_rows = targets.reader, targets.unit_rows(views[0])
        windows = epoch_windows(
            self._rows.numbers,
            seed=self.settings.seed,
            epoch=self.number,
            unit_rows=unit_rows,
            window_units=targets.window_units(unit_rows),
            block_units=reader.block_rows // unit_rows,
            partners_of=None if self._pairs is None else self._pairs.partners_of,
            skip=self.first_batch * self.settings.batch_size,
        )

        def read(window: Window) -> tuple[TargetWindow, ...]:
            return tuple(reader.read(view, window.units, unit_rows) for view in views)

        return ReadAhead(windows, read, thread)


def chosen_rows(parts: list[Part], chosen_B: NDArray[np.bool_]) -> list[Part]:
    """Return only some rows of a batch, bool (B,)."""
    edges = np.cumsum([len(part.rows) for part in parts])[:-1]
    split = zip(parts, np.split(chosen_B, edges), strict=True)
    return [
        Part(part.windows, part.rows[mask], None if part.chosen is None else part.chosen[mask])
        for part, mask in split
        if mask.any()
    ]


def _slice(parts: list[Part], rank: int, ranks: int) -> list[Part]:
    """Return the rows of a batch that one rank shows; their numbers differ by at most one.

    A batch with fewer rows than ranks is shown as a whole by every rank: a network cannot be run on
    an empty batch, and the mean over the ranks still equals the mean over the rows.
    """
    count = sum(len(part.rows) for part in parts)
    if count < ranks:
        return parts
    start, stop = count * rank // ranks, count * (rank + 1) // ranks
    found = []
    for part in parts:  # start and stop count from the first row of this part
        rows = part.rows[max(0, start) : max(0, stop)]
        if len(rows):
            found.append(Part(part.windows, rows))
        start, stop = start - len(part.rows), stop - len(part.rows)
    return found


def _concatenated(images: Iterable[Tensor]) -> Tensor:
    first, *others = images
    return torch.cat([first, *others]) if others else first


def rows_of(parts: list[Part]) -> NDArray[np.int64]:
    """Return the rows of a batch."""
    return np.concatenate([part.rows for part in parts])


def batch_requests(
    epoch: Epoch, size: int, at_last: Callable[[], None] | None, waiting: deque[list[Part]]
) -> Iterator[BatchRequest]:
    """Yield the requests to render all batches, and queue the rows of each in ``waiting``.

    The renderer draws requests several batches ahead, so the rows of a batch have to be kept until
    its pixels arrive, which they do in the order of the requests.
    """
    for parts in epoch.batches(at_last):
        shown = epoch.with_views(parts)
        waiting.append(shown)
        yield from epoch.requests(shown, size)


def vector_batches(
    epoch: Epoch, name: str, at_last: Callable[[], None] | None, transfer: Transfer
) -> Iterator[tuple[Tensor, TargetBatch]]:
    """Yield batches that have cached vectors in place of images.

    Args:
        epoch: The epoch.
        name: Name of the vectors, ``<teacher>/<tap>``.
        at_last: Called when all windows have been requested, before the last one is used.
        transfer: Copies targets to the device.
    """
    for parts in epoch.batches(at_last):
        targets = transfer.targets(epoch.target_batch(parts))
        yield targets.features[name].values, targets
