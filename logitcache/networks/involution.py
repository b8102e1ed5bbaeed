"""Involution: a spatial operator whose kernel is computed from the position it is applied at.

Source: Li et al., "Involution: Inverting the Inherence of Convolution for Visual Recognition",
CVPR 2021. The published operator unfolds its input, which takes kernel_size^2 times the activation.
Here the sum over the taps is accumulated in place, forward and backward, and only the input and the
kernels are saved. On small maps, where a window covers most of the map and the overhead of 49 small
steps dominates, each position's kernel is a column of a matrix instead, which is hardly larger than
the kernels themselves, and the result is one batched matrix product.

Shapes: B batch, C channels, G groups, K taps (kernel_size^2), H W height and width of the output,
P = H W its positions, Q positions of the input.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

__all__ = ["GROUP_CHANNELS", "ConvNormAct", "Involution", "involve"]

GROUP_CHANNELS = 16
"""Channels that share a kernel."""

_MATRIX_POSITIONS = 64


class _Involve(torch.autograd.Function):
    """out[c] = sum over taps k of kernel[group of c, k] * x[c], shifted by the tap."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, kernel_BGKHW: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x_BCHW, kernel_BGKHW)
        ctx.stride = stride
        taps = _taps(_pad(x_BCHW, kernel_BGKHW), kernel_BGKHW, stride)
        batch, groups, _, height, width = kernel_BGKHW.shape
        channels = x_BCHW.shape[1] // groups
        out = x_BCHW.new_zeros(batch, groups, channels, height, width)
        for k, tap in enumerate(taps):
            # in place: no product of a tap is kept for the backward pass
            out.addcmul_(tap, kernel_BGKHW[:, :, k].unsqueeze(2))
        return out.flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, Tensor, None]:
        x_BCHW, kernel_BGKHW = ctx.saved_tensors
        padded = _pad(x_BCHW, kernel_BGKHW)  # again, instead of a copy saved by the forward pass
        grad_padded = torch.zeros_like(padded)
        grad_kernel = torch.empty_like(kernel_BGKHW)
        grad = _grouped(grad_BCHW, kernel_BGKHW.shape[1])
        taps = _taps(padded, kernel_BGKHW, ctx.stride)
        grad_taps = _taps(grad_padded, kernel_BGKHW, ctx.stride)
        for k, (tap, grad_tap) in enumerate(zip(taps, grad_taps, strict=True)):
            grad_kernel[:, :, k] = (grad * tap).sum(2)
            # a view of grad_padded, in which overlapping windows add up
            grad_tap.addcmul_(grad, kernel_BGKHW[:, :, k].unsqueeze(2))
        pad = (padded.shape[-1] - x_BCHW.shape[-1]) // 2
        height, width = x_BCHW.shape[-2:]
        return grad_padded[..., pad : pad + height, pad : pad + width], grad_kernel, None


def _pad(x_BCHW: Tensor, kernel_BGKHW: Tensor) -> Tensor:
    """Pad by (kernel_size - 1) / 2 on every side."""
    pad = (_side(kernel_BGKHW) - 1) // 2
    return nn.functional.pad(x_BCHW, (pad, pad, pad, pad))


def _grouped(x_BCHW: Tensor, groups: int) -> Tensor:
    """Split the channels into groups: (B, G, C/G, H, W)."""
    return x_BCHW.view(x_BCHW.shape[0], groups, -1, *x_BCHW.shape[2:])


def _side(kernel_BGKHW: Tensor) -> int:
    return math.isqrt(kernel_BGKHW.shape[2])


def _taps(padded_BCHW: Tensor, kernel_BGKHW: Tensor, stride: int) -> Iterator[Tensor]:
    """Yield, tap by tap, the (B, G, C/G, H, W) window of the padded map that it multiplies."""
    groups, _, height, width = kernel_BGKHW.shape[1:]
    side = _side(kernel_BGKHW)
    grouped = _grouped(padded_BCHW, groups)
    for top in range(side):
        for left in range(side):
            rows = slice(top, top + (height - 1) * stride + 1, stride)
            columns = slice(left, left + (width - 1) * stride + 1, stride)
            yield grouped[..., rows, columns]


def involve(x_BCHW: Tensor, kernel_BGKHW: Tensor, stride: int = 1) -> Tensor:
    """Multiply each position by its own kernel and sum over the window (CVPR 2021, eq. 4).

    Args:
        x_BCHW: Input map; its sides are stride * (H, W) of the kernel.
        kernel_BGKHW: One kernel of K taps per output position and group, K an odd square.
        stride: Step between output positions, in pixels.

    Returns:
        The output map (B, C, H, W). Peak memory beyond input, kernel and output is one padded
        copy of the input, not K copies.
    """
    if x_BCHW.shape[-1] * x_BCHW.shape[-2] <= _MATRIX_POSITIONS:
        return _involve_by_matrix(x_BCHW, kernel_BGKHW, stride)
    out: Tensor = _Involve.apply(x_BCHW, kernel_BGKHW, stride)
    return out


def _involve_by_matrix(x_BCHW: Tensor, kernel_BGKHW: Tensor, stride: int) -> Tensor:
    """Compute :func:`involve` for few positions, by one (Q, P) matrix per image and group."""
    batch, groups, _, height, width = kernel_BGKHW.shape
    # tap K is zero, for input positions outside of the window
    with_zero = nn.functional.pad(kernel_BGKHW.flatten(3), (0, 0, 0, 1))
    tap_QP = _tap_of(height, width, _side(kernel_BGKHW), stride).to(x_BCHW.device)
    matrix_BGQP = with_zero.gather(2, tap_QP.expand(batch, groups, -1, -1))
    out = _grouped(x_BCHW, groups).flatten(3) @ matrix_BGQP
    return out.view(batch, -1, height, width)


@functools.lru_cache(maxsize=32)
def _tap_of(height: int, width: int, side: int, stride: int) -> Tensor:
    """Return the tap from input position q to output position p; K where there is none.

    Cached between calls, so it is created outside of inference mode: tensors of that mode cannot be
    used for training afterwards.
    """
    pad = (side - 1) // 2
    with torch.inference_mode(mode=False):
        rows = torch.arange(height * stride)[:, None] - stride * torch.arange(height) + pad
        columns = torch.arange(width * stride)[:, None] - stride * torch.arange(width) + pad
        down, right = rows[:, None, :, None], columns[None, :, None, :]
        inside = (down >= 0) & (down < side) & (right >= 0) & (right < side)
        tap = torch.where(inside, down * side + right, side * side)
        return tap.reshape(height * width * stride**2, height * width)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context without autocast; the device ``meta``, of shapes alone, has none."""
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU, under the names ``conv`` and ``bn`` of mmcv."""

    def __init__(self, in_chans: int, out_chans: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_chans)
        self.act = nn.ReLU(inplace=True)


class _KernelConv(nn.Module):
    """The biased 1x1 convolution that computes the kernels, under the name ``conv`` of mmcv."""

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.conv(x_BCHW)
        return out


class Involution(nn.Module):
    """Spatial operator whose kernel is computed from the position it is applied at.

    The kernel has no softmax and no normalization. It is computed in float32 even under autocast,
    since its products overflow half precision.

    Args:
        channels: Input and output channels, a multiple of 16.
        kernel_size: Side of the window, odd.
        stride: Step; the input's sides must be multiples of it.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride
        self.groups = channels // GROUP_CHANNELS
        self.pool = nn.AvgPool2d(stride, stride) if stride > 1 else nn.Identity()
        self.conv1 = ConvNormAct(channels, channels // 4, 1)
        self.conv2 = _KernelConv(channels // 4, kernel_size**2 * self.groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, C, stride * H, stride * W) to (B, C, H, W)."""
        if x_BCHW.shape[-1] % self.stride or x_BCHW.shape[-2] % self.stride:
            raise ValueError(
                f"involution of stride {self.stride} got a map of {tuple(x_BCHW.shape[-2:])}: "
                "use images whose sides are multiples of the total stride of the network (32)"
            )
        with _without_autocast(x_BCHW.device.type):
            x = x_BCHW if x_BCHW.dtype == torch.float64 else x_BCHW.float()
            kernel = self.conv2(self.conv1(self.pool(x)))
            return involve(x, _grouped(kernel, self.groups), self.stride)
