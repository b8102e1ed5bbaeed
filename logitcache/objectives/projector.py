"""Projectors from student channels to teacher channels, trained and then dropped.

Shapes: B batch, D the student's channels, E the teacher's, P patches, p prefix tokens, n kept ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, model_validator
from torch import nn

from logitcache.config import Config, key_of
from logitcache.errors import UsageError
from logitcache.objectives.alignment import as_map, as_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from logitcache.objectives.alignment import Pair

__all__ = [
    "PROJECTORS",
    "Generator",
    "Pointwise",
    "ProjectorConfig",
    "ProjectorKind",
    "build_projector",
]


@dataclass(frozen=True)
class ProjectorKind:
    """One kind of projector.

    The module that is built maps a :class:`~logitcache.objectives.alignment.Pair` to the student
    (B, p + n, E) and a weight of every position, (1 or B, p + n).

    Attributes:
        build: Builds the module from a configuration, an example and the name of the term for
            messages.
        whole_maps: Whether it needs patches as a map, without prefix tokens.
        keeps_channels: Whether it may leave the student's channels as they are, so that it cannot
            be used where the cache has coordinates instead of channels.
    """

    build: Callable[[ProjectorConfig, Pair, str], nn.Module]
    whole_maps: bool = False
    keeps_channels: bool = False


class ProjectorConfig(Config):
    """How a student's channels become a teacher's.

    Attributes:
        kind: ``linear`` at every position (a 1x1 convolution); ``mlp``: two of them with a ReLU in
            between; ``generator``: ViTKD's, see :class:`Generator`; ``none``; ``auto``: linear if
            the channels differ in number, else none.
        hidden: Channels between the two of an ``mlp``; the teacher's by default.
        masked: Share of positions that a ``generator`` has to fill in.
    """

    kind: Annotated[str, key_of(lambda: PROJECTORS)] = "auto"
    hidden: Annotated[int, Field(ge=1)] | None = None
    masked: float = Field(default=0.5, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class Pointwise(nn.Module):
    """The same network at every position.

    Args:
        network: (..., D) to (..., E).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the student (B, p + n, E), and how many positions each of them stands for."""
        projected: Tensor = self.network(pair.picked(pair.student))
        return projected, pair.counts


class Generator(nn.Module):
    """ViTKD's generation: the student fills in positions that are hidden from it.

    ::

        x = W s;  x_i = m at hidden i;  y = conv3x3(relu(conv3x3(x)))

    with W a linear layer if the channels differ in number and m one learned token, at first zero.
    Hidden are the given share of positions, drawn again for every row; or, where only some of the
    teacher's are cached, exactly those. Only hidden positions count.

    Source: Yang et al., "ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation", 2022,
    section 3.3, and its code.

    Args:
        channels: D.
        wanted: E.
        masked: Share of positions that are hidden.
    """

    def __init__(self, channels: int, wanted: int, masked: float) -> None:
        super().__init__()
        self.align = nn.Linear(channels, wanted) if channels != wanted else nn.Identity()
        self.mask_token = nn.Parameter(torch.zeros(wanted))
        self.generation = nn.Sequential(
            nn.Conv2d(wanted, wanted, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(wanted, wanted, 3, padding=1),
        )
        self._masked = masked

    def forward(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the student (B, n, E), and 1 for every position that counts."""
        assert pair.grid is not None  # checked when it was built
        hidden_BP = self._hidden(pair)
        aligned_BPE = torch.where(hidden_BP[:, :, None], self.mask_token, self.align(pair.student))
        filled_BPE = as_tokens(self.generation(as_map(aligned_BPE, pair.grid)))
        hidden_BP1 = hidden_BP[:, :, None].to(filled_BPE.dtype)
        return pair.picked(filled_BPE), pair.picked(hidden_BP1)[..., 0]

    def _hidden(self, pair: Pair) -> Tensor:
        """Return which positions are hidden, bool (B, P)."""
        rows, patches = pair.student.shape[:2]
        if pair.positions is not None:
            hidden = torch.zeros(rows, patches, dtype=torch.bool, device=pair.student.device)
            return hidden.scatter(1, pair.positions, True)
        seen = int(patches * (1 - self._masked))
        order = torch.rand(rows, patches, device=pair.student.device).argsort(1)
        return torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, :seen], False)


def _linear(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    return Pointwise(nn.Linear(pair.student.shape[2], pair.teacher.shape[2]))


def _mlp(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    channels, wanted = pair.student.shape[2], pair.teacher.shape[2]
    hidden = config.hidden or wanted
    return Pointwise(
        nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, wanted))
    )


def _generator(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    if pair.grid is None:
        raise UsageError(
            "a generator fills in a map, and there is none",
            where=where,
            hint="name taps with a square of positions",
        )
    return Generator(pair.student.shape[2], pair.teacher.shape[2], config.masked)


def _none(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    channels, wanted = pair.student.shape[2], pair.teacher.shape[2]
    if channels != wanted:
        raise UsageError(
            "student and teacher have different channels here",
            where=where,
            expected=f"{wanted} channels",
            got=f"{channels} channels",
            hint="set projector: linear",
        )
    return Pointwise(nn.Identity())


def _auto(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    same = pair.student.shape[2] == pair.teacher.shape[2]
    return (_none if same else _linear)(config, pair, where)


PROJECTORS: dict[str, ProjectorKind] = {
    "auto": ProjectorKind(_auto, keeps_channels=True),
    "none": ProjectorKind(_none, keeps_channels=True),
    "linear": ProjectorKind(_linear),
    "mlp": ProjectorKind(_mlp),
    "generator": ProjectorKind(_generator, whole_maps=True),
}
"""Projectors by name; a new projector is one entry here."""


def build_projector(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    """Build the projector of a configuration.

    Args:
        config: Its kind and options.
        pair: An example of student and teacher features.
        where: Name of the term, for messages.

    Raises:
        UsageError: The projector cannot be built for these shapes.
    """
    return PROJECTORS[config.kind].build(config, pair, where)
