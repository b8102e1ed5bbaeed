"""Classes of a training run: number, names, and mapping for validation.

Names come from the cache, or from the images where there is none; the classes of a validation set
are mapped to them by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from logitcache.data.classes import class_positions
from logitcache.data.readers import open_source, open_source_for
from logitcache.errors import DataError, DataMismatch, UsageError, first_of
from logitcache.networks.build import class_names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from logitcache.data.source import Source
    from logitcache.students.build import StudentConfig
    from logitcache.targets.image_rows import ImageRows
    from logitcache.training.config import TrainConfig

__all__ = [
    "check_labeled",
    "class_count",
    "class_names",
    "reorder_classifier",
    "validation_images",
]


def class_count(config: TrainConfig, rows: ImageRows, teachers: int | None) -> int:
    """Return how many outputs the network of a run has.

    Args:
        config: The run.
        rows: Its images.
        teachers: Outputs of its teachers; None without any.

    Raises:
        UsageError: The number is not known, or what is requested does not fit the images or the
            teachers.
        DataError: There is one class alone.
    """
    known = teachers or len(rows.class_names) or len(config.class_names or ())
    wanted = config.student.kwargs.get("num_classes")
    if wanted is None and not known:
        raise UsageError(
            "the images have no classes and the student no number of classes",
            where=rows.source.description,
            hint="set student.kwargs.num_classes",
        )
    if wanted is None and known == 1:
        raise DataError(
            "there is one class alone, so there is nothing to learn",
            where=rows.source.description,
            expected="images of several classes, a folder each",
            got=first_of(rows.class_names),
            hint="give the parent folder of the class folders",
        )
    if wanted is None:
        return known
    least = max(1, len(rows.class_names))
    if not isinstance(wanted, int) or wanted < least or (teachers and wanted != teachers):
        raise UsageError(
            "the student has another number of classes than its targets",
            where="student.kwargs.num_classes",
            expected=f"{teachers}, as the teachers have" if teachers else f"at least {least}",
            got=wanted,
            hint="leave num_classes out: it follows from the images and the cache",
        )
    return wanted


def class_names(config: TrainConfig, rows: ImageRows, classes: int) -> list[str] | None:
    """Return the names of the network's outputs, None where they are not known.

    Args:
        config: The run.
        rows: Its images.
        classes: How many outputs there are.

    Raises:
        UsageError: The configuration names another number of classes.
    """
    if config.class_names is not None and len(config.class_names) != classes:
        raise UsageError(
            "another number of names than the network has classes",
            where="class_names",
            expected=f"{classes} names",
            got=f"{len(config.class_names)} names",
        )
    names = list(config.class_names or rows.class_names)
    return names if len(names) == classes else None


@torch.no_grad()
def reorder_classifier(
    network: nn.Module, config: StudentConfig, names: Sequence[str] | None
) -> list[str]:
    """Put the outputs of a pretrained classifier into the order of the classes of the run.

    Args:
        network: The student, with the number of outputs of the run.
        config: What it was built from.
        names: Names of the classes of the run; None if they are not known.

    Returns:
        A note where the weights have the names of other classes.
    """
    own = (
        class_names_of(network)
        if config.is_trained and "probe" not in config.surgery.chosen
        else None
    )
    if own is None or names is None or own == names:
        return []
    positions = class_positions(names, own)
    if None in positions:
        return [
            "the classifier that the student starts from has other classes "
            f"({first_of(own)}), which are not those of the run ({first_of(names)})"
        ]
    order = torch.tensor(positions)
    cfg: Any = network.pretrained_cfg
    heads = cfg["classifier"]
    for head in [heads] if isinstance(heads, str) else heads:
        for tensor in network.get_submodule(head).parameters():
            tensor.copy_(tensor[order])
    return []


def validation_images(config: TrainConfig, rows: ImageRows) -> Source:
    """List the validation images, their labels mapped by name to the classes of the run.

    Args:
        config: The run.
        rows: The images that are trained on.

    Raises:
        DataMismatch: There are classes that the run does not have, or its classes have no names.
        DataError: There are no labels to evaluate with.
    """
    assert config.val is not None
    names: Sequence[str] = config.class_names or rows.class_names
    if not names:
        raise DataMismatch(
            "the network's classes have no names, so labels cannot be mapped to them",
            where=open_source(config.val).description,
            hint="name them in order: --set class_names=[...]",
        )
    whose = "the training set" if config.cache is None else "the cache"
    return check_labeled(open_source_for(config.val, names, whose))


def check_labeled(source: Source) -> Source:
    """Return a source that has labels.

    Raises:
        DataError: It has none.
    """
    if not (source.labels >= 0).any():
        raise DataError(
            "there are no labels to evaluate with",
            where=source.description,
            expected="one folder per class",
            got=f"{len(source.keys)} images in no class folder",
        )
    return source
