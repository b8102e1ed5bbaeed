"""Squared differences of energy maps, which several objectives compare layers by.

Shapes: B batch, P positions of the teacher's map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional

from logitcache.objectives.alignment import aligned, energy_of, unfit

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features

__all__ = ["check_whole", "energy_differences"]


def energy_differences(student: Features, teacher: Features, where: str) -> Tensor:
    """Return the squared differences of two energy maps of unit length, (B, P).

    An energy map has the mean square of the channels at every position. That of the student is
    resized to the positions of the teacher before both are divided by their length.

    Args:
        student: Activations of a student layer.
        teacher: Cached activations of a teacher layer.
        where: Name of the term, for messages.

    Raises:
        UsageError: The maps cannot be compared.
    """
    if student.layout == "vector":
        raise unfit(student, teacher, where, "choose a student layer with maps or tokens")
    pair = aligned(student, energy_of(teacher), prefix=False, where=where)
    maps = (functional.normalize(side[..., 0], dim=1) for side in (pair.student, pair.teacher))
    ours_BP, theirs_BP = maps
    return (ours_BP - theirs_BP).square()


def check_whole(student: Features, teacher: Features, where: str) -> None:
    """Check that both the mean and the energy can be computed of cached activations.

    Raises:
        UsageError: Only a part or a reduction of the teacher's layer was cached, or it is a vector.
    """
    whole = teacher.reduction == "none" and teacher.positions is None
    if not whole:
        raise unfit(student, teacher, where, "precompute it without reduce and tokens")
    if teacher.layout == "vector":
        raise unfit(student, teacher, where, "choose another layer of the teacher, with positions")
