"""Choice of an encoding under a limit on bytes or on the KL divergence.

At equal size, more classes with coarser codes may lose less, so all pairs are tried on a sample.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.encoding.basis import Basis
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.fidelity import Fidelity, measure_fidelity
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.transform import TransformEncoding
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import ArraySpec, Encoded
    from logitcache.encoding.basis import PrincipalDirections
    from logitcache.encoding.kinds import Encoding

    BytesOf = Callable[[dict[str, ArraySpec], Encoded], float]

__all__ = [
    "BytesOf",
    "Choice",
    "Limit",
    "candidates",
    "choose_within",
    "parse_budget",
    "parse_max_kl",
]

_TOP_KS = (2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100, 150, 200, 300, 400)
_BITS = (4, 5, 6, 7, 8)
_STEPS, _REFINED = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0), (16, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class Limit:
    """Limits on the size and the loss of an encoding.

    Attributes:
        row_bytes: Largest number of bytes of a row and view, or None.
        kl: Largest KL divergence in nats, or None.
        temperatures: Temperatures at which the KL divergence is limited, each by itself.
    """

    row_bytes: float | None = None
    kl: float | None = None
    temperatures: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Choice:
    """An encoding with its size and loss.

    Attributes:
        encoding: The encoding.
        row_bytes: Compressed bytes of a row and view.
        fidelity: Its loss on the sample.
    """

    encoding: Encoding
    row_bytes: float
    fidelity: Fidelity

    @property
    def kl(self) -> float:
        """Largest KL divergence in nats, over the temperatures."""
        return max(map(self.fidelity.kl, self.fidelity.losses))


def parse_budget(text: str) -> float:
    """Parse a number of bytes of a row and view, such as ``80B``.

    Raises:
        ValueError: It has another form.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?B?", text.strip())
    if not found or float(found[1]) <= 0:
        raise ValueError(f"{text!r} is not a number of bytes such as 80B")
    return float(found[1])


def parse_max_kl(text: str) -> tuple[float, tuple[float, ...]]:
    """Parse a KL divergence in nats and temperatures, by default 1, such as ``0.05@T=1,2,4``.

    Raises:
        ValueError: It has another form.
    """
    number = r"\d*\.?\d+(?:e-?\d+)?"
    found = re.fullmatch(rf"({number})(?:@T=({number}(?:,{number})*))?", text.strip())
    values = [float(value) for value in [found[1], *(found[2] or "1").split(",")]] if found else []
    if not values or min(values) <= 0:
        raise ValueError(f"{text!r} is not a limit such as 0.05@T=1 or 0.05@T=1,2,4")
    return values[0], tuple(dict.fromkeys(values[1:]))


def candidates(num_classes: int, principal: PrincipalDirections | None = None) -> list[Encoding]:
    """Return the encodings that are tried for C classes.

    Args:
        num_classes: C.
        principal: Principal directions of a sample; None to try no transform encoding.
    """
    sparse = [
        SparseEncoding.new(num_classes, top_k, bits=bits)
        for top_k in _TOP_KS
        if top_k < num_classes
        for bits in _BITS
    ]
    bases = [] if principal is None else [Basis.of(principal, step) for step in _STEPS]
    transforms = [
        TransformEncoding.of(basis, refined)
        for basis in bases
        for refined in _REFINED
        if refined < num_classes
    ]
    dense = [DenseEncoding(num_classes, "uint8"), DenseEncoding(num_classes)]
    return [*sparse, *transforms, *dense]


def choose_within(
    limit: Limit,
    log_probs_NC: NDArray[np.float64],
    bytes_of: BytesOf,
    where: str,
    principal: PrincipalDirections | None = None,
) -> Choice:
    """Return the best encoding within the limits on a sample.

    Within a number of bytes it is the one with the smallest KL divergence; within a KL divergence,
    or within both, the one with the fewest bytes. Of several temperatures the one with the largest
    KL divergence counts.

    Args:
        limit: The limits.
        log_probs_NC: Exact log-probabilities of the sample.
        bytes_of: Function that returns the compressed size of encoded arrays.
        where: Teacher, for error messages.
        principal: Principal directions of another sample, to try the transform encoding.

    Raises:
        UsageError: No encoding is within the limits; the message names the closest one.
    """
    choices = []
    for encoding in candidates(log_probs_NC.shape[1], principal):
        row_bytes = bytes_of(encoding.specs(), encoding.encode(log_probs_NC)) / len(log_probs_NC)
        if limit.row_bytes is None or row_bytes <= limit.row_bytes:
            fidelity = measure_fidelity(encoding, log_probs_NC, limit.temperatures)
            choices.append(Choice(encoding, row_bytes, fidelity))
    return _best(choices, limit, where)


def _best(choices: Sequence[Choice], limit: Limit, where: str) -> Choice:
    if not choices:
        raise UsageError(
            "no encoding of the logits fits into the byte budget",
            where=where,
            expected=f"at most {limit.row_bytes:g} bytes per row",
            hint="raise the budget; two classes and a tail take about ten bytes",
        )
    closest = min(choices, key=lambda choice: choice.kl)
    if limit.kl is None:
        return closest
    enough = [choice for choice in choices if choice.kl <= limit.kl]
    if not enough:
        temperatures = ", ".join(f"{temperature:g}" for temperature in limit.temperatures)
        raise UsageError(
            "no encoding meets the limit of the KL divergence",
            where=where,
            expected=f"at most {limit.kl:g} nats at T = {temperatures}",
            got=f"{closest.kl:.3g} nats with {closest.row_bytes:.0f} bytes per row",
            hint="raise the byte budget or the limit of the KL divergence",
        )
    return min(enough, key=lambda choice: choice.row_bytes)
