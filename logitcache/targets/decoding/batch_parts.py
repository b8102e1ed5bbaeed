"""Decoding and concatenation of cached groups as parts of a batch, by the kind of the group."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from logitcache.batch import (
    DenseLogits,
    EncodedLogits,
    SigmoidLogits,
    SparseLogits,
    VisiblePatches,
)
from logitcache.cache.format.groups import FeatureGroup, TeacherGroup, groups_of
from logitcache.encoding.decoded import DecodedSigmoid, DecodedSparse
from logitcache.encoding.transform import TransformEncoding
from logitcache.targets.decoding.feature_groups import decode_features, join_features
from logitcache.targets.decoding.transform_decoder import TransformDecoder
from logitcache.views.tokens import kept_tokens, shown_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.batch import Features, TeacherLogits
    from logitcache.cache.format.groups import RowGroup
    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.kinds import Encoding
    from logitcache.targets.classes.class_lens import LogitsLens
    from logitcache.views.spec import View

    Decoder = Callable[[Mapping[str, Tensor]], Tensor]

__all__ = [
    "BATCH_PARTS",
    "DEVICE_DECODERS",
    "BatchPart",
    "DecodedTargets",
    "concatenate",
    "decode_rows",
    "device_decoders",
    "example_logits",
    "visible_patches",
]

DEVICE_DECODERS: dict[type, Callable[[Any], Decoder]] = {
    TransformEncoding: TransformDecoder,
}
"""By class of encoding, decoders for the device of a batch; all others are decoded by numpy."""


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
        decode: Decodes rows; takes the group, its arrays (B, ...), the positions of the kept
            patches (B, n) or None, and the decoder that rows are left encoded for, or None.
        join: Concatenates the rows of consecutive windows.
    """

    field: Literal["teachers", "features"]
    decode: Callable[[Any, Encoded, NDArray[np.int64] | None, Decoder | None], Any]
    join: Callable[[Sequence[Any]], Any]

    def of(self, targets: DecodedTargets) -> dict[str, Any]:
        """Return the field of decoded targets."""
        found: dict[str, Any] = getattr(targets, self.field)
        return found


def decode_rows(
    groups: Mapping[str, RowGroup],
    encoded: Mapping[str, Encoded],
    view: View,
    hashes_B: NDArray[np.uint64] | None,
    decoders: Mapping[str, Decoder] | None = None,
    lenses: Mapping[str, LogitsLens] | None = None,
) -> DecodedTargets:
    """Decode some rows of several groups.

    Args:
        groups: Groups of teachers by name, and of layers by ``<teacher>/<tap>``.
        encoded: Arrays of the rows by the same names, (B, ...).
        view: The view of the outputs.
        hashes_B: Key hashes of the rows, uint64 (B,), where a group has only some of its patches.
        decoders: Decoders for the device of the batch, by name of the group; rows of these groups
            stay encoded.
        lenses: Functions that map the outputs of teachers to the classes of the student, by name.
    """
    decoded = DecodedTargets()
    for name, group in groups.items():
        kept = None
        if group.kept_patches is not None:
            assert hashes_B is not None
            kept = kept_tokens(view, hashes_B, *group.kept_patches)
        part = BATCH_PARTS[group.kind]
        part.of(decoded)[name] = part.decode(group, encoded[name], kept, (decoders or {}).get(name))
    for name, lens in (lenses or {}).items():
        decoded.teachers[name] = lens(decoded.teachers[name])
    return decoded


def concatenate(parts: Sequence[DecodedTargets]) -> DecodedTargets:
    """Concatenate the targets of consecutive windows."""
    if len(parts) == 1:
        return parts[0]
    joined = DecodedTargets()
    for part in BATCH_PARTS.values():
        for name in part.of(parts[0]):
            part.of(joined)[name] = part.join([part.of(targets)[name] for targets in parts])
    return joined


def visible_patches(
    views: Iterable[View], hashes_B: Callable[[], NDArray[np.uint64]]
) -> VisiblePatches | None:
    """Return the patches of some rows that networks are run on, view by view; None for all.

    Args:
        views: Views of one group, which drop the same patches.
        hashes_B: Returns the key hashes of the rows, uint64 (B,).
    """
    drawn = (shown_patches(view, hashes_B()) for view in views if view.dropping is not None)
    shown = [patches for patches in drawn if patches is not None]
    if not shown:
        return None
    indices = np.concatenate([patches.indices for patches in shown])
    return VisiblePatches(torch.from_numpy(indices), shown[0].grid)


def device_decoders(groups: Mapping[str, RowGroup]) -> dict[str, Decoder]:
    """Return decoders for the device of a batch, for the groups whose encoding has one."""
    encodings = {name: group.encoding for name, group in groups_of(groups, TeacherGroup).items()}
    return {
        name: make(encoding)
        for name, encoding in encodings.items()
        if (make := DEVICE_DECODERS.get(type(encoding))) is not None
    }


def example_logits(encoding: Encoding) -> TeacherLogits:
    """Return one row with equal probabilities, in the form of every row of a teacher."""
    classes = encoding.num_classes
    equal = -np.log(classes) if encoding.head == "softmax" else 0.0
    return _logits_of(encoding, encoding.encode(np.full((1, classes), equal)))


def _decode_logits(
    group: TeacherGroup,
    arrays: Encoded,
    positions: NDArray[np.int64] | None,
    decoder: Decoder | None,
) -> TeacherLogits:
    if decoder is not None:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return EncodedLogits(tensors, group.num_classes, decoder)
    return _logits_of(group.encoding, arrays)


def _logits_of(encoding: Encoding, arrays: Encoded) -> TeacherLogits:
    """Decode rows (B, ...) of a teacher."""
    decoded = encoding.decode(arrays)
    if isinstance(decoded, DecodedSigmoid):
        return SigmoidLogits(torch.from_numpy(decoded.logits))
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


def _join_logits(parts: Sequence[Any]) -> TeacherLogits:
    joined: TeacherLogits = _JOINED[type(parts[0])](parts)
    return joined


def _join_dense(parts: Sequence[DenseLogits]) -> DenseLogits:
    outside = [part.outside for part in parts if part.outside is not None]
    return DenseLogits(
        torch.cat([part.log_probs for part in parts]), torch.cat(outside) if outside else None
    )


def _join_sigmoid(parts: Sequence[SigmoidLogits]) -> SigmoidLogits:
    return SigmoidLogits(torch.cat([part.logits for part in parts]))


def _join_encoded(parts: Sequence[EncodedLogits]) -> EncodedLogits:
    names = parts[0].arrays
    arrays = {name: torch.cat([part.arrays[name] for part in parts]) for name in names}
    return replace(parts[0], arrays=arrays)


def _join_sparse(parts: Sequence[SparseLogits]) -> SparseLogits:
    labels = [p.label_log_probs for p in parts if p.label_log_probs is not None]
    return SparseLogits(
        torch.cat([part.class_ids for part in parts]),
        torch.cat([part.log_probs for part in parts]),
        torch.cat([part.tail for part in parts]),
        parts[0].num_classes,
        None if not labels else torch.cat(labels),
    )


_JOINED: dict[type, Callable[[Sequence[Any]], TeacherLogits]] = {
    DenseLogits: _join_dense,
    EncodedLogits: _join_encoded,
    SigmoidLogits: _join_sigmoid,
    SparseLogits: _join_sparse,
}


BATCH_PARTS = {
    TeacherGroup.kind: BatchPart("teachers", _decode_logits, _join_logits),
    FeatureGroup.kind: BatchPart(
        "features",
        lambda group, arrays, positions, _: decode_features(group.encoding, arrays, positions),
        join_features,
    ),
}
"""By kind of group; groups of other kinds have no rows, so they are not part of a batch."""
