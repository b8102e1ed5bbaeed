"""Which encoding: what the user asks for, what is sensible, and reading it back from a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from logitcache.config import Config
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Encoding", "EncodingConfig", "choose", "parse_encoding"]

Encoding = SparseEncoding | DenseEncoding

_DENSE_UP_TO = 256
_DEFAULT_K = 50


class EncodingConfig(Config):
    """How logits are stored.

    Attributes:
        kind: ``sparse``, ``dense``, or ``auto``: dense for up to 256 classes unless ``top_k`` is
            given, sparse for more.
        top_k: Stored classes of the sparse encoding; 50 by default.
        bits: Bits of a sparse code, 4 to 8.
        sparse_values: ``codes`` of one byte, or ``float16``.
        dense_values: ``float16``, or ``uint8``.
        lse: Whether to keep the logsumexp of the raw logits, from which they can be recovered.
        label_log_probs: Whether to keep the log-probability of each row's own label.
    """

    kind: Literal["auto", "sparse", "dense"] = "auto"
    top_k: int | None = Field(default=None, ge=1)
    bits: int = Field(default=8, ge=4, le=8)
    sparse_values: Literal["codes", "float16"] = "codes"
    dense_values: Literal["float16", "uint8"] = "float16"
    lse: bool = True
    label_log_probs: bool = True


def choose(config: EncodingConfig, num_classes: int) -> Encoding:
    """Return the encoding for a teacher of ``num_classes`` classes.

    Dense where the sparse one would not be smaller: K >= C, or few classes and no K asked for.
    """
    top_k = config.top_k or _DEFAULT_K
    few = config.kind == "auto" and config.top_k is None and num_classes <= _DENSE_UP_TO
    if config.kind == "dense" or few or top_k >= num_classes:
        return DenseEncoding(num_classes, config.dense_values)
    return SparseEncoding(num_classes, top_k, config.sparse_values, config.bits)


def parse_encoding(values: Mapping[str, Any], num_classes: int, where: str) -> Encoding:
    """Read an encoding out of a group's attributes.

    Raises:
        CacheError: It is none that this version knows.
    """
    kind = values.get("kind")
    if kind not in {"dense", "sparse"}:
        raise CacheError(
            "unknown encoding", where=where, expected="sparse or dense", got=kind, hint="update"
        )
    stored, bits = values.get("values"), values.get("bits", 8)
    top_k: Any = values.get("top_k")
    if kind == "dense" and stored in {"float16", "uint8"}:
        return DenseEncoding(num_classes, stored)
    counts = type(top_k) is int and type(bits) is int and top_k < num_classes and 4 <= bits <= 8
    if kind == "sparse" and stored in {"codes", "float16"} and counts and top_k >= 1:
        return SparseEncoding(num_classes, top_k, stored, bits)
    raise CacheError("an encoding that cannot be", where=where, got=str(dict(values))[:200])
