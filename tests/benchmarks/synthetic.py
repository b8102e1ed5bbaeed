"""Logits as a cross-entropy teacher of many classes gives them, without one at hand.

Classes come in contiguous super-classes of heavy-tailed sizes; a row favors its own class, a
confuser from the same super-class and that super-class; super-classes move together, and the rest
is low-rank and white. Rows differ in temperature, and one scale is bisected so that the mean
largest probability is 0.70.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["teacher_logits"]

_MEAN_TOP = 0.70
_RANK = 32


def _super_classes(generator: np.random.Generator, classes: int) -> NDArray[np.int64]:
    """Return the super-class of each class."""
    sizes = np.ceil(5 * (1 + generator.pareto(1.5, classes))).astype(np.int64)
    return np.repeat(np.arange(classes), sizes)[:classes]


def teacher_logits(rows: int, classes: int, seed: int = 0) -> NDArray[np.float32]:
    """Return logits (rows, classes); another seed gives other rows of the same classes."""
    structure = np.random.default_rng(classes)
    group_C = _super_classes(structure, classes)
    factors_RC = structure.normal(size=(_RANK, classes)).astype(np.float32) / np.sqrt(_RANK)
    generator = np.random.default_rng((classes, seed))
    label_N = generator.integers(classes, size=rows)
    members = [np.flatnonzero(group_C == group) for group in range(group_C.max() + 1)]
    confuser_N = np.array([generator.choice(members[group_C[label]]) for label in label_N])
    z = generator.normal(size=(rows, _RANK)).astype(np.float32) @ factors_RC
    z += generator.normal(size=(rows, len(members))).astype(np.float32)[:, group_C]
    z += 0.6 * generator.normal(size=(rows, classes)).astype(np.float32)
    z += 1.2 * (group_C[None] == group_C[label_N][:, None])
    z[np.arange(rows), label_N] += generator.gamma(14.0, 0.4, rows)
    z[np.arange(rows), confuser_N] += generator.gamma(1.5, 1.0, rows)
    z *= np.exp(0.25 * generator.normal(size=(rows, 1))).astype(np.float32)
    scaled: NDArray[np.float32] = z * np.float32(_scale(z[:512]))
    return scaled


def _scale(z: NDArray[np.float32]) -> float:
    low, high = 0.1, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        scaled = middle * (z - z.max(axis=1, keepdims=True))
        top = 1 / np.exp(scaled).sum(axis=1)
        low, high = (middle, high) if float(top.mean()) < _MEAN_TOP else (low, middle)
    return low
