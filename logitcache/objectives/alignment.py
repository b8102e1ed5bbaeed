"""Alignment of student activations with the positions of cached features.

A student and a teacher may differ in layout, grid and prefix tokens: maps and tokens are both
treated as positions with channels. Only the student is changed, in the same way as the teacher's
activations when they were cached.

Shapes: B batch, D channels of the student, E of the teacher, P patches of the teacher's grid, n
cached patches, p prefix tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features, Outputs, TargetBatch
    from logitcache.objectives.term import PairConfig

__all__ = [
    "Pair",
    "aligned",
    "as_map",
    "as_patches",
    "as_tokens",
    "as_vectors",
    "cached_features",
    "drawn_positions",
    "energy_of",
    "flattened",
    "on_own_grids",
    "pair_of",
    "unfit",
    "wide",
]


@dataclass(frozen=True)
class Pair:
    """Activations of a student and a teacher on the same grid; a vector is one position.

    Attributes:
        student: Activations of the student (B, p + P, D), at all positions; those of its own square
            grid for a projector that changes the grid.
        teacher: Activations of the teacher (B, p + n, E), at the cached positions.
        prefix: Number of prefix tokens, p.
        grid: Side of the square grid of positions; None if they are not a square.
        positions: Indices of the cached patches, int64 (B, n); None for all patches.
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
        """Number of positions that each cached one represents, (1, p + n): P / n for a patch."""
        counts = self.teacher.new_ones(1, self.teacher.shape[1])
        if self.positions is not None:
            patches = self.student.shape[1] - self.prefix
            counts[:, self.prefix :] = patches / self.positions.shape[1]
        return counts


def on_own_grids(student: Features, teacher: Features, *, where: str) -> Pair:
    """Return the activations of a student and a teacher, each on its own square grid of patches.

    Args:
        student: Activations of the student layer.
        teacher: Cached activations of the teacher layer.
        where: Name of the term, for messages.

    Raises:
        UsageError: One of them is not on a square grid, or has some of its patches alone.
    """
    if student.positions is not None or teacher.positions is not None:
        hint = (
            "choose views that show all patches (patch_drop_rate: 0), and features without tokens"
        )
        raise unfit(student, teacher, where, hint)
    if student.grid is None or teacher.grid is None:
        raise unfit(student, teacher, where, "choose layers with square grids")
    return Pair(_split(student)[1], _split(teacher)[1], 0, teacher.grid, teacher.positions)


def aligned(student: Features, teacher: Features, *, prefix: bool, where: str) -> Pair:
    """Return the activations of a student at the positions of a teacher's cached ones.

    If the teacher has one vector (a mean or an embedding), the student's positions are averaged. If
    the teacher has the energy of its channels, that of the student is computed. If the sides of the
    grids differ, the student's map is averaged to a smaller one or interpolated to a larger one.

    Args:
        student: Activations of the student layer.
        teacher: Cached activations of the teacher layer.
        prefix: Whether class tokens and registers are compared, if both have the same number.
        where: Name of the term, for messages.

    Raises:
        UsageError: The activations cannot be compared.
    """
    if teacher.layout == "vector":
        values = as_vectors(student)
        return Pair(wide(values)[:, None], wide(teacher.values)[:, None], 0, None, None)
    if student.layout == "vector":
        raise unfit(student, teacher, where, "choose a student layer with maps or tokens")
    if student.positions is not None:
        return _of_same_patches(student, teacher, prefix, where)
    if teacher.reduction == "energy":
        student = energy_of(student)
    student_prefix, student_patches = _split(student)
    teacher_prefix, teacher_patches = _split(teacher)
    patches = _on_grid(student_patches, student, teacher, where)
    own, other = (student_prefix, patches), (teacher_prefix, teacher_patches)
    return _with_prefix(own, other, prefix, teacher.grid, teacher.positions)


def pair_of(
    config: PairConfig, outputs: Outputs, targets: TargetBatch, *, prefix: bool, where: str
) -> Pair:
    """Return the activations of a pair of layers in a batch; see :func:`aligned`."""
    teacher = cached_features(targets, config.features)
    return aligned(outputs.tap(config.held), teacher, prefix=prefix, where=where)


def _with_prefix(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    prefix: bool,
    grid: int | None,
    positions: Tensor | None,
) -> Pair:
    """Return a pair with the prefix tokens, if they are compared and both have as many."""
    kept = student[0].shape[1] if prefix else 0
    if kept == 0 or kept != teacher[0].shape[1]:
        return Pair(student[1], teacher[1], 0, grid, positions)
    return Pair(torch.cat(student, 1), torch.cat(teacher, 1), kept, grid, positions)


def _of_same_patches(student: Features, teacher: Features, prefix: bool, where: str) -> Pair:
    """Return the activations where both networks were run on the same patches of an image.

    They are compared as they are: n positions without a grid.
    """
    here, there = student.positions, teacher.positions
    same = here is not None and there is not None and here.shape == there.shape
    if not same or student.grid != teacher.grid:
        hint = "choose features of a cache whose views drop the same patches (patch_drop_rate)"
        raise unfit(student, teacher, where, hint)
    return _with_prefix(_split(student), _split(teacher), prefix, None, None)


def as_vectors(held: Features) -> Tensor:
    """Return one vector per row, (B, D): the mean over positions without prefix tokens."""
    return held.values if held.layout == "vector" else _split(held)[1].mean(1)


def as_patches(held: Features) -> Tensor:
    """Return the positions of maps or tokens without prefix tokens, (B, P, D)."""
    return _split(held)[1]


def as_map(patches_BPD: Tensor, grid: int) -> Tensor:
    """Return patches of a square grid as a map (B, D, H, W)."""
    return patches_BPD.transpose(1, 2).reshape(len(patches_BPD), -1, grid, grid)


def as_tokens(maps_BDHW: Tensor) -> Tensor:
    """Return a map as patches (B, P, D), row by row."""
    return maps_BDHW.flatten(2).transpose(1, 2)


def drawn_positions(rows: int, patches: int, count: int | Tensor, device: torch.device) -> Tensor:
    """Return a random choice of positions for every row, bool (B, P).

    Args:
        rows: Number of rows, B.
        patches: Number of positions, P.
        count: Number of positions to choose in each row; a scalar tensor is not read, so that an
            accelerator is not waited for.
        device: Device of the result, whose random numbers are used.
    """
    return torch.rand(rows, patches, device=device).argsort(1).argsort(1) < count


def flattened(held: Features) -> Tensor:
    """Return all activations of each row as one vector."""
    return wide(held.values).flatten(1)


def cached_features(targets: TargetBatch, name: str) -> Features:
    """Return the cached features of a layer, ``<teacher>/<tap>``.

    Raises:
        UsageError: They are not in the batch.
    """
    if name not in targets.features:
        raise UsageError(
            f"the batch has no features {name!r}",
            hint=nearest(name, targets.features)
            if targets.features
            else "precompute them: teachers.<name>.features: {<tap>: {}}",
        )
    return targets.features[name]


def unfit(student: Features, teacher: Features, where: str, hint: str) -> UsageError:
    """Return the error for activations that cannot be compared, with the shapes of both."""
    return UsageError(
        "activations of the student do not fit the cached activations",
        where=where,
        expected=f"the teacher's {_shape(teacher)}",
        got=f"the student's {_shape(student)}",
        hint=hint,
    )


def wide(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are: losses are not computed in half."""
    return values if values.dtype == torch.float64 else values.float()


def _split(held: Features) -> tuple[Tensor, Tensor]:
    """Return prefix tokens (B, p, D) and patches (B, P, D)."""
    values = wide(held.values)
    if held.layout == "NCHW":
        patches = as_tokens(values)
        return patches[:, :0], patches
    return values[:, : held.prefix_tokens], values[:, held.prefix_tokens :]


def energy_of(held: Features) -> Features:
    """Return the mean square over channels, a map of one channel; energies are returned as such."""
    if held.reduction == "energy":
        return held
    energy = _split(held)[1].square().mean(2)
    side = held.grid
    shape = (1, *held.values.shape[2:]) if held.layout == "NCHW" else (1, side or -1, side or 1)
    return replace(
        held, values=energy.view(-1, *shape), layout="NCHW", prefix_tokens=0, reduction="energy"
    )


def _on_grid(patches_BPD: Tensor, student: Features, teacher: Features, where: str) -> Tensor:
    """Return the student's patches at every position of the teacher's grid."""
    here, there = student.grid, teacher.grid
    if here is None or there is None:
        if teacher.positions is None and _positions(student) == _positions(teacher):
            return patches_BPD
        raise unfit(student, teacher, where, "choose layers with equal or square grids")
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
    text = f"{axes} of ({shape})"
    return f"{text} with {held.prefix_tokens} prefix tokens" if held.prefix_tokens else text
