"""Encodings of logits: the kinds there are, and reading one out of the attributes of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Encoding", "parse_encoding"]


Encoding = SparseEncoding | DenseEncoding


def parse_encoding(values: Mapping[str, Any], num_classes: int, where: str) -> Encoding:
    """Read an encoding out of a group's attributes.

    Raises:
        CacheError: It is none that this version knows.
    """
    kind = values.get("kind")
    if kind not in ("dense", "sparse"):  # not a set: what was read may not be hashable
        raise CacheError(
            "unknown encoding", where=where, expected="sparse or dense", got=kind, hint="update"
        )
    stored, bits = values.get("values"), values.get("bits", 8)
    top_k: Any = values.get("top_k")
    if kind == "dense" and stored in ("float16", "uint8"):
        return DenseEncoding(num_classes, stored)
    mass = values.get("mass")
    shared = mass is None or (type(mass) is float and 0 < mass < 1)
    counts = type(top_k) is int and type(bits) is int and top_k < num_classes and 4 <= bits <= 8
    if kind == "sparse" and stored in ("codes", "float16") and counts and shared and top_k >= 1:
        return SparseEncoding(num_classes, top_k, stored, bits, mass)
    raise CacheError("an encoding that cannot be", where=where, got=str(dict(values))[:200])
