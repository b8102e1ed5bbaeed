"""Base classes of the terms of an objective: weight schedules and required targets."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from logitcache.config import Config

__all__ = ["AskingTermConfig", "LogitsTermConfig", "Needs", "TermConfig", "Weight"]


@dataclass(frozen=True)
class Needs:
    """What terms have to be given.

    Attributes:
        teachers: Whose logits, ascending; None for those of all teachers there are.
        features: What teachers' networks held, as ``<teacher>/<tap>``, ascending.
        taps: What the student's network holds, ascending.
    """

    teachers: tuple[str, ...] | None = ()
    features: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()

    @property
    def asks_teachers(self) -> bool:
        """Whether anything of a teacher is requested."""
        return self.teachers != () or self.features != ()

    def __or__(self, other: Needs) -> Needs:
        teachers = (
            None
            if self.teachers is None or other.teachers is None
            else _both(self.teachers, other.teachers)
        )
        return Needs(teachers, _both(self.features, other.features), _both(self.taps, other.taps))


class Weight(Config):
    """How much a term counts, as a function of the share of the run that is done.

    A number is a weight that does not change. Otherwise it goes from ``initial`` to ``value`` in a
    straight line::

        w(p) = initial + (value - initial) min(1, max(0, (p - start) / length))

    with p the share of all steps that are done: a warm-up, or with a later start a ramp.

    Attributes:
        value: Where it ends.
        initial: Where it begins.
        start: Share of the run at which it begins to change.
        length: Share of the run over which it changes; 0 for at once.
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
        """Return a weight that does not change as the number it is."""
        changes = self.model_fields_set - {"value"}
        return plain(self) if changes else self.value

    def at(self, progress: float) -> float:
        """Return the weight.

        Args:
            progress: Share of all steps that are done, in [0, 1].
        """
        if progress < self.start:
            return self.initial
        done = 1.0 if self.length == 0 else min(1.0, (progress - self.start) / self.length)
        return self.initial + (self.value - self.initial) * done


class TermConfig(Config):
    """Base of the terms' configurations.

    Attributes:
        weight: Of this term in the sum; a number, or how it changes, see :class:`Weight`.
        views: Names of the views of a batch that this term is computed on; all by default.
    """

    weight: Weight = Weight()
    views: list[str] | None = Field(default=None, min_length=1)

    @property
    def needs(self) -> Needs:
        """What this term has to be given."""
        return Needs()


class LogitsTermConfig(TermConfig):
    """Base of the terms that look at logits.

    Attributes:
        head: Tap of the student whose values are the logits, a further classifier say; the output
            of the network by default.
    """

    head: str | None = None

    @property
    def needs(self) -> Needs:
        """What this term has to be given: labels alone, and its head."""
        return Needs(taps=() if self.head is None else (self.head,))


class AskingTermConfig(LogitsTermConfig):
    """Base of the terms that look at logits of teachers.

    Attributes:
        teachers: Weight of each teacher by name; all alike, summing to one, by default.
    """

    teachers: dict[str, float] | None = Field(default=None, min_length=1)

    @property
    def needs(self) -> Needs:
        """What this term has to be given: its head, and the logits of its teachers."""
        asked = None if self.teachers is None else tuple(sorted(self.teachers))
        return super().needs | Needs(teachers=asked)


def _both(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted({*a, *b}))
