"""The soft loss on sparse targets, forward and backward, against ``F.cross_entropy``.

At most 1.5 times its processor time at T = 1, and less than one (B, C) float in addition to what
cross-entropy needs. glibc is set to keep freed memory: otherwise both sides pay for page faults,
cross-entropy for more of them, and how many is chance of the heap.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from logitcache.batch import SparseLogits
from logitcache.objectives.soft import Tail, soft_divergence
from logitcache.platforms import tune_allocator
from tests.benchmarks.measuring import Measurement, backward, ratio_of_times
from tests.memory import peak_bytes

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 256
TAILS: tuple[Tail, ...] = ("uniform", "bucket", "renorm")
ROUNDS = {1000: (201, 5), 21841: (41, 1)}


def targets(classes: int, top_k: int) -> SparseLogits:
    """Return what a teacher with cross-entropy-like logits would have stored."""
    log_p_BC = (3 * torch.randn(BATCH, classes)).log_softmax(1)
    top = log_p_BC.topk(top_k)
    ids_BK, order = top.indices.sort(1)
    absent_BC = log_p_BC.scatter(1, ids_BK, -torch.inf)
    tail_B2 = torch.stack([absent_BC.logsumexp(1), (absent_BC / 4).logsumexp(1)], 1)
    return SparseLogits(ids_BK, top.values.gather(1, order), tail_B2, classes)


def measure() -> list[Measurement]:
    """Return processor time and memory for ImageNet-1k's and ImageNet-21k's number of classes."""
    tune_allocator()
    rows = []
    for classes, (rounds, repeat) in ROUNDS.items():
        torch.manual_seed(0)
        labels_B = torch.randint(0, classes, (BATCH,))
        logits_BC = torch.randn(BATCH, classes, requires_grad=True)

        def reference(z: Tensor = logits_BC, y: Tensor = labels_B) -> Tensor:
            return functional.cross_entropy(z, y)

        plain = peak_bytes(reference, logits_BC)
        for top_k in (10, 50):
            teacher = targets(classes, top_k)
            for tail, temperature in [(tail, 1.0) for tail in TAILS] + [("uniform", 4.0)]:

                def ours(
                    z: Tensor = logits_BC,
                    q: SparseLogits = teacher,
                    t: Tail = tail,
                    temp: float = temperature,
                ) -> Tensor:
                    return soft_divergence(z, q, temperature=temp, tail=t).mean()

                name = f"sparse loss, {tail}, K = {top_k}, ({BATCH}, {classes})"
                name += "" if temperature == 1.0 else f", T = {temperature:g}"
                rows.append(
                    ratio_of_times(
                        name,
                        backward(ours, logits_BC),
                        backward(reference, logits_BC),
                        rounds=rounds,
                        repeat=repeat,
                        target=1.5 if temperature == 1.0 else None,
                        clock=time.process_time,
                    )
                )
                extra = (peak_bytes(ours, logits_BC) - plain) / (4 * BATCH * classes)
                memory = f"{name}: extra memory"
                rows.append(Measurement(memory, extra, "(B, C) floats", target=1.0))
    return rows
