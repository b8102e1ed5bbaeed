"""How far off the gradient of sparse targets is, by tail, K and temperature, at C = 1000.

Teachers are Gaussian logits of standard deviation 1.2 with a peak of 0, 5 or 9; the student's are
0.6 of the teacher's and noise. The reference is the dense loss in float64; targets go through the
codes of the cache and back, as a student meets them.
"""

from __future__ import annotations

import torch

from logitcache.batch import DenseLogits, SparseLogits
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.objectives.soft import Tail, soft_divergence
from tests.benchmarks.measuring import Measurement

ROWS, CLASSES = 512, 1000
TOP_KS, TEMPERATURES = (10, 50, 100), (1.0, 2.0, 4.0)
TAILS: tuple[Tail, ...] = ("uniform", "bucket", "renorm")


def logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a student's and a teacher's logits, float64 (N, C)."""
    generator = torch.Generator().manual_seed(0)
    teacher_NC = 1.2 * torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    peaks_N = torch.tensor([0.0, 5.0, 9.0], dtype=torch.float64)[torch.arange(ROWS) % 3]
    teacher_NC[:, 0] += peaks_N
    noise_NC = torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    return 0.6 * teacher_NC + 0.5 * noise_NC, teacher_NC


def stored(teacher_NC: torch.Tensor, top_k: int) -> SparseLogits:
    """Return the sparse targets that a cache gives back."""
    encoding = SparseEncoding(CLASSES, top_k)
    found = encoding.decode(encoding.encode(log_softmax(teacher_NC.float().numpy())[0]))
    return SparseLogits(
        torch.from_numpy(found.class_ids),
        torch.from_numpy(found.log_probs),
        torch.from_numpy(found.tail),
        CLASSES,
    )


def measure() -> list[Measurement]:
    """Return the error of the gradient, relative to the dense one's norm."""
    student_NC, teacher_NC = logits()
    student_NC.requires_grad_()
    rows = []
    for temperature in TEMPERATURES:
        dense = soft_divergence(
            student_NC, DenseLogits(teacher_NC.log_softmax(1)), temperature=temperature
        )
        (exact_NC,) = torch.autograd.grad(dense.sum(), student_NC)
        for top_k in TOP_KS:
            targets = stored(teacher_NC, top_k)
            for tail in TAILS:
                sparse = soft_divergence(student_NC, targets, temperature=temperature, tail=tail)
                (grad_NC,) = torch.autograd.grad(sparse.sum(), student_NC)
                error = float((grad_NC - exact_NC).norm() / exact_NC.norm())
                name = f"gradient error, T = {temperature:g}, K = {top_k}, {tail}"
                rows.append(Measurement(name, error, "x"))
    return rows
