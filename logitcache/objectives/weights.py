"""Weights of the teachers in an objective, and checks of their targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.batch import TeacherLogits

__all__ = ["other_classes", "teacher_weights"]


def teacher_weights(
    asked: Mapping[str, float] | None, present: Mapping[str, TeacherLogits]
) -> Mapping[str, float]:
    """Return the weight of each teacher of the objective.

    Args:
        asked: Weights by name; None for all alike, summing to one.
        present: What the batch holds.

    Raises:
        UsageError: A teacher is not in the batch, or there is none at all.
    """
    weights = asked or {name: 1 / len(present) for name in present}
    if not weights:
        raise UsageError(
            "no teacher to learn from", hint="give a cache, or objectives that need none"
        )
    for name in weights:
        if name not in present:
            raise UsageError(f"no teacher {name!r} in this batch", hint=nearest(name, present))
    return weights


def other_classes(student: int, teacher: int) -> UsageError:
    """Return the error for a student and a teacher with different numbers of classes."""
    return UsageError(
        "student and teacher have different classes",
        expected=f"{teacher} logits",
        got=f"{student} logits",
        hint="set the student's num_classes, or precompute with a class_map",
    )
