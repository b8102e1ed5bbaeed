"""Batches for objectives: labels, teacher outputs and student outputs.

Shapes: B batch, C classes, K stored classes, D channels, L tokens, n kept patch tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "PIXELS",
    "DenseLogits",
    "EncodedLogits",
    "Features",
    "Outputs",
    "SigmoidLogits",
    "SparseLogits",
    "TargetBatch",
    "TeacherLogits",
    "VisiblePatches",
]

PIXELS = "pixels"
"""Name of the images of the target views among the features of a batch."""

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class SparseLogits:
    """Outputs of a teacher for the most likely classes, and the mass of all other classes.

    Attributes:
        class_ids: Indices of the stored classes, int64 (B, K), ascending; unused entries are last.
        log_probs: Log-probabilities at T = 1, float32 (B, K), -inf in unused entries; the
            probabilities and the mass of the absent classes sum to one.
        tail: float32 (B, 2): logsumexp over the absent classes of log p, and of log p / 4.
        num_classes: Number of classes, C.
        label_log_probs: Log-probability of each row's label, float32 (B,), NaN without a label;
            None if the cache does not store it.
    """

    class_ids: Tensor
    log_probs: Tensor
    tail: Tensor
    num_classes: int
    label_log_probs: Tensor | None = None

    def top_classes(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the k most probable stored classes: log-probabilities and ids, both (B, k).

        Fewer than k if fewer are stored. Rows that were not computed are NaN and -1, as in
        :mod:`logitcache.encoding.decoded`; unused entries of a row have the index -1.
        """
        return _top(self.log_probs, k, self.class_ids)

    def to(self, device: torch.device) -> SparseLogits:
        """Return a copy on a device."""
        return _mapped(self, _to(device))


@dataclass(frozen=True)
class DenseLogits:
    """Teacher outputs for every class.

    Attributes:
        log_probs: Log-probabilities at T = 1, float32 (B, C); the probabilities, and the mass
            outside, sum to one.
        outside: Log-probability of all classes of the teacher together that are outside of a class
            map, float32 (B,); None without a class map.
    """

    log_probs: Tensor
    outside: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return self.log_probs.shape[1]

    def top_classes(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the k most probable classes: log-probabilities and ids, both (B, k).

        Rows that were not computed are NaN and -1.
        """
        return _top(self.log_probs, k, None)

    def to(self, device: torch.device) -> DenseLogits:
        """Return a copy on a device."""
        return _mapped(self, _to(device))


@dataclass(frozen=True)
class EncodedLogits:
    """Teacher outputs for every class, as the bytes of a cache until they are needed.

    They are copied to an accelerator as bytes, which are a few percent of the log-probabilities,
    and decoded there. They can be used as :class:`DenseLogits`.

    Attributes:
        arrays: Stored arrays by name, uint8 (B, ...).
        num_classes: Number of classes, C.
        decode: Returns the log-probabilities, float32 (B, C), of arrays, on their device. Not a
            dataclass, whose fields would be copied with those of this record.
        has_outside: Whether they have a further column, the mass outside of a class map.
    """

    arrays: Mapping[str, Tensor]
    num_classes: int
    decode: Callable[[Mapping[str, Tensor]], Tensor]
    has_outside: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, without decoded log-probabilities."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    # kept in the instance, so a copy with other arrays decodes them again
    @cached_property
    def _decoded(self) -> Tensor:
        return self.decode(self.arrays)

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities at T = 1, float32 (B, C); decoded once."""
        return self._decoded[:, : self.num_classes] if self.has_outside else self._decoded

    @property
    def outside(self) -> Tensor | None:
        """Log-probability of all classes outside of a class map, (B,); None without a class map."""
        return self._decoded[:, -1] if self.has_outside else None

    def top_classes(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the k most probable classes: log-probabilities and ids, both (B, k).

        Rows that were not computed are NaN and -1.
        """
        return _top(self.log_probs, k, None)

    def to(self, device: torch.device) -> EncodedLogits:
        """Return a copy on a device."""
        return _mapped(self, _to(device))


@dataclass(frozen=True)
class SigmoidLogits:
    """Teacher outputs with an independent probability for each class.

    Attributes:
        logits: Log-odds, float32 (B, C): the probability of a class is their sigmoid.
    """

    logits: Tensor

    @property
    def num_classes(self) -> int:
        """Number of classes, C."""
        return self.logits.shape[1]

    @property
    def outside(self) -> None:
        """None: classes outside of a class map are left out, the others do not depend on them."""

    @property
    def log_probs(self) -> Tensor:
        """Log-probability of each class, float32 (B, C); their probabilities have no sum."""
        return torch.nn.functional.logsigmoid(self.logits)

    def top_classes(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the k most probable classes: log-probabilities and ids, both (B, k).

        Rows that were not computed are NaN and -1.
        """
        return _top(self.log_probs, k, None)

    def to(self, device: torch.device) -> SigmoidLogits:
        """Return a copy on a device."""
        return _mapped(self, _to(device))


TeacherLogits = SparseLogits | DenseLogits | EncodedLogits | SigmoidLogits


@dataclass(frozen=True)
class VisiblePatches:
    """The patches of each image that networks are run on, in a view that drops the others.

    Attributes:
        indices: Indices of the patches in row-major order, int64 (B, n), ascending.
        grid: Patches along a side, those that are dropped included.
    """

    indices: Tensor
    grid: int


@dataclass(frozen=True)
class Features:
    """Activations of a layer, and the reductions that were applied to them.

    Attributes:
        values: Activations, float32 (B, D, H, W), (B, L, D) or (B, D), depending on ``layout``.
        layout: ``NCHW`` for maps, ``NLC`` for tokens, ``vector`` for vectors.
        grid: Side of the square grid of positions before any were dropped: H of a map, the root of
            the number of patch tokens; None for vectors and for positions that are not a square.
        prefix_tokens: Number of leading tokens that are not patches: class token, registers.
        positions: Indices of the patch tokens in the grid that ``values`` has, in row-major order,
            int64 (B, n); None if it has all.
        reduction: ``none``; ``mean`` over positions; ``energy``: mean square over channels, a map
            (B, 1, H, W) with the layout ``NCHW``.
        standardized: Whether every channel of a map has mean 0 and standard deviation 1 over H, W.
        principal: Whether the channels are principal components instead of the layer's channels.
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
        logits: Logits (B, C).
        features: Activations by name of the layer, which may also be a second classifier.
    """

    logits: Tensor
    features: Mapping[str, Features] = field(default_factory=dict)

    @classmethod
    def of(cls, output: Outputs | Tensor) -> Outputs:
        """Return outputs unchanged, and logits as outputs without features."""
        return cls(output) if isinstance(output, Tensor) else output

    def take(self, index: Tensor) -> Outputs:
        """Return the outputs for some rows.

        Args:
            index: int64 (n,).
        """
        return _mapped(self, lambda tensor: tensor[index])

    def logits_of(self, head: str | None) -> Tensor:
        """Return the logits of a classifier head.

        Args:
            head: Name of the layer; None for the output of the network.

        Raises:
            UsageError: No activations were captured at the layer, or they are not vectors.
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
        """Return the activations of a layer.

        Raises:
            UsageError: No activations were captured at the layer.
        """
        if name not in self.features:
            raise UsageError(
                f"no activations were captured at student layer {name!r}",
                hint=nearest(name, self.features)
                if self.features
                else "pass Outputs with features to the objective",
            )
        return self.features[name]


@dataclass(frozen=True)
class TargetBatch:
    """Targets of a batch of images.

    Attributes:
        rows: Row number of each image in the cache or the dataset, int64 (B,).
        labels: Labels, int64 (B,); -1 for none and for labels that are hidden from the student.
        teachers: Outputs of each teacher, by name.
        partner_labels: Labels of the images that are mixed in, int64 (B,), as ``labels``; None if
            the view mixes no images.
        lam: Share of each row's own image in the mixture, float32 (B,); None without mixing.
        features: Activations of teacher layers, by ``<teacher>/<tap>``; and where they are asked
            for, normalized images of the views that the targets belong to, by :data:`PIXELS`.
        views: Names of the views that the student is shown; rows are ordered view by view, the same
            number of each. Empty after :meth:`take`.
        label_sets: Labels where an image may have several, float32 (B, C): 1 for the classes of a
            row's image and 0 for all others, NaN in rows without labels and where they are hidden.
            Of mixed images ``lam`` times those of the own image and 1 - ``lam`` times those of the
            partner. None where an image has at most one label; else ``labels`` are all -1.
        visible: Patches that networks are run on; None for all.
        parts: Which rows belong to a part of a joined image set, bool (B,), by its name; only the
            parts that were asked for.
        chosen: Number of the view that a sampler has chosen for each row, int64 (B,); -1 for rows
            in the original view. None without a sampler.
    """

    rows: Tensor
    labels: Tensor
    teachers: Mapping[str, TeacherLogits]
    partner_labels: Tensor | None = None
    lam: Tensor | None = None
    features: Mapping[str, Features] = field(default_factory=dict)
    views: tuple[str, ...] = ("base",)
    label_sets: Tensor | None = None
    visible: VisiblePatches | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    chosen: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def rows_of_parts(self, names: Sequence[str]) -> Tensor:
        """Return the indices of the rows of some parts of a joined image set, int64, ascending.

        Raises:
            UsageError: The batch does not have the rows of this part.
        """
        for name in names:
            if name not in self.parts:
                raise UsageError(
                    f"the batch has no part {name!r}", hint=nearest(name, self.parts or ("",))
                )
        return torch.stack([self.parts[name] for name in names]).any(0).nonzero()[:, 0]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> TargetBatch:
        """Return a copy on a device.

        Args:
            device: The device.
            non_blocking: Whether copies from pinned memory are not waited for.
        """
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TargetBatch:
        """Return a copy in pinned memory, from which an accelerator copies without waiting."""
        return _mapped(self, Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory of all tensors until the work that a stream has now is done."""

        def recorded(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        _mapped(self, recorded)

    def rows_of_views(self, names: Sequence[str]) -> Tensor:
        """Return the indices of the rows of some views, int64.

        Args:
            names: Names of the views; their rows are returned in this order.

        Raises:
            UsageError: The batch has no such view.
        """
        for name in names:
            if name not in self.views:
                raise UsageError(
                    f"the batch has no view {name!r}", hint=nearest(name, self.views or ("base",))
                )
        size = len(self) // len(self.views)
        starts = [self.views.index(name) * size for name in names]
        return torch.cat([torch.arange(start, start + size) for start in starts]).to(
            self.labels.device
        )

    def of_views(self, names: Sequence[str]) -> TargetBatch:
        """Return the rows of some views, view by view.

        Args:
            names: Names of the views.

        Raises:
            UsageError: The batch has no such view.
        """
        return replace(self.take(self.rows_of_views(names)), views=tuple(names))

    def take(self, index: Tensor) -> TargetBatch:
        """Return some rows, without the names of the views.

        Args:
            index: int64 (n,).
        """
        return replace(_mapped(self, lambda tensor: tensor[index]), views=())


def _to(device: torch.device) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.to(device, non_blocking=True)


def _mapped(value: _Record, function: Callable[[Tensor], Tensor]) -> _Record:
    """Return a copy of a record with a function applied to all tensors, also nested ones."""
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
        log_probs.argmax(1, keepdim=True)  # the first of equal values; topk returns any of them
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
