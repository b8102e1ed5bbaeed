"""Ways to choose the codes of a sparse row, on logits of a real classifier.

::

    python -m tests.benchmarks.rounding logits.npz

Reading is the same for all of them: codes are scaled to the mass of their classes. Bytes and
KL divergences are measured as in :mod:`tests.benchmarks.encodings`, on the same rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.arrays import packed_bytes
from logitcache.encoding.codes import codes_of
from logitcache.encoding.fidelity import TEMPERATURES, fidelity_of, row_losses
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from logitcache.encoding.arrays import Encoded

    Coder = Callable[[NDArray[np.float64], int], NDArray[np.uint8]]

BITS, TOP_KS, SCALES, SWEEPS = (5,), (10, 50, 100), 16, 2


def relative(log_probs_NK: NDArray[np.float64], levels: int) -> NDArray[np.uint8]:
    """Return the codes of p over the largest p."""
    return codes_of(log_probs_NK - log_probs_NK.max(axis=1, keepdims=True), levels)


def best_scale(log_probs_NK: NDArray[np.float64], levels: int) -> NDArray[np.uint8]:
    """Return relative codes of p times the number of some that has the lowest KL divergence."""
    shifted_NK = log_probs_NK - log_probs_NK.max(axis=1, keepdims=True)
    found = [codes_of(shifted_NK + 8 * np.log(s), levels) for s in np.linspace(1.0, 0.9, SCALES)]
    losses = np.stack([_loss(log_probs_NK, codes) for codes in found])
    best: NDArray[np.uint8] = np.stack(found)[losses.argmin(axis=0), np.arange(len(log_probs_NK))]
    return best


def descent(log_probs_NK: NDArray[np.float64], levels: int) -> NDArray[np.uint8]:
    """Return relative codes, each moved by one level as long as that lowers the KL divergence."""
    codes_NK = relative(log_probs_NK, levels)
    for entry in [*range(log_probs_NK.shape[1])] * SWEEPS:
        tried = np.stack([codes_NK] * 3)
        tried[1, :, entry] += 1
        tried[2, :, entry] -= 1
        np.clip(tried, 1, levels, out=tried)
        losses = np.stack([_loss(log_probs_NK, codes) for codes in tried])
        codes_NK = tried[losses.argmin(axis=0), np.arange(len(codes_NK))]
    return codes_NK


def _loss(log_probs_NK: NDArray[np.float64], codes_NK: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the KL divergence of the stored classes, up to a constant of the row."""
    probs_NK = np.exp(log_probs_NK)
    probs_NK /= probs_NK.sum(axis=1, keepdims=True)
    roots_NK = codes_NK.astype(np.float64)
    loss: NDArray[np.float64] = np.log((roots_NK**8).sum(axis=1))
    loss -= 8 * (probs_NK * np.log(roots_NK)).sum(axis=1)
    return loss


CODERS: dict[str, Coder] = {
    "p": codes_of,
    "p / max p (stored)": relative,
    f"the same, best of {SCALES} scales": best_scale,
    "the same, moved level by level": descent,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("logits", type=Path)
    logits_NVC = np.load(parser.parse_args().logits)["logits"]
    rest_NVC = logits_NVC[len(logits_NVC) * 3 // 4 :]
    log_probs_NC = log_softmax(rest_NVC.reshape(-1, logits_NVC.shape[-1]))[0]
    print("| classes | codes of | bytes | KL over 8 bits, T = 1 / 2 / 4 | top class kept |")
    print("|---|---|---|---|---|")
    for bits in BITS:
        for top_k in TOP_KS:
            for line in _lines(log_probs_NC, top_k, bits):
                print(line, flush=True)


def _lines(log_probs_NC: NDArray[np.float64], top_k: int, bits: int) -> list[str]:
    """Return the rows of a number of classes and bits."""
    fine, encoding = (SparseEncoding(log_probs_NC.shape[1], top_k, bits=n) for n in (8, bits))
    before = _kl(fine, log_probs_NC, fine.encode(log_probs_NC))
    arrays = encoding.encode(log_probs_NC)
    ids_NK = encoding.decode(arrays).class_ids
    kept_NK = np.take_along_axis(log_probs_NC, ids_NK, axis=1)
    found = []
    for name, coder in CODERS.items():
        arrays["codes"] = coder(kept_NK, encoding.levels)
        size = packed_bytes(encoding.specs(), arrays) / len(log_probs_NC)
        more = _kl(encoding, log_probs_NC, arrays) - before
        likeliest = np.take_along_axis(ids_NK, arrays["codes"].argmax(axis=1)[:, None], axis=1)
        kept = (likeliest[:, 0] == log_probs_NC.argmax(axis=1)).mean()
        cells = " / ".join(f"{value:.4f}" for value in more)
        found.append(f"| {top_k}, {bits} bits | {name} | {size:.1f} | {cells} | {kept:.1%} |")
    return found


def _kl(
    encoding: SparseEncoding, log_probs_NC: NDArray[np.float64], arrays: Encoded
) -> NDArray[np.float64]:
    """Return the KL divergence at T = 1, 2 and 4."""
    losses = row_losses(encoding, log_probs_NC, arrays)
    fidelity = fidelity_of({name: float(values_N.sum()) for name, values_N in losses.items()})
    return np.array([fidelity.kl(temperature) for temperature in TEMPERATURES])


if __name__ == "__main__":
    main()
