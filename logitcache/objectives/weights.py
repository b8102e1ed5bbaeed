"""Weights of the teachers in an objective, and checks of their targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.batch import SigmoidLogits
from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from logitcache.batch import TeacherLogits

__all__ = ["check_one_head", "other_classes", "teacher_weights"]


def teacher_weights(
    chosen: Mapping[str, float] | None, present: Mapping[str, TeacherLogits]
) -> Mapping[str, float]:
    """Return the weight of each teacher of an objective.

    Args:
        chosen: Weights by name; None for equal weights that sum to one.
        present: Outputs of teachers in the batch, by name.

    Raises:
        UsageError: A teacher is not in the batch, or the batch has no teachers.
    """
    weights = chosen or {name: 1 / len(present) for name in present}
    if not weights:
        raise UsageError(
            "the objective needs outputs of teachers, but the batch has none",
            hint="give a cache, or use the objective label",
        )
    for name in weights:
        if name not in present:
            raise UsageError(f"no teacher {name!r} in this batch", hint=nearest(name, present))
    return weights


def check_one_head(names: Iterable[str], teachers: Mapping[str, TeacherLogits]) -> None:
    """Check that teachers have a softmax, or all of them a sigmoid for each class.

    Args:
        names: Names of the teachers of a term.
        teachers: Outputs of teachers in the batch, by name.

    Raises:
        UsageError: Both are among them: the same logits cannot be compared with both.
    """
    sigmoid = {name: isinstance(teachers[name], SigmoidLogits) for name in names}
    if len(set(sigmoid.values())) > 1:
        raise UsageError(
            "teachers with softmax and with sigmoid heads cannot be compared with the same logits",
            expected="teachers of one kind in a term",
            got=", ".join(f"{n}: {'sigmoid' if is_ else 'softmax'}" for n, is_ in sigmoid.items()),
            hint="choose teachers of one kind by teachers, or use two terms with two heads",
        )


def other_classes(student: int, teacher: int) -> UsageError:
    """Return the error for a student and a teacher with different numbers of classes."""
    return UsageError(
        "student and teacher have different numbers of classes",
        expected=f"{teacher} logits",
        got=f"{student} logits",
        hint="set student.kwargs.num_classes, or map the classes of the teacher to those of the "
        "student: --class-map FILE",
    )
