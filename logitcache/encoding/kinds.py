"""Kinds of encodings of logits, and parsing of their attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.encoding.basis import parse_basis
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sigmoid import SigmoidEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.transform import MAX_REFINED_BYTES, TransformEncoding
from logitcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ENCODINGS", "Encoding", "parse_encoding"]


_LARGEST_STEP = 1024.0

Encoding = SparseEncoding | DenseEncoding | TransformEncoding | SigmoidEncoding


def _dense(values: Mapping[str, Any], num_classes: int) -> Encoding | None:
    stored = values.get("values")
    return DenseEncoding(num_classes, stored) if stored in ("float16", "uint8") else None


def _logits(values: Mapping[str, Any], num_classes: int) -> Encoding | None:
    stored = values.get("values")
    return SigmoidEncoding(num_classes, stored) if stored in ("float16", "uint8") else None


def _sparse(values: Mapping[str, Any], num_classes: int) -> Encoding | None:
    stored, bits, mass = values.get("values"), values.get("bits", 8), values.get("mass")
    top_k: Any = values.get("top_k")
    shared = mass is None or (type(mass) is float and 0 < mass < 1)
    counts = (
        type(top_k) is int and type(bits) is int and 1 <= top_k < num_classes and 4 <= bits <= 8
    )
    relative = values.get("relative", False)
    scaled = type(relative) is bool and (stored == "codes" or not relative)
    if stored not in ("codes", "float16") or not (counts and shared and scaled):
        return None
    return SparseEncoding(num_classes, top_k, stored, bits, mass, relative)


def _transform(values: Mapping[str, Any], num_classes: int) -> Encoding | None:
    refined, fine, step = (values.get(name) for name in ("refined", "fine", "refined_step"))
    if type(refined) is not int or type(fine) is not int or type(step) is not float:
        return None
    basis = parse_basis(values, num_classes)
    if basis is None or not (1 <= refined <= num_classes and 0 <= fine <= refined):
        return None
    # corrections of more than the range of log-probabilities would overflow float32
    encoding = TransformEncoding(num_classes, basis, refined, fine, step)
    usable = 0 < step <= _LARGEST_STEP and encoding.refined_bytes <= MAX_REFINED_BYTES
    return encoding if usable else None


ENCODINGS: dict[str, Callable[[Mapping[str, Any], int], Encoding | None]] = {
    "sparse": _sparse,
    "dense": _dense,
    "logits": _logits,
    "transform": _transform,
}
"""Readers of the attributes of an encoding by its ``kind``; None for attributes that do not fit."""


def parse_encoding(values: Mapping[str, Any], num_classes: int, where: str) -> Encoding:
    """Parse the encoding in the attributes of a group.

    Raises:
        CacheError: The kind is unknown to this version, or its parameters do not fit.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in ENCODINGS:
        expected = " or ".join(ENCODINGS)
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
