"""Evaluation of a network on labeled images; labels are mapped to its outputs by class name.

Shapes: B batch, C classes of the network, S classes of the images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from logitcache.config import Config
from logitcache.data.class_map import EVERY_TEACHER, class_maps, map_classes
from logitcache.data.classes import sorted_classes
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
from logitcache.targets.classes.class_lens import LogitsLens
from logitcache.targets.view_group import BASE, ViewName
from logitcache.training.classes import check_labeled, check_name_count
from logitcache.training.evaluation.evaluator import Evaluation, Evaluator
from logitcache.views.operations import CROP_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from logitcache.data.class_map import ClassMap
    from logitcache.data.source import Source

__all__ = ["EvaluateConfig", "EvaluateResult", "evaluate_network"]


class EvaluateConfig(Config):
    """Configuration of an evaluation: a network and labeled images.

    Attributes:
        network: The network, with its weights.
        data: The images, with labels.
        class_names: Names of the network's classes in order, if its export has none; or
            ``position`` if the classes of the images are in the order of the outputs.
        class_map: Class of the images for classes of the network: a file with two columns, or
            classes of the network by class of the images. Probabilities of merged classes are
            added; those of classes outside of the map are left out and reported.
        crop_pct: Share of the shorter side that the center crop keeps; the network's own by
            default.
        batch_size: Number of images per forward pass.
        device: ``auto``, or the name of a torch device.
        threads: Number of threads that decode images; all processors by default.
        on_bad_image: ``error``, or ``skip`` to leave out images that cannot be decoded.
        view: View that the images are shown in: ``base`` for the center crop, or one derived from
            it, such as ``lowres(4)``.
    """

    network: NetworkConfig
    data: DataConfig
    class_names: Annotated[list[str], Field(min_length=1)] | Literal["position"] | None = None
    class_map: dict[str, list[str]] | None = None
    crop_pct: Annotated[float, CROP_SHARE] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    device: str = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    on_bad_image: Literal["error", "skip"] = "error"
    view: ViewName = BASE

    @field_validator("class_map", mode="before")
    @classmethod
    def _read_class_map(cls, value: Any) -> ClassMap | None:
        """Read the file, whose content becomes the setting."""
        if value is None:
            return None
        given = value if isinstance(value, str) else {EVERY_TEACHER: value}
        return class_maps(given)[EVERY_TEACHER]


@dataclass(frozen=True)
class EvaluateResult:
    """Accuracy of a network on a set of images.

    Attributes:
        model: Name of the network.
        data: Description of the images.
        evaluation: Accuracy and loss.
        classes: Number of classes of the network, or of the class map.
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
        UsageError: The names of the network's classes are not known, or a class map does not fit.
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
    source, notes, mapped = _labeled_images(config, network)
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
        view=config.view,
    )
    try:
        evaluation = evaluator((network if mapped is None else mapped).to(device), on_progress)
    finally:
        evaluator.close()
    if mapped is not None:
        notes.append(f"{mapped.outside:.1%} of the probability is outside of the class map")
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


class _MappedNetwork(nn.Module):
    """A network with the classes of a class map.

    The probability of the classes outside of the map is left out, so that a softmax of its outputs
    is conditional on the classes of the map.

    Args:
        network: Network from images (B, 3, H, W) to logits (B, C).
        lens: From the C classes to S classes.
    """

    def __init__(self, network: nn.Module, lens: LogitsLens) -> None:
        super().__init__()
        self.network = network
        self._lens = lens
        self._outside = torch.zeros((), dtype=torch.float64)
        self._images = 0

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities (B, S), whose exponentials sum to the mass inside of the map."""
        groups_BG = self._lens.reduced(self.network(images).float().log_softmax(1))
        self._outside += groups_BG[:, -1].double().exp().sum().cpu()
        self._images += len(images)
        return groups_BG[:, :-1]

    @property
    def outside(self) -> float:
        """Mean probability outside of the map of all images so far."""
        return float(self._outside) / max(1, self._images)


def _labeled_images(
    config: EvaluateConfig, network: nn.Module
) -> tuple[Source, list[str], _MappedNetwork | None]:
    """Return the images with labels that are indices of outputs, notes, and a mapped network.

    Raises:
        DataMismatch: The images have classes that the network lacks.
        UsageError: The network's classes have no names, or their number is wrong; or a class map
            names other classes, or the images have label sets.
    """
    if config.class_map is not None:
        return _mapped_images(config, config.class_map, network)
    if config.class_names == "position":
        return *_images_by_position(config, num_classes_of(network)), None
    source = open_source_for(config.data, _names(config, network), "the network")
    return check_labeled(source), [], None


def _mapped_images(
    config: EvaluateConfig, class_map: ClassMap, network: nn.Module
) -> tuple[Source, list[str], _MappedNetwork]:
    """Return the images, whose classes are those of the class map, and the network with these."""
    names = sorted_classes(set(class_map))
    lens = map_classes(class_map, _names(config, network), names, "class_map")
    source = check_labeled(open_source_for(config.data, names, "the class map"))
    if label_sets_of(source) is not None:
        raise UsageError(
            "a class map is for images that have one class each",
            where="class_map",
            got=f"{source.description}, whose images have sets of classes",
            hint="evaluate with the network's own classes",
        )
    return source, [], _MappedNetwork(network, LogitsLens(lens))


def _images_by_position(config: EvaluateConfig, outputs: int) -> tuple[Source, list[str]]:
    """Return the images, whose classes are in the order of the outputs, and a note on it."""
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


def _names(config: EvaluateConfig, network: nn.Module) -> list[str]:
    """Return the names of the network's classes in order."""
    names = config.class_names or class_names_of(network)
    if names is None or isinstance(names, str):
        raise UsageError(
            "the network's classes have no names, so labels cannot be mapped to them",
            where=config.network.model,
            hint="give their names in order: --set class_names=[...]; or, if the classes of the "
            "images are in the order of the outputs, --set class_names=position",
        )
    check_name_count(names, num_classes_of(network))
    return list(names)
