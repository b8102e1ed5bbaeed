"""How good a network is on images it has not seen.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from logitcache.targets.loader import Loader, LoaderSettings
from logitcache.targets.match import number_rows
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from torch import nn

    from logitcache.data.source import Source
    from logitcache.networks.build import InputSpec

__all__ = ["Evaluation", "Evaluator", "eval_views"]


@dataclass(frozen=True)
class Evaluation:
    """Means over the labelled images.

    Attributes:
        top1: Share whose likeliest class is right.
        top5: Share whose five likeliest classes include the right one; None with five or fewer.
        loss: Cross-entropy in nats.
        images: How many.
    """

    top1: float
    top5: float | None
    loss: float
    images: int

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as JSON values."""
        return asdict(self)


def eval_views(spec: InputSpec) -> ViewsConfig:
    """Return the one view that timm evaluates a network with; what it does not know is bicubic."""
    interpolation = spec.interpolation if spec.interpolation == "bilinear" else "bicubic"
    crop_mode = spec.crop_mode if spec.crop_mode in {"squash", "border"} else "center"
    values = {"count": 0, "eval": True, "crop_pct": spec.crop_pct}
    return ViewsConfig.model_validate(
        {**values, "crop_mode": crop_mode, "interpolation": interpolation}
    )


class Evaluator:
    """Evaluates networks on one set, shown as timm's ``validate.py`` shows it.

    Args:
        source: The images.
        spec: What the network wants to be fed.
        batch_size: Images of a batch.
        device: Where the network is.
        threads: Threads that decode; all processors by default.
    """

    def __init__(
        self,
        source: Source,
        spec: InputSpec,
        *,
        batch_size: int,
        device: torch.device,
        threads: int | None = None,
    ) -> None:
        settings = LoaderSettings(
            batch_size=batch_size,
            size=spec.size,
            mean=spec.mean,
            std=spec.std,
            threads=threads or len(os.sched_getaffinity(0)),
            device=device,
        )
        views = eval_views(spec)
        self._loader = Loader(source, number_rows(source), settings, views=views)

    def close(self) -> None:
        """Stop the threads."""
        self._loader.close()

    @torch.inference_mode()
    def __call__(self, network: nn.Module) -> Evaluation:
        """Evaluate a network; its mode is left as it was."""
        was_training = network.training
        network.eval()
        correct, loss, images, classes = [0, 0], 0.0, 0, 0
        for batch, targets in self._loader.epoch(0):
            known = targets.labels >= 0
            labels = targets.labels[known]
            logits = network(batch)[known].float()
            classes = logits.shape[1]
            best = logits.topk(min(5, classes), dim=1).indices == labels[:, None]
            correct[0] += int(best[:, :1].sum())
            correct[1] += int(best.sum())
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            images += len(labels)
        network.train(was_training)
        total = max(1, images)
        top5 = correct[1] / total if classes > 5 else None
        return Evaluation(correct[0] / total, top5, loss / total, images)
