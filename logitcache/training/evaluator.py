"""Accuracy of a network on a validation set.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from logitcache.platforms import available_processors
from logitcache.targets.image_rows import number_rows
from logitcache.targets.loader import Loader
from logitcache.targets.settings import LoaderSettings
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from logitcache.data.source import Source
    from logitcache.networks.build import InputSpec
    from logitcache.training.distributed import DistributedContext

__all__ = ["Evaluation", "Evaluator", "eval_views"]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and loss of a network on labeled images.

    Attributes:
        top1: Top-1 accuracy, from 0 to 1.
        top5: Top-5 accuracy, from 0 to 1; None for networks with five classes or fewer.
        loss: Mean cross-entropy in nats.
        images: Number of labeled images.
    """

    top1: float
    top5: float | None
    loss: float
    images: int

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as JSON values."""
        return asdict(self)


def eval_views(spec: InputSpec) -> ViewsConfig:
    """Return the view that timm evaluates a network with; unknown interpolations are bicubic."""
    interpolation = spec.interpolation if spec.interpolation == "bilinear" else "bicubic"
    crop_mode = spec.crop_mode if spec.crop_mode in {"squash", "border"} else "center"
    values = {"count": 0, "eval": True, "crop_pct": spec.crop_pct}
    return ViewsConfig.model_validate(
        {**values, "crop_mode": crop_mode, "interpolation": interpolation}
    )


class Evaluator:
    """Evaluation of networks on one set of images, preprocessed as by timm's ``validate.py``.

    Args:
        source: The images.
        spec: Input size and normalization of the network.
        batch_size: Number of images per batch.
        device: Device of the network.
        threads: Number of threads that decode images; all processors by default.
        ranks: Processes that evaluate together, each its share of the images; None for one.
        on_bad_image: ``error``, or ``skip`` to leave out images that cannot be decoded.

    Attributes:
        source: The images.
    """

    def __init__(
        self,
        source: Source,
        spec: InputSpec,
        *,
        batch_size: int,
        device: torch.device,
        threads: int | None = None,
        ranks: DistributedContext | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
    ) -> None:
        self.source = source
        self._ranks = ranks
        processors = ranks.processors if ranks else available_processors()
        settings = LoaderSettings(
            batch_size=batch_size,
            size=spec.size,
            mean=spec.mean,
            std=spec.std,
            threads=threads or processors,
            device=device,
            # the rows are divided below, so the loader must not divide batches again
            rank=0,
            ranks=1,
            least=0,
            on_bad_image=on_bad_image,
        )
        self._device = device
        views = eval_views(spec)
        rows = number_rows(source)
        if ranks is not None and ranks.count > 1:
            rows = rows.keep(np.arange(len(rows)) % ranks.count == ranks.rank)
        self._loader = Loader(rows, settings, views=views)

    def close(self) -> None:
        """Stop the threads."""
        self._loader.close()

    @property
    def skipped(self) -> list[str]:
        """Names of the images that this process could not decode and left out."""
        return sorted(str(error.where) for error in self._loader.skipped.values())

    @torch.inference_mode()
    def __call__(
        self, network: nn.Module, on_progress: Callable[[int, int], None] | None = None
    ) -> Evaluation:
        """Return the accuracy and loss of a network, which returns to its mode afterwards.

        Args:
            network: Network from images (B, 3, S, S) to logits (B, C).
            on_progress: Called before every batch with the number of images that are done and the
                number of all images, in this process.
        """
        was_training = network.training
        network.eval()
        found, done = _Counts(), 0
        for batch, targets in self._loader.epoch(0):
            if on_progress is not None:
                on_progress(done, len(self._loader.rows))
            known = targets.labels >= 0
            found.add(network(batch)[known].float(), targets.labels[known])
            done += len(batch)
        network.train(was_training)
        # in float64 the counts are exact; a process without images takes part in the sum, too
        sums = torch.tensor(astuple(found), dtype=torch.float64, device=self._device)
        total = sums if self._ranks is None else self._ranks.total(sums)
        return _Counts(*total.tolist()).means()


@dataclass
class _Counts:
    """Sums over images, which can be added up over processes."""

    top1: float = 0.0
    top5: float = 0.0
    loss: float = 0.0
    images: float = 0.0
    beyond_five: float = 0.0

    def add(self, logits_BC: Tensor, labels_B: Tensor) -> None:
        """Add the labeled images of a batch."""
        classes = logits_BC.shape[1]
        best_B5 = logits_BC.topk(min(5, classes), dim=1).indices == labels_B[:, None]
        self.top1 += int(best_B5[:, :1].sum())
        self.top5 += int(best_B5.sum())
        self.loss += float(functional.cross_entropy(logits_BC, labels_B, reduction="sum"))
        self.images += len(labels_B)
        self.beyond_five += classes > 5

    def means(self) -> Evaluation:
        """Return the means."""
        total = max(1.0, self.images)
        top5 = self.top5 / total if self.beyond_five else None
        return Evaluation(self.top1 / total, top5, self.loss / total, int(self.images))
