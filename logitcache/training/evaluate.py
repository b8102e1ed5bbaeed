"""Evaluation of a network on labeled images; labels are mapped to its outputs by class name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from logitcache.config import Config
from logitcache.data.decode import DECODING
from logitcache.data.readers import DataConfig, open_source, open_source_for
from logitcache.data.sample import sample_images
from logitcache.data.source import left_out_of, notes_of
from logitcache.errors import UsageError, first_of
from logitcache.label_sets import label_sets_of
from logitcache.networks.build import (
    NetworkConfig,
    build_network,
    class_names_of,
    input_spec,
    num_classes_of,
)
from logitcache.networks.device import resolve_device
from logitcache.training.classes import check_labeled, check_name_count
from logitcache.training.evaluator import Evaluation, Evaluator
from logitcache.views.operations import CROP_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from logitcache.data.source import Source

__all__ = ["EvaluateConfig", "EvaluateResult", "evaluate_network"]


class EvaluateConfig(Config):
    """Configuration of an evaluation: a network and labeled images.

    Attributes:
        network: The network, with its weights.
        data: The images, with labels.
        class_names: Names of the network's classes in order, if its export has none; or
            ``position`` if the classes of the images are in the order of the outputs.
        crop_pct: Share of the shorter side that the center crop keeps; the network's own by
            default.
        batch_size: Number of images per forward pass.
        device: ``auto``, or the name of a torch device.
        threads: Number of threads that decode images; all processors by default.
        on_bad_image: ``error``, or ``skip`` to leave out images that cannot be decoded.
    """

    network: NetworkConfig
    data: DataConfig
    class_names: Annotated[list[str], Field(min_length=1)] | Literal["position"] | None = None
    crop_pct: Annotated[float, CROP_SHARE] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    on_bad_image: Literal["error", "skip"] = "error"


@dataclass(frozen=True)
class EvaluateResult:
    """Accuracy of a network on a set of images.

    Attributes:
        model: Name of the network.
        data: Description of the images.
        evaluation: Accuracy and loss.
        classes: Number of classes of the network.
        classes_with_images: Number of these classes that have images.
        unlabeled: Number of images without a label, which are not counted.
        skipped: Names of the images that could not be decoded and were left out.
        unlisted: Number of files of the set that are not among its images, by reason.
        notes: Notes for the user.
    """

    model: str
    data: str
    evaluation: Evaluation
    classes: int
    classes_with_images: int
    unlabeled: int
    skipped: tuple[str, ...]
    unlisted: dict[str, int]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**asdict(self), "skipped": list(self.skipped), "notes": list(self.notes)}


def evaluate_network(
    config: EvaluateConfig, *, on_progress: Callable[[int, int], None] | None = None
) -> EvaluateResult:
    """Evaluate a network as timm's ``validate.py`` does.

    Args:
        config: The network and the images.
        on_progress: Called before every batch with the number of images that are done and the
            number of all images.

    Raises:
        DataMismatch: The images have classes that the network lacks.
        DataError: No image has a label, or one cannot be decoded.
        UsageError: The names of the network's classes are not known.
        NetworkError: The weights do not fit, or cannot be read.
    """
    if not config.network.is_trained:
        raise UsageError(
            "the network to evaluate has no trained weights",
            where=config.network.model,
            hint="give the folder of an exported network, or MODEL@WEIGHTS",
        )
    device = resolve_device(config.device)
    network = build_network(config.network)
    spec = input_spec(network, config.network.size)
    if config.crop_pct is not None:
        spec = replace(spec, crop_pct=config.crop_pct)
    source, notes = _labeled_images(config, network)
    notes += sample_images(source, DECODING).notes
    sets = label_sets_of(source)
    labels = np.asarray(source.labels) if sets is None else sets.ids
    known = labels >= 0 if sets is None else sets.known
    present = np.unique(labels).tolist()
    absent = [name for label, name in enumerate(source.class_names) if label not in present]
    if absent:
        notes.append(f"{len(absent)} classes have no images here: {first_of(absent)}")
    evaluator = Evaluator(
        source,
        spec,
        batch_size=config.batch_size,
        device=device,
        threads=config.threads,
        on_bad_image=config.on_bad_image,
    )
    try:
        evaluation = evaluator(network.to(device), on_progress)
    finally:
        evaluator.close()
    return EvaluateResult(
        model=config.network.model,
        data=source.description,
        evaluation=evaluation,
        classes=len(source.class_names),
        classes_with_images=len(source.class_names) - len(absent),
        unlabeled=int((~known).sum()),
        skipped=tuple(evaluator.skipped),
        unlisted=left_out_of(source),
        notes=(*notes_of(source), *notes),
    )


def _labeled_images(config: EvaluateConfig, network: nn.Module) -> tuple[Source, list[str]]:
    """Return the images with labels that are indices of the network's outputs, and notes.

    Raises:
        DataMismatch: The images have classes that the network lacks.
        UsageError: The network's classes have no names, or their number is wrong.
    """
    outputs = num_classes_of(network)
    if config.class_names == "position":
        source = check_labeled(open_source(config.data))
        if len(source.class_names) != outputs:
            raise UsageError(
                "the number of classes of the images differs from that of the network",
                where=source.description,
                expected=f"{outputs} classes",
                got=f"{len(source.class_names)} classes: {first_of(source.class_names)}",
                hint="give the names of the network's classes in order: --set class_names=[...]",
            )
        order = f"{first_of(source.class_names)} are taken as outputs 0 to {outputs - 1}"
        return source, [f"classes are taken by position: {order}"]
    names = config.class_names or class_names_of(network)
    if names is None:
        raise UsageError(
            "the network's classes have no names, so labels cannot be mapped to them",
            where=config.network.model,
            hint="give their names in order: --set class_names=[...]; or, if the classes of the "
            "images are in the order of the outputs, --set class_names=position",
        )
    check_name_count(names, outputs)
    return check_labeled(open_source_for(config.data, names, "the network")), []
