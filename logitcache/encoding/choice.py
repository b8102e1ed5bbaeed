"""Configuration of the encoding of logits, and its defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, field_validator, model_validator

from logitcache.config import Config
from logitcache.encoding.budget import Limit, parse_budget, parse_max_kl
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding

if TYPE_CHECKING:
    from logitcache.encoding.kinds import Encoding


__all__ = ["EncodingConfig", "choose"]


_DENSE_UP_TO = 256
_DEFAULT_K = 50
_DEFAULT_BITS = 5
"""A fifth fewer bytes than 8 for hardly more loss: docs/measurements/encodings.md."""


class EncodingConfig(Config):
    """How logits are stored.

    Attributes:
        kind: ``sparse``, ``dense``, or ``auto``: dense for up to 256 classes unless ``top_k`` is
            given, sparse for more.
        top_k: Stored classes of the sparse encoding; 50 by default.
        budget: Largest number of bytes of a row and view, as ``80B``: the encoding with the
            smallest KL divergence within it is chosen on a sample of a new teacher's outputs.
        max_kl: Largest KL divergence in nats, as ``0.05@T=1`` or, at each of several temperatures,
            ``0.05@T=1,2,4``: the smallest encoding within it is chosen.
        bits: Bits of a sparse code, 4 to 8; by default 5 for a new teacher, and those of the cache
            for a teacher that it contains.
        mass: Share of the probability that is sufficient, so that fewer than K classes are stored
            of confident outputs; at T > 1 this loses more than fewer classes in every row.
        sparse_values: ``codes`` of one byte, or ``float16``.
        dense_values: ``float16``, or ``uint8``.
        lse: Whether to keep the logsumexp of the raw logits, from which they can be recovered.
        label_log_probs: Whether to keep the log-probability of each row's own label.
    """

    kind: Literal["auto", "sparse", "dense"] = "auto"
    top_k: int | None = Field(default=None, ge=1)
    budget: str | None = None
    max_kl: str | None = None
    bits: int | None = Field(default=None, ge=4, le=8)
    mass: float | None = Field(default=None, gt=0, lt=1)
    sparse_values: Literal["codes", "float16"] = "codes"
    dense_values: Literal["float16", "uint8"] = "float16"
    lse: bool = True
    label_log_probs: bool = True

    @field_validator("budget", mode="before")
    @classmethod
    def _bytes(cls, value: object) -> object:
        if value is None:
            return None
        parse_budget(str(value))
        return str(value)

    @field_validator("max_kl", mode="before")
    @classmethod
    def _nats(cls, value: object) -> object:
        if value is None:
            return None
        parse_max_kl(str(value))
        return str(value)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        configured = self.top_k is not None or self.kind != "auto" or self.mass is not None
        if self.limit is not None and configured:
            raise ValueError(
                "budget and max_kl determine kind, top_k and mass: set one or the other, not both"
            )
        return self

    @property
    def limit(self) -> Limit | None:
        """Limits of an automatic choice; None where the encoding is configured."""
        if self.budget is None and self.max_kl is None:
            return None
        row_bytes = None if self.budget is None else parse_budget(self.budget)
        return (
            Limit(row_bytes)
            if self.max_kl is None
            else Limit(row_bytes, *parse_max_kl(self.max_kl))
        )


def choose(config: EncodingConfig, num_classes: int, stored: Encoding | None = None) -> Encoding:
    """Return the encoding for a teacher of ``num_classes`` classes.

    It is dense where a sparse one would not be smaller: K >= C, or few classes and K not set.

    Args:
        config: The settings.
        num_classes: C.
        stored: Encoding of the teacher in a cache, whose bits are the default.
    """
    top_k = config.top_k or _DEFAULT_K
    few = config.kind == "auto" and config.top_k is None and num_classes <= _DENSE_UP_TO
    if config.kind == "dense" or few or top_k >= num_classes:
        return DenseEncoding(num_classes, config.dense_values)
    known: int = getattr(stored, "bits", _DEFAULT_BITS)
    bits = config.bits or known
    return SparseEncoding(num_classes, top_k, config.sparse_values, bits, config.mass)
