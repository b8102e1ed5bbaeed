"""Stored outputs with fewer classes and fewer bits, without the exact outputs.

Classes and codes are those that encoding the exact outputs gives, where stored numbers tell them:
the order of classes whose codes are equal is lost, and so are the digits that a code of more bits
would round otherwise. The tail is as exact as the classes that it takes in.

Shapes: N rows, C classes, K stored classes, k fewer ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.encoding.arrays import filled
from logitcache.encoding.codes import code_log_probs, codes_of
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.tail import NO_TAIL
from logitcache.encoding.topk import delta_decode, delta_encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.kinds import Encoding

__all__ = ["REENCODERS", "reencode", "smaller"]

_BITS = 5  # the default of new caches


def smaller(stored: Encoding, top_k: int | None, bits: int | None) -> Encoding:
    """Return the encoding with at most so many classes and bits; the same one if it has no more.

    Args:
        stored: Encoding of the outputs.
        top_k: Largest number of classes; None to keep all.
        bits: Largest number of bits of a code, 4 to 8; None to keep all.
    """
    reduced = _SMALLER.get(type(stored))
    return stored if reduced is None else reduced(stored, top_k, bits)


def _smaller_sparse(stored: SparseEncoding, top_k: int | None, bits: int | None) -> SparseEncoding:
    kept = stored if top_k is None else replace(stored, top_k=min(top_k, stored.top_k))
    if bits is None or (stored.values == "codes" and bits >= stored.bits):
        return kept
    return SparseEncoding.new(kept.num_classes, kept.top_k, "codes", bits, kept.mass)


def _smaller_dense(stored: DenseEncoding, top_k: int | None, bits: int | None) -> Encoding:
    if top_k is None or top_k >= stored.num_classes:
        return stored
    return SparseEncoding.new(stored.num_classes, top_k, "codes", bits or _BITS)


_SMALLER: dict[type, Callable[[Any, int | None, int | None], Encoding]] = {
    SparseEncoding: _smaller_sparse,
    DenseEncoding: _smaller_dense,
}
"""By class of encoding, functions that return a smaller one; others stay as they are."""


def reencode(stored: Encoding, wanted: Encoding, arrays: Mapping[str, NDArray[Any]]) -> Encoded:
    """Return rows in an encoding that :func:`smaller` has returned.

    Args:
        stored: Encoding of the rows.
        wanted: The smaller one.
        arrays: The rows; arrays that do not belong to the encoding are kept as they are.

    Returns:
        Arrays by name. Rows that were not computed have the fill values.
    """
    own = {name: arrays[name] for name in stored.specs()}
    kept: Encoded = {name: array for name, array in arrays.items() if name not in own}
    found = filled(wanted.specs(), len(next(iter(own.values()))))
    rows = np.flatnonzero(stored.decode(own).computed)
    some = {name: array[rows] for name, array in own.items()}
    for name, array in REENCODERS[type(stored)](stored, wanted, some).items():
        found[name][rows] = array
    return {**found, **kept}


def _fewer_classes(
    stored: SparseEncoding, wanted: SparseEncoding, arrays: Mapping[str, NDArray[Any]]
) -> Encoded:
    """Return the most probable of the stored classes; the others become part of the tail."""
    decoded = stored.decode(arrays)
    # stable, so of classes with equal codes those with the lowest ids are kept
    order_NK = np.argsort(-decoded.log_probs, axis=1, kind="stable")
    kept_NK = np.zeros(order_NK.shape, np.bool_)
    np.put_along_axis(kept_NK, order_NK[:, : wanted.top_k], values=True, axis=1)
    used_NK = decoded.log_probs > -np.inf
    # the columns that are kept, in their order: ids ascend, and unused entries stay last
    columns_Nk = np.nonzero(kept_NK)[1].reshape(-1, wanted.top_k)
    used_Nk = np.take_along_axis(used_NK, columns_Nk, axis=1)
    ids_Nk = np.take_along_axis(delta_decode(arrays["class_ids"]), columns_Nk, axis=1)
    deltas_Nk = delta_encode(ids_Nk, wanted.specs()["class_ids"].dtype)
    found: Encoded = {
        "class_ids": np.where(used_Nk, deltas_Nk, deltas_Nk.dtype.type(0)),
        "tail": _larger_tail(decoded.tail, decoded.log_probs, used_NK & ~kept_NK),
    }
    name = "codes" if stored.values == "codes" else "logp_k"
    numbers_Nk = np.take_along_axis(arrays[name], columns_Nk, axis=1)
    if (stored.values, stored.bits) == (wanted.values, wanted.bits):
        return {**found, name: numbers_Nk}
    logs_Nk = code_log_probs(stored.levels)[numbers_Nk] if name == "codes" else numbers_Nk
    logs_Nk = np.where(used_Nk, logs_Nk, -np.inf).astype(np.float64)
    codes_Nk = codes_of(wanted.coded_log_probs(logs_Nk), wanted.levels)
    return {**found, "codes": np.where(used_Nk, codes_Nk, np.uint8(0))}


def _larger_tail(
    tail_N2: NDArray[np.float32],
    log_probs_NK: NDArray[np.float32],
    moved_NK: NDArray[np.bool_],
) -> NDArray[np.float16]:
    """Return the tail with further classes in it, float16 (N, 2)."""
    logs_NK = np.where(moved_NK, log_probs_NK.astype(np.float64), -np.inf)
    moved_N2 = np.stack([np.exp(logs_NK).sum(axis=1), np.exp(logs_NK / 4).sum(axis=1)], axis=1)
    with np.errstate(divide="ignore"):
        larger_N2 = np.logaddexp(tail_N2.astype(np.float64), np.log(moved_N2))
    larger_N2 = np.where(moved_NK.any(axis=1, keepdims=True), larger_N2, tail_N2)
    larger_N2[:, 0] = np.minimum(larger_N2[:, 0], 0.0)
    stored: NDArray[np.float16] = np.maximum(larger_N2, NO_TAIL).astype(np.float16)
    return stored


def _of_all_classes(
    stored: DenseEncoding, wanted: SparseEncoding, arrays: Mapping[str, NDArray[Any]]
) -> Encoded:
    return wanted.encode(stored.decode(arrays).dense_log_probs())


REENCODERS: dict[type, Callable[[Any, Any, Mapping[str, NDArray[Any]]], Encoded]] = {
    SparseEncoding: _fewer_classes,
    DenseEncoding: _of_all_classes,
}
"""By class of the stored encoding, functions that encode its rows in a smaller one."""
