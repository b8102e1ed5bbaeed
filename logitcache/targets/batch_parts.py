"""Decoding and concatenation of cached groups as parts of a batch, by the kind of the group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from logitcache.batch import DenseLogits, SparseLogits
from logitcache.cache.format.groups import FeatureGroup, TeacherGroup
from logitcache.encoding.decoded import DecodedSparse
from logitcache.targets.feature_groups import decode_features, join_features

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from logitcache.batch import Features, TeacherLogits
    from logitcache.encoding.arrays import Encoded

__all__ = ["BATCH_PARTS", "BatchPart", "DecodedTargets", "concatenate"]


@dataclass(frozen=True)
class DecodedTargets:
    """Decoded teacher outputs and features of some rows.

    Attributes:
        teachers: Outputs of each teacher, by name.
        features: Activations of teacher layers, by ``<teacher>/<tap>``.
    """

    teachers: dict[str, TeacherLogits] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchPart:
    """The functions that make one kind of group a part of a batch.

    Attributes:
        field: The field of :class:`DecodedTargets` that its groups belong to.
        decode: Decodes rows; takes the group, its arrays (B, ...), and the positions of the kept
            patches (B, n) or None.
        join: Concatenates the rows of consecutive windows.
    """

    field: Literal["teachers", "features"]
    decode: Callable[[Any, Encoded, NDArray[np.int64] | None], Any]
    join: Callable[[Sequence[Any]], Any]

    def of(self, targets: DecodedTargets) -> dict[str, Any]:
        """Return the field of decoded targets."""
        found: dict[str, Any] = getattr(targets, self.field)
        return found


def concatenate(parts: Sequence[DecodedTargets]) -> DecodedTargets:
    """Concatenate the targets of consecutive windows."""
    if len(parts) == 1:
        return parts[0]
    joined = DecodedTargets()
    for part in BATCH_PARTS.values():
        for name in part.of(parts[0]):
            part.of(joined)[name] = part.join([part.of(targets)[name] for targets in parts])
    return joined


def _decode_logits(
    group: TeacherGroup, arrays: Encoded, positions: NDArray[np.int64] | None
) -> TeacherLogits:
    decoded = group.encoding.decode(arrays)
    log_probs = torch.from_numpy(decoded.log_probs)
    if not isinstance(decoded, DecodedSparse):
        return DenseLogits(log_probs)
    label = arrays.get("label_logp")
    return SparseLogits(
        torch.from_numpy(decoded.class_ids),
        log_probs,
        torch.from_numpy(decoded.tail),
        decoded.num_classes,
        None if label is None else torch.from_numpy(label.astype(np.float32)),
    )


def _join_logits(parts: Sequence[TeacherLogits]) -> TeacherLogits:
    sparse = [part for part in parts if isinstance(part, SparseLogits)]
    log_probs = torch.cat([part.log_probs for part in parts])
    if not sparse:
        return DenseLogits(log_probs)
    labels = [p.label_log_probs for p in sparse if p.label_log_probs is not None]
    return SparseLogits(
        torch.cat([part.class_ids for part in sparse]),
        log_probs,
        torch.cat([part.tail for part in sparse]),
        sparse[0].num_classes,
        None if not labels else torch.cat(labels),
    )


BATCH_PARTS = {
    TeacherGroup.kind: BatchPart("teachers", _decode_logits, _join_logits),
    FeatureGroup.kind: BatchPart(
        "features", lambda group, *arrays: decode_features(group.encoding, *arrays), join_features
    ),
}
"""By kind of group; groups of other kinds have no rows, so they are not part of a batch."""
