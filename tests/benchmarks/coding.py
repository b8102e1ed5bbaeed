"""What rounding adds to what the choice of K loses, at C = 1000, on synthetic logits.

KL(teacher || what a cache gives back) less KL(teacher || its K classes and tail, exact), by
:mod:`logitcache.encoding.fidelity`; what K itself loses stands in the note.
"""

from __future__ import annotations

from logitcache.encoding.fidelity import TEMPERATURES, measure_fidelity
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from tests.benchmarks.measuring import Measurement
from tests.benchmarks.synthetic import teacher_logits

ROWS, CLASSES, TOP_KS, BOUND = 4096, 1000, (10, 50, 100), 5e-5


def measure() -> list[Measurement]:
    """Return nats at T = 1, 2 and 4."""
    log_probs_NC = log_softmax(teacher_logits(ROWS, CLASSES))[0]
    rows = []
    for top_k in TOP_KS:
        losses = measure_fidelity(SparseEncoding(CLASSES, top_k), log_probs_NC).losses
        for temperature in TEMPERATURES:
            loss = losses[temperature]
            name = f"KL added by coding, K = {top_k}, T = {temperature:g}"
            note = f"{loss.truncation:.4f} nats are lost by K"
            rows.append(Measurement(name, loss.coding, "nats", target=BOUND, note=note))
    return rows
