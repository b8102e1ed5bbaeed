"""Base classes of the terms of an objective: weights, required targets, and pairs of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from logitcache.batch import PIXELS
from logitcache.config import Config, or_file_with

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AskingTermConfig",
    "LogitsTermConfig",
    "Needs",
    "PairConfig",
    "PairsTermConfig",
    "TermConfig",
    "Weight",
    "as_pairs",
]


@dataclass(frozen=True)
class Needs:
    """Targets and student layers that terms of the loss require; names are sorted.

    Attributes:
        teachers: Names of the teachers whose logits are required; None for all teachers.
        features: Required teacher features, as ``<teacher>/<tap>``.
        taps: Names of the required student layers.
        student_logits: Whether the output of the student's classifier is required.
        pixels: Whether the images of the target views are required, as targets.
        parts: Parts of a joined image set whose rows have to be known.
        dropped_patches: Whether views have to drop patches.
    """

    teachers: tuple[str, ...] | None = ()
    features: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()
    student_logits: bool = False
    pixels: bool = False
    parts: tuple[str, ...] = ()
    dropped_patches: bool = False

    @property
    def asks_teachers(self) -> bool:
        """Whether any outputs of teachers are required."""
        return self.teachers != () or self.features != ()

    def __or__(self, other: Needs) -> Needs:
        teachers = (
            None
            if self.teachers is None or other.teachers is None
            else _both(self.teachers, other.teachers)
        )
        return Needs(
            teachers,
            _both(self.features, other.features),
            _both(self.taps, other.taps),
            self.student_logits or other.student_logits,
            self.pixels or other.pixels,
            _both(self.parts, other.parts),
            self.dropped_patches or other.dropped_patches,
        )


class Weight(Config):
    """Weight of a term, constant or changing during the run.

    A number is a constant weight. Otherwise the weight changes linearly from ``initial`` to
    ``value``::

        w(p) = initial + (value - initial) min(1, max(0, (p - start) / length))

    with p the share of all steps that are done.

    Attributes:
        value: Weight at the end.
        initial: Weight at the beginning.
        start: Share of the run after which the weight starts to change.
        length: Share of the run over which the weight changes; 0 for an immediate change.
    """

    value: float = Field(default=1.0, ge=0)
    initial: float = Field(default=0.0, ge=0)
    start: float = Field(default=0.0, ge=0, le=1)
    length: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        return {"value": value} if isinstance(value, int | float) else value

    @model_serializer(mode="wrap")
    def _as_number(self, plain: SerializerFunctionWrapHandler) -> object:
        """Return a constant weight as a number, and a schedule as a mapping."""
        changes = self.model_fields_set - {"value"}
        return plain(self) if changes else self.value

    def at(self, progress: float) -> float:
        """Return the weight at some point of the run.

        Args:
            progress: Share of all steps that are done, in [0, 1].
        """
        if progress < self.start:
            return self.initial
        done = 1.0 if self.length == 0 else min(1.0, (progress - self.start) / self.length)
        return self.initial + (self.value - self.initial) * done


class TermConfig(Config):
    """Base class of the configurations of terms.

    Attributes:
        weight: Weight of this term in the sum: a number or a schedule, see :class:`Weight`.
        views: Names of the views of a batch that this term is computed on; all by default.
        parts: Names of the parts of a joined image set that this term is computed on; all by
            default. Other sets have parts, too: the folders at the beginning of the keys.
    """

    weight: Weight = Weight()
    views: list[str] | None = Field(default=None, min_length=1)
    parts: list[str] | None = Field(default=None, min_length=1)

    @property
    def needs(self) -> Needs:
        """Required targets and student layers."""
        return Needs()

    @property
    def all_needs(self) -> Needs:
        """Required targets and student layers, and the parts that the term is computed on."""
        return self.needs | Needs(parts=tuple(sorted(self.parts or ())))

    @property
    def reads(self) -> tuple[str, ...]:
        """Files that the term reads when it is fitted, such as those of earlier stages."""
        return ()

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the term is not a mean over rows, so that it cannot be computed in parts."""
        return False

    @property
    def needs_labels(self) -> bool:
        """Whether the term is zero for images without labels."""
        return False


class LogitsTermConfig(TermConfig):
    """Base class of the configurations of terms on logits.

    Attributes:
        head: Student layer with the logits, for example a second classifier; the output of the
            network by default.
    """

    head: str | None = None

    @property
    def needs(self) -> Needs:
        """Required targets and student layers: the head."""
        return Needs(student_logits=True) if self.head is None else Needs(taps=(self.head,))


class AskingTermConfig(LogitsTermConfig):
    """Base class of the configurations of terms on logits of teachers.

    Attributes:
        teachers: Weight of each teacher by name, or the file of ``logitcache tools fit-weights``
            with these; by default equal weights that sum to one.
        logits: Cached layer with the logits of a teacher, by name of the teacher, such as a further
            classifier; for the others, and by default, its output. Without ``teachers``, these are
            the teachers of the term.
    """

    teachers: Annotated[dict[str, float] | None, or_file_with("teachers")] = Field(
        default=None, min_length=1
    )
    logits: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_known_teachers(self) -> Self:
        unknown = sorted(self.logits.keys() - (self.teachers or self.logits).keys())
        if unknown:
            raise ValueError(f"logits of {unknown[0]!r}, which is not among the teachers")
        return self

    @model_validator(mode="after")
    def _weights_of_a_mean(self) -> Self:
        weights = self.teachers or {}
        lowest, highest = min(weights.values(), default=1.0), max(weights.values(), default=1.0)
        if lowest < 0 or highest <= 0:
            given = ", ".join(f"{name}: {weight:g}" for name, weight in weights.items())
            raise ValueError(
                f"weights of teachers are 0 or more, and one is above 0; these are {given}"
            )
        return self

    @property
    def used_teachers(self) -> tuple[str, ...] | None:
        """Names of the teachers whose output is used, sorted; None for all teachers."""
        if self.teachers is None:
            return () if self.logits else None
        return tuple(sorted(self.teachers.keys() - self.logits.keys()))

    @property
    def needs(self) -> Needs:
        """Required targets and student layers: the head, and the logits of the teachers."""
        layers = tuple(sorted(f"{name}/{tap}" for name, tap in self.logits.items()))
        return super().needs | Needs(teachers=self.used_teachers, features=layers)


class PairConfig(Config):
    """A teacher layer, or the image itself, and the student layer that is compared with it.

    Attributes:
        teacher: Name of the teacher.
        tap: Name of the teacher layer in the cache.
        student: Name of the student layer; the same as ``tap`` by default.
        against: ``features`` of a teacher; or ``pixels``, the normalized image of the view that the
            targets belong to, without ``teacher`` and ``tap``.
    """

    teacher: str | None = None
    tap: str | None = None
    student: str | None = None
    against: Literal["features", "pixels"] = "features"

    @model_validator(mode="after")
    def _against_one(self) -> Self:
        given = [self.teacher is not None, self.tap is not None]
        if self.against == "features" and not all(given):
            raise ValueError("give teacher and tap, the layer to compare with, or against: pixels")
        if self.against == "pixels" and (any(given) or self.student is None):
            raise ValueError("against: pixels needs the student layer alone, no teacher and no tap")
        return self

    @property
    def features(self) -> str:
        """Name in a batch of what the student layer is compared with."""
        return PIXELS if self.against == "pixels" else f"{self.teacher}/{self.tap}"

    @property
    def held(self) -> str:
        """Name of the student layer."""
        held = self.student or self.tap
        assert held is not None  # checked above
        return held

    @staticmethod
    def needs_of(pairs: Sequence[PairConfig]) -> Needs:
        """Return the targets and layers of some pairs."""
        return Needs(
            features=tuple(sorted({pair.features for pair in pairs} - {PIXELS})),
            taps=tuple(sorted({pair.held for pair in pairs})),
            pixels=any(pair.against == "pixels" for pair in pairs),
        )


class PairsTermConfig(TermConfig):
    """Base class of the configurations of terms on pairs of layers.

    Attributes:
        pairs: Pairs of teacher and student layers. A single pair may be written without this key,
            as teacher, tap and student, or against and student.
    """

    pairs: list[PairConfig] = Field(min_length=1)

    @property
    def needs(self) -> Needs:
        """Required targets and layers: those of all pairs."""
        return super().needs | PairConfig.needs_of(self.pairs)

    @model_validator(mode="before")
    @classmethod
    def _from_one(cls, value: object) -> object:
        return as_pairs(value)


def as_pairs(value: object) -> object:
    """Return the settings of a term in which a single pair is in the list ``pairs``, too.

    Args:
        value: Settings, possibly with those of a pair next to the others.
    """
    if not isinstance(value, dict) or "pairs" in value or not {"tap", "against"} & value.keys():
        return value
    own = PairConfig.model_fields.keys()
    rest = {name: field for name, field in value.items() if name not in own}
    return {**rest, "pairs": [{name: field for name, field in value.items() if name in own}]}


def _both(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*a, *b}))
