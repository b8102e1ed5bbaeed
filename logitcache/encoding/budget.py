"""Choice of K and bits under a limit on bytes or on the KL divergence.

At equal bytes more classes in coarser codes win, so every pair of both is tried on a sample.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.fidelity import Fidelity, measure_fidelity
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import ArraySpec, Encoded
    from logitcache.encoding.kinds import Encoding

    BytesOf = Callable[[dict[str, ArraySpec], Encoded], float]

__all__ = ["Choice", "Limit", "candidates", "choose_within", "parse_budget", "parse_max_kl"]

_TOP_KS = (2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 400)
_BITS = (4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Limit:
    """What may be spent or lost.

    Attributes:
        row_bytes: Most bytes of a row and view, or None.
        kl: Largest KL in nats, or None.
        temperature: At which the KL counts.
    """

    row_bytes: float | None = None
    kl: float | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class Choice:
    """An encoding with its price.

    Attributes:
        encoding: Which one.
        row_bytes: Bytes of a row and view, compressed.
        fidelity: What it loses.
    """

    encoding: Encoding
    row_bytes: float
    fidelity: Fidelity


def parse_budget(text: str) -> float:
    """Read ``80B``: bytes of a row and view.

    Raises:
        ValueError: It is written otherwise.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?B?", text.strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is no number of bytes; write 80B")
    return float(found[1])


def parse_max_kl(text: str) -> tuple[float, float]:
    """Read ``0.05@T=1``: the largest KL in nats, and the temperature; T = 1 if it is left out.

    Raises:
        ValueError: It is written otherwise.
    """
    number = r"(\d*\.?\d+(?:e-?\d+)?)"
    found = re.fullmatch(rf"{number}(?:@T={number})?", text.strip())
    if not found or float(found[1]) <= 0 or (found[2] and float(found[2]) <= 0):
        raise ValueError(f"{text!r} is no limit; write 0.05@T=1")
    return float(found[1]), float(found[2] or 1.0)


def candidates(num_classes: int) -> list[Encoding]:
    """Return every encoding that is tried for C classes."""
    sparse = [
        SparseEncoding(num_classes, top_k, bits=bits)
        for top_k in _TOP_KS
        if top_k < num_classes
        for bits in _BITS
    ]
    return [*sparse, DenseEncoding(num_classes, "uint8"), DenseEncoding(num_classes)]


def choose_within(
    limit: Limit, log_probs_NC: NDArray[np.float64], bytes_of: BytesOf, where: str
) -> Choice:
    """Return the encoding that keeps a limit best on a sample.

    Within a number of bytes it is the one with the least KL; below a KL the one with the fewest
    bytes; of both limits, the bytes are kept and the KL decides whether that is enough.

    Args:
        limit: What may be spent or lost.
        log_probs_NC: Exact log-probabilities of the sample.
        bytes_of: The size of encoded arrays after compression.
        where: Whose targets, for the message.

    Raises:
        UsageError: Nothing keeps the limit; the nearest miss is named.
    """
    at = (limit.temperature,)
    choices = []
    for encoding in candidates(log_probs_NC.shape[1]):
        row_bytes = bytes_of(encoding.specs(), encoding.encode(log_probs_NC)) / len(log_probs_NC)
        if limit.row_bytes is None or row_bytes <= limit.row_bytes:
            fidelity = measure_fidelity(encoding, log_probs_NC, at)
            choices.append(Choice(encoding, row_bytes, fidelity))
    return _best(choices, limit, where)


def _best(choices: Sequence[Choice], limit: Limit, where: str) -> Choice:
    if not choices:
        raise UsageError(
            "no targets are so small",
            where=where,
            got=f"a budget of {limit.row_bytes:g} bytes a row",
            hint="raise the budget; two classes and a tail take about ten bytes",
        )
    closest = min(choices, key=lambda choice: choice.fidelity.kl(limit.temperature))
    if limit.kl is None:
        return closest
    enough = [c for c in choices if c.fidelity.kl(limit.temperature) <= limit.kl]
    if not enough:
        raise UsageError(
            "no encoding meets the KL limit",
            where=where,
            expected=f"a KL of {limit.kl:g} nats at T = {limit.temperature:g}",
            got=f"{closest.fidelity.kl(limit.temperature):.3g} with {closest.row_bytes:.0f} bytes",
            hint="allow more bytes or a larger KL",
        )
    return min(enough, key=lambda choice: choice.row_bytes)
