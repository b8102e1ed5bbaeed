"""An epoch in which a sampler chooses a view for every row, shown next to the original view.

Rows of a batch are ordered as in a view group: first all rows in their chosen views, then all rows
in the original one.

Shapes: B rows of a batch, C classes, V views to choose from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.batch import SparseLogits, TargetBatch
from logitcache.errors import UsageError
from logitcache.targets.epochs.epoch import Epoch, Part, chosen_rows, rows_of
from logitcache.targets.reader import concatenate
from logitcache.targets.view_group import BASE, ViewGroup
from logitcache.targets.view_scores import SAMPLERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.batch import TeacherLogits
    from logitcache.targets.selection import Targets
    from logitcache.targets.view_scores import SamplerConfig
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
    return replace(
        targets,
        views={original.id: original},
        window_rows=max(1, targets.window_rows // (1 + len(others))),
        sampler=SAMPLERS[config.kind](config, tuple(others), targets.reader.rows_end),
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


def epoch_kind(targets: Targets | None) -> type[Epoch]:
    """Return the class of the epochs of some targets."""
    return Epoch if targets is None or targets.sampler is None else SampledEpoch


class SampledEpoch(Epoch):
    """One epoch of a loader with a sampler.

    Args:
        arguments: Arguments of :class:`.Epoch`, by position.
        group: Group of the original view alone.
        targets: Cached targets, with a sampler.
        options: Further arguments of :class:`.Epoch`.
    """

    def __init__(self, *arguments: Any, group: ViewGroup, targets: Targets, **options: Any) -> None:
        assert targets.sampler is not None
        self._sampler, self._original = targets.sampler, group.targets[0]
        # the views in the order in which their targets are read
        both = ViewGroup({BASE: self._original}, (*self._sampler.views, self._original))
        super().__init__(*arguments, group=both, targets=targets, **options)

    def with_views(self, parts: list[Part]) -> list[Part]:
        """Choose a view for every row of a batch."""
        return [replace(part, chosen=self._chosen(part)) for part in parts]

    def rendered(self, parts: list[Part]) -> list[tuple[View, list[Part]]]:
        """Return the chosen views and their rows, and the original view last."""
        numbers_B = _chosen_of(parts)
        numbers = np.unique(numbers_B).tolist()
        chosen = [(self._sampler.views[n], chosen_rows(parts, numbers_B == n)) for n in numbers]
        return [*chosen, (self._original, parts)]

    def target_batch(self, parts: list[Part]) -> TargetBatch:
        """Return the labels and cached outputs of a batch, on the CPU."""
        rows_B, numbers_B = rows_of(parts), _chosen_of(parts)
        read = [self._decoded(own, self.group.read.index(v)) for v, own in self.rendered(parts)]
        self._compare(rows_B, read[-1])
        # teachers' outputs are view by view, so that rows are ordered by the numbers of their views
        by_view_B, every_B = np.argsort(numbers_B, kind="stable"), np.arange(len(rows_B))
        order = np.concatenate([by_view_B, every_B])
        chosen = torch.from_numpy(np.concatenate([numbers_B[by_view_B], np.full(len(rows_B), -1)]))
        joined = self._batch_of(rows_B, order, concatenate(read), chosen=chosen)
        back = np.concatenate([np.argsort(by_view_B), len(rows_B) + every_B])
        return replace(joined.take(torch.from_numpy(back)), views=(CHOSEN, BASE))

    def batch(
        self, images: Mapping[View, Tensor], targets: TargetBatch
    ) -> tuple[Tensor, TargetBatch]:
        """Return the images that the student is shown, and targets with pixels if needed."""
        original = images[self._original]
        assert targets.chosen is not None
        by_view = torch.cat([images[view] for view in self._sampler.views if view in images])
        back_B = targets.chosen[: len(original)].argsort(stable=True).argsort()
        batch = torch.cat([by_view[back_B], original])
        return batch, self._with_pixels(targets, batch)

    def _chosen(self, part: Part) -> NDArray[np.int64]:
        """Return the number of the view of each row of a part."""
        positions_B = self._rows.positions(part.rows)
        labels_B = torch.from_numpy(self._rows.labels_of(positions_B))
        hashes_B, seed = self._rows.hashes_of(positions_B), self.settings.seed
        found = [window.gather(part.rows) for window in part.windows[: len(self._sampler.views)]]
        teacher_BV = torch.stack([_mean_log_probs(f.teachers, labels_B) for f in found], 1).numpy()
        return self._sampler.choose(seed, self.number, part.rows, hashes_B, teacher_BV)


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


def _mean_log_probs(teachers: Mapping[str, TeacherLogits], labels_B: Tensor) -> Tensor:
    """Return the mean over teachers of the log-probability of labels, 0 without any of them."""
    every = [label_log_probs(teacher, labels_B) for teacher in teachers.values()]
    mean_B = torch.stack(every or [torch.zeros(len(labels_B), dtype=torch.float64)]).mean(0)
    # finite, also for a probability of 0
    return torch.where(labels_B >= 0, mean_B.clamp(min=-100.0), 0.0)


def _chosen_of(parts: list[Part]) -> NDArray[np.int64]:
    """Return the number of the view of every row of a batch."""
    return np.concatenate([part.chosen for part in parts if part.chosen is not None])
