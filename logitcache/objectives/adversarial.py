"""Adversarial feature distillation: a discriminator of teacher and student, by gradient reversal.

Source: Liu et al., "Cross-Architecture Knowledge Distillation" (CAKD), ACCV 2022, section 3.3, and
a description of its code. There the discriminator and the student are trained in turns, with an
optimizer each. Gradient reversal (Ganin and Lempitsky, "Unsupervised Domain Adaptation by
Backpropagation", ICML 2015) has the same gradients in one step.

Shapes: B batch, N positions, D channels of the student, E of the teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from logitcache.errors import UsageError
from logitcache.objectives.alignment import Pair, cached_features, pair_of
from logitcache.objectives.fitted import created, try_on
from logitcache.objectives.projector import (
    PROJECTORS,
    ProjectorConfig,
    build_projector,
    check_channels,
    projected,
)
from logitcache.objectives.term import Needs, PairConfig, TermConfig

if TYPE_CHECKING:
    from logitcache.batch import Outputs, TargetBatch

__all__ = ["Adversarial", "AdversarialConfig"]


class AdversarialConfig(TermConfig, PairConfig):
    """Loss of a discriminator between activations of a student layer and those of a teacher.

    Attributes:
        weight: Weight of this term in the sum.
        projector: Trained map from the student's channels to the teacher's.
        prefix: Whether class tokens and registers are compared, if both have the same number.
        hidden: Number of channels of both hidden layers of the discriminator.
        lr_scale: Learning rate of the discriminator as a share of that of the optimizer.
    """

    projector: ProjectorConfig = ProjectorConfig()
    prefix: bool = True
    hidden: PositiveInt = 256
    lr_scale: float = Field(default=1.0, gt=0)

    @property
    def needs(self) -> Needs:
        """Required targets and layers: one layer of the teacher and one of the student."""
        return PairConfig.needs_of([self])


class Adversarial(nn.Module):
    """Loss of a discriminator, which the student is trained to increase.

    ::

        L = -mean over positions and rows of (log D(t) + log(1 - D(P(s))))

    with s the student at the teacher's positions, P the projector, and D the sigmoid of three
    linear layers with ReLU between them, at every position. The weights of D have the gradient of
    L. The student and P have that of -L, which is the gradient of the mean of log(1 - D(P(s))).
    The loss is 2 log 2 where D cannot distinguish them.

    Args:
        config: The layers, and the size of the discriminator.
    """

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        self.config = config
        self.projector: nn.Module | None = None
        self.discriminator: nn.Module | None = None

    def fit(self, outputs: Outputs, targets: TargetBatch) -> None:
        """Create projector and discriminator, and check that the activations can be compared.

        Args:
            outputs: Example of outputs of the student, one row.
            targets: Example of targets, one row.

        Raises:
            UsageError: The shapes do not fit each other, or the cached maps were standardized.
        """
        teacher = cached_features(targets, self.config.features)
        check_channels(self.config.projector, teacher, self._where)
        if teacher.standardized:
            raise UsageError(
                "the cached maps are standardized, but the student's would not be",
                where=self._where,
                hint="precompute this layer without standardize",
            )
        pair = self._pair(outputs, targets)
        hidden, channels = self.config.hidden, pair.teacher.shape[2]
        self.projector = build_projector(self.config.projector, [pair], self._where)
        self.discriminator = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
        try_on(self, outputs, targets)

    def forward(self, outputs: Outputs, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar."""
        projector = created(self.projector, "projector", self._where)
        discriminator = created(self.discriminator, "discriminator", self._where)
        pair = self._pair(outputs, targets)
        ((projected_BNE, counts),) = projected(self.config.projector, projector, [pair])
        # the value is exactly that of the student, and the gradient is its negative
        reversed_BNE = 2.0 * projected_BNE.detach() - projected_BNE
        theirs_BN = discriminator(pair.teacher)[..., 0]
        ours_BN = discriminator(reversed_BNE)[..., 0]
        weights_BN = counts.expand(len(ours_BN), -1)
        each_BN = functional.softplus(-theirs_BN) + functional.softplus(ours_BN)
        return (each_BN * weights_BN).sum() / weights_BN.sum()

    def lr_scales(self) -> dict[str, float]:
        """Return the scales of the learning rate of parameters with another one, by name."""
        if self.config.lr_scale == 1 or self.discriminator is None:
            return {}
        names = (f"discriminator.{name}" for name, _ in self.discriminator.named_parameters())
        return dict.fromkeys(names, self.config.lr_scale)

    @property
    def _where(self) -> str:
        return f"objectives.adversarial of {self.config.features}"

    def _pair(self, outputs: Outputs, targets: TargetBatch) -> Pair:
        prefix = self.config.prefix and not PROJECTORS[self.config.projector.kind].whole_maps
        return pair_of(self.config, outputs, targets, prefix=prefix, where=self._where)
