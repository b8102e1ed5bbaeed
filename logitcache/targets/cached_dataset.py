"""Map-style data set of the images of a cache in one view, with the cached outputs.

For training scripts that have a sampler and a ``DataLoader`` of their own.

Shapes: B batch, S side of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from logitcache.batch import TargetBatch
from logitcache.errors import UsageError
from logitcache.targets.decoding.batch_parts import DecodedTargets, concatenate, visible_patches
from logitcache.targets.images.fingerprint_check import checked_rows
from logitcache.targets.images.image_rows import CheckedReader
from logitcache.targets.images.image_source import images_of
from logitcache.targets.mixing_pairs import find_pairs, label_set_targets
from logitcache.targets.row_targets import RowTargets
from logitcache.targets.selection import DEFAULT_TARGET_MEMORY, Targets
from logitcache.targets.settings import LoaderSettings
from logitcache.targets.transfer import Transfer
from logitcache.views.algorithm import check_known
from logitcache.views.render import BatchRequest, Decoder, Drawn, empty_batch, fill

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache
    from logitcache.data.class_map import ClassMaps
    from logitcache.data.readers import ImageSet
    from logitcache.label_sets import LabelSets
    from logitcache.targets.mixing_pairs import Pairs

__all__ = ["CachedDataset"]

Item = tuple[Tensor, TargetBatch]


class FetchedBatch(Sequence[Item]):
    """Items of a data set that were rendered and decoded together.

    A sequence of items, as ``__getitems__`` has to return; :meth:`CachedDataset.collate` takes the
    targets as they are, without cutting them into rows and joining these again.

    Attributes:
        images: Images, B tensors (3, S, S).
        targets: Targets of the images.
    """

    def __init__(self, images: Sequence[Tensor], targets: TargetBatch) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = torch.tensor([index % len(self)])
        return self.images[index], replace(self.targets.take(place), views=self.targets.views)


class CachedDataset(Dataset[Item]):
    """A map-style data set: an image in a view of a cache, and its targets.

    Item i is the i-th image in the order of the rows of the cache: the image (3, S, S) and a
    :class:`~logitcache.batch.TargetBatch` of one row. Pixels and targets are those of
    :func:`.loader` for the same row and view. It works with any sampler, and in worker processes::

        data = CachedDataset(cache, "photos/train", view=0)
        DataLoader(data, 256, shuffle=True, num_workers=2, collate_fn=data.collate)

    Targets are read in whole units, of which each process keeps ``target_memory`` bytes. Where the
    targets of a view are larger, most rows of a random order need another unit, so
    :func:`.loader` is faster, which reads every unit once an epoch.

    Args:
        cache: An open cache.
        data: The images: a name as for ``--data``, any :class:`Source`, or a map-style data set;
            by default those in the cache.
        view: The view: its number in the cache, its id, or the beginning of its id; see
            :attr:`view`.
        size: Side of the images in pixels, S; it may differ from the teachers' sizes.
        teachers: Names of the teachers; all teachers by default.
        features: Layers with cached features, as ``<teacher>/<tap>``.
        class_map: Classes of the teachers that are the classes of the student, as for
            :func:`.loader`.
        normalize: Whether images are float32 and normalized; otherwise they are pixels, uint8.
        mean: Mean to subtract, per channel, for pixel values in [0, 1].
        std: Standard deviation to divide by, per channel, for pixel values in [0, 1].
        target_memory: Maximum memory of a process for encoded targets, in bytes; at least one unit
            of every teacher and layer is kept.
        subset: Whether images of the cache may be missing from the data.
        tolerate_pixel_drift: Largest accepted difference between pixel values, 0 to 255, of the
            view fingerprints in the cache and on this machine.

    Attributes:
        rows: The images and their labels.

    Raises:
        DataMismatch: These are not the images the cache was computed from.
        ViewDrift: This machine renders the views differently.
        UsageError: An unknown teacher, layer or view, or a size out of range.
    """

    def __init__(
        self,
        cache: Cache,
        data: ImageSet | None = None,
        *,
        view: int | str = 0,
        size: int = 224,
        teachers: Sequence[str] | None = None,
        features: Sequence[str] = (),
        class_map: ClassMaps | None = None,
        normalize: bool = True,
        mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
        target_memory: int = DEFAULT_TARGET_MEMORY,
        subset: bool = False,
        tolerate_pixel_drift: int = 0,
    ) -> None:
        # checks the ranges of these settings
        self._settings = LoaderSettings(batch_size=1, size=size, mean=mean, std=std)
        self._normalize = normalize
        chosen = Targets.of(cache, teachers, features, class_map=class_map)
        self._reader, self._alignment = chosen.reader, chosen.alignment
        classes = chosen.reader.classes
        self._targets = RowTargets(
            cache, chosen.reader.groups, chosen.views, target_memory, classes
        )
        source = images_of(cache, data)
        self.rows = checked_rows(
            cache, source, subset=subset, tolerate_pixel_drift=tolerate_pixel_drift
        ).in_classes(classes)
        self.rows.check_size(size)
        self._blocks = max(1, len(cache.units()))  # all are kept: rows come in any order
        self.rows.keep_units(self._blocks)
        self._images = CheckedReader(self.rows)
        self._decode = Decoder(self._images, self.rows.table)
        self._view_id, self._pairs = self._shown(view)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_transfer"}

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def view(self) -> str:
        """Id of the view; may be set to the number or the id of another one between epochs.

        Worker processes of a ``DataLoader`` have copies of the data set that are made when an epoch
        starts, so they see a change only with ``persistent_workers=False``, the default.
        """
        return self._view_id

    @view.setter
    def view(self, name: int | str) -> None:
        self._view_id, self._pairs = self._shown(name)

    @property
    def views(self) -> list[str]:
        """Ids of the views that :attr:`view` may be set to."""
        return self._targets.views

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels of all images, int64 (N,), -1 for none; for samplers that balance classes."""
        return self.rows.labels_of(np.arange(len(self)))

    @property
    def label_sets(self) -> LabelSets | None:
        """Sets of classes of all images; None where an image has at most one class."""
        if not self.rows.has_label_sets:
            return None
        return self.rows.label_sets_of(np.arange(len(self)))

    def __getitem__(self, index: int) -> Item:
        item: Item = self.__getitems__([index])[0]
        return item

    def __getitems__(self, indices: Sequence[int]) -> FetchedBatch:
        """Return several items at once, as a ``DataLoader`` requests them.

        Raises:
            UnreadableImage: An image cannot be decoded.
            DataMismatch: An image is not the one the cache was computed from, or outputs do not
                belong to the images.
        """
        positions_B = self._positions(indices)
        return FetchedBatch(self._rendered(positions_B), self._targets_of(positions_B))

    @staticmethod
    def collate(items: Sequence[Item]) -> Item:
        """Join items to a batch: images (B, 3, S, S) and their targets."""
        if isinstance(items, FetchedBatch):
            images, targets = items.images, items.targets
        else:
            images, targets = [image for image, _ in items], _joined([row for _, row in items])
        # in a worker process, PyTorch's own function joins them in shared memory
        joined: Tensor = default_collate(list(images))
        return joined, targets

    def _positions(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return indices as positions; negative ones count from the end, as those of a list.

        Raises:
            IndexError: One is out of range.
        """
        positions_B = np.asarray(indices, dtype=np.int64).reshape(-1)
        outside = positions_B[(positions_B < -len(self)) | (positions_B >= len(self))]
        if len(outside):
            # not an error of this package: loops over a sequence end at an IndexError
            raise IndexError(f"index {outside[0]} of a data set of {len(self)} images")
        return np.where(positions_B < 0, positions_B + len(self), positions_B)

    def _rendered(self, positions_B: NDArray[np.int64]) -> list[Tensor]:
        """Return images, float32 or uint8, B tensors (3, S, S)."""
        hashes_of, size = self.rows.hashes_of, self._settings.size
        partners = None if self._pairs is None else self._pairs.positions_of(positions_B)
        request = self.rows.shown(
            BatchRequest(
                self._targets.view(self._view_id),
                positions_B,
                hashes_of(positions_B),
                partners=partners,
                partner_hashes=None if partners is None else hashes_of(partners),
            )
        )
        # in this thread: a DataLoader has its own processes
        batch = empty_batch(request, (size,))
        fill(batch, Drawn(request), self._decode, 0, len(positions_B))
        for error in batch.failures.values():
            raise self._images.named(error)
        pixels_B3SS = batch.pixels[size]
        if not self._normalize:
            return list(torch.from_numpy(pixels_B3SS))
        # one at a time, in memory of the size of an image, which is used again
        return [self._transfer.images(pixels_3SS[None])[0] for pixels_3SS in pixels_B3SS]

    def _targets_of(self, positions_B: NDArray[np.int64]) -> TargetBatch:
        rows_B = self.rows.numbers.take(positions_B)
        decoded = self._targets.decoded(rows_B, self._view_id)
        labels_B = self.rows.labels_of(positions_B)
        partner_labels, lam = (
            (None, None) if self._pairs is None else self._pairs.mixture(positions_B)
        )
        if self._alignment is not None and not self._alignment.is_settled:
            shown = [labels_B] if partner_labels is None else [labels_B, partner_labels.numpy()]
            self._alignment.see(rows_B, np.stack(shown, axis=1), decoded.teachers)
        return TargetBatch(
            rows=torch.from_numpy(rows_B),
            labels=torch.from_numpy(labels_B),
            teachers=decoded.teachers,
            partner_labels=partner_labels,
            lam=lam,
            features=decoded.features,
            label_sets=label_set_targets(self.rows, self._pairs, positions_B, lam),
            visible=visible_patches(
                [self._targets.view(self._view_id)], lambda: self.rows.hashes_of(positions_B)
            ),
        )

    def _shown(self, name: int | str) -> tuple[str, Pairs | None]:
        """Return the id of a view and its mixing partners.

        Raises:
            UsageError: There is no such view, its pixels are not known, it cannot be rendered at
                this size, or images to mix in are missing from the data.
        """
        view_id = self._targets.view_id(name)
        view = self._targets.view(view_id)
        check_known(view)
        view.check_sizes([self._settings.size])
        pairs = find_pairs(view, self.rows, self._reader)
        if pairs is None:
            return view_id, None
        pairs.partners.keep = self._blocks
        missing = len(self.rows) - pairs.count()
        if missing:
            raise UsageError(
                "this view mixes images, and some of the images to mix in are missing",
                where=self.rows.source.description,
                got=f"view {view_id} ({view.mixing.name if view.mixing else ''}): the partners of "
                f"{missing} of {len(self.rows)} images are missing or excluded",
                hint="choose a view without mixing, use all images of the cache, or use "
                "logitcache.loader, which leaves these images out",
            )
        return view_id, pairs

    @cached_property
    def _transfer(self) -> Transfer:
        return Transfer(torch.device("cpu"), self._settings.mean, self._settings.std)


def _joined(parts: Sequence[TargetBatch]) -> TargetBatch:
    """Concatenate the targets of several batches of one view."""
    first = parts[0]
    decoded = concatenate([DecodedTargets(dict(p.teachers), dict(p.features)) for p in parts])
    mixed = first.lam is not None
    shown = [part.visible.indices for part in parts if part.visible is not None]
    return TargetBatch(
        rows=torch.cat([part.rows for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        teachers=decoded.teachers,
        partner_labels=_cat([part.partner_labels for part in parts]) if mixed else None,
        lam=_cat([part.lam for part in parts]) if mixed else None,
        features=decoded.features,
        label_sets=None if first.label_sets is None else _cat([p.label_sets for p in parts]),
        visible=None if first.visible is None else replace(first.visible, indices=torch.cat(shown)),
    )


def _cat(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([tensor for tensor in tensors if tensor is not None])
