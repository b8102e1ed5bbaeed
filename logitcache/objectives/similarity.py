"""Relations of vectors: inner products, distances, angles and CKA.

Source of distance and angle: Park et al., "Relational Knowledge Distillation", CVPR 2019, and its
code, which is followed where it is more specific: means are over all i, j (and k), including the
zeros for equal indices; distances are clamped to at least 1e-6, without gradient below; the
normalizer is the mean over positive distances. One difference: if two things of a student coincide,
the code's unit vector between them has a gradient of 1e12; here the gradient is zero.
Source of cka: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML
2019, equation 3 with linear kernels.

Shapes: G groups, M things, D and E values of each for student and teacher, m anchors at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from logitcache.objectives.distance import difference

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.objectives.distance import Reduction

__all__ = ["angle", "cka", "distance", "gram"]

_CLOSEST = 1e-6
_NUMBERS_AT_ONCE = 2**22


def gram(student_GMD: Tensor, teacher_GME: Tensor, reduction: Reduction) -> Tensor:
    """Return the squared difference of inner products, averaged over groups, a scalar.

    Args:
        student_GMD: Things of the student.
        teacher_GME: Things of the teacher.
        reduction: ``mean`` or ``sum`` over the M x M pairs.
    """
    each_GMM = difference("l2", _products(student_GMD), _products(teacher_GME))
    over_pairs_G = each_GMM.mean((1, 2)) if reduction == "mean" else each_GMM.sum((1, 2))
    return over_pairs_G.mean()


def distance(student_GMD: Tensor, teacher_GME: Tensor) -> Tensor:
    """Return the mean Huber loss of normalized distances, a scalar; zero for a single thing."""
    student_GMM, teacher_GMM = _distances(student_GMD), _distances(teacher_GME)
    return difference("huber", student_GMM, teacher_GMM).mean()


def angle(student_GMD: Tensor, teacher_GME: Tensor) -> Tensor:
    """Return the mean Huber loss of the cosines of the angles of all triples, a scalar.

    For many triples, a few anchors are processed at a time and computed again for the gradient, so
    memory grows with M x M instead of M x M x M.
    """
    groups, things = student_GMD.shape[:2]
    widest = max(things, student_GMD.shape[2], teacher_GME.shape[2])
    at_once = max(1, _NUMBERS_AT_ONCE // (groups * things * widest))
    if things <= at_once:
        return _angles_at(student_GMD, teacher_GME, slice(None)) / (groups * things**3)
    total = student_GMD.new_zeros(())
    for first in range(0, things, at_once):
        anchors = slice(first, first + at_once)
        part: Tensor = checkpoint(
            _angles_at,
            student_GMD,
            teacher_GME,
            anchors,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn, so saving the state would be a waste
        )
        total = total + part
    return total / (groups * things**3)


def cka(student_GMD: Tensor, teacher_GME: Tensor) -> Tensor:
    """Return one minus the linear centered kernel alignment, averaged over groups, a scalar."""
    student_GMM, teacher_GMM = _centered_products(student_GMD), _centered_products(teacher_GME)
    together_G = (student_GMM * teacher_GMM).sum((1, 2))
    norms_G = torch.linalg.vector_norm(student_GMM, dim=(1, 2)) * torch.linalg.vector_norm(
        teacher_GMM, dim=(1, 2)
    )
    alike: Tensor = (together_G / norms_G.clamp(min=1e-12)).mean()
    return 1.0 - alike


def _products(things_GMD: Tensor) -> Tensor:
    return things_GMD @ things_GMD.transpose(1, 2)


def _centered_products(things_GMD: Tensor) -> Tensor:
    return _products(things_GMD - things_GMD.mean(1, keepdim=True))


def _distances(things_GMD: Tensor) -> Tensor:
    """Return all distances divided by the mean of the positive ones, (G, M, M)."""
    things = things_GMD.shape[1]
    # from differences: expanding the square to inner products cancels digits for close things
    exact_GMM = torch.cdist(
        things_GMD, things_GMD, compute_mode="donot_use_mm_for_euclid_dist"
    ).clamp(min=_CLOSEST)
    others_MM = 1.0 - torch.eye(things, dtype=exact_GMM.dtype, device=exact_GMM.device)
    distances_GMM = exact_GMM * others_MM
    mean_G11 = distances_GMM.sum((1, 2), keepdim=True) / max(1, things * (things - 1))
    return distances_GMM / mean_G11.clamp(min=_CLOSEST)


def _angles_at(student_GMD: Tensor, teacher_GME: Tensor, anchors: slice) -> Tensor:
    """Return the sum of the Huber loss of the cosines at some anchors, a scalar."""
    units = (_units(all_[:, None] - all_[:, anchors, None]) for all_ in (student_GMD, teacher_GME))
    student_GmMM, teacher_GmMM = (units_GmMD @ units_GmMD.transpose(2, 3) for units_GmMD in units)
    return functional.smooth_l1_loss(student_GmMM, teacher_GmMM, reduction="sum")


def _units(vectors: Tensor) -> Tensor:
    """Return vectors of length one; vectors of nearly zero length become zero."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    # the inner where keeps the division by zero out of the gradient, where it would become NaN
    flat = length < _CLOSEST**2
    return torch.where(flat, 0.0, vectors / torch.where(flat, 1.0, length))
