"""Class maps: the output of a teacher for each class of the data, matched by name.

They restrict what is stored. A teacher that is stored with all of its own classes is mapped when a
student is trained, see :mod:`logitcache.data.class_map`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

from timm.data import ImageNetInfo

from logitcache.data.classes import class_positions
from logitcache.errors import UsageError, first_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ClassMapChoice", "choose_class_map", "own_class_names"]

ClassMapChoice = Literal["position", "own"]


def choose_class_map(
    teacher: str,
    chosen: tuple[int, ...] | ClassMapChoice | None,
    data_names: Sequence[str],
    own_names: Sequence[str] | None,
    outputs: int,
) -> tuple[list[int] | None, list[str]]:
    """Return the output of the network for each class of the data, and notes for the user.

    Args:
        teacher: Name of the teacher, for messages.
        chosen: Outputs in the configuration, ``position`` or ``own`` for all outputs in their
            order, or None to map them by name.
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
            "the same order, or class_map=own to store all classes of the teacher and map them in "
            "training",
        )
    found = [position for position in positions if position is not None]
    if found == list(range(outputs)):
        return None, []
    return found, [
        f"teacher {teacher}: {len(found)} of its {outputs} classes are mapped by name to those of "
        "the data"
    ]


def own_class_names(
    teacher: str,
    configured: Sequence[str] | str | None,
    known: Sequence[str] | None,
    outputs: int,
) -> tuple[str, ...]:
    """Return the names of the classes of a teacher that is stored with all of them.

    Args:
        teacher: Name of the teacher, for messages.
        configured: Names in the configuration, or the name of a list of timm; None for those of
            the weights.
        known: Names that the weights have; None if they have none.
        outputs: Number of outputs of the network.

    Raises:
        UsageError: There are no names, or not one for each output.
    """
    where = f"teachers.{teacher}.class_names"
    names = _of_timm(configured, where) if isinstance(configured, str) else configured or known
    if names is None:
        raise UsageError(
            f"the classes of teacher {teacher!r} have no names, so they cannot be mapped later",
            where=where,
            expected="names of the outputs, in order",
            hint="give them, or the name of timm's list if the outputs are those of ImageNet: "
            f"--set {where}=imagenet-1k",
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if len(names) != outputs or twice:
        raise UsageError(
            f"the class names of teacher {teacher!r} do not fit its outputs",
            where=where,
            expected=f"{outputs} different names",
            got=f"{len(names)} names" + (f", twice: {first_of(twice)}" if twice else ""),
        )
    return tuple(names)


def _of_timm(name: str, where: str) -> list[str]:
    """Return the WordNet ids of a subset of ImageNet, in the order of its classes."""
    try:
        info: Any = ImageNetInfo(name)
    except AssertionError:
        raise UsageError(
            "timm has no list of classes of this name",
            where=where,
            expected="a list of names, imagenet-1k, imagenet-12k, imagenet-21k-goog, "
            "imagenet-21k-miil, imagenet-22k or imagenet-22k-ms",
            got=name,
        ) from None
    names: list[str] = info.label_names()
    return names
