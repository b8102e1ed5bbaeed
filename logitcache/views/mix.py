"""Mixup and CutMix: partners, shares and pixels.

Partners are matched inside of a unit, so rendering a pair needs no other unit. The parameters of a
row are drawn by its own key, so a pair mixes the same two images in two ways.

Shapes: N rows, C channels, S side of the square.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from logitcache.draws import Purpose, words
from logitcache.views.arithmetic import exp2, log2
from logitcache.views.parameters import Mix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.views.operations import Mixing

__all__ = ["MIX_WORDS", "draw_mix", "match_partners", "mix_squares"]

_ATTEMPTS = 32
_BEFORE = 6  # words: whether to mix, mixup or cutmix, and four for the box
MIX_WORDS = _BEFORE + 2 * _ATTEMPTS
_WEIGHT = 65536  # denominator of the integer weights of a blend


def match_partners(seed: int, draw: int, hashes_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Pair the rows of a unit.

    Args:
        seed: Seed of the view.
        draw: Draw of the view; derived views share it, and so the partners.
        hashes_N: Key hashes of the readable rows, in order of rows.

    Returns:
        Position of the partner of each row, int64 (N,): rows are sorted by one word each and paired
        in this order; a single row at the end is its own partner.
    """
    drawn = words(seed, hashes_N, draw=draw, purpose=Purpose.PARTNER, count=1)[:, 0]
    order = np.argsort(drawn, kind="stable")
    partners = np.arange(len(order), dtype=np.int64)
    pairs = order[: len(order) // 2 * 2].reshape(-1, 2)
    partners[pairs[:, 0]], partners[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    return partners


def draw_mix(operation: Mixing, floats: Sequence[float]) -> Mix | None:
    """Return the parameters of the mix of one row; None where it is not mixed."""
    if floats[0] >= operation.p:
        return None
    boxed = operation.cutmix_alpha > 0 or operation.cutmix_minmax is not None
    if boxed and (operation.mixup_alpha == 0 or floats[1] < operation.switch):
        return _box_mix(operation, floats)
    return Mix(_beta(operation.mixup_alpha, floats[_BEFORE:]))


def _box_mix(operation: Mixing, floats: Sequence[float]) -> Mix:
    if operation.cutmix_minmax is not None:
        low, high = operation.cutmix_minmax
        height, width = (low + u * (high - low) for u in floats[4:6])
        top, left = floats[2] * (1.0 - height), floats[3] * (1.0 - width)
        box = (top, left, top + height, left + width)
    else:
        side = math.sqrt(1.0 - _beta(operation.cutmix_alpha, floats[_BEFORE:]))
        box = (
            max(0.0, floats[2] - side / 2),
            max(0.0, floats[3] - side / 2),
            min(1.0, floats[2] + side / 2),
            min(1.0, floats[3] + side / 2),
        )
    return Mix(1.0 - (box[2] - box[0]) * (box[3] - box[1]), box)


def _beta(alpha: float, floats: Sequence[float]) -> float:
    """Draw from Beta(alpha, alpha) by rejection; 1/2 if no attempt is accepted.

    Up to alpha = 1 by Johnk's method, x / (x + y) with x = u^(1/alpha); above, a uniform x is
    accepted with probability (4 x (1 - x))^(alpha - 1).
    """
    for attempt in range(_ATTEMPTS):
        u, v = 1.0 - floats[2 * attempt], 1.0 - floats[2 * attempt + 1]
        if alpha <= 1.0:
            x, y = _power(u, 1.0 / alpha), _power(v, 1.0 / alpha)
            if 0.0 < x + y <= 1.0:
                return x / (x + y)
        elif u < 1.0 and v <= _power(4.0 * u * (1.0 - u), alpha - 1.0):
            return u
    return 0.5


def _power(x: float, exponent: float) -> float:
    return exp2(max(-1000.0, exponent * log2(x)))


def mix_squares(own_CSS: Tensor, partner_CSS: Tensor, how: Mix) -> Tensor:
    """Mix two squares uint8 (C, S, S); blending rounds halves up."""
    if how.box is None:
        weight = round(how.lam * _WEIGHT)
        # 255 * 65536 fits into int32; the added half makes the shift round
        blended = own_CSS.to(torch.int32) * weight + partner_CSS.to(torch.int32) * (
            _WEIGHT - weight
        )
        return ((blended + _WEIGHT // 2) >> 16).to(torch.uint8)
    side = own_CSS.shape[-1]
    top, left, bottom, right = (round(fraction * side) for fraction in how.box)
    out = own_CSS.clone()
    out[:, top:bottom, left:right] = partner_CSS[:, top:bottom, left:right]
    return out
