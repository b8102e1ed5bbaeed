"""An experiment: what if the views of an image shared the mean of their log-probabilities?

The mean over the views of an image is stored once, by the codes of a transform encoding; each view
has the codes of what it differs by, and corrections of its likeliest classes as the transform
encoding has them. No cache has this encoding. ::

    python -m tests.benchmarks.image_means logits.npz

``logits.npz`` comes from :mod:`tests.benchmarks.imagenet_logits`. Bases are fitted on 3/4 of the
images, the others are measured. Bytes are compressed ones of a row and view, with those of
the mean divided by the number of views.

Shapes: N images, V views, C classes, D directions, m refined classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from logitcache.cache.format.arrays import packed_bytes
from logitcache.encoding.arrays import ArraySpec
from logitcache.encoding.basis import Basis, centered, principal_directions
from logitcache.encoding.fidelity import TEMPERATURES
from logitcache.encoding.logits import log_softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEAN_STEPS, STEPS, REFINED = (4.0, 8.0, 16.0), (6.0, 8.0, 12.0), (32, 48)
FINE, REFINED_STEP, OFFSET_B = 8, 0.6, 0.5


class Codes(NamedTuple):
    """Rows by a basis.

    Attributes:
        rows: Approximate rows in nats, (N, C).
        bytes: Compressed size of all codes.
    """

    rows: NDArray[np.float64]
    bytes: float


def packed(codes_ND: NDArray[np.float64], wide: int) -> float:
    """Return the compressed size of codes: a byte each, or one for two beyond the wide ones."""
    low_ND = np.clip(codes_ND[:, wide:], -8, 7).astype(np.int64) & 15
    if low_ND.shape[1] % 2:
        low_ND = np.pad(low_ND, ((0, 0), (0, 1)))
    pairs = low_ND[:, 0::2] | low_ND[:, 1::2] << 4
    stored = np.concatenate(
        [np.clip(codes_ND[:, :wide], -127, 127).astype(np.int64) & 255, pairs], 1
    )
    spec = ArraySpec((stored.shape[1],), "uint8", 0, "transposed")
    return packed_bytes({"codes": spec}, {"codes": stored.astype(np.uint8)})


def coded(basis: Basis, rows_NC: NDArray[np.float64]) -> Codes:
    """Return what a basis makes of rows."""
    codes_ND = np.rint(basis.coefficients(rows_NC))
    codes_ND[:, : basis.wide] = np.clip(codes_ND[:, : basis.wide], -127, 127)
    codes_ND[:, basis.wide :] = np.clip(codes_ND[:, basis.wide :], -8, 7)
    scores_NC = basis.scores(codes_ND.astype(np.int8))
    return Codes(scores_NC.astype(np.float64) * basis.scale, packed(codes_ND, basis.wide))


def corrected(
    log_probs_NC: NDArray[np.float64], base_NC: NDArray[np.float64], refined: int
) -> Codes:
    """Return rows after corrections of the classes that the base ranks first."""
    order_Nm = np.argsort(-base_NC, axis=1)[:, :refined]
    log_masses_N1 = []
    for rows_NC in (log_probs_NC, base_NC):
        others_NC = OFFSET_B * rows_NC
        np.put_along_axis(others_NC, order_Nm, -np.inf, axis=1)
        peak_N1 = others_NC.max(axis=1, keepdims=True)
        mass_N1 = np.log(np.exp(others_NC - peak_N1).sum(axis=1, keepdims=True)) + peak_N1
        log_masses_N1.append(mass_N1 / OFFSET_B)
    steps_m = np.full(refined, REFINED_STEP)
    steps_m[:FINE] /= 8.0
    exact_Nm, base_Nm = (np.take_along_axis(rows, order_Nm, 1) for rows in (log_probs_NC, base_NC))
    codes_Nm = np.rint((exact_Nm - base_Nm - (log_masses_N1[0] - log_masses_N1[1])) / steps_m)
    codes_Nm[:, :FINE] = np.clip(codes_Nm[:, :FINE], -127, 127)
    codes_Nm[:, FINE:] = np.clip(codes_Nm[:, FINE:], -8, 7)
    rows_NC = base_NC.copy()
    np.put_along_axis(rows_NC, order_Nm, base_Nm + codes_Nm * steps_m, axis=1)
    return Codes(rows_NC, packed(codes_Nm, FINE))


def divergence(
    log_probs_NC: NDArray[np.float64], rows_NC: NDArray[np.float64], temperature: float
) -> float:
    """Return the mean KL divergence at a temperature, in nats."""
    exact_NC, found_NC = (
        log_softmax((rows / temperature).astype(np.float32))[0] for rows in (log_probs_NC, rows_NC)
    )
    return float((np.exp(exact_NC) * (exact_NC - found_NC)).sum(axis=1).mean())


def lines(logits_NVC: NDArray[np.float32]) -> list[str]:
    """Return the rows of a table."""
    images, views, classes = logits_NVC.shape
    log_probs = log_softmax(logits_NVC.reshape(-1, classes))[0]
    x_NVC = centered(log_probs).reshape(images, views, classes)
    fitted = images * 3 // 4
    exact_NC = log_probs.reshape(images, views, classes)[fitted:].reshape(-1, classes)
    mean_NC = x_NVC.mean(axis=1)
    found = []
    for mean_step in MEAN_STEPS:
        mean = Basis.of(principal_directions(mean_NC[:fitted]), mean_step)
        shared = coded(mean, mean_NC[fitted:])
        shared_fit = coded(mean, mean_NC[:fitted])
        rest_NC = (x_NVC[fitted:] - shared.rows[:, None]).reshape(-1, classes)
        rest_fit = (x_NVC[:fitted] - shared_fit.rows[:, None]).reshape(-1, classes)
        principal = principal_directions(rest_fit)
        for step in STEPS:
            own = coded(Basis.of(principal, step), rest_NC)
            base_NC = own.rows + np.repeat(shared.rows, views, axis=0)
            for refined in REFINED:
                row = corrected(exact_NC, base_NC, refined)
                size = (own.bytes + row.bytes) / len(exact_NC)
                of_mean = shared.bytes / len(shared.rows)
                losses = " | ".join(
                    f"{divergence(exact_NC, row.rows, t):.4f}" for t in TEMPERATURES
                )
                found.append(
                    f"| {mean_step:g} | {step:g} | {refined} | {of_mean:.1f} | {size:.1f} "
                    f"| {size + of_mean / views:.1f} | {size + of_mean / 16:.1f} | {losses} |"
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logits", type=Path)
    logits_NVC = np.load(parser.parse_args().logits)["logits"]
    views = logits_NVC.shape[1]
    heads = " | ".join(f"KL at T = {temperature:g}" for temperature in TEMPERATURES)
    print(
        f"| step of the mean | step | refined | B an image | B a view | all, {views} views ", end=""
    )
    print(f"| all, 16 views | {heads} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(lines(logits_NVC)))


if __name__ == "__main__":
    main()
