"""Relational distillation: Gram, distance, angle or CKA over samples, tokens, channels or layers.

The related things are the rows of a batch, the tokens or the channels of a row, or the vectors of a
row at several layers (for example of several teachers). Every form takes them as (G, M, D): G
groups of M things with D values, so any form can be combined with any kind of things. Student and
teacher need the same M, but not the same D.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator
from torch.nn import functional

from logitcache.config import Config, Former
from logitcache.errors import UsageError
from logitcache.objectives.alignment import (
    aligned,
    as_vectors,
    cached_features,
    flattened,
    unfit,
    wide,
)
from logitcache.objectives.distance import Reduction
from logitcache.objectives.similarity import angle, cka, distance, gram
from logitcache.objectives.term import PairsTermConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from logitcache.batch import Features, Outputs, TargetBatch

__all__ = ["Relation", "RelationConfig", "SidesConfig"]

_Scale = Literal["none", "l2", "width"]


class SidesConfig(Config):
    """Normalization of the student's things and of the teacher's; one name for both alike.

    Attributes:
        student: ``l2``, ``width`` or ``none``, for the things of the student.
        teacher: The same for those of the teacher.
    """

    student: _Scale = "none"
    teacher: _Scale = "none"

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"student": value, "teacher": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_name(self, plain: SerializerFunctionWrapHandler) -> object:
        """Return one name for both sides alike, as previous versions saved it."""
        return self.student if self.student == self.teacher else plain(self)


class RelationConfig(PairsTermConfig):
    """Settings of relational distillation.

    Attributes:
        weight: Weight of this term in the sum.
        pairs: Pairs of teacher and student layers; several only with ``over: taps``. A single pair
            may be written without this key, as teacher, tap and student.
        form: Relation that is compared: ``gram``, ``distance``, ``angle`` or ``cka``.
        over: Things that are related: rows of the ``batch``, ``tokens``, ``channels`` or ``taps``.
        normalize: ``l2`` to scale every thing to unit length first; ``width`` to divide inner
            products by the square root of D; ``none``. Or one for each side, such as ``{teacher:
            l2}``, which is what the code of RKD does for retrieval.
        reduction: For ``gram``: ``mean`` over all pairs of things, or their ``sum``.
        prefix: Whether class tokens and registers are among the tokens, if both have the same
            number.
    """

    form: Literal["gram", "distance", "angle", "cka"]
    over: Literal["batch", "tokens", "channels", "taps"] = "batch"
    normalize: SidesConfig = SidesConfig()
    former: ClassVar[Former] = Former(keys={"normalise": "normalize"})
    reduction: Reduction = "mean"
    prefix: bool = True

    @property
    def needs_whole_batch(self) -> bool:
        """Whether rows are compared with each other."""
        return self.over == "batch"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (len(self.pairs) > 1) != (self.over == "taps"):
            raise ValueError("over: taps needs several pairs, and all other values a single one")
        return self


class Relation:
    """Distance between the relations of a student's activations and those of a teacher.

    ::

        gram      mean or sum over i, j of (s_i . s_j - t_i . t_j)^2
        distance  mean over i, j of huber(|s_i - s_j| / mean, |t_i - t_j| / mean)
        angle     mean over i, j, k of huber(cos of (s_j - s_i, s_k - s_i), that of the teacher)
        cka       1 - CKA(s, t), linear

    each the mean over groups. Distance and angle are RKD's (Park et al., CVPR 2019, equations 4 to
    8), as its code has them: see :mod:`logitcache.objectives.similarity`. Its weights are 1 and 2.

    Over the ``batch``, all positions of a row at the layer are concatenated to one vector; the
    student's positions are averaged if the teacher has one vector. Over ``tokens`` and ``channels``
    the student is resized to the teacher's positions first. Over ``taps`` positions are averaged,
    so that there is one vector per layer.

    Args:
        config: The layers, and how they are compared.
    """

    def __init__(self, config: RelationConfig) -> None:
        self.config = config

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Check that the relations can be compared.

        Args:
            outputs: Example of outputs of the student, one row.
            targets: Example of targets, one row.

        Raises:
            UsageError: The shapes do not fit each other.
        """
        self(outputs, targets)

    def __call__(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        config = self.config
        student_GMD, teacher_GME = self._things(outputs, targets)
        student_GMD = _SCALED[config.normalize.student](student_GMD)
        teacher_GME = _SCALED[config.normalize.teacher](teacher_GME)
        if config.form == "gram":
            return gram(student_GMD, teacher_GME, config.reduction)
        return {"distance": distance, "angle": angle, "cka": cka}[config.form](
            student_GMD, teacher_GME
        )

    def _things(self, outputs: Outputs, targets: TargetBatch) -> tuple[Tensor, Tensor]:
        """Return the related things of student and teacher, (G, M, D) and (G, M, E)."""
        held = [outputs.tap(pair.held) for pair in self.config.pairs]
        cached = [cached_features(targets, pair.features) for pair in self.config.pairs]
        if self.config.over == "taps":
            return self._vectors(held), self._vectors(cached)
        (student,), (teacher,) = held, cached
        if teacher.positions is not None:
            raise unfit(
                student,
                teacher,
                self._where,
                "relations need all positions: precompute this layer without the option tokens",
            )
        if self.config.over == "batch":
            vector = teacher.layout == "vector"
            rows = wide(as_vectors(student)) if vector else flattened(student)
            return rows[None], flattened(teacher)[None]
        if teacher.layout == "vector":
            raise unfit(student, teacher, self._where, f"choose a layer with {self.config.over}")
        pair = aligned(student, teacher, prefix=self.config.prefix, where=self._where)
        if self.config.over == "tokens":
            return pair.student, pair.teacher
        if pair.student.shape[2] != pair.teacher.shape[2]:
            raise unfit(student, teacher, self._where, "choose layers of equal width")
        return pair.student.transpose(1, 2), pair.teacher.transpose(1, 2)

    def _vectors(self, taps: list[Features]) -> Tensor:
        """Return the vectors of all layers, (B, M, D)."""
        vectors = [wide(as_vectors(tap)) for tap in taps]
        widths = [vector.shape[1] for vector in vectors]
        if len(set(widths)) > 1:
            raise UsageError(
                "over: taps needs layers with equal numbers of channels",
                where=self._where,
                got=", ".join(str(width) for width in widths),
                hint="choose other layers",
            )
        return torch.stack(vectors, 1)

    @property
    def _where(self) -> str:
        return "objectives.relation of " + ", ".join(pair.features for pair in self.config.pairs)


_SCALED: dict[_Scale, Callable[[Tensor], Tensor]] = {
    "none": lambda things: things,
    "l2": lambda things: functional.normalize(things, dim=2),
    # both factors of an inner product are scaled, so each gets half of the exponent
    "width": lambda things: things / things.shape[2] ** 0.25,
}
