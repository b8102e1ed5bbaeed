"""RedNet written down a second time, straight from the published layout, as a reference.

Everything is functional and reads a state dict with the published key names; involution is the
plain unfold. Nothing here shares a line with the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, "Tensor"]


def norm(x: Tensor, state: State, name: str) -> Tensor:
    return F.batch_norm(
        x,
        state[f"{name}.running_mean"],
        state[f"{name}.running_var"],
        state[f"{name}.weight"],
        state[f"{name}.bias"],
    )


def unfold_involution(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """out = (kernel * unfold(x)).sum over taps; kernel is (B, G, K, h, w)."""
    batch, channels = x.shape[:2]
    groups, taps, height, width = kernel.shape[1:]
    side = round(taps**0.5)
    patches = F.unfold(x, side, padding=(side - 1) // 2, stride=stride)
    patches = patches.view(batch, groups, channels // groups, taps, height, width)
    return (patches * kernel.unsqueeze(2)).sum(3).reshape(batch, channels, height, width)


def involution(x: Tensor, state: State, name: str, side: int, stride: int) -> Tensor:
    y = F.avg_pool2d(x, stride, stride) if stride > 1 else x
    y = F.relu(norm(F.conv2d(y, state[f"{name}.conv1.conv.weight"]), state, f"{name}.conv1.bn"))
    y = F.conv2d(y, state[f"{name}.conv2.conv.weight"], state[f"{name}.conv2.conv.bias"])
    groups = x.shape[1] // 16
    kernel = y.view(y.shape[0], groups, side * side, *y.shape[2:])
    return unfold_involution(x, kernel, stride)


def bottleneck(x: Tensor, state: State, name: str, stride: int) -> Tensor:
    y = F.relu(norm(F.conv2d(x, state[f"{name}.conv1.weight"]), state, f"{name}.bn1"))
    y = F.relu(norm(involution(y, state, f"{name}.conv2", 7, stride), state, f"{name}.bn2"))
    y = norm(F.conv2d(y, state[f"{name}.conv3.weight"]), state, f"{name}.bn3")
    if f"{name}.downsample.0.weight" in state:
        x = F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride)
        x = norm(x, state, f"{name}.downsample.1")
    return F.relu(x + y)


def rednet(x: Tensor, state: State, blocks: tuple[int, ...], stem_side: int) -> Tensor:
    """Forward of an mmcls checkpoint: ``backbone.*`` and ``head.fc.*``."""
    stem = "backbone.stem"
    weight = state[f"{stem}.0.conv.weight"]
    x = F.relu(norm(F.conv2d(x, weight, stride=2, padding=1), state, f"{stem}.0.bn"))
    x = F.relu(norm(involution(x, state, f"{stem}.1", stem_side, 1), state, f"{stem}.2"))
    weight = state[f"{stem}.4.conv.weight"]
    x = F.relu(norm(F.conv2d(x, weight, padding=1), state, f"{stem}.4.bn"))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            stride = 2 if stage > 1 and block == 0 else 1
            x = bottleneck(x, state, f"backbone.layer{stage}.{block}", stride)
    return F.linear(x.mean((2, 3)), state["head.fc.weight"], state["head.fc.bias"])


def published_shapes(blocks: tuple[int, ...], stem_side: int) -> dict[str, tuple[int, ...]]:
    """Return the keys and shapes of a published checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, side: int) -> None:
        shapes[f"{name}.weight"] = (out, into, side, side)

    def bn(name: str, width: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (width,)

    def inv(name: str, width: int, side: int) -> None:
        conv(f"{name}.conv1.conv", width // 4, width, 1)
        bn(f"{name}.conv1.bn", width // 4)
        conv(f"{name}.conv2.conv", side * side * (width // 16), width // 4, 1)
        shapes[f"{name}.conv2.conv.bias"] = (side * side * (width // 16),)

    stem = "backbone.stem"
    conv(f"{stem}.0.conv", 32, 3, 3)
    bn(f"{stem}.0.bn", 32)
    inv(f"{stem}.1", 32, stem_side)
    bn(f"{stem}.2", 32)
    conv(f"{stem}.4.conv", 64, 32, 3)
    bn(f"{stem}.4.bn", 64)
    into = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            name = f"backbone.layer{stage + 1}.{block}"
            conv(f"{name}.conv1", width, into, 1)
            bn(f"{name}.bn1", width)
            inv(f"{name}.conv2", width, 7)
            bn(f"{name}.bn2", width)
            conv(f"{name}.conv3", 4 * width, width, 1)
            bn(f"{name}.bn3", 4 * width)
            if block == 0:
                conv(f"{name}.downsample.0", 4 * width, into, 1)
                bn(f"{name}.downsample.1", 4 * width)
            into = 4 * width
    shapes["head.fc.weight"] = (1000, into)
    shapes["head.fc.bias"] = (1000,)
    return shapes


def published_checkpoint(blocks: tuple[int, ...], stem_side: int) -> State:
    """Return random weights in the published layout."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published_shapes(blocks, stem_side).items():
        if "running_var" in name or (".bn" in name and name.endswith("weight")):
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            state[name] = torch.randn(shape, generator=generator) / fan_in**0.5
            if (
                "conv2.conv2" in name
            ):  # involution is quadratic: it would blow up from block to block
                state[name] *= 0.1
    return state
