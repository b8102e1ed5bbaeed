"""Gradient of a batch: forward and backward passes, of all images at once or in parts.

Shapes: B batch of this process, S side of the images in pixels.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from logitcache.batch import Outputs
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from logitcache.batch import TargetBatch
    from logitcache.objectives.combine import WeightedSum
    from logitcache.training.config import TrainConfig
    from logitcache.training.distributed import DistributedContext
    from logitcache.training.optimization.trainable_student import TrainableStudent

__all__ = ["BatchGradient", "part_rows"]

_LEAST_ROWS = 2  # of a part, which batch norm over a single position needs


class BatchGradient:
    """A function that adds the gradient of a batch to that of the parameters.

    A batch that is divided into parts has the gradient of the whole batch, up to the rounding of
    sums: each part's mean loss is weighted by its share of the rows that the mean is over.

    Args:
        config: Configuration of the run.
        trainable: The student.
        objective: The objective.
        ranks: The processes of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        trainable: TrainableStudent,
        objective: WeightedSum,
        ranks: DistributedContext,
    ) -> None:
        self._count = config.accumulate
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format
        self._trainable, self._objective, self._ranks = trainable, objective, ranks

    def __call__(
        self, model: nn.Module, images: Tensor, targets: TargetBatch, progress: float
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Run forward and backward passes.

        Args:
            model: The student as prepared by accelerate.
            images: Normalized images, float32 (B, 3, S, S).
            targets: Their targets.
            progress: Share of all steps that are done, for scheduled weights.

        Returns:
            This process's part of the loss (``loss``) and of its terms, and the outputs of the
            student, all without a graph.
        """
        counts = self._objective.counts(targets)
        ones = dict.fromkeys(counts, torch.ones((), device=images.device))
        shares = self._ranks.own_part(ones, counts)
        parts = part_rows(len(images), len(targets.views) or 1, self._count)
        if len(parts) == 1:
            return self._backward(model, images, targets, progress, shares)
        losses: dict[str, Tensor] = {}
        outputs: list[Outputs] = []
        for number, rows in enumerate(parts):
            index = rows.to(images.device)
            own = replace(targets.take(index), views=targets.views)
            weights = _of_whole(shares, self._objective.counts(own), counts)
            # processes exchange gradients once, with the last part
            last = number == len(parts) - 1
            with nullcontext() if last else self._ranks.accelerator.no_sync(model):
                found, output = self._backward(model, images[index], own, progress, weights)
            losses = {name: losses.get(name, 0.0) + value for name, value in found.items()}
            outputs.append(output)
        return losses, _joined(outputs, parts)

    def _backward(
        self,
        model: nn.Module,
        images: Tensor,
        targets: TargetBatch,
        progress: float,
        shares: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], Outputs]:
        """Add the gradient of some images; return their share of the losses, and the outputs."""
        arranged, visible = images.contiguous(memory_format=self._format), targets.visible
        # networks of users take the images alone
        output = model(arranged) if visible is None else model(arranged, visible)
        outputs = self._trainable.outputs(output, visible)
        means = self._objective.parts(outputs, targets)
        terms = {name: shares[name] * mean for name, mean in means.items()}
        loss = self._objective.total(terms, progress)
        if not loss.requires_grad:
            raise UsageError(
                "the loss depends on no weight that is trained",
                where="objectives",
                expected="a term on the classifier, or on a layer behind the trained weights",
                got=", ".join(terms),
                hint="add such a term, or remove what freezes the network (head_on, surgery)",
            )
        self._ranks.backward(loss, model.parameters())
        losses = {name: value.detach() for name, value in {"loss": loss, **terms}.items()}
        return losses, _detached(outputs)


def part_rows(rows: int, views: int, count: int) -> list[Tensor]:
    """Return the rows of each part of a batch, int64, which have the same images in all views.

    Args:
        rows: Number of rows, ordered view by view.
        views: Number of views.
        count: Number of parts; fewer if they would have a single image.
    """
    images = rows // views
    count = max(1, min(count, images // _LEAST_ROWS))
    starts = torch.arange(views)[:, None] * images
    return [(starts + part).flatten() for part in torch.arange(images).tensor_split(count)]


def _of_whole(
    shares: Mapping[str, Tensor], own: Mapping[str, Any], whole: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the weight of each term of a part: this process's share, times that of its rows."""
    found = {}
    for name, share in shares.items():
        rows, total = (
            torch.as_tensor(count, device=share.device).double()
            for count in (own[name], whole[name])
        )
        found[name] = share * (rows / total.clamp(min=1)).float()
    return found


def _joined(outputs: Sequence[Outputs], parts: Sequence[Tensor]) -> Outputs:
    """Return the outputs of all parts in the order of the rows of the batch."""
    order = torch.cat(list(parts)).argsort().to(outputs[0].logits.device)
    features = {}
    for name, first in outputs[0].features.items():
        own = [each.features[name] for each in outputs]
        kept = [each.positions for each in own if each.positions is not None]
        features[name] = replace(
            first,
            values=torch.cat([each.values for each in own])[order],
            positions=torch.cat(kept)[order] if kept else None,
        )
    return Outputs(torch.cat([each.logits for each in outputs])[order], features)


def _detached(outputs: Outputs) -> Outputs:
    features = {
        name: replace(each, values=each.values.detach()) for name, each in outputs.features.items()
    }
    return Outputs(outputs.logits.detach(), features)
