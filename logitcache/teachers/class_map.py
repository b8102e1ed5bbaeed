"""Class maps: the output of a teacher for each class of the data, matched by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from logitcache.data.classes import class_positions
from logitcache.errors import UsageError, first_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["choose_class_map"]


def choose_class_map(
    teacher: str,
    chosen: tuple[int, ...] | Literal["position"] | None,
    data_names: Sequence[str],
    own_names: Sequence[str] | None,
    outputs: int,
) -> tuple[list[int] | None, list[str]]:
    """Return the output of the network for each class of the data, and notes for the user.

    Args:
        teacher: Name of the teacher, for messages.
        chosen: Outputs in the configuration, ``position`` for the outputs in their order, or None
            to map them by name.
        data_names: Names of the classes of the data; empty without labels.
        own_names: Names of the classes of the network; None if they are not known.
        outputs: Number of outputs of the network.

    Returns:
        The outputs, or None for all of them in their order; and notes.

    Raises:
        UsageError: The network lacks a class of the data, or an output of the configured map.
    """
    if isinstance(chosen, tuple):
        wrong = [index for index in chosen if not 0 <= index < outputs]
        if wrong:
            raise UsageError(
                f"the class map of teacher {teacher!r} has outputs that the network lacks",
                where=f"teachers.{teacher}.class_map",
                expected=f"numbers from 0 to {outputs - 1}",
                got=wrong[:5],
            )
        return list(chosen), []
    if chosen is not None or not data_names:
        return None, []
    if own_names is None:
        return None, [
            f"teacher {teacher}: its classes have no names, so they are assumed to be in the order "
            f"of the data: {first_of(data_names)}"
        ]
    positions = class_positions(data_names, own_names)
    unknown = [n for n, position in zip(data_names, positions, strict=True) if position is None]
    if unknown:
        raise UsageError(
            f"teacher {teacher!r} lacks {len(unknown)} of {len(data_names)} classes of the data",
            expected=f"classes among {first_of(own_names)}",
            got=first_of(unknown),
            hint="rename the class folders; or give the teacher's output for each class of the "
            f"data, --set teachers.{teacher}.class_map=[...], or class_map=position if both are in "
            "the same order",
        )
    found = [position for position in positions if position is not None]
    if found == list(range(outputs)):
        return None, []
    return found, [
        f"teacher {teacher}: {len(found)} of its {outputs} classes are mapped by name to those of "
        "the data"
    ]
