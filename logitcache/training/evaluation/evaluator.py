"""Accuracy of a network on a validation set; mean average precision where labels are sets.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from logitcache.label_sets import label_sets_of
from logitcache.platforms import available_processors
from logitcache.targets.images.image_rows import number_rows
from logitcache.targets.loader import Loader
from logitcache.targets.settings import LoaderSettings
from logitcache.targets.view_group import BASE, shown_views
from logitcache.training.evaluation.average_precision import mean_average_precision
from logitcache.training.evaluation.prediction_counts import PredictionCounts, write_predictions
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from logitcache.batch import TargetBatch
    from logitcache.data.source import Source
    from logitcache.networks.build import InputSpec
    from logitcache.training.distributed import DistributedContext

__all__ = ["Evaluation", "Evaluator", "eval_views"]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and loss of a network on labeled images.

    Attributes:
        top1: Top-1 accuracy, from 0 to 1; None where an image may have several classes.
        top5: Top-5 accuracy, from 0 to 1; None for networks with five classes or fewer, too.
        loss: Mean cross-entropy in nats; where an image may have several classes, binary
            cross-entropy, summed over the classes.
        images: Number of labeled images.
        mean_average_precision: Mean over the classes that have images, see
            :mod:`.average_precision`; None where an image has one class.
    """

    top1: float | None
    top5: float | None
    loss: float
    images: int
    mean_average_precision: float | None = None

    @property
    def score(self) -> float:
        """Top-1 accuracy, or mean average precision where labels are sets; from 0 to 1."""
        found = self.top1 if self.mean_average_precision is None else self.mean_average_precision
        return float("nan") if found is None else found

    @property
    def score_name(self) -> str:
        """Name of :attr:`score`."""
        return "top-1" if self.mean_average_precision is None else "mAP"

    def to_json(self) -> dict[str, Any]:
        """Return the evaluation as JSON values; mean average precision only if it is known."""
        values = asdict(self)
        if self.mean_average_precision is None:
            del values["mean_average_precision"]
        return values


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
        out: Folder into which the first process writes :class:`.PredictionCounts` after every
            evaluation of images with one class each; None to write nothing.
        view: View that the images are shown in: ``base`` for timm's, or one derived from it.

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
        out: Path | None = None,
        view: str = BASE,
    ) -> None:
        self.source = source
        self._out = out
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
            show=shown_views([view]),
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
        found: _Counts | _SetScores = _Counts(PredictionCounts(self.source.class_names))
        if label_sets_of(self.source) is not None:
            found = _SetScores(len(self.source.class_names))
        done = 0
        for batch, targets in self._loader.epoch(0):
            if on_progress is not None:
                on_progress(done, len(self._loader.rows))
            found.add(network(batch).float(), targets)
            done += len(batch)
        network.train(was_training)
        if self._out is not None:
            found.write(self._out, self._ranks)
        return found.evaluation(self._ranks, self._device)


@dataclass
class _Counts:
    """Sums over images, which can be added up over processes.

    Attributes:
        predictions: The predictions themselves, as counts.
    """

    predictions: PredictionCounts
    top1: float = 0.0
    top5: float = 0.0
    loss: float = 0.0
    images: float = 0.0
    beyond_five: float = 0.0

    def add(self, logits_BC: Tensor, targets: TargetBatch) -> None:
        """Add the labeled images of a batch."""
        known = targets.labels >= 0
        logits_BC, labels_B = logits_BC[known], targets.labels[known]
        classes = logits_BC.shape[1]
        best_B5 = logits_BC.topk(min(5, classes), dim=1).indices == labels_B[:, None]
        self.top1 += int(best_B5[:, :1].sum())
        self.top5 += int(best_B5.sum())
        self.loss += float(functional.cross_entropy(logits_BC, labels_B, reduction="sum"))
        self.images += len(labels_B)
        self.beyond_five += classes > 5
        confidence_B, predicted_B = logits_BC.softmax(dim=1).max(dim=1)
        arrays = (each.cpu().numpy() for each in (labels_B, predicted_B, confidence_B))
        self.predictions.add(*arrays)

    def write(self, out: Path, ranks: DistributedContext | None) -> None:
        """Write the predictions of all processes."""
        parts = [self.predictions] if ranks is None else ranks.gather(self.predictions)
        if ranks is None or ranks.is_first:
            write_predictions(out, PredictionCounts.total(parts))

    def evaluation(self, ranks: DistributedContext | None, device: torch.device) -> Evaluation:
        """Return the means over all processes."""
        # in float64 the counts are exact; a process without images takes part in the sum, too
        own = (self.top1, self.top5, self.loss, self.images, self.beyond_five)
        sums = torch.tensor(own, dtype=torch.float64, device=device)
        added = (sums if ranks is None else ranks.total(sums)).tolist()
        found = _Counts(self.predictions, *added)
        total = max(1.0, found.images)
        top5 = found.top5 / total if found.beyond_five else None
        return Evaluation(found.top1 / total, top5, found.loss / total, int(found.images))


class _SetScores:
    """Logits and label sets of all images: average precision is no mean over images.

    Args:
        classes: Number of classes of the labels.
    """

    def __init__(self, classes: int) -> None:
        self._logits = [np.zeros((0, classes), dtype=np.float32)]
        self._labels = [np.zeros((0, classes), dtype=np.float32)]

    def add(self, logits_BC: Tensor, targets: TargetBatch) -> None:
        """Add the labeled images of a batch."""
        labels_BC = targets.label_sets
        assert labels_BC is not None
        known = ~labels_BC.isnan().any(1)
        # outputs behind those of the classes have no labels
        self._logits.append(logits_BC[known, : labels_BC.shape[1]].cpu().numpy())
        self._labels.append(labels_BC[known].cpu().numpy())

    def write(self, out: Path, ranks: DistributedContext | None) -> None:
        """Write nothing: an image may have several classes."""

    def evaluation(self, ranks: DistributedContext | None, device: torch.device) -> Evaluation:
        """Return the measurements over the images of all processes."""
        own = np.concatenate(self._logits), np.concatenate(self._labels)
        parts = [own] if ranks is None else ranks.gather(own)
        logits_NC, labels_NC = (np.concatenate(each) for each in zip(*parts, strict=True))
        losses = functional.binary_cross_entropy_with_logits(
            torch.from_numpy(logits_NC).double(),
            torch.from_numpy(labels_NC).double(),
            reduction="sum",
        )
        images = len(labels_NC)
        return Evaluation(
            top1=None,
            top5=None,
            loss=float(losses) / max(1, images),
            images=images,
            mean_average_precision=mean_average_precision(logits_NC, labels_NC > 0),
        )
