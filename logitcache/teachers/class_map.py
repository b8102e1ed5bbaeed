"""Class maps: outputs of a teacher by classes of the data, matched by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from logitcache.data.classes import class_positions
from logitcache.errors import UsageError, first_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["choose_class_map"]


def choose_class_map(
    teacher: str,
    asked: tuple[int, ...] | Literal["position"] | None,
    data_names: Sequence[str],
    own_names: Sequence[str] | None,
    outputs: int,
) -> tuple[list[int] | None, list[str]]:
    """Return the output of the network for each class of the data, and what to tell the user.

    Args:
        teacher: Name of the teacher, for messages.
        asked: The outputs as the user gives them, ``position`` for those of the same numbers, or
            None to map them by name.
        data_names: Names of the classes of the data; empty without labels.
        own_names: Names of the classes of the network; None if they are not known.
        outputs: Number of outputs of the network.

    Returns:
        The outputs, None for all of them in their order; and notes.

    Raises:
        UsageError: A class of the data is not among those of the network, or the other way round
            for a map that the user gives.
    """
    if isinstance(asked, tuple):
        wrong = [index for index in asked if not 0 <= index < outputs]
        if wrong:
            raise UsageError(
                f"the class map of teacher {teacher!r} names classes it does not have",
                expected=f"numbers from 0 to {outputs - 1}",
                got=wrong[:5],
            )
        return list(asked), []
    if asked is not None or not data_names:
        return None, []
    if own_names is None:
        return None, [
            f"teacher {teacher}: its classes have no names; they are taken in the order of the "
            f"data: {first_of(data_names)}"
        ]
    positions = class_positions(data_names, own_names)
    unknown = [n for n, position in zip(data_names, positions, strict=True) if position is None]
    if unknown:
        raise UsageError(
            f"teacher {teacher!r} does not have {len(unknown)} of the {len(data_names)} classes of "
            "the data",
            expected=f"classes among {first_of(own_names)}",
            got=first_of(unknown),
            hint="rename the folders; or give the teacher's class for each class of the data, "
            f"--set teachers.{teacher}.class_map=[...], or class_map=position where they are in "
            "the same order",
        )
    found = [position for position in positions if position is not None]
    if found == list(range(outputs)):
        return None, []
    return found, [
        f"teacher {teacher}: {len(found)} of its {outputs} classes are mapped by name to those of "
        "the data"
    ]
