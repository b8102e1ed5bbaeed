"""Few-shot episodes: rows of a batch are classified by the class means of its other rows.

Source: Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017, with scaled inner
products of unit vectors instead of distances, as the code of SgVA-CLIP (Peng et al., IEEE
Transactions on Multimedia 2023) has it: the means are not scaled to unit length.

Shapes: B batch, D channels, C classes of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch.nn import functional

from logitcache.batch import Outputs
from logitcache.errors import UsageError
from logitcache.objectives.alignment import as_vectors, wide
from logitcache.objectives.term import Needs, TermConfig

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TargetBatch

__all__ = ["Episode", "EpisodeConfig"]


class EpisodeConfig(TermConfig):
    """Few-shot episodes: class means of one half of a batch classify the other half.

    Attributes:
        weight: Weight of this term in the sum.
        student: Name of the student layer; its mean over positions is the vector of a row.
        scale: Factor of the inner products; 100 in CLIP.
    """

    student: str
    scale: float = Field(default=100.0, gt=0)

    @property
    def needs(self) -> Needs:
        """Required student layers."""
        return Needs(taps=(self.student,))

    @property
    def needs_whole_batch(self) -> bool:
        """True: a row is compared with the others."""
        return True

    @property
    def needs_labels(self) -> bool:
        """True: images without labels have no part."""
        return True


class Episode:
    """Cross-entropy of queries over the class means of a support set, in nats.

    ::

        L = -mean over queries i of log softmax_c(scale u_i . m_c) at c = y_i
        m_c = mean of u_j over the support rows j of class c

    with u the vectors as unit vectors. The labeled rows of a batch are support and queries in turn,
    beginning with support; the order of a batch is random. Classes are those of the support set,
    and queries of other classes have no part. Zero without any query. With several processes each
    has an episode of its own rows.

    Args:
        config: Layer and scale.
    """

    def __init__(self, config: EpisodeConfig) -> None:
        self.config = config

    def __call__(self, outputs: Outputs | Tensor, targets: TargetBatch) -> Tensor:
        """Return the loss, a scalar.

        Raises:
            UsageError: Images have several labels.
        """
        vectors_BD = wide(as_vectors(Outputs.of(outputs).tap(self.config.student)))
        support, queries = _divided(targets)
        if not len(queries):
            return vectors_BD.sum() * 0.0  # so that backward() can be called
        units_BD = functional.normalize(vectors_BD, dim=1)
        classes, of_support = torch.unique(targets.labels[support], return_inverse=True)
        sums_CD = units_BD.new_zeros(len(classes), units_BD.shape[1])
        sums_CD = sums_CD.index_add(0, of_support, units_BD[support])
        means_CD = sums_CD / of_support.bincount()[:, None]
        logits = self.config.scale * units_BD[queries] @ means_CD.T
        return functional.cross_entropy(
            logits, torch.searchsorted(classes, targets.labels[queries])
        )

    def count(self, targets: TargetBatch) -> Tensor:
        """Return the number of queries."""
        return torch.tensor(len(_divided(targets)[1]), device=targets.labels.device)


def _divided(targets: TargetBatch) -> tuple[Tensor, Tensor]:
    """Return the indices of support rows, and of the queries whose class is among them."""
    if targets.label_sets is not None or targets.lam is not None:
        raise UsageError(
            "class means need images with one label each",
            where="objectives.episode",
            got="label sets" if targets.label_sets is not None else "mixed images",
            hint="use views without mixing, and images with one class each",
        )
    labeled = (targets.labels >= 0).nonzero()[:, 0]
    support, queries = labeled[::2], labeled[1::2]
    known = torch.isin(targets.labels[queries], targets.labels[support])
    return support, queries[known]
