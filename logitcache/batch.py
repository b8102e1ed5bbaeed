"""Batches for objectives: labels, teacher outputs and student outputs.

Shapes: B batch, C classes, K stored classes, D channels, L tokens, n kept patch tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["DenseLogits", "Features", "Outputs", "SparseLogits", "TargetBatch", "TeacherLogits"]

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class SparseLogits:
    """A teacher's most likely classes, and the mass of all the others.

    Attributes:
        class_ids: int64 (B, K), ascending; entries that are not used trail.
        log_probs: float32 (B, K) at T = 1, -inf in entries that are not used; with the mass of the
            absent classes they sum to one.
        tail: float32 (B, 2): logsumexp over the absent classes of log p, and of log p / 4.
        num_classes: C.
        label_log_probs: log p of each row's own label, float32 (B,), NaN without one; None if the
            cache does not keep it.
    """

    class_ids: Tensor
    log_probs: Tensor
    tail: Tensor
    num_classes: int
    label_log_probs: Tensor | None = None

    def top_classes(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the k most probable stored classes: log-probabilities and ids, both (B, k).

        Fewer than k where fewer are stored. Rows that were not computed hold NaN and -1, as
        :mod:`logitcache.encoding.decoded` has it; so do entries beyond the classes of a row.
        """
        return _top(self.log_probs, k, self.class_ids)

    def to(self, device: torch.device) -> SparseLogits:
        """Return a copy on a device."""
        return _mapped(self, _to(device))


@dataclass(frozen=True)
class DenseLogits:
    """Teacher outputs for every class.

    Attributes:
        log_probs: float32 (B, C) at T = 1; they sum to one.
    """

    log_probs: Tensor

    @property
    def num_classes(self) -> int:
        """C."""
        return self.log_probs.shape[1]

    def top_classes(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the k most probable classes: log-probabilities and ids, both (B, k).

        Rows that were not computed hold NaN and -1.
        """
        return _top(self.log_probs, k, None)

    def to(self, device: torch.device) -> DenseLogits:
        """Return a copy on a device."""
        return _mapped(self, _to(device))


TeacherLogits = SparseLogits | DenseLogits


@dataclass(frozen=True)
class Features:
    """Activations of a teacher layer, and what has to be done to a student's to compare.

    Attributes:
        values: float32 (B, D, H, W), (B, L, D) or (B, D), as ``layout`` defines.
        layout: ``NCHW`` for maps, ``NLC`` for tokens, ``vector``.
        grid: Side of the square of positions that rows are of, before some were dropped: H of a
            map, the root of the number of patch tokens; None for a vector and where they are none.
        prefix_tokens: Leading tokens of ``values`` that are no patches: class token, registers.
        positions: int64 (B, n): which patch of the grid, row by row, each kept patch token is; None
            where all are kept.
        reduction: ``none``; ``mean`` over positions; ``energy``: mean square over channels, a map
            (B, 1, H, W) with the layout ``NCHW``.
        standardized: Whether every channel of a map has mean 0 and standard deviation 1 over H, W.
        principal: Whether channels are coordinates along principal directions, not the tap's own.
    """

    values: Tensor
    layout: Literal["NCHW", "NLC", "vector"]
    grid: int | None = None
    prefix_tokens: int = 0
    positions: Tensor | None = None
    reduction: Literal["none", "mean", "energy"] = "none"
    standardized: bool = False
    principal: bool = False

    def to(self, device: torch.device) -> Features:
        """Return a copy on a device."""
        return _mapped(self, _to(device))


@dataclass(frozen=True)
class Outputs:
    """Outputs of a student.

    Attributes:
        logits: (B, C).
        features: Activations, by tap. A further classifier is a tap, too.
    """

    logits: Tensor
    features: Mapping[str, Features] = field(default_factory=dict)

    @classmethod
    def of(cls, answer: Outputs | Tensor) -> Outputs:
        """Return an output as it is; bare logits are one without taps."""
        return cls(answer) if isinstance(answer, Tensor) else answer

    def take(self, index: Tensor) -> Outputs:
        """Return the outputs for some rows.

        Args:
            index: int64 (n,).
        """
        return _mapped(self, lambda tensor: tensor[index])

    def logits_of(self, head: str | None) -> Tensor:
        """Return the logits of a head.

        Args:
            head: Its tap; None for the output of the network itself.

        Raises:
            UsageError: Nothing was caught there, or it is no vector.
        """
        if head is None:
            return self.logits
        found = self.tap(head)
        if found.layout != "vector":
            raise UsageError(
                f"student layer {head!r} is not a classifier head",
                expected="a vector of logits for each row",
                got=f"{found.layout} {tuple(found.values.shape[1:])}",
                hint="name the module of a classifier",
            )
        return found.values

    def tap(self, name: str) -> Features:
        """Return activations of a layer.

        Raises:
            UsageError: Nothing was caught there.
        """
        if name not in self.features:
            raise UsageError(
                f"no activation was captured at student layer {name!r}",
                hint=nearest(name, self.features) if self.features else "give Outputs with taps",
            )
        return self.features[name]


@dataclass(frozen=True)
class TargetBatch:
    """Targets of a batch of images.

    Attributes:
        rows: Row of each image in the cache or the set, int64 (B,).
        labels: int64 (B,); -1 where there is none, or the student may not see it.
        teachers: Outputs of each teacher, by name.
        partner_labels: Labels of the images that are mixed in, int64 (B,), as ``labels``; None
            where the view mixes nothing.
        lam: Share of each row's own image in the mixture, float32 (B,); None with them.
        features: Activations of teacher layers, by ``<teacher>/<tap>``.
        views: Names of the views of the batch; its rows are ordered view by view, as many of each.
            Empty where rows were taken out.
    """

    rows: Tensor
    labels: Tensor
    teachers: Mapping[str, TeacherLogits]
    partner_labels: Tensor | None = None
    lam: Tensor | None = None
    features: Mapping[str, Features] = field(default_factory=dict)
    views: tuple[str, ...] = ("base",)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> TargetBatch:
        """Return a copy on a device."""
        return _mapped(self, _to(device))

    def rows_of_views(self, names: Sequence[str]) -> Tensor:
        """Return the indices of the rows of some views, int64.

        Args:
            names: Names of views, in the order in which their rows are returned.

        Raises:
            UsageError: The batch has no such view.
        """
        for name in names:
            if name not in self.views:
                raise UsageError(
                    f"no view {name!r} in the batch", hint=nearest(name, self.views or ("base",))
                )
        size = len(self) // len(self.views)
        starts = [self.views.index(name) * size for name in names]
        return torch.cat([torch.arange(start, start + size) for start in starts]).to(
            self.labels.device
        )

    def take(self, index: Tensor) -> TargetBatch:
        """Return some rows; the names of views are dropped.

        Args:
            index: int64 (n,).
        """
        return replace(_mapped(self, lambda tensor: tensor[index]), views=())


def _to(device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.to(device, non_blocking=True)


def _mapped(value: _Record, function: Callable[[Tensor], Tensor]) -> _Record:
    """Return a record with a function applied to each of its tensors, nested ones included."""
    changed: Any = value
    if isinstance(value, Tensor):
        changed = function(value)
    elif isinstance(value, Mapping):
        changed = {name: _mapped(inner, function) for name, inner in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        names = [each.name for each in fields(value)]
        changed = replace(value, **{n: _mapped(getattr(value, n), function) for n in names})
    found: _Record = changed
    return found


def _top(log_probs: Tensor, k: int, class_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the largest log-probabilities of each row in descending order, and their classes."""
    columns = (
        log_probs.argmax(1, keepdim=True)  # the first of equal ones, which topk does not promise
        if k == 1
        else log_probs.topk(min(k, log_probs.shape[1]), 1).indices
    )
    largest = log_probs.gather(1, columns)
    ids = columns if class_ids is None else class_ids.gather(1, columns)
    not_computed_B1 = log_probs.isnan().any(1, keepdim=True)
    return (
        largest.masked_fill(not_computed_B1, torch.nan),
        ids.masked_fill(not_computed_B1 | (largest == -torch.inf), -1),
    )


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device, non_blocking=True)
