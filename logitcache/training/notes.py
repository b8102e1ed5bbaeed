"""Notes for the user at the start of a run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from logitcache.data.sample import sample_images
from logitcache.networks.build import size_is_default
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from logitcache.objectives.combine import ObjectiveConfig
    from logitcache.students.build import StudentConfig
    from logitcache.targets.images.image_rows import ImageRows
    from logitcache.targets.selection import Targets
    from logitcache.training.config import TrainConfig

__all__ = ["class_notes", "log_schedule", "student_notes", "temperature_notes"]

_LOG = logging.getLogger(__name__)
_MUCH_LARGER = 2
_MUCH_OUTSIDE = 0.1  # of the probability


def class_notes(
    targets: Targets | None, rows: ImageRows, terms: Sequence[ObjectiveConfig] = ()
) -> list[str]:
    """Return notes on the probability and the labels that are outside of a class map.

    Where much of the probability is outside, and images have no label that tells that they show a
    class of the student, the settings that decide what becomes of it are named, and logged.

    Args:
        targets: Cached targets; None without a cache.
        rows: The images.
        terms: Terms of the objective.
    """
    if targets is None:
        return []
    shares = targets.reader.outside_shares(next(iter(targets.views)))
    notes = [share.note for share in shares]
    if rows.classes is not None and rows.classes.label_table is not None:
        notes.append(
            f"{rows.labeled} of {len(rows)} images have a label in the classes of the class map"
        )
    if any(share.mass is not None and share.mass > _MUCH_OUTSIDE for share in shares):
        for note in _outside_advice(rows, terms):
            _LOG.warning("%s", visible(note))
            notes.append(note)
    return notes


def _outside_advice(rows: ImageRows, terms: Sequence[ObjectiveConfig]) -> list[str]:
    """Return what terms do with much probability outside, unless it is left out of all images."""
    unknown = len(rows) - rows.labeled
    found = {
        name: one.outside
        for term in terms
        for name, one in (("soft", term.soft), ("split", term.split))
        if one is not None
    }
    notes = []
    for name, outside in found.items():
        # split has a loss for images with a label alone
        settled = outside == "auto" and (name == "split" or not unknown)
        if outside == "renorm" or settled:
            continue
        images = f"the {unknown} images without a label" if outside == "auto" else "all images"
        done = "is spread over the classes" if outside == "uniform" else "lowers the weight"
        notes.append(
            f"outside: {outside} of the term {name}: this probability {done} of {images}; if they "
            f"all show classes of the student, students are better with {name}: {{outside: renorm}}"
        )
    return notes


def temperature_notes(targets: Targets | None, terms: Sequence[ObjectiveConfig]) -> tuple[str, ...]:
    """Return and log notes on the fidelity of targets at the temperatures of the objectives.

    Args:
        targets: Cached targets; None without a cache.
        terms: Terms of the objective.
    """
    if targets is None:
        return ()
    notes = [
        note
        for term in terms
        if term.soft is not None  # other terms accept sparse targets at T = 1 only
        for note in targets.reader.lossy_notes(term.soft.temperature, term.soft.used_teachers)
    ]
    for note in dict.fromkeys(notes):
        _LOG.warning("%s", visible(note))
    return tuple(dict.fromkeys(notes))


def student_notes(
    network: nn.Module, config: StudentConfig, size: int, rows: ImageRows
) -> tuple[str, ...]:
    """Return the notes on a student's surgeries and on the images, of which a few are decoded.

    Args:
        network: The student.
        config: Configuration of the student.
        size: Side of its input in pixels.
        rows: The images.

    Returns:
        Notes on what the export of a student will lack, on images that are probably not decoded as
        intended, and on an input size that is the default of the model and much larger than the
        images.
    """
    # no image is opened, or those that are known were looked at when their views were stored
    if config.head_on is not None or rows.squares is not None:
        return tuple(config.surgery.notes)
    sample = sample_images(rows.source, rows.table)
    notes, side = [*config.surgery.notes, *sample.notes], sample.side
    if size_is_default(network, config) and side is not None and size >= _MUCH_LARGER * side:
        notes.append(
            f"the images have a side of {side} pixels and are resized to {size}, the default of "
            f"the student's model; --set student.size={side} would be about "
            f"{(size / side) ** 2:.0f} times faster"
        )
    return tuple(notes)


def log_schedule(
    config: TrainConfig,
    steps: int,
    epochs: int,
    rows: ImageRows,
    targets: Targets | None,
    *,
    processes: int,
) -> None:
    """Log what a run is going to do.

    Args:
        config: Settings of the run.
        steps: Number of optimizer steps.
        epochs: Number of epochs that these take.
        rows: The training images.
        targets: Cached targets; None without a cache.
        processes: Number of processes that train together.
    """
    shown = "labels alone" if targets is None else f"views {', '.join(targets.views)}"
    _LOG.info(
        "%d steps of %d images on %d processes, %d epochs of %d images, %s, precision %s",
        steps,
        config.batch_size,
        processes,
        epochs,
        len(rows),
        shown,
        config.precision,
    )
