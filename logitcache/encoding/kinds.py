"""Kinds of encodings of logits, and parsing of their attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ENCODINGS", "Encoding", "parse_encoding"]


Encoding = SparseEncoding | DenseEncoding


def _dense(values: Mapping[str, Any], num_classes: int) -> Encoding | None:
    stored = values.get("values")
    return DenseEncoding(num_classes, stored) if stored in ("float16", "uint8") else None


def _sparse(values: Mapping[str, Any], num_classes: int) -> Encoding | None:
    stored, bits, mass = values.get("values"), values.get("bits", 8), values.get("mass")
    top_k: Any = values.get("top_k")
    shared = mass is None or (type(mass) is float and 0 < mass < 1)
    counts = (
        type(top_k) is int and type(bits) is int and 1 <= top_k < num_classes and 4 <= bits <= 8
    )
    if stored not in ("codes", "float16") or not counts or not shared:
        return None
    return SparseEncoding(num_classes, top_k, stored, bits, mass)


ENCODINGS: dict[str, Callable[[Mapping[str, Any], int], Encoding | None]] = {
    "sparse": _sparse,
    "dense": _dense,
}
"""Readers of the attributes of an encoding by its ``kind``; None for attributes that do not fit."""


def parse_encoding(values: Mapping[str, Any], num_classes: int, where: str) -> Encoding:
    """Parse the encoding in the attributes of a group.

    Raises:
        CacheError: The kind is unknown to this version, or its parameters do not fit.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in ENCODINGS:
        expected = " or ".join(sorted(ENCODINGS, reverse=True))
        raise CacheError(
            "the encoding of a group is unknown to this version of logitcache",
            where=where,
            expected=expected,
            got=kind,
            hint="install a newer version: pip install --upgrade logitcache",
        )
    encoding = ENCODINGS[kind](values, num_classes)
    if encoding is None:
        what = "the encoding of a group is invalid"
        raise CacheError(what, where=where, got=str(dict(values))[:200])
    return encoding
