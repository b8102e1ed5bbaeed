"""KL divergence against bytes of all encodings, on logits of a real classifier.

::

    python -m tests.benchmarks.encodings logits.npz --picture docs/measurements/encodings.svg

``logits.npz`` comes from :mod:`tests.benchmarks.imagenet_logits`. Bytes are those of a row and view
in compressed shards, without ``lse`` and ``label_logp`` (about 5 bytes) and the basis of the
transform encoding (once per teacher). It is fitted on three quarters of the images; all encodings
are measured on the others.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.arrays import packed_bytes
from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.fidelity import TEMPERATURES, measure_fidelity
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.transform import TransformEncoding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from logitcache.encoding.kinds import Encoding

TOP_KS, BITS = (5, 10, 20, 50, 100), (8, 6, 5, 4)
STEPS, REFINED = (3.0, 3.5, 4.0, 5.0, 6.0), (32, 48, 64, 96)
COLORS = {1.0: "#3b6ea5", 2.0: "#c7762c", 4.0: "#4d8a4d"}
WIDTH, HEIGHT, LEFT, BOTTOM, MARGIN = 720, 420, 70, 50, 20


def name_of(encoding: Encoding) -> str:
    values = encoding.to_json()
    if values["kind"] == "sparse":
        return f"top {values['top_k']}, {values['bits']} bits"
    if values["kind"] == "transform":
        return f"transform, step {values['step']:g}, {values['refined']} refined"
    return f"dense {values['values']}"


def measured(
    fitted_NC: NDArray[np.float64], log_probs_NC: NDArray[np.float64]
) -> dict[str, tuple[float, dict[float, float]]]:
    """Return bytes per row and the KL divergence by temperature, by encoding."""
    classes = log_probs_NC.shape[1]
    encodings: list[Encoding] = [
        SparseEncoding.new(classes, top_k, bits=bits) for top_k in TOP_KS for bits in BITS
    ]
    principal = principal_directions(fitted_NC)
    bases = [Basis.of(principal, step) for step in STEPS]
    encodings += [TransformEncoding.of(basis, refined) for basis in bases for refined in REFINED]
    encodings += [DenseEncoding(classes, "uint8"), DenseEncoding(classes, "float16")]
    found = {}
    for encoding in encodings:
        size = packed_bytes(encoding.specs(), encoding.encode(log_probs_NC)) / len(log_probs_NC)
        fidelity = measure_fidelity(encoding, log_probs_NC)
        found[name_of(encoding)] = size, {t: fidelity.kl(t) for t in TEMPERATURES}
    return found


def table(found: Mapping[str, tuple[float, Mapping[float, float]]]) -> str:
    heads = [f"KL at T = {temperature:g}" for temperature in TEMPERATURES]
    lines = ["| encoding | bytes | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for name, (size, losses) in found.items():
        cells = [f"{losses[temperature]:.4f}" for temperature in TEMPERATURES]
        lines.append(f"| {name} | {size:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(found: Mapping[str, tuple[float, Mapping[float, float]]]) -> str:
    """Return an SVG with logarithmic axes: bytes to the right, KL divergence upward."""
    sizes = [size for size, _ in found.values()]
    losses = [loss for _, by_t in found.values() for loss in by_t.values()]
    x_range = math.floor(math.log10(min(sizes))), math.log10(max(sizes)) + 0.05
    y_range = (
        max(-5, math.floor(math.log10(min(losses)))),
        math.ceil(math.log10(max(losses))),
    )

    def x(size: float) -> float:
        share = (math.log10(size) - x_range[0]) / (x_range[1] - x_range[0])
        return LEFT + share * (WIDTH - LEFT - MARGIN)

    def y(loss: float) -> float:
        share = (math.log10(max(loss, 10 ** y_range[0])) - y_range[0]) / (y_range[1] - y_range[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for tick in (10, 20, 50, 100, 200, 500, 1000, 2000):
        if x_range[0] <= math.log10(tick) <= x_range[1]:
            parts.append(_line(x(tick), MARGIN, x(tick), HEIGHT - BOTTOM))
            parts.append(_text(x(tick), HEIGHT - BOTTOM + 18, f"{tick}", "middle"))
    for power in range(y_range[0], y_range[1] + 1):
        parts.append(_line(LEFT, y(10.0**power), WIDTH - MARGIN, y(10.0**power)))
        parts.append(_text(LEFT - 8, y(10.0**power) + 4, f"1e{power}", "end"))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 10, "bytes per row and view", "middle"))
    parts.append(_text(LEFT, 14, "KL divergence in nats", "start"))
    for number, (temperature, color) in enumerate(COLORS.items()):
        parts.append(_text(WIDTH - 80, 34 + 18 * number, f"T = {temperature:g}", "start", color))
        for name, (size, by_t) in found.items():
            title = f"<title>{name}: {size:.0f} bytes, {by_t[temperature]:.4f} nats</title>"
            at = x(size), y(by_t[temperature])
            parts.append(_mark(name, *at, f'fill="{color}" fill-opacity="0.8">{title}'))
    return "\n".join([*parts, "</svg>\n"])


def _mark(name: str, x: float, y: float, rest: str) -> str:
    """Return a square (dense), a triangle (transform), or a circle, larger with more bits."""
    if name.startswith("dense"):
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {rest}</rect>'
    if name.startswith("transform"):
        return f'<path d="M{x - 5:.1f} {y + 4:.1f}h10l-5 -9z" {rest}</path>'
    radius = 1.0 + int(name.split()[-2]) * 0.55
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.2f}" {rest}</circle>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#d0d4d8"/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = "#333333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logits", type=Path)
    parser.add_argument("--picture", type=Path, help="an SVG to write")
    arguments = parser.parse_args()
    stored = np.load(arguments.logits)
    record = json.loads(str(stored["record"]))
    logits_NVC = stored["logits"]
    fitted = len(logits_NVC) * 3 // 4
    fitted_NC, log_probs_NC = (
        log_softmax(part_NVC.reshape(-1, part_NVC.shape[-1]))[0]
        for part_NVC in (logits_NVC[:fitted], logits_NVC[fitted:])
    )
    found = measured(fitted_NC, log_probs_NC)
    weights = record["weights_sha256"][:16]
    print(f"{record['package']}, {len(log_probs_NC)} rows, weights {weights}\n")
    print(table(found))
    if arguments.picture:
        arguments.picture.write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
