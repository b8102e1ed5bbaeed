"""The form of the targets of a run, with which a student is checked before the first step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import torch

from logitcache.batch import TargetBatch
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from logitcache.batch import Features, TeacherLogits
    from logitcache.targets.images.image_rows import ImageRows
    from logitcache.targets.selection import Targets
    from logitcache.training.config import TrainConfig
    from logitcache.views.spec import View

__all__ = ["TargetForm", "own_views"]


def own_views(config: TrainConfig) -> list[View]:
    """Return the views of a run without a cache."""
    return (config.views or ViewsConfig()).views()


@dataclass(frozen=True)
class TargetForm:
    """What every batch of a run has in common.

    Attributes:
        views: Names of the views of a batch.
        labels: Number of classes of the images; 0 where they have no labels.
        label_sets: Whether an image may have several classes.
        mixed: Whether images are mixed in some view.
        grids: Sides of the grids of patches, where views drop some of them.
        teachers: Example of one row of the outputs of each teacher, by name.
        features: Example of one row of each layer, by ``<teacher>/<tap>``.
    """

    views: tuple[str, ...]
    labels: int = 0
    label_sets: bool = False
    mixed: bool = False
    grids: tuple[int, ...] = ()
    teachers: Mapping[str, TeacherLogits] = field(default_factory=dict)
    features: Mapping[str, Features] = field(default_factory=dict)

    @classmethod
    def of(cls, config: TrainConfig, rows: ImageRows, targets: Targets | None) -> Self:
        """Return the form of the batches of a run.

        Args:
            config: Configuration of the run.
            rows: The images.
            targets: Cached targets; None without a cache.
        """
        return cls(
            tuple(config.shown),
            labels=len(rows.class_names),
            label_sets=rows.has_label_sets,
            teachers={} if targets is None else targets.reader.logits,
            features={} if targets is None else targets.reader.features,
        ).with_views(own_views(config) if targets is None else targets.views.values())

    def with_views(self, views: Iterable[View]) -> Self:
        """Return the form of batches in some views."""
        views = list(views)
        drops = (view.dropping for view in views)
        grids = tuple(dict.fromkeys(drop.grid for drop in drops if drop is not None))
        return replace(self, mixed=any(view.mixing is not None for view in views), grids=grids)

    def example(self, classes: int, parts: Iterable[str]) -> TargetBatch:
        """Return an example of a batch: one image in all views, with the last of the labels.

        Args:
            classes: Number of classes of the student.
            parts: Names of the parts of a joined image set that are needed; the image is in all.
        """
        label = torch.tensor([-1 if self.label_sets else self.labels - 1])
        one = TargetBatch(
            torch.zeros(1, dtype=torch.long),
            label,
            self.teachers,
            partner_labels=label if self.mixed else None,
            lam=torch.full((1,), 0.5) if self.mixed else None,
            features=self.features,
            label_sets=torch.zeros(1, classes) if self.label_sets else None,
            parts={name: torch.ones(1, dtype=torch.bool) for name in parts},
        )
        every = torch.zeros(len(self.views), dtype=torch.long)
        return replace(one.take(every), views=self.views)
