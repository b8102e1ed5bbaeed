"""The soft loss on transform targets: decoding, the loss, and both in one pass, on a processor.

Forward and backward of 256 rows of 1000 classes by processor time in one thread. *In one pass* are
two ways that the package does not take: a gradient that is written in the forward pass, as the
sparse loss does it; and targets that are normalized at T = 4 alone, not at T = 1 before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from logitcache.batch import DenseLogits, EncodedLogits
from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.transform import TransformEncoding
from logitcache.objectives.soft import soft_divergence
from logitcache.platforms import tune_allocator
from logitcache.targets.decoding.transform_decoder import TransformDecoder
from tests.benchmarks.logits import CLASSES, kind_of_logits, logits_of_rows
from tests.benchmarks.measuring import Measurement, backward, ratio_of_times

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from logitcache.batch import TeacherLogits
    from logitcache.encoding.arrays import Encoded

BATCH, FITTED, STEP, REFINED, ROUNDS, REPEAT = 256, 4096, 4.0, 48, 41, 3


class _WrittenGradient(torch.autograd.Function):
    """KL(q || softmax(b z)) of each row, with its gradient b (softmax(b z) - q)."""

    @staticmethod
    def forward(ctx: Any, logits_BC: Tensor, log_q_BC: Tensor, b: float) -> Tensor:
        log_s_BC = functional.log_softmax(b * logits_BC if b != 1.0 else logits_BC, 1)
        q_BC = log_q_BC.exp()
        divergence_B = (log_q_BC - log_s_BC).mul_(q_BC).sum(1)
        ctx.save_for_backward(log_s_BC.exp_().sub_(q_BC))
        ctx.b = b
        return divergence_B

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (difference_BC,) = ctx.saved_tensors
        return difference_BC * (ctx.b * gradients[0])[:, None], None, None


def written(logits_BC: Tensor, log_probs_BC: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL of each row by the function above."""
    b = 1.0 / temperature
    log_q_BC = log_probs_BC if b == 1.0 else functional.log_softmax(b * log_probs_BC, 1)
    found: Tensor = _WrittenGradient.apply(logits_BC, log_q_BC, b)
    return temperature**2 * found


def measure() -> list[Measurement]:
    """Return processor times as ratios."""
    tune_allocator()
    encoding, encoded = _encoded()
    arrays: dict[str, Any] = {name: torch.from_numpy(array) for name, array in encoded.items()}
    decoder = TransformDecoder(encoding)
    by_numpy, by_torch = (lambda: encoding.decode(encoded)), (lambda: decoder(arrays))
    scores_BC = decoder.scores(arrays["coefficients"]) * float(np.float32(encoding.basis.scale))
    return [
        _compared("decoding by numpy, over torch", by_numpy, by_torch),
        *(row for t in (1.0, 4.0) for row in _losses(arrays, decoder, t)),
        _compared(
            "T = 4: targets normalized once, over twice",
            lambda: functional.log_softmax(0.25 * scores_BC, 1),
            lambda: functional.log_softmax(0.25 * _normalized(scores_BC), 1),
        ),
    ]


def _encoded() -> tuple[TransformEncoding, Encoded]:
    """Return the default encoding, fitted on other rows, and a batch."""
    outputs_NC = logits_of_rows(FITTED + BATCH)
    principal = principal_directions(log_softmax(outputs_NC[:FITTED])[0])
    encoding = TransformEncoding.of(Basis.of(principal, STEP), REFINED)
    return encoding, encoding.encode(log_softmax(outputs_NC[-BATCH:])[0])


def _losses(arrays: dict[str, Any], decoder: TransformDecoder, t: float) -> list[Measurement]:
    """Return forward and backward at a temperature."""
    generator = torch.Generator().manual_seed(0)
    logits_BC = torch.randn(BATCH, CLASSES, generator=generator).requires_grad_()
    labels_B = torch.randint(CLASSES, (BATCH,), generator=generator)
    dense = DenseLogits(decoder(arrays))

    def soft(teacher: TeacherLogits) -> Tensor:
        return soft_divergence(logits_BC, teacher, temperature=t).mean()

    entropy = backward(lambda: functional.cross_entropy(logits_BC, labels_B), logits_BC)
    loss = backward(lambda: soft(dense), logits_BC)
    whole = backward(lambda: soft(EncodedLogits(arrays, CLASSES, decoder)), logits_BC)
    own = backward(lambda: written(logits_BC, dense.log_probs, t).mean(), logits_BC)
    assert torch.allclose(loss()[0], own()[0], atol=1e-8), "the same gradient"  # type: ignore[index]  # tuples
    return [
        _compared(f"T = {t:g}: loss, decoded before, over cross-entropy", loss, entropy),
        _compared(f"T = {t:g}: decoding and loss, over the loss", whole, loss),
        _compared(f"T = {t:g}: written gradient, over autograd's", own, loss),
    ]


def _compared(
    name: str, ours: Callable[[], object], reference: Callable[[], object]
) -> Measurement:
    what = f"{kind_of_logits()} logits: {name}"
    clock = time.process_time
    return ratio_of_times(what, ours, reference, rounds=ROUNDS, repeat=REPEAT, clock=clock)


def _normalized(logits_BC: Tensor) -> Tensor:
    """Return log-probabilities as the decoder does, summed in float64."""
    shifted_BC = logits_BC - logits_BC.amax(1, keepdim=True)
    return (shifted_BC - shifted_BC.double().exp().sum(1, keepdim=True).log()).float()
