"""Weights of the teachers in an objective, and checks of their targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.batch import DenseLogits, SigmoidLogits
from logitcache.errors import UsageError, nearest
from logitcache.objectives.alignment import cached_features, wide

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from logitcache.batch import TargetBatch, TeacherLogits
    from logitcache.objectives.term import AskingTermConfig

__all__ = ["check_one_head", "logits_of_teachers", "other_classes", "teacher_weights"]


def logits_of_teachers(config: AskingTermConfig, targets: TargetBatch) -> Mapping[str, Any]:
    """Return the logits that a term compares with, by name of the teacher.

    They are outputs of teachers, or cached vectors of other layers as dense logits.

    Args:
        config: The term.
        targets: Targets with these outputs and layers.

    Raises:
        UsageError: A layer is missing, or is not a vector of logits.
    """
    if not config.logits:
        return targets.teachers
    return {
        **{
            name: targets.teachers[name]
            for name in config.used_teachers or ()
            if name in targets.teachers
        },
        **{name: _vector_logits(targets, name, tap) for name, tap in config.logits.items()},
    }


def _vector_logits(targets: TargetBatch, teacher: str, tap: str) -> DenseLogits:
    cached = cached_features(targets, f"{teacher}/{tap}")
    if cached.layout != "vector" or cached.principal:
        raise UsageError(
            "a cached layer is not a vector of logits",
            where=f"objectives, logits: {{{teacher}: {tap}}}",
            expected="a vector of one number for each class, not reduced to principal components",
            got=f"{cached.layout} {tuple(cached.values.shape[1:])}",
            hint="cache the layer of a classifier",
        )
    return DenseLogits(wide(cached.values).log_softmax(1))


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
        hint="give the student, or its branch, as many outputs (num_classes; branches: "
        "{classes: x1}), "
        "or map the classes of the teacher to those of the student: --class-map FILE",
    )
