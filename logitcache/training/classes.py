"""Classes of a training run: number, names, and mapping for validation.

Names come from the cache or, without a cache, from the images; the classes of a validation set are
mapped to them by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from logitcache.data.classes import RelabeledSource, class_positions
from logitcache.data.readers import open_source, open_source_for
from logitcache.errors import DataError, DataMismatch, UsageError, first_of
from logitcache.label_sets import label_sets_of
from logitcache.networks.build import class_names_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from logitcache.data.readers import ImageSet
    from logitcache.data.source import Source
    from logitcache.students.build import StudentConfig
    from logitcache.targets.images.image_rows import ImageRows
    from logitcache.training.config import TrainConfig

__all__ = [
    "check_labeled",
    "check_name_count",
    "class_count",
    "class_names",
    "reorder_classifier",
    "validation_images",
]


def class_count(
    config: TrainConfig,
    rows: ImageRows,
    teachers: int | None,
    *,
    logits_needed: bool = True,
    validated: bool = False,
) -> int:
    """Return the number of outputs of the student; 0 for a student without a classifier.

    Args:
        config: Configuration of the run.
        rows: The training images.
        teachers: Number of classes of the teachers; None without logits of teachers.
        logits_needed: Whether the objectives need logits of the student. Without them, a student
            of images without labels has no classifier.
        validated: Whether there are validation images.

    Raises:
        UsageError: The number is not known, or the configured one does not match the images or the
            teachers.
        DataError: The images have a single class.
    """
    known = teachers or len(rows.class_names) or len(config.class_names or ())
    wanted = config.student.kwargs.get("num_classes")
    if not logits_needed and (wanted == 0 or (wanted is None and not known)):
        if validated:
            raise _no_validation(config)
        return 0
    if wanted is None and not known:
        raise UsageError(
            "the number of classes is not known: the images have no labels",
            where=rows.source.description,
            hint="set it: --set student.kwargs.num_classes=N",
        )
    if wanted is None and known == 1:
        raise DataError(
            "all images have the same class, so there is nothing to learn",
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
            "the student's number of classes differs from that of its targets",
            where="student.kwargs.num_classes",
            expected=f"{teachers}, as the teachers have" if teachers else f"at least {least}",
            got=wanted,
            hint="remove num_classes: it follows from the images and the cache",
        )
    return wanted


def _no_validation(config: TrainConfig) -> UsageError:
    """Return the error for validation images of a student without a classifier."""
    return UsageError(
        "a student without a classifier cannot be validated by its accuracy",
        where="val",
        got="neither the training images nor the cache have classes"
        if config.student.kwargs.get("num_classes") is None
        else "student.kwargs.num_classes: 0",
        hint="leave out val, and train a linear probe on the exported student afterwards "
        "(student.surgery.probe); or give class_names",
    )


def class_names(config: TrainConfig, rows: ImageRows, classes: int) -> list[str] | None:
    """Return the names of the network's outputs, None if they are not known.

    Args:
        config: Configuration of the run.
        rows: The training images.
        classes: Number of outputs.

    Raises:
        UsageError: The configuration has a different number of names.
    """
    if config.class_names is not None:
        check_name_count(config.class_names, classes)
    names = list(config.class_names or rows.class_names)
    return names if len(names) == classes else None


def check_name_count(names: Sequence[str], classes: int) -> None:
    """Check the number of class names in a configuration.

    Raises:
        UsageError: It is not the number of classes.
    """
    if len(names) != classes:
        raise UsageError(
            "the number of class names differs from the network's number of classes",
            where="class_names",
            expected=f"{classes} names",
            got=f"{len(names)} names",
        )


@torch.no_grad()
def reorder_classifier(
    network: nn.Module, config: StudentConfig, names: Sequence[str] | None
) -> list[str]:
    """Reorder the outputs of a pretrained classifier to the order of the run's classes.

    Args:
        network: The student, with the number of outputs of the run; changed in place.
        config: Configuration of the student.
        names: Names of the classes of the run; None if they are not known.

    Returns:
        A note if the pretrained classifier has other classes; it is then left as it is.
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
            f"the student's pretrained classifier has other classes ({first_of(own)}) than the "
            f"run ({first_of(names)})"
        ]
    order = torch.tensor(positions)
    cfg: Any = network.pretrained_cfg
    heads = cfg["classifier"]
    for head in [heads] if isinstance(heads, str) else heads:
        for tensor in network.get_submodule(head).parameters():
            tensor.copy_(tensor[order])  # indexing copies, so rows are not read after a write
    return []


def validation_images(config: TrainConfig, val: ImageSet, rows: ImageRows) -> Source:
    """Return the validation images with labels mapped by name to the classes of the run.

    Args:
        config: Configuration of the run.
        val: The validation images.
        rows: The training images.

    Raises:
        DataMismatch: The images have classes that the run lacks, or its classes have no names.
        DataError: The images have no labels.
    """
    names: Sequence[str] = config.class_names or rows.class_names
    if not names:
        raise DataMismatch(
            "the network's classes have no names, so labels cannot be mapped to them",
            where=open_source(val).description,
            hint="give their names in order: --set class_names=[...]",
        )
    whose = "the training set" if config.cache is None else "the cache"
    classes = rows.classes
    if classes is None or classes.label_table is None:
        return check_labeled(open_source_for(val, names, whose))
    source = open_source(val)
    if None not in class_positions(source.class_names, names):
        return check_labeled(RelabeledSource(source, names, "the class map"))
    # images of the classes of the cache, which have the class map of its labels
    of_cache = RelabeledSource(source, classes.data_names, whose)
    return check_labeled(of_cache.mapped(classes.label_table, names))


def check_labeled(source: Source) -> Source:
    """Return a source if some of its images have labels.

    Raises:
        DataError: None of them has one.
    """
    sets = label_sets_of(source)
    if not (source.labels >= 0 if sets is None else sets.known).any():
        raise DataError(
            "the images have no labels to evaluate with",
            where=source.description,
            expected="one folder per class",
            got=f"{len(source.keys)} images outside of class folders",
        )
    return source
