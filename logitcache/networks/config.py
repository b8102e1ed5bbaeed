"""Settings of a network, and its input."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from logitcache.config import Config
from logitcache.networks.forms import form_of

__all__ = ["PRETRAINED", "InputSpec", "NetworkConfig"]

PRETRAINED = "pretrained"
"""Stands for the weights that timm or torchvision publish for a model."""

_Mean = Annotated[float, Field(allow_inf_nan=False)]
_Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NetworkConfig(Config):
    """Settings of a network.

    Attributes:
        model: A timm name (``resnet50``, ``rednet50``); ``local-dir:<folder>`` as timm exports it;
            ``hf-hub:<repository>``; ``torchvision/<name>``; ``<module>:<factory>``, a function
            that returns a network; a program of ``torch.export`` (``<file>.pt2``) or TorchScript
            (``<file>.torchscript``). The last three run code. Students are of the first three.
        weights: A weights file (``.safetensors``, ``.pth``, ``.pt``, ``.bin`` or ``.ckpt``,
            recognized by its content); ``pretrained`` for the weights that timm or torchvision
            publish; the name of one of torchvision's; or nothing for randomly initialized weights.
            Folders, repositories, factories and programs have weights of their own.
        kwargs: Further arguments of the model, as for ``timm.create_model``, the builder of
            torchvision, or the factory.
        size: Side of the square input in pixels; the model's own by default.
        mean: Mean of each channel, for pixels in [0, 1]; the model's own by default.
        std: Standard deviation of each channel, for pixels in [0, 1]; the model's own by default.
        interpolation: Interpolation of its training: ``bilinear`` or ``bicubic``; used for its
            evaluation, views have their own. The model's own by default.
    """

    model: str
    weights: str | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)
    size: int | None = Field(default=None, gt=0)
    mean: tuple[_Mean, _Mean, _Mean] | None = None
    std: tuple[_Deviation, _Deviation, _Deviation] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the network comes with weights."""
        return self.weights is not None or form_of(self.model).own_weights


@dataclass(frozen=True)
class InputSpec:
    """Input of a network.

    Attributes:
        size: Side of the square input in pixels.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        interpolation: Interpolation of its training; views have their own.
        crop_pct: Share of the shorter side in its evaluation.
        crop_mode: Crop of its evaluation: ``center``, ``squash`` or ``border``.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str = "center"

    def to_json(self) -> dict[str, Any]:
        """Return the specification as JSON values."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}
