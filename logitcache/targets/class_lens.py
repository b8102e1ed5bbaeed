"""Outputs of teachers in the classes of a student: probabilities of merged classes are summed.

The mass of the classes that are outside of the class map is kept, see :class:`.DenseLogits`.

Shapes: B batch, C classes of the teacher, K stored classes, S classes of the student; group S
consists of the classes outside of the map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.batch import DenseLogits, EncodedLogits, SparseLogits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from logitcache.batch import TeacherLogits
    from logitcache.data.class_map import ClassLens

__all__ = ["LogitsLens"]


class LogitsLens:
    """A function from outputs in the classes of a teacher to outputs in those of a student.

    It works with logarithms, so that classes of any probability can be merged, and its result does
    not depend on the device.

    Args:
        lens: The class of the student for each class of the teacher.
    """

    def __init__(self, lens: ClassLens) -> None:
        self.classes = lens.classes
        self._targets_C = torch.from_numpy(lens.targets)
        self._counts_G = torch.bincount(self._targets_C, minlength=lens.classes + 1).double()
        self._levels = _levels(lens)
        self._on_device: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_on_device": {}}

    def __call__(self, logits: TeacherLogits) -> TeacherLogits:
        """Return the outputs in the classes of the student.

        Sparse outputs become dense ones. Classes that they do not store share the mass of the tail
        equally, so each class of the student gets a share for each of its absent classes.
        """
        mapped: TeacherLogits = _MAPPED[type(logits)](self, logits)
        return mapped

    def reduced(self, log_probs_BC: Tensor) -> Tensor:
        """Return the log-probabilities of groups of classes, (B, S + 1).

        Neighbors are added in pairs, level by level: the order of the sums is the same everywhere,
        which that of an atomic sum on an accelerator is not.
        """
        device = log_probs_BC.device
        if device not in self._on_device:
            self._on_device[device] = [(a.to(device), b.to(device)) for a, b in self._levels]
        found = log_probs_BC
        zero_B1 = found.new_full((len(found), 1), -torch.inf)
        for left, right in self._on_device[device]:
            padded = torch.cat([found, zero_B1], 1)
            found = torch.logaddexp(padded[:, left], padded[:, right])
        return found

    def dense(self, log_probs_BG: Tensor) -> DenseLogits:
        """Return the log-probabilities of groups as outputs with the mass outside of the map."""
        return DenseLogits(log_probs_BG[:, :-1], log_probs_BG[:, -1])

    def sparse_groups(self, logits: SparseLogits) -> Tensor:
        """Return the log-probabilities of groups of sparse outputs, float32 (B, S + 1)."""
        log_p_BK = logits.log_probs.double()
        groups_BK = self._targets_C[logits.class_ids]
        used_BK = log_p_BK > -torch.inf
        shape = (len(log_p_BK), self.classes + 1)
        peak_BG = log_p_BK.new_full(shape, -torch.inf).scatter_reduce(
            1, groups_BK, log_p_BK, "amax"
        )
        peak_BG.masked_fill_(peak_BG == -torch.inf, 0.0)
        shares_BK = (log_p_BK - peak_BG.gather(1, groups_BK)).exp()
        zeros_BG = log_p_BK.new_zeros(shape)
        present_BG = zeros_BG.scatter_add(1, groups_BK, shares_BK).log() + peak_BG
        absent_BG = self._counts_G - zeros_BG.scatter_add(1, groups_BK, used_BK.double())
        absent_B1 = absent_BG.sum(1, keepdim=True).clamp(min=1)
        each_B1 = logits.tail[:, :1].double() - absent_B1.log()
        mapped_BG = torch.logaddexp(present_BG, absent_BG.log() + each_B1)
        # rows that were not computed, which the sums leave as numbers in some groups
        unknown_B1 = (log_p_BK.isnan().any(1) | logits.tail.isnan().any(1))[:, None]
        return mapped_BG.masked_fill(unknown_B1, torch.nan).float()


class _Composed:
    """A decoder of rows of a cache into groups of classes."""

    def __init__(self, lens: LogitsLens, decode: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        self._lens, self._decode = lens, decode

    def __call__(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return self._lens.reduced(self._decode(arrays))


def _encoded(lens: LogitsLens, logits: EncodedLogits) -> EncodedLogits:
    return EncodedLogits(
        logits.arrays, lens.classes, _Composed(lens, logits.decode), has_outside=True
    )


_MAPPED: dict[type, Callable[[LogitsLens, Any], TeacherLogits]] = {
    DenseLogits: lambda lens, logits: lens.dense(lens.reduced(logits.log_probs)),
    EncodedLogits: _encoded,
    SparseLogits: lambda lens, logits: lens.dense(lens.sparse_groups(logits)),
}


def _levels(lens: ClassLens) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of columns to add at each level; the last column after them is zero.

    The columns of the last level are the groups, in order.
    """
    columns, groups = len(lens.targets), np.arange(lens.classes + 1)
    order = np.argsort(lens.targets, kind="stable")
    members = [order[lens.targets[order] == group] for group in groups]
    levels = []
    while True:
        pairs = [(m[0::2], np.append(m[1::2], [columns] * (len(m) % 2))) for m in members]
        # a group without classes, and one of the last level, has a single column
        pairs = [
            (left, right) if len(left) else (np.array([columns]), np.array([columns]))
            for left, right in pairs
        ]
        left, right = (np.concatenate(side).astype(np.int64) for side in zip(*pairs, strict=True))
        levels.append((torch.from_numpy(left), torch.from_numpy(right)))
        sizes = [len(one) for one, _ in pairs]
        if max(sizes) == 1:
            return levels
        columns, ends = len(left), np.cumsum(sizes)
        members = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
