"""Files of outputs as other programs write them, written from the formats alone."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.share.caches import numbers_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


def logits_of(keys: Sequence[str], classes: int, epoch: int = 0) -> NDArray[np.float32]:
    """Return logits that depend on name and epoch alone, (N, C)."""
    return np.array([numbers_of(f"{key}|{epoch}", classes) for key in keys], np.float32)


def probabilities_of(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return the softmax of logits."""
    exact = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = exact / exact.sum(axis=1, keepdims=True)
    return found


def write_epoch(
    folder: Path, names: Sequence[str], probs: NDArray[np.float64], top_k: int, ranks: int = 2
) -> None:
    """Write an epoch as TinyViT does: seed, K indices, K probabilities, by descending ones."""
    folder.mkdir(parents=True)
    for rank in range(ranks):
        mine = range(rank, len(names), ranks)
        (folder / f"rank{rank}-keys.txt").write_text("".join(f"{names[n]}\n" for n in mine))
        records = b""
        for number in mine:
            ids = np.argsort(-probs[number], kind="stable")[:top_k]
            halves = probs[number][ids].astype(np.float16)
            records += struct.pack(f"<i{top_k}h{top_k}e", 7, *ids.tolist(), *halves.tolist())
        (folder / f"rank{rank}-values.bin").write_bytes(records)
