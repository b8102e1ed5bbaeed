"""Configuration of the encoding of logits, and its defaults.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from logitcache.config import Config
from logitcache.encoding.basis import MAX_BASIS_CLASSES, Basis, principal_directions
from logitcache.encoding.budget import Choice, Limit, choose_within, parse_budget, parse_max_kl
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.fidelity import measure_fidelity
from logitcache.encoding.sigmoid import SigmoidEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.transform import MAX_REFINED, TransformEncoding
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.budget import BytesOf
    from logitcache.encoding.kinds import Encoding


__all__ = [
    "EncodingConfig",
    "choose",
    "choose_on_sample",
    "fits_basis",
    "held_out",
    "is_as_configured",
    "sample_rows",
]


_DENSE_UP_TO = 256
_DEFAULT_K = 50
_FIT_ROWS, _MEASURED = 4096, 256
_DEFAULT_BITS = 5
"""A fifth fewer bytes than 8 for hardly more loss: docs/measurements/encodings.md."""


class EncodingConfig(Config):
    """How logits are stored.

    Attributes:
        kind: ``sparse``; ``dense``; ``transform`` for all classes in about as many bytes as a
            sparse encoding, along principal directions that are fitted on a sample; or ``auto``:
            dense for up to 256 classes unless ``top_k`` is given, sparse for more.
        top_k: Stored classes of the sparse encoding; 50 by default.
        budget: Largest number of bytes of a row and view, as ``80B``: the encoding with the
            smallest KL divergence within it is chosen on a sample of a new teacher's outputs.
        max_kl: Largest KL divergence in nats, as ``0.05@T=1`` or, at each of several temperatures,
            ``0.05@T=1,2,4``: the smallest encoding within it is chosen.
        bits: Bits of a sparse code, 4 to 8; by default 5 for a new teacher, and those of the cache
            for a teacher that it contains.
        mass: Share of the probability that is sufficient, so that fewer than K classes are stored
            of confident outputs; at T > 1 this loses more than fewer classes in every row.
        step: Distance of two coefficients of the transform encoding in nats; larger ones take fewer
            bytes.
        refined: Number of classes whose log-probabilities the transform encoding corrects, those
            that it takes for the most probable ones.
        sparse_values: ``codes`` of one byte, or ``float16``.
        dense_values: ``float16``, or ``uint8``.
        lse: Whether to keep the logsumexp of the raw logits, from which they can be recovered.
        label_log_probs: Whether to keep the log-probability of each row's own label.
    """

    kind: Literal["auto", "sparse", "dense", "transform"] = "auto"
    top_k: int | None = Field(default=None, ge=1)
    budget: str | None = None
    max_kl: str | None = None
    bits: int | None = Field(default=None, ge=4, le=8)
    mass: float | None = Field(default=None, gt=0, lt=1)
    step: float = Field(default=4.0, gt=0, le=64)
    refined: int = Field(default=48, ge=1, le=MAX_REFINED)
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
        if self.kind == "transform" and (self.top_k is not None or self.mass is not None):
            raise ValueError("the transform encoding stores all classes: do not set top_k and mass")
        return self

    @property
    def stores_all_classes(self) -> bool:
        """Whether no setting asks for fewer classes or for a fitted encoding."""
        sparse = self.kind == "sparse" or self.top_k is not None or self.mass is not None
        return not sparse and not self.is_fitted

    @property
    def is_fitted(self) -> bool:
        """Whether the encoding depends on a sample of a teacher's outputs."""
        return self.kind == "transform" or self.limit is not None

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


def choose_on_sample(
    config: EncodingConfig, log_probs_NC: NDArray[np.float64], bytes_of: BytesOf, where: str
) -> Choice:
    """Return the encoding for a new teacher, where it depends on a sample of its outputs.

    Bases are fitted on three quarters of the sample, and bytes and losses are those of the rest.

    Args:
        config: The settings; :attr:`.EncodingConfig.is_fitted` is true.
        log_probs_NC: Log-probabilities of the sample, one image and view per row.
        bytes_of: Function that returns the compressed size of encoded arrays.
        where: Teacher, for error messages.

    Raises:
        UsageError: No encoding is within the limits, or there are too many classes for a basis.
    """
    num_classes = log_probs_NC.shape[1]
    if config.limit is not None and not fits_basis(config, num_classes):
        return choose_within(config.limit, log_probs_NC, bytes_of, where)
    if num_classes > MAX_BASIS_CLASSES:
        raise UsageError(
            "the transform encoding supports fewer classes than the teacher has",
            where=where,
            expected=f"at most {MAX_BASIS_CLASSES} classes",
            got=f"{num_classes} classes",
            hint="choose another encoding: --set encoding.kind=sparse",
        )
    held_out_N = held_out(len(log_probs_NC))
    rest_NC = log_probs_NC[held_out_N]
    # a single row is both: better a poor basis than none
    fitted_N = held_out_N if held_out_N.all() else ~held_out_N
    principal = principal_directions(log_probs_NC[fitted_N])
    if config.limit is not None:
        return choose_within(config.limit, rest_NC[:_MEASURED], bytes_of, where, principal)
    encoding = TransformEncoding.of(Basis.of(principal, config.step), config.refined)
    row_bytes = bytes_of(encoding.specs(), encoding.encode(rest_NC)) / len(rest_NC)
    return Choice(encoding, row_bytes, measure_fidelity(encoding, rest_NC))


def held_out(rows: int) -> NDArray[np.bool_]:
    """Return which rows of a sample no basis is fitted on: every fourth, at least one, (N,)."""
    chosen_N: NDArray[np.bool_] = np.arange(rows) % 4 == 0
    return chosen_N


def sample_rows(config: EncodingConfig, num_classes: int) -> int:
    """Return how many rows of a teacher's outputs :func:`choose_on_sample` makes use of."""
    return _FIT_ROWS if fits_basis(config, num_classes) else _MEASURED


def fits_basis(config: EncodingConfig, num_classes: int) -> bool:
    """Return whether a basis is fitted: not for few classes, which take few bytes anyway."""
    many = _DENSE_UP_TO < num_classes <= MAX_BASIS_CLASSES
    return config.kind == "transform" or (config.limit is not None and many)


def is_as_configured(config: EncodingConfig, stored: Encoding) -> bool:
    """Return whether an encoding that was fitted before is what is configured."""
    if config.limit is not None:
        return True
    settings = stored.settings()
    refined = min(config.refined, stored.num_classes)
    wanted = {"kind": config.kind, "step": config.step, "refined": refined}
    return all(settings.get(name) == value for name, value in wanted.items())


def choose(
    config: EncodingConfig,
    num_classes: int,
    stored: Encoding | None = None,
    *,
    head: str = "softmax",
) -> Encoding:
    """Return the encoding for a teacher of ``num_classes`` classes that needs no sample.

    It is dense where a sparse one would not be smaller: K >= C, or few classes and K not set.

    Args:
        config: The settings.
        num_classes: C.
        stored: Encoding of the teacher in a cache, whose bits are the default, and whose codes stay
            relative or absolute.
        head: Head of the teacher; outputs of ``sigmoid`` are always dense.
    """
    if head == SigmoidEncoding.head:
        return SigmoidEncoding(num_classes, config.dense_values)
    top_k = config.top_k or _DEFAULT_K
    few = config.kind == "auto" and config.top_k is None and num_classes <= _DENSE_UP_TO
    if config.kind == "dense" or few or top_k >= num_classes:
        return DenseEncoding(num_classes, config.dense_values)
    known: int = getattr(stored, "bits", _DEFAULT_BITS)
    bits = config.bits or known
    new = SparseEncoding.new(num_classes, top_k, config.sparse_values, bits, config.mass)
    return replace(new, relative=getattr(stored, "relative", new.relative))
