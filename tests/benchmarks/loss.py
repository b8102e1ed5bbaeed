"""The soft loss on sparse targets, forward and backward, against ``F.cross_entropy``.

Design: at most 1.5 times its time, and less than one (B, C) float beside what cross-entropy needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from logitcache.batch import SparseLogits
from logitcache.objectives.soft import Tail, soft_divergence
from tests.benchmarks.measuring import Measurement, backward, ratio_of_times
from tests.memory import peak_bytes

if TYPE_CHECKING:
    from torch import Tensor

BATCH, TOP_K = 256, 50
TAILS: tuple[Tail, ...] = ("uniform", "bucket", "renorm")


def targets(classes: int) -> SparseLogits:
    """Return what a teacher with cross-entropy-like logits would have stored."""
    log_p_BC = (3 * torch.randn(BATCH, classes)).log_softmax(1)
    top = log_p_BC.topk(TOP_K)
    ids_BK, order = top.indices.sort(1)
    absent_BC = log_p_BC.scatter(1, ids_BK, -torch.inf)
    tail_B2 = torch.stack([absent_BC.logsumexp(1), (absent_BC / 4).logsumexp(1)], 1)
    return SparseLogits(ids_BK, top.values.gather(1, order), tail_B2, classes)


def measure() -> list[Measurement]:
    """Return time and memory for ImageNet-1k's and ImageNet-21k's number of classes."""
    rows = []
    for classes, repeat in ((1000, 20), (21841, 1)):
        torch.manual_seed(0)
        teacher = targets(classes)
        labels_B = torch.randint(0, classes, (BATCH,))
        logits_BC = torch.randn(BATCH, classes, requires_grad=True)

        def reference(z: Tensor = logits_BC, y: Tensor = labels_B) -> Tensor:
            return functional.cross_entropy(z, y)

        plain = peak_bytes(reference, logits_BC)
        for tail in TAILS:

            def ours(z: Tensor = logits_BC, q: SparseLogits = teacher, t: Tail = tail) -> Tensor:
                return soft_divergence(z, q, tail=t).mean()

            name = f"sparse loss, {tail}, ({BATCH}, {classes})"
            pair = backward(ours, logits_BC), backward(reference, logits_BC)
            rows.append(ratio_of_times(name, *pair, rounds=41, repeat=repeat, target=1.5))
            extra = (peak_bytes(ours, logits_BC) - plain) / (4 * BATCH * classes)
            rows.append(Measurement(f"{name}: extra memory", extra, "(B, C) floats", target=1.0))
    return rows
