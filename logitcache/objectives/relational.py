"""Relational distillation: Gram, distance, angle or CKA over samples, tokens, channels or layers.

Things are the rows of a batch, the tokens or the channels of a row, or its vectors at several taps
(of several teachers, say). Each form takes them as (G, M, D): G groups of M things of D numbers, so
any form goes with any kind of things. Only things are counted alike: the student's D need not be
the teacher's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
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
from logitcache.objectives.term import Needs, TermConfig

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features, Outputs, TargetBatch

__all__ = ["PairConfig", "Relation", "RelationConfig"]


class PairConfig(Config):
    """A teacher layer, and the student layer that is compared with it.

    Attributes:
        teacher: Whose features.
        tap: Its tap, as the cache has it.
        student: The student's tap; the same by default.
    """

    teacher: str
    tap: str
    student: str | None = None

    @property
    def features(self) -> str:
        """Of the teacher, as a batch has them."""
        return f"{self.teacher}/{self.tap}"

    @property
    def held(self) -> str:
        """The student's tap."""
        return self.student or self.tap


class RelationConfig(TermConfig):
    """How things relate to each other.

    Attributes:
        weight: Of this term in the sum.
        pairs: Which taps; several only where vectors of taps are the things. A single one may be
            written without this key, as teacher, tap and student.
        form: ``gram``, ``distance``, ``angle`` or ``cka``.
        over: What the things are: rows of the ``batch``, ``tokens``, ``channels`` or ``taps``.
        normalize: ``l2`` to give every thing unit length first; ``width`` to divide inner products
            by the root of D; ``none``.
        reduction: Of gram: ``mean`` over all pairs of things, or their ``sum``.
        prefix: Whether class tokens and registers are among the tokens, if both have as many.
    """

    pairs: list[PairConfig] = Field(min_length=1)
    form: Literal["gram", "distance", "angle", "cka"]
    over: Literal["batch", "tokens", "channels", "taps"] = "batch"
    normalize: Literal["none", "l2", "width"] = "none"
    former: ClassVar[Former] = Former(keys={"normalise": "normalize"})
    reduction: Reduction = "mean"
    prefix: bool = True

    @property
    def needs(self) -> Needs:
        """What this term has to be given: the teachers' taps and the student's."""
        return Needs(
            features=tuple(sorted({pair.features for pair in self.pairs})),
            taps=tuple(sorted({pair.held for pair in self.pairs})),
        )

    @model_validator(mode="before")
    @classmethod
    def _from_one(cls, value: object) -> object:
        if not isinstance(value, dict) or "pairs" in value or "tap" not in value:
            return value
        own = PairConfig.model_fields.keys()
        rest = {name: field for name, field in value.items() if name not in own}
        return {**rest, "pairs": [{n: field for n, field in value.items() if n in own}]}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (len(self.pairs) > 1) != (self.over == "taps"):
            raise ValueError("several pairs go with over: taps, and one with all others")
        return self


class Relation:
    """The difference between a student's relations and a teacher's.

    ::

        gram      mean or sum over i, j of (s_i . s_j - t_i . t_j)^2
        distance  mean over i, j of huber(|s_i - s_j| / mean, |t_i - t_j| / mean)
        angle     mean over i, j, k of huber(cos of (s_j - s_i, s_k - s_i), that of the teacher)
        cka       1 - CKA(s, t), linear

    each the mean over groups. Distance and angle are RKD's (Park et al., CVPR 2019, equations 4 to
    8), as its code has them: see :mod:`logitcache.objectives.similarity`. Its weights are 1 and 2.

    Over the ``batch``, what a row holds at the tap is one vector, all its positions behind each
    other; a student's positions are averaged where the teacher has one vector. Over
    ``tokens`` and ``channels`` the student is brought to the teacher's positions first. Over
    ``taps`` positions are averaged, so that there is one vector for each tap.

    Args:
        config: Which features, and what of them.
    """

    def __init__(self, config: RelationConfig) -> None:
        self.config = config

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Refuse what cannot be related.

        Args:
            outputs: An example of one row.
            targets: An example of one row.

        Raises:
            UsageError: Shapes that do not fit, naming both.
        """
        self(outputs, targets)

    def __call__(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        config = self.config
        student_GMD, teacher_GME = self._things(outputs, targets)
        if config.normalize == "l2":
            student_GMD, teacher_GME = (
                functional.normalize(things, dim=2) for things in (student_GMD, teacher_GME)
            )
        elif config.normalize == "width":
            student_GMD, teacher_GME = (
                things / things.shape[2] ** 0.25 for things in (student_GMD, teacher_GME)
            )
        if config.form == "gram":
            return gram(student_GMD, teacher_GME, config.reduction)
        return {"distance": distance, "angle": angle, "cka": cka}[config.form](
            student_GMD, teacher_GME
        )

    def _things(self, outputs: Outputs, targets: TargetBatch) -> tuple[Tensor, Tensor]:
        """Return the things of student and teacher, (G, M, D) and (G, M, E)."""
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
                "relations are between all positions: precompute this tap without tokens",
            )
        if self.config.over == "batch":
            vector = teacher.layout == "vector"
            rows = wide(as_vectors(student)) if vector else flattened(student)
            return rows[None], flattened(teacher)[None]
        if teacher.layout == "vector":
            raise unfit(student, teacher, self._where, f"a vector has no {self.config.over}")
        pair = aligned(student, teacher, prefix=self.config.prefix, where=self._where)
        if self.config.over == "tokens":
            return pair.student, pair.teacher
        if pair.student.shape[2] != pair.teacher.shape[2]:
            raise unfit(student, teacher, self._where, "name taps with as many channels")
        return pair.student.transpose(1, 2), pair.teacher.transpose(1, 2)

    def _vectors(self, taps: list[Features]) -> Tensor:
        """Return the vectors of all taps, (B, M, D)."""
        vectors = [wide(as_vectors(tap)) for tap in taps]
        widths = [vector.shape[1] for vector in vectors]
        if len(set(widths)) > 1:
            raise UsageError(
                "vectors of different taps are only related if they are of one width",
                where=self._where,
                got=", ".join(str(width) for width in widths),
                hint="name taps with as many channels",
            )
        return torch.stack(vectors, 1)

    @property
    def _where(self) -> str:
        return "objectives.relation of " + ", ".join(pair.features for pair in self.config.pairs)
