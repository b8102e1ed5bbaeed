"""Projectors from student channels to teacher channels, which are not part of the exported student.

Shapes: B batch, D channels of the student, E of the teacher, P patches, p prefix tokens, n cached
patches.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import nn

from logitcache.config import Config, key_of
from logitcache.errors import UsageError
from logitcache.objectives.alignment import as_map, as_tokens, drawn_positions
from logitcache.objectives.attention import PositionProducts
from logitcache.objectives.fusion import SelectiveFusion
from logitcache.objectives.group_linear import GroupLinear
from logitcache.objectives.pixel_shuffle import PixelShuffle
from logitcache.objectives.prior import Prior

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from logitcache.batch import Features
    from logitcache.objectives.alignment import Pair

__all__ = [
    "PROJECTORS",
    "Generator",
    "Pointwise",
    "ProjectorConfig",
    "ProjectorKind",
    "build_projector",
    "check_channels",
    "projected",
    "share_projectors",
]


@dataclass(frozen=True)
class ProjectorKind:
    """One kind of projector.

    Its module maps a :class:`~logitcache.objectives.alignment.Pair` to the projected student
    (B, p + n, E) and a weight of every position, (1 or B, p + n).

    Attributes:
        build: Builds the module from a configuration, an example and the name of the term for
            messages.
        whole_maps: Whether it needs patches as a map, without prefix tokens.
        keeps_channels: Whether it may leave the student's channels unchanged, so that it cannot be
            used with cached principal components.
        joint: Whether one module projects all pairs of a term: it is built from their list, and
            maps a list of pairs to a list of results.
        own_grid: Whether it maps the student from its own grid to the teacher's; for others the
            student is resized before.
        compares_rows: Returns whether its result for a row depends on the other rows of a batch.
    """

    build: Callable[[ProjectorConfig, Any, str], nn.Module]
    whole_maps: bool = False
    keeps_channels: bool = False
    joint: bool = False
    own_grid: bool = False
    compares_rows: Callable[[ProjectorConfig], bool] = lambda config: False


_FUSION_WIDTH = 64  # of TransKD

# Outside the class: pydantic 2.7 looks up the names of an annotation when the class is made, before
# the table exists.
ProjectorName = Annotated[str, key_of(lambda: PROJECTORS)]
"""A name of a projector, checked against :data:`PROJECTORS`."""


class ProjectorConfig(Config):
    """Settings of the projector from a student's channels to a teacher's.

    Attributes:
        kind: ``linear`` for a linear layer at every position (a 1x1 convolution); ``mlp`` for two
            of them with a ReLU in between; ``generator`` for ViTKD's, see :class:`Generator`;
            ``prior`` for DPK's, see :class:`~logitcache.objectives.prior.Prior`; ``fusion`` for
            TransKD's over all pairs, see
            :class:`~logitcache.objectives.fusion.SelectiveFusion`; ``group-linear`` for a linear
            layer for each neighborhood of positions; ``attention-scores`` and ``value-products``
            for inner products of convolutions at all pairs of positions, see
            :class:`~logitcache.objectives.attention.PositionProducts`; ``pixel-shuffle`` for a map
            with more positions than the student's, see
            :class:`~logitcache.objectives.pixel_shuffle.PixelShuffle`; ``none``; ``auto`` for
            linear if the numbers of channels differ, else none.
        hidden: Number of hidden channels of an ``mlp``, that of the teacher by default; of a
            ``fusion``, 64 by default; and of the convolutions of ``attention-scores`` and
            ``value-products``, that of the student by default.
        masked: Share of the positions that a ``generator`` has to predict.
        ratio: Share of the positions that a ``prior`` takes from the teacher, by default one minus
            the alignment (CKA) of student and teacher in the batch; share of the pairs of positions
            that ``attention-scores`` and ``value-products`` take from the teacher, none by default.
        blocks: Number of transformer blocks of a ``prior``.
        side: Side of the neighborhoods of ``group-linear``.
        dropout: Probability with which an input of ``group-linear`` is set to zero.
        shared: Name of a projector that several terms use: all with this name have the same
            weights, so their other options and shapes have to be equal. None for a projector of its
            own.
    """

    kind: ProjectorName = "auto"
    hidden: Annotated[int, Field(ge=1)] | None = None
    masked: float = Field(default=0.5, gt=0, lt=1)
    ratio: float | None = Field(default=None, ge=0, le=1)
    blocks: int = Field(default=2, ge=1)
    side: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    shared: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


class Pointwise(nn.Module):
    """A projector that applies the same network at every position.

    Args:
        network: Network from (..., D) to (..., E).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return the projected student (B, p + n, E) and the weights of positions (1, p + n)."""
        projected: Tensor = self.network(pair.picked(pair.student))
        return projected, pair.counts


class Generator(nn.Module):
    """ViTKD's generation: hidden positions are predicted from the student's other positions.

    ::

        x = W s;  x_i = m at hidden i;  y = conv3x3(relu(conv3x3(x)))

    with W a linear layer if the numbers of channels differ, and m a learned token, initially zero.
    The given share of positions is hidden, drawn for every row and step; or, if only some of the
    teacher's positions are cached, exactly these. Only hidden positions enter the loss.

    Source: Yang et al., "ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation", 2022,
    section 3.3, and its code.

    Args:
        channels: Number of channels of the student, D.
        wanted: Number of channels of the teacher, E.
        masked: Share of the positions that are hidden.
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
        """Return the projected student (B, n, E), and 1 for every hidden position, else 0."""
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
        return ~drawn_positions(rows, patches, seen, pair.student.device)


def _linear(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    return Pointwise(nn.Linear(pair.student.shape[2], pair.teacher.shape[2]))


def _mlp(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    channels, wanted = pair.student.shape[2], pair.teacher.shape[2]
    hidden = config.hidden or wanted
    return Pointwise(
        nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, wanted))
    )


def _generator(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    _square(pair, "generator", where)
    return Generator(pair.student.shape[2], pair.teacher.shape[2], config.masked)


def _prior(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    positions, channels = pair.teacher.shape[1:]
    if pair.positions is not None or positions < 2 or channels < 2:
        raise UsageError(
            "the projector prior needs features with several positions and channels",
            where=where,
            expected="all positions of a map or of tokens",
            got=f"{positions} positions of {channels} channels",
            hint="precompute this layer without tokens and reduce, or choose another projector",
        )
    return Prior(pair.student.shape[2], channels, positions, config.blocks, config.ratio)


def _group_linear(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    grid = _square(pair, "group-linear", where)
    channels, wanted = pair.student.shape[2], pair.teacher.shape[2]
    return GroupLinear(channels, wanted, grid, config.side, config.dropout)


def _products(config: ProjectorConfig, pair: Pair, where: str, *, same: bool) -> nn.Module:
    grid, channels = _square(pair, config.kind, where), pair.student.shape[2]
    if pair.teacher.shape[2] != grid**2:
        raise UsageError(
            f"the projector {config.kind} needs a relation between all pairs of positions",
            where=where,
            expected=f"a tap with {grid**2} values at each of {grid**2} positions, such as "
            "blocks.11.attn.scores or blocks.11.attn.value_products",
            got=f"{pair.teacher.shape[2]} values at each position",
            hint="choose another tap of the teacher, or another projector",
        )
    return PositionProducts(
        channels, config.hidden or channels, same=same, ratio=config.ratio or 0.0
    )


def _pixel_shuffle(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    grid, side = _square(pair, config.kind, where), math.isqrt(pair.student.shape[1])
    if grid % side or pair.positions is not None:
        raise UsageError(
            "the projector pixel-shuffle needs a grid that is a multiple of the student's",
            where=where,
            expected=f"a whole map with a side that {side} divides",
            got=f"a map with a side of {grid}"
            if pair.positions is None
            else f"{pair.positions.shape[1]} positions of each map",
            hint="choose other layers, or another projector",
        )
    return PixelShuffle(pair.student.shape[2], pair.teacher.shape[2], grid // side)


def _square(pair: Pair, kind: str, where: str) -> int:
    """Return the side of the square grid of positions, which a projector needs."""
    if pair.grid is None:
        raise UsageError(
            f"the projector {kind} needs features on a square grid",
            where=where,
            hint="choose layers with square maps, or another projector",
        )
    return pair.grid


def _none(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    channels, wanted = pair.student.shape[2], pair.teacher.shape[2]
    if channels != wanted:
        raise UsageError(
            "the student and teacher layers have different numbers of channels",
            where=where,
            expected=f"{wanted} channels",
            got=f"{channels} channels",
            hint="set projector: linear",
        )
    return Pointwise(nn.Identity())


def _auto(config: ProjectorConfig, pair: Pair, where: str) -> nn.Module:
    same = pair.student.shape[2] == pair.teacher.shape[2]
    return (_none if same else _linear)(config, pair, where)


def _fusion(config: ProjectorConfig, pairs: list[Pair], where: str) -> nn.Module:
    for pair in pairs:
        if pair.grid is None or pair.positions is not None:
            raise UsageError(
                "the projector fusion needs whole maps on square grids",
                where=where,
                got=f"{pair.teacher.shape[1]} positions that are not a square map",
                hint="precompute these layers without tokens and reduce, or choose other layers",
            )
    channels = [(pair.student.shape[2], pair.teacher.shape[2]) for pair in pairs]
    return SelectiveFusion(channels, config.hidden or _FUSION_WIDTH)


PROJECTORS: dict[str, ProjectorKind] = {
    "auto": ProjectorKind(_auto, keeps_channels=True),
    "none": ProjectorKind(_none, keeps_channels=True),
    "linear": ProjectorKind(_linear),
    "mlp": ProjectorKind(_mlp),
    "generator": ProjectorKind(_generator, whole_maps=True),
    "prior": ProjectorKind(
        _prior, whole_maps=True, compares_rows=lambda config: config.ratio is None
    ),
    "fusion": ProjectorKind(_fusion, whole_maps=True, joint=True),
    "group-linear": ProjectorKind(_group_linear, whole_maps=True),
    "attention-scores": ProjectorKind(partial(_products, same=False), whole_maps=True),
    "value-products": ProjectorKind(partial(_products, same=True), whole_maps=True),
    "pixel-shuffle": ProjectorKind(_pixel_shuffle, whole_maps=True, own_grid=True),
}
"""Projectors by name; a new projector is one entry here."""


def build_projector(config: ProjectorConfig, pairs: list[Pair], where: str) -> nn.Module:
    """Build the projector of a configuration: one module, or one for each of several pairs.

    Args:
        config: Its kind and options.
        pairs: Examples of student and teacher features.
        where: Name of the term, for messages.

    Raises:
        UsageError: The projector cannot be built for these shapes.
    """
    kind = PROJECTORS[config.kind]
    if kind.joint:
        return kind.build(config, pairs, where)
    first, *others = (kind.build(config, pair, where) for pair in pairs)
    return nn.ModuleList([first, *others]) if others else first


def projected(
    config: ProjectorConfig, projector: nn.Module, pairs: list[Pair]
) -> list[tuple[Tensor, Tensor]]:
    """Return the projected student and the weights of positions of every pair.

    Args:
        config: The configuration that the projector was built from.
        projector: A projector of :func:`build_projector`.
        pairs: Student and teacher features.
    """
    if PROJECTORS[config.kind].joint:
        found: list[tuple[Tensor, Tensor]] = projector(pairs)
        return found
    modules = [projector] if len(pairs) == 1 else projector.children()
    return [module(pair) for module, pair in zip(modules, pairs, strict=True)]


def check_channels(config: ProjectorConfig, teacher: Features, where: str) -> None:
    """Check that a projector does not leave channels as they are where the teacher's are others.

    Args:
        config: Its kind and options.
        teacher: Cached activations of the teacher layer.
        where: Name of the term, for messages.

    Raises:
        UsageError: The cached activations are principal components.
    """
    if teacher.principal and PROJECTORS[config.kind].keeps_channels:
        raise UsageError(
            "the cached features are principal components, not channels",
            where=where,
            hint="set projector: linear",
        )


def share_projectors(objectives: Iterable[Any]) -> None:
    """Give all objectives whose projectors have the same name the projector of the first.

    Args:
        objectives: Objectives; those with ``config.projector`` have a module ``projector``.

    Raises:
        UsageError: Projectors of the same name have other options or shapes, or only one term has a
            projector of some name.
    """
    owners: dict[str, tuple[ProjectorConfig, nn.Module]] = {}
    used: Counter[str] = Counter()
    for objective in objectives:
        config = getattr(getattr(objective, "config", None), "projector", None)
        if not isinstance(config, ProjectorConfig) or config.shared is None:
            continue
        used[config.shared] += 1
        own: nn.Module = objective.projector
        if isinstance(own, nn.ModuleList):
            raise UsageError(
                f"the name {config.shared!r} cannot be that of several projectors",
                where="objectives",
                expected="a term with a single pair of layers",
                hint="write a term for each pair, or remove shared",
            )
        first, owner = owners.setdefault(config.shared, (config, own))
        if owner is own:
            continue
        if config != first or _shapes(own) != _shapes(owner):
            raise UsageError(
                f"projectors of the name {config.shared!r} cannot have the same weights",
                where="objectives",
                expected=f"{first.kind} with the shapes {_shapes(owner)}",
                got=f"{config.kind} with the shapes {_shapes(own)}",
                hint="give them the same options and layers of the same sizes, or other names",
            )
        # a method, not the module: registered twice, its weights would be saved twice
        del objective.projector
        objective.projector = owner.__call__
    for name, terms in used.items():
        if terms == 1:
            raise UsageError(
                f"no other term has a projector of the name {name!r}",
                where="objectives",
                expected="two or more terms with this name",
                got=", ".join(used),
                hint="give both terms the same name, or remove shared",
            )


def _shapes(projector: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in projector.parameters()]
