"""How often a damaged file is refused, by kind of file and of damage, and what that costs."""

from __future__ import annotations

import io
import statistics
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from logitcache.data.decode import decode
from logitcache.errors import UnreadableImage
from tests.benchmarks.measuring import Measurement, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = 300
SIDE = 64
KINDS: dict[str, dict[str, Any]] = {
    "JPEG, baseline": {"format": "JPEG", "quality": 90},
    "JPEG, progressive": {"format": "JPEG", "quality": 90, "progressive": True},
    "JPEG, 4:4:4": {"format": "JPEG", "quality": 90, "subsampling": 0},
    "JPEG, restart markers": {"format": "JPEG", "quality": 90, "restart_marker_rows": 1},
    "PNG": {"format": "PNG"},
    "WebP": {"format": "WEBP", "quality": 90},
    "AVIF": {"format": "AVIF", "quality": 90},
    "JPEG 2000": {"format": "JPEG2000"},
    "TIFF": {"format": "TIFF"},
}


def _encoded(options: dict[str, Any], generator: np.random.Generator) -> bytes:
    """Return a picture of noise over a gradient."""
    ramp = np.linspace(0, 200, SIDE)[None, :, None] + np.zeros((SIDE, 1, 3))
    noise = generator.integers(0, 56, (SIDE, SIDE, 3))
    buffer = io.BytesIO()
    Image.fromarray((ramp + noise).astype(np.uint8)).save(buffer, **options)
    return buffer.getvalue()


def _inside(content: bytes, generator: np.random.Generator) -> int:
    """Return a place in the image data: the last nine tenths of these small files."""
    return int(generator.integers(len(content) // 10 + 700, len(content) - 20))


def _cut(content: bytes, generator: np.random.Generator) -> bytes:
    return content[: _inside(content, generator)]


def _cut_and_closed(content: bytes, generator: np.random.Generator) -> bytes:
    return _cut(content, generator) + content[-2:]


def _zeros_to_the_end(content: bytes, generator: np.random.Generator) -> bytes:
    at = _inside(content, generator)
    return content[:at] + bytes(len(content) - at)


def _hole(content: bytes, generator: np.random.Generator) -> bytes:
    at, size = _inside(content, generator), int(generator.integers(1, 401))
    size = min(size, len(content) - 12 - at)
    return content[:at] + bytes(size) + content[at + size :]


DAMAGES = {
    "cut": _cut,
    "cut and closed": _cut_and_closed,
    "zeros to the end": _zeros_to_the_end,
    "a hole of 1 to 400 zeros": _hole,
}


def measure() -> list[Measurement]:
    """Return the share of files that are refused, of those whose pixels would be other ones."""
    rows = [_cost()]
    for kind, options in KINDS.items():
        for name, damage in DAMAGES.items():
            refused, other = _tried(options, damage)
            share = 100 * refused / max(1, refused + other)
            note = f"{refused} refused, {other} decoded to other pixels"
            rows.append(Measurement(f"{kind}: {name}", share, "% refused", note=note))
    return rows


def _cost() -> Measurement:
    """Return how much longer table 2 takes than table 1, which looks for no damage."""
    content = _encoded(KINDS["JPEG, baseline"], np.random.default_rng(0))
    pairs = [
        [1e6 * seconds_of(partial(decode, content, table), 200) for table in (2, 1)]
        for _ in range(21)
    ]
    low, median, high = statistics.quantiles([two - one for two, one in pairs], n=4)
    one = statistics.median(one for _, one in pairs)
    name = f"JPEG of {SIDE} pixels: table 2 over table 1"
    return Measurement(name, median, "µs", low, high, note=f"table 1 takes {one:.0f} µs")


def _tried(
    options: dict[str, Any], damage: Callable[[bytes, np.random.Generator], bytes]
) -> tuple[int, int]:
    """Return how many files are refused, and how many are decoded to other pixels."""
    generator = np.random.default_rng(0)
    refused = other = 0
    for _ in range(FILES):
        content = _encoded(options, generator)
        try:
            pixels = decode(damage(content, generator))
        except UnreadableImage:
            refused += 1
        else:
            other += not torch.equal(pixels, decode(content))
    return refused, other
