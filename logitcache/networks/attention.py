"""Relations between patches inside of the attention of timm's vision transformers.

timm's attention may be fused, so that no module has the scores as its output. They are computed
here a second time, from the input of the attention module, with its own weights.

Shapes: B batch, N tokens, p prefix tokens, P patches (N - p), H heads, D channels of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers import Attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["ATTENTION_TAPS", "attention_tap"]


def attention_tap(
    modules: dict[str, nn.Module], tap: str
) -> tuple[Attention, Callable[[Attention, Tensor], Tensor]] | None:
    """Return the attention module and the relation of a tap, None for any other tap.

    Args:
        modules: Modules of the network by name.
        tap: Name of the tap, ``<attention module>.<relation>``.
    """
    name, _, relation = tap.rpartition(".")
    module = modules.get(name)
    if relation not in ATTENTION_TAPS or not isinstance(module, Attention):
        return None
    return module, ATTENTION_TAPS[relation]


def _scores(attention: Attention, x_BNC: Tensor) -> Tensor:
    """Return the mean over heads of q k^T / sqrt(D), before the softmax."""
    queries_BHND, keys_BHND, _ = _heads(attention, x_BNC)
    return _products(attention.q_norm(queries_BHND), attention.k_norm(keys_BHND), attention.scale)


def _value_products(attention: Attention, x_BNC: Tensor) -> Tensor:
    """Return the mean over heads of v v^T / sqrt(D)."""
    *_, values_BHND = _heads(attention, x_BNC)
    return _products(values_BHND, values_BHND, attention.scale)


def _heads(attention: Attention, x_BNC: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values of all heads, (B, H, N, D) each."""
    qkv_BN: Tensor = attention.qkv(x_BNC)
    shape = (*qkv_BN.shape[:2], 3, attention.num_heads, attention.head_dim)
    return qkv_BN.reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)


def _products(a_BHND: Tensor, b_BHND: Tensor, scale: float) -> Tensor:
    """Return the mean over heads of scaled inner products, (B, N, N)."""
    # the sum over heads is a part of the inner product, so no (B, H, N, N) is made
    products_BNN = torch.einsum("bhnd,bhmd->bnm", a_BHND, b_BHND)
    return products_BNN * (scale / a_BHND.shape[1])


ATTENTION_TAPS: dict[str, Callable[[Attention, Tensor], Tensor]] = {
    "scores": _scores,
    "value_products": _value_products,
}
"""Relations (B, N, N) of tokens by the last part of a tap; a new one is one entry here."""
