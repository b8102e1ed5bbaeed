"""What rounding adds to what the choice of K loses, at C = 1000.

KL(teacher || what a cache gives back) less KL(teacher || its K classes and tail, exact), by
:mod:`logitcache.encoding.fidelity`; what K itself loses stands in the note.
"""

from __future__ import annotations

from logitcache.encoding.fidelity import TEMPERATURES, measure_fidelity
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from tests.benchmarks.logits import CLASSES, kind_of_logits, logits_of_rows
from tests.benchmarks.measuring import Measurement

ROWS, TOP_KS, BOUND = 4096, (10, 50, 100), 5e-5


def measure() -> list[Measurement]:
    """Return nats at T = 1, 2 and 4."""
    kind = kind_of_logits()
    log_probs_NC = log_softmax(logits_of_rows(ROWS))[0]
    rows = []
    for top_k in TOP_KS:
        losses = measure_fidelity(SparseEncoding(CLASSES, top_k), log_probs_NC).losses
        for temperature in TEMPERATURES:
            loss = losses[temperature]
            name = f"{kind} logits, K = {top_k}, T = {temperature:g}: KL added by coding"
            note = f"{loss.truncation:.4f} nats are lost by K"
            rows.append(Measurement(name, loss.coding, "nats", target=BOUND, note=note))
    return rows
