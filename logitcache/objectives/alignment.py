"""Alignment of student activations with the positions of cached features.

A student and a teacher need not have the same layout, grid or prefix tokens: maps and tokens are
the same thing here, positions with channels. Only the student is changed, in the way that the
teacher was when the cache was made, so a loss compares like with like.

Shapes: B batch, D the student's channels, E the teacher's, P patches of the teacher's grid, n of
them that are cached, p prefix tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features, TargetBatch

__all__ = [
    "Pair",
    "aligned",
    "as_map",
    "as_tokens",
    "as_vectors",
    "cached_features",
    "flattened",
    "unfit",
    "wide",
]


@dataclass(frozen=True)
class Pair:
    """A student and a teacher on one grid; a vector is one position.

    Attributes:
        student: (B, p + P, D), at all positions.
        teacher: (B, p + n, E), at those that are cached.
        prefix: p.
        grid: Side of the square of positions; None if they are none.
        positions: int64 (B, n): which of the P are cached; None for all.
    """

    student: Tensor
    teacher: Tensor
    prefix: int
    grid: int | None
    positions: Tensor | None

    def picked(self, values_BLD: Tensor) -> Tensor:
        """Return values (B, p + P, D) at the positions that are cached, (B, p + n, D)."""
        if self.positions is None:
            return values_BLD
        index = self.positions[:, :, None].expand(-1, -1, values_BLD.shape[2])
        patches = values_BLD[:, self.prefix :].gather(1, index)
        return torch.cat([values_BLD[:, : self.prefix], patches], 1)

    @property
    def counts(self) -> Tensor:
        """How many positions each cached one stands for, (1, p + n): P / n for a patch."""
        counts = self.teacher.new_ones(1, self.teacher.shape[1])
        if self.positions is not None:
            patches = self.student.shape[1] - self.prefix
            counts[:, self.prefix :] = patches / self.positions.shape[1]
        return counts


def aligned(student: Features, teacher: Features, *, prefix: bool, where: str) -> Pair:
    """Bring a student to a teacher's positions.

    A teacher's vector, a mean or an embedding, needs a vector: a student's positions are
    averaged. Its energy needs the student's energy. Where the sides of the grids differ the
    student's map is averaged to a smaller one, or interpolated to a larger one.

    Args:
        student: Activations of the student layer.
        teacher: What is cached of the teacher.
        prefix: Whether class tokens and registers are compared, if both have as many.
        where: Which term, for messages.

    Raises:
        UsageError: There is no way to compare them.
    """
    if teacher.layout == "vector":
        values = as_vectors(student)
        return Pair(wide(values)[:, None], wide(teacher.values)[:, None], 0, None, None)
    if student.layout == "vector":
        raise unfit(student, teacher, where, "name a tap of the student that has positions")
    if teacher.reduction == "energy":
        student = _energy(student)
    student_prefix, student_patches = _split(student)
    teacher_prefix, teacher_patches = _split(teacher)
    patches = _on_grid(student_patches, student, teacher, where)
    kept = student_prefix.shape[1] if prefix else 0
    if kept == 0 or kept != teacher_prefix.shape[1]:
        return Pair(patches, teacher_patches, 0, teacher.grid, teacher.positions)
    return Pair(
        torch.cat([student_prefix, patches], 1),
        torch.cat([teacher_prefix, teacher_patches], 1),
        kept,
        teacher.grid,
        teacher.positions,
    )


def as_vectors(held: Features) -> Tensor:
    """Return one vector (B, D) a row: positions are averaged, without prefix tokens."""
    return held.values if held.layout == "vector" else _split(held)[1].mean(1)


def as_map(patches_BPD: Tensor, grid: int) -> Tensor:
    """Return a square of patches as a map (B, D, H, W)."""
    return patches_BPD.transpose(1, 2).reshape(len(patches_BPD), -1, grid, grid)


def as_tokens(maps_BDHW: Tensor) -> Tensor:
    """Return a map as patches (B, P, D), row by row."""
    return maps_BDHW.flatten(2).transpose(1, 2)


def flattened(held: Features) -> Tensor:
    """Return everything that is held of each row as one vector."""
    return wide(held.values).flatten(1)


def cached_features(targets: TargetBatch, name: str) -> Features:
    """Return what is cached of a tap, ``<teacher>/<tap>``.

    Raises:
        UsageError: It is not in the batch.
    """
    if name not in targets.features:
        raise UsageError(
            f"no features {name!r} in this batch",
            hint=nearest(name, targets.features)
            if targets.features
            else "precompute them: teachers.<name>.features: {<tap>: {}}",
        )
    return targets.features[name]


def unfit(student: Features, teacher: Features, where: str, hint: str) -> UsageError:
    """Return the error for shapes that cannot be compared, naming both."""
    return UsageError(
        "activations of the student do not fit the cached activations",
        where=where,
        expected=f"the teacher's {_shape(teacher)}",
        got=f"the student's {_shape(student)}",
        hint=hint,
    )


def wide(values: Tensor) -> Tensor:
    """Return values in float32, or wider if they are."""
    return values if values.dtype == torch.float64 else values.float()


def _split(held: Features) -> tuple[Tensor, Tensor]:
    """Return prefix tokens (B, p, D) and patches (B, P, D)."""
    values = wide(held.values)
    if held.layout == "NCHW":
        patches = as_tokens(values)
        return patches[:, :0], patches
    return values[:, : held.prefix_tokens], values[:, held.prefix_tokens :]


def _energy(held: Features) -> Features:
    """Return the mean square over channels, a map of one channel."""
    energy = _split(held)[1].square().mean(2)
    side = held.grid
    shape = (1, *held.values.shape[2:]) if held.layout == "NCHW" else (1, side or -1, side or 1)
    return replace(held, values=energy.view(-1, *shape), layout="NCHW", prefix_tokens=0)


def _on_grid(patches_BPD: Tensor, student: Features, teacher: Features, where: str) -> Tensor:
    """Return the student's patches at every position of the teacher's grid."""
    here, there = student.grid, teacher.grid
    if here is None or there is None:
        if teacher.positions is None and _positions(student) == _positions(teacher):
            return patches_BPD
        raise unfit(student, teacher, where, "name taps whose positions are squares, or as many")
    if here == there:
        return patches_BPD
    maps_BDHW = as_map(patches_BPD, here)
    if here > there:
        resized = functional.adaptive_avg_pool2d(maps_BDHW, there)
    else:
        resized = functional.interpolate(maps_BDHW, (there, there), mode="bilinear")
    return as_tokens(resized)


def _positions(held: Features) -> tuple[int, ...]:
    """Return the sides of a map, or the number of patch tokens."""
    if held.layout == "NCHW":
        return tuple(held.values.shape[2:])
    return (held.values.shape[1] - held.prefix_tokens,)


def _shape(held: Features) -> str:
    axes = {"NCHW": "map (D, H, W)", "NLC": "tokens (L, D)", "vector": "vector (D,)"}[held.layout]
    shape = ", ".join(str(size) for size in held.values.shape[1:])
    said = f"{axes} of ({shape})"
    return f"{said} with {held.prefix_tokens} prefix tokens" if held.prefix_tokens else said
