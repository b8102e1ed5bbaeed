"""Outputs of teachers in the classes of a student: probabilities of merged classes are summed.

The mass of the classes that are outside of the class map is kept, see :class:`.DenseLogits`.

Shapes: B batch, C classes of the teacher, K stored classes, S classes of the student; group S
consists of the classes outside of the map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.batch import DenseLogits, EncodedLogits, SigmoidLogits, SparseLogits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from logitcache.batch import TeacherLogits
    from logitcache.data.class_map import ClassLens

__all__ = ["LogitsLens"]

_NUMBERS_AT_ONCE = 2**18


class LogitsLens:
    """A function from outputs in the classes of a teacher to outputs in those of a student.

    Probabilities are relative to the largest of the group when they are added, so that classes of
    any probability can be merged, and the order of the sums is fixed.

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
        """Return the log-probabilities of groups of classes, (B, S + 1)."""
        if log_probs_BC.device.type == "cpu":  # a few rows at a time stay in the processor's cache
            rows = max(1, _NUMBERS_AT_ONCE // log_probs_BC.shape[1])
            return torch.cat(
                [self._reduced(some_bC) for some_bC in torch.split(log_probs_BC, rows)]
            )
        return self._reduced(log_probs_BC)

    def _reduced(self, log_probs_BC: Tensor) -> Tensor:
        peak_BG = self._by_group(log_probs_BC, torch.maximum, -torch.inf)
        peak_BG.masked_fill_(peak_BG == -torch.inf, 0.0)  # -inf minus -inf would be NaN
        targets_C = self._targets_C.to(log_probs_BC.device)
        shares_BC = (log_probs_BC - peak_BG.index_select(1, targets_C)).exp_()
        return self._by_group(shares_BC, torch.add, 0.0).log_() + peak_BG

    def _by_group(
        self, values_BC: Tensor, pair: Callable[[Tensor, Tensor], Tensor], neutral: float
    ) -> Tensor:
        """Return a reduction of the columns of each group, (B, S + 1).

        Neighbors are reduced in pairs, level by level: the order of sums is the same everywhere,
        which that of an atomic sum on an accelerator is not.
        """
        device = values_BC.device
        if device not in self._on_device:
            self._on_device[device] = [(a.to(device), b.to(device)) for a, b in self._levels]
        found, neutral_B1 = values_BC, values_BC.new_full((len(values_BC), 1), neutral)
        for left, right in self._on_device[device]:
            padded = torch.cat([found, neutral_B1], 1)
            found = pair(padded.index_select(1, left), padded.index_select(1, right))
        return found

    def dense(self, log_probs_BG: Tensor) -> DenseLogits:
        """Return the log-probabilities of groups as outputs with the mass outside of the map."""
        return DenseLogits(log_probs_BG[:, :-1], log_probs_BG[:, -1])

    def selected(self, logits_BC: Tensor) -> Tensor:
        """Return the logits of independent classes in the order of the student's, (B, S).

        Each of the student's consists of one class: :class:`.ClassSpace` refuses other maps.
        """
        assert (self._counts_G[:-1] == 1).all()
        columns = torch.argsort(self._targets_C, stable=True)[: self.classes]
        return logits_BC[:, columns.to(logits_BC.device)]

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
    SigmoidLogits: lambda lens, logits: SigmoidLogits(lens.selected(logits.logits)),
}


def _levels(lens: ClassLens) -> list[tuple[Tensor, Tensor]]:
    """Return the pairs of columns to reduce at each level; the column after the last is neutral.

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
