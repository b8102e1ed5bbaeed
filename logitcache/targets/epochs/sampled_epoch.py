"""An epoch in which a sampler chooses a view for every row, shown next to the original view.

Rows of a batch are ordered as in a view group: first all rows in their chosen views, then all rows
in the original one.

Shapes: B rows of a batch, C classes, V views to choose from.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.batch import PIXELS, Features, SparseLogits, TargetBatch
from logitcache.errors import UsageError
from logitcache.targets.epochs.epoch import Epoch, Part, chosen_rows, rows_of
from logitcache.targets.reader import concatenate
from logitcache.targets.view_group import BASE, ViewGroup
from logitcache.targets.view_scores import SAMPLERS, ScoredRows
from logitcache.views.render import BatchRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.batch import TeacherLogits
    from logitcache.targets.selection import Targets
    from logitcache.targets.view_scores import SamplerConfig, ViewSampler
    from logitcache.views.spec import View

__all__ = ["CHOSEN", "epoch_kind", "label_log_probs", "original_and_others", "with_sampler"]

CHOSEN = "chosen"
"""Name of the views that are chosen, among the views of a batch."""


def with_sampler(targets: Targets, config: SamplerConfig, where: str) -> Targets:
    """Return targets whose original view is shown in every epoch, next to a chosen one.

    Args:
        targets: Targets of all views.
        config: Settings of the sampler.
        where: The cache, for messages.

    Raises:
        UsageError: There is no view to choose, or one mixes images or drops patches.
    """
    original, others = original_and_others(list(targets.views.values()), config, where)
    sampler = SAMPLERS[config.kind](config, tuple(others), targets.reader.rows_end)
    return replace(
        targets,
        views={original.id: original},
        window_rows=max(1, targets.window_rows // (1 + len(others))),
        sampler=sampler,
    )


def original_and_others(
    views: list[View], config: SamplerConfig, where: str
) -> tuple[View, list[View]]:
    """Return the original view and those to choose from.

    Args:
        views: All views.
        config: Settings of the sampler.
        where: The cache, for messages.

    Raises:
        UsageError: There is no view to choose, or one mixes images or drops patches.
    """
    if config.original >= len(views) or len(views) < 2:
        raise UsageError(
            "a sampler needs the original view and others to choose from",
            where=f"{where}, sampler.original",
            expected=f"a number below {len(views)}, and at least two views",
            got=f"{config.original}, and {len(views)} views",
            hint="precompute more views: views: {eval: true, count: 8, auto_augment: …}",
        )
    for view in views:
        if view.mixing is not None or view.dropping is not None or not view.is_known:
            raise UsageError(
                "a sampler chooses among views of single, whole images",
                where=f"{where}, view {view.id}",
                got=", ".join(operation.name for operation in view.operations),
                hint="choose other views (use_views)",
            )
    number = config.original
    return views[number], views[:number] + views[number + 1 :]


def epoch_kind(targets: Targets | None) -> Callable[..., Epoch]:
    """Return the class of the epochs of some targets."""
    if targets is None or targets.sampler is None:
        return Epoch
    return partial(SampledEpoch, sampler=targets.sampler)


class SampledEpoch(Epoch):
    """One epoch of a loader with a sampler.

    Args:
        arguments: Arguments of :class:`.Epoch`, by position.
        sampler: The sampler.
        group: Group of the original view alone.
        options: Further arguments of :class:`.Epoch`.
    """

    def __init__(
        self, *arguments: Any, sampler: ViewSampler, group: ViewGroup, **options: Any
    ) -> None:
        self._sampler = sampler
        self._original = group.targets[0]
        # the views in the order in which their targets are read
        both = ViewGroup({BASE: self._original}, (*sampler.views, self._original))
        super().__init__(*arguments, group=both, **options)

    def with_views(self, parts: list[Part]) -> list[Part]:
        """Choose a view for every row of a batch."""
        return [replace(part, chosen=self._chosen(part)) for part in parts]

    def rendered(self, parts: list[Part]) -> tuple[View, ...]:
        """Return the views that are rendered for a batch: those chosen, and the original last."""
        numbers = np.unique(_chosen_of(parts)).tolist()
        return (*(self._sampler.views[number] for number in numbers), self._original)

    def requests(self, parts: list[Part], size: int) -> list[BatchRequest]:
        """Return a request for each chosen view, of its rows, and one for the original view."""
        positions_B = self._rows.positions(rows_of(parts))
        numbers = np.unique(_chosen_of(parts)).tolist()
        masks = [_chosen_of(parts) == number for number in numbers]
        masks.append(np.ones(len(positions_B), dtype=np.bool_))
        shown, hashes_of = self._rows.shown, self._rows.hashes_of
        return [
            shown(
                BatchRequest(view, positions_B[mask], hashes_of(positions_B[mask]), sizes=(size,))
            )
            for view, mask in zip(self.rendered(parts), masks, strict=True)
        ]

    def target_batch(self, parts: list[Part]) -> TargetBatch:
        """Return the labels and cached outputs of a batch, on the CPU."""
        rows_B, chosen_B = rows_of(parts), _chosen_of(parts)
        decoded, order = [], []
        for number in np.unique(chosen_B).tolist():
            mask = chosen_B == number
            decoded.append(self._decoded(chosen_rows(parts, mask), number))
            order.append(np.flatnonzero(mask))
        original = self._decoded(parts, len(self._sampler.views))
        self._compare(rows_B, original)
        by_view_B, every_B = np.concatenate(order), np.arange(len(rows_B))
        joined = self._batch_of(
            rows_B, np.concatenate([by_view_B, every_B]), concatenate([*decoded, original])
        )
        # from the order of views to that of the batch
        back = np.concatenate([np.argsort(by_view_B), len(rows_B) + every_B])
        numbers = np.concatenate([chosen_B, np.full(len(rows_B), -1)])
        return replace(
            joined.take(torch.from_numpy(back)),
            views=(CHOSEN, BASE),
            chosen=torch.from_numpy(numbers),
        )

    def batch(
        self, images: Mapping[View, Tensor], targets: TargetBatch
    ) -> tuple[Tensor, TargetBatch]:
        """Return the images that the student is shown, and targets with pixels if needed."""
        original = images[self._original]
        assert targets.chosen is not None
        numbers_B = targets.chosen[: len(original)]
        chosen = torch.empty_like(original)
        for number, view in enumerate(self._sampler.views):
            if view in images:
                chosen[numbers_B == number] = images[view]
        batch = torch.cat([chosen, original])
        if not self.settings.pixels:
            return batch, targets
        own = Features(batch, "NCHW", grid=batch.shape[-1])
        return batch, replace(targets, features={**targets.features, PIXELS: own})

    def _chosen(self, part: Part) -> NDArray[np.int64]:
        """Return the number of the view of each row of a part."""
        positions_B = self._rows.positions(part.rows)
        labels_B = torch.from_numpy(self._rows.labels_of(positions_B))
        views = range(len(self._sampler.views))
        found = [part.windows[number].gather(part.rows).teachers for number in views]
        teacher_VB = [_mean_log_probs(teachers, labels_B) for teachers in found]
        hashes_B = self._rows.hashes_of(positions_B)
        scored = ScoredRows(part.rows, hashes_B, np.stack(teacher_VB, axis=1))
        return self._sampler.choose(self.settings.seed, self.number, scored)


def label_log_probs(teacher: TeacherLogits, labels_B: Tensor) -> Tensor:
    """Return the log-probability of each row's label, float64 (B,).

    Of a label that sparse targets lack, it is that of an even share of the mass of all absent
    classes. Labels of -1 stand for class 0.
    """
    column_B1 = labels_B.clamp(min=0)[:, None]
    if not isinstance(teacher, SparseLogits):
        return teacher.log_probs.gather(1, column_B1)[:, 0].double()
    stored_BK = (teacher.class_ids == column_B1) & (teacher.log_probs > -torch.inf)
    own_B = teacher.log_probs.masked_fill(~stored_BK, -torch.inf).amax(1)
    absent_B = (teacher.num_classes - (teacher.log_probs > -torch.inf).sum(1)).clamp(min=1)
    even_B = teacher.tail[:, 0] - absent_B.log()
    return torch.where(stored_BK.any(1), own_B, even_B).double()


def _mean_log_probs(teachers: Mapping[str, TeacherLogits], labels_B: Tensor) -> NDArray[np.float64]:
    """Return the mean over teachers of the log-probability of labels, 0 without a label."""
    if not teachers:
        return np.zeros(len(labels_B))
    every = torch.stack([label_log_probs(teacher, labels_B) for teacher in teachers.values()])
    mean_B = every.mean(0).clamp(min=-100.0)  # finite, also for a probability of 0
    found: NDArray[np.float64] = torch.where(labels_B >= 0, mean_B, 0.0).numpy()
    return found


def _chosen_of(parts: list[Part]) -> NDArray[np.int64]:
    """Return the number of the view of every row of a batch."""
    return np.concatenate([part.chosen for part in parts if part.chosen is not None])
