"""Fake quantization: weights and activations of a network in training are rounded to a few levels.

Source: Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low
Bitwidth Gradients", 2016, sections 2.2 and 2.3, which GHOST (see ``objectives/gate.py``) uses with
a number of bits of its own for each layer.

Shapes: n bits, B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from logitcache.config import Config, or_file_with
from logitcache.errors import UsageError, nearest
from logitcache.networks.weight_layers import FEWEST_BITS, MOST_BITS, weight_layers
from logitcache.students.training_layer import TrainingLayer

if TYPE_CHECKING:
    from logitcache.networks.build import NetworkConfig

__all__ = [
    "FakeQuantConfig",
    "FakeQuantized",
    "fake_quantize",
    "quantized_note",
    "quantized_weight",
    "rounded",
]

Bits = Annotated[int, Field(ge=FEWEST_BITS, le=MOST_BITS)]
BitsByLayer = Annotated[dict[str, Bits], Field(min_length=1)]


class FakeQuantConfig(Config):
    """Settings of fake quantization.

    Attributes:
        bits: Number of bits of the weights, 2 to 8: one number for all convolution and linear
            layers but the classifier, or one for each layer by name; or the file of
            ``logitcache tools pick-bits``, which has these.
        activations: Number of bits of the inputs of these layers, which are clamped to [0, 1]; by
            default they are not rounded. The first layer of the network has the images as its
            input, which are not rounded.
        rescale: Whether rounded weights are multiplied by the largest weight of their layer, so
            that they have its scale; otherwise they are in [-1, 1].
    """

    bits: Annotated[Bits | BitsByLayer, or_file_with("bits")]
    activations: Bits | None = None
    rescale: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        return {"bits": value} if isinstance(value, int | str) else value


class FakeQuantized(TrainingLayer):
    """A convolution or linear layer whose weights, and possibly inputs, are rounded.

    Args:
        layer: The layer; its own weights are trained.
        bits: Number of bits of the weights.
        activations: Number of bits of the input, which is clamped to [0, 1]; None for any input.
        rescale: Whether rounded weights have the scale of the layer's.
    """

    def __init__(
        self, layer: nn.Conv2d | nn.Linear, bits: int, activations: int | None, *, rescale: bool
    ) -> None:
        super().__init__()
        self.layer = layer
        self._bits = bits
        self._activations = activations
        self._rescale = rescale

    @property
    def weight(self) -> Tensor:
        """Rounded weights, in the shape of the layer's."""
        return quantized_weight(self.layer.weight, self._bits, rescale=self._rescale)

    @property
    def bias(self) -> Tensor | None:
        """Bias of the layer, which is not rounded."""
        return self.layer.bias

    def forward(self, x_B: Tensor) -> Tensor:
        """Apply the layer with rounded weights to an input (B, ...)."""
        if self._activations is not None:
            levels = 2**self._activations - 1
            x_B = rounded(x_B.clamp(0.0, 1.0) * levels) / levels
        out: Tensor = functional_call(self.layer, {"weight": self.weight}, (x_B,))
        return out

    def plain(self) -> nn.Module:
        """Return the layer with the rounded weights as its own; inputs are not rounded."""
        with torch.no_grad():
            self.layer.weight.copy_(self.weight)
        return self.layer


def rounded(x: Tensor) -> Tensor:
    """Return the nearest whole numbers; the gradient is that of x itself (straight through)."""
    return x.detach().round() + (x - x.detach())


def quantized_weight(weight: Tensor, bits: int, *, rescale: bool) -> Tensor:
    """Return weights rounded to 2^n values.

    ::

        u = tanh(w) / m,  m = max |tanh(w)|
        w' = 2 round((2^n - 1) (u + 1) / 2) / (2^n - 1) - 1

    times m if the scale is kept. The gradient is that of u, or of tanh(w), with m as a constant.

    Args:
        weight: Weights of a layer.
        bits: Number of bits n.
        rescale: Whether the largest absolute value stays m; otherwise it is 1.
    """
    squashed = weight.tanh()
    largest = squashed.detach().abs().amax().clamp(min=torch.finfo(weight.dtype).tiny)
    levels = 2**bits - 1
    unit: Tensor = 2.0 * rounded((squashed / largest + 1.0) / 2.0 * levels) / levels - 1.0
    return largest * unit if rescale else unit


def fake_quantize(network: nn.Module, config: FakeQuantConfig, _: NetworkConfig) -> nn.Module:
    """Replace layers by layers with rounded weights, in place.

    Raises:
        UsageError: There are no layers to quantize, or none of a given name.
    """
    layers = weight_layers(network, "student.surgery.fake_quant")
    chosen = config.bits if isinstance(config.bits, dict) else dict.fromkeys(layers, config.bits)
    first = next(iter(layers))
    for name, bits in chosen.items():
        if name not in layers:
            raise UsageError(
                f"the network has no layer {name!r} to quantize",
                where="student.surgery.fake_quant.bits",
                expected="a convolution or linear layer that is not the classifier",
                hint=nearest(name, layers),
            )
        inputs = None if name == first else config.activations
        quantized = FakeQuantized(layers[name], bits, inputs, rescale=config.rescale)
        network.set_submodule(name, quantized)
    return network


def quantized_note(config: FakeQuantConfig) -> str:
    """Return what the export of a network with fake quantization has and does not have."""
    bits = config.bits
    values = f"2^{bits}" if isinstance(bits, int) else "2^n (n bits by layer)"
    note = (
        f"fake quantization: the weights of a quantized layer have at most {values} values, which "
        "the export stores in float32, as a network that timm loads"
    )
    if config.activations is None:
        return note
    return (
        f"{note}; inputs of these layers are rounded to {config.activations} bits in [0, 1] in "
        "training and evaluation, but not by the exported network, whose accuracy is another one"
    )
