"""Draws of policies against timm's and torchvision's own, two samples each.

::

    python -m tests.benchmarks.view_draws [--draws 100000]

Kolmogorov-Smirnov for what is continuous, chi-square for what is counted. With N comparisons a
p-value below 0.01 / N would be a difference.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import chi2_contingency, ks_2samp
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, cutmix_bbox_and_lam
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.parameters import Box, Parameters
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

HEIGHT, WIDTH, SIDE = 375, 500, 1000
POLICY = "rand-m6-n2-mstd1.5-inc1"
STEPS = {
    "AutoContrast": "autocontrast",
    "Equalize": "equalize",
    "Invert": "invert",
    "Rotate": "rotate",
    "PosterizeIncreasing": "posterize",
    "SolarizeIncreasing": "solarize",
    "SolarizeAdd": "solarize_add",
    "ColorIncreasing": "color",
    "ContrastIncreasing": "contrast",
    "BrightnessIncreasing": "brightness",
    "SharpnessIncreasing": "sharpness",
    "ShearX": "shear_x",
    "ShearY": "shear_y",
    "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
}


def drawn(config: ViewsConfig, count: int) -> Iterator[Parameters]:
    view = config.random_view(1)
    hashes = np.random.default_rng(1).integers(0, 2**64, count, dtype=np.uint64)
    for part in np.array_split(hashes, max(1, count // 2000)):
        rows = [array.tolist() for array in view_floats(view, part)]
        for row in zip(*rows, strict=True):
            yield parameters(view, list(row), HEIGHT, WIDTH)


class Table:
    """Prints comparisons and keeps their p-values."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def continuous(self, name: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
        found: Any = ks_2samp(ours, theirs)
        self._row(f"{name}, KS D = {found.statistic:.4f}", len(ours), found.pvalue)

    def counted(self, name: str, ours: Iterable[Any], theirs: Iterable[Any]) -> None:
        a, b = Counter(ours), Counter(theirs)
        kinds = sorted(a.keys() | b.keys(), key=str)
        found: Any = chi2_contingency([[a[k] for k in kinds], [b[k] for k in kinds]])
        title = f"{name}, chi-square = {found.statistic:.1f} at {len(kinds) - 1}"
        self._row(title, sum(a.values()), found.pvalue)

    def _row(self, name: str, count: int, p: float) -> None:
        self.values.append(p)
        print(f"| {name} | {count} | {p:.3f} |", flush=True)


def crops(table: Table, count: int) -> None:
    ours = [how.crop for how in drawn(ViewsConfig(), count)]
    boxes = [(c.top, c.left, c.height, c.width) for c in ours if isinstance(c, Box)]
    image, transform = Image.new("L", (WIDTH, HEIGHT)), RandomResizedCropAndInterpolation(224)
    theirs = [transform.get_params(image, transform.scale, transform.ratio) for _ in range(count)]
    for name, of in {
        "crop: area": lambda b: b[2] * b[3],
        "crop: aspect": lambda b: b[3] / b[2],
        "crop: top": lambda b: b[0],
        "crop: left": lambda b: b[1],
    }.items():
        table.continuous(name, [of(box) for box in boxes], [of(box) for box in theirs])


def flips(table: Table, count: int) -> None:
    ours = [how.flip for how in drawn(ViewsConfig(hflip=0.3), count)]
    theirs = (torch.rand(count) < 0.3).tolist()  # torchvision's RandomHorizontalFlip
    table.counted("flip, p = 0.3", ours, theirs)


def rand_augment(table: Table, count: int) -> None:
    ours = [
        (step.name, step.values[0] if step.values else 0.0)
        for how in drawn(ViewsConfig(auto_augment=POLICY, hflip=0), count)
        for step in how.steps
    ]
    theirs: list[tuple[str, float]] = []
    transform = rand_augment_transform(POLICY, {"magnitude_std": 1.5})
    for op in transform.ops:
        op.aug_fn = recorder(STEPS[op.name], theirs)
    for _ in range(count):
        transform(None)
    table.counted("RandAugment: operations", [n for n, _ in ours], [n for n, _ in theirs])
    applied = [2 * count - len(ours), len(ours)], [2 * count - len(theirs), len(theirs)]
    table.counted(
        "RandAugment: applied", *(np.repeat([0, 1], counts).tolist() for counts in applied)
    )
    for step in STEPS.values():
        a, b = ([v for n, v in sample if n == step] for sample in (ours, theirs))
        if step in {"posterize", "solarize", "solarize_add"}:
            coarse = ([v // 8 if v > 8 else v for v in sample] for sample in (a, b))
            table.counted(f"RandAugment: {step}", *coarse)
        elif any(a):
            table.continuous(f"RandAugment: {step}", a, b)


def recorder(name: str, into: list[tuple[str, float]]) -> Any:
    def record(image: Any, *values: float, **_: Any) -> Any:
        into.append((name, values[0] if values else 0.0))
        return image

    return record


def jitter(table: Table, count: int) -> None:
    ours = [
        {step.name: step.values[0] for step in how.steps}
        for how in drawn(ViewsConfig(color_jitter=(0.4, 0.3, 0.2, 0.1), hflip=0), count)
    ]
    module = ColorJitter(0.4, 0.3, 0.2, 0.1)
    ranges = module.brightness, module.contrast, module.saturation, module.hue
    theirs = [module.get_params(*ranges) for _ in range(count)]
    names = ["brightness", "contrast", "color", "hue"]
    orders = ["".join(str(int(i)) for i in found[0]) for found in theirs]
    table.counted(
        "jitter: order", ["".join(str(names.index(n)) for n in how) for how in ours], orders
    )
    for index, name in enumerate(names[:3], start=1):
        table.continuous(f"jitter: {name}", [h[name] for h in ours], [t[index] for t in theirs])
    turns = [int(t[4] * 255) % 256 for t in theirs]
    table.counted("jitter: hue", [how["hue"] for how in ours], turns)


class Canvas:
    """Takes down what is erased of it."""

    def __init__(self) -> None:
        self.boxes: list[tuple[float, float, float, float]] = []

    def __setitem__(self, place: tuple[slice, slice, slice], _: object) -> None:
        _, rows, columns = place
        box = rows.start, columns.start, rows.stop, columns.stop
        self.boxes.append(tuple(edge / SIDE for edge in box))


def erasing(table: Table, count: int) -> None:
    config = ViewsConfig(re_prob=0.7, re_count=3, hflip=0)
    ours = [[step.values[:4] for step in how.steps] for how in drawn(config, count)]
    module = RandomErasing(probability=0.7, max_count=3, device="cpu")
    theirs = []
    for _ in range(count):
        canvas = Canvas()
        module._erase(canvas, 3, SIDE, SIDE, torch.uint8)
        theirs.append(canvas.boxes)
    table.counted("erasing: boxes", map(len, ours), map(len, theirs))
    a, b = (list(itertools.chain.from_iterable(sample)) for sample in (ours, theirs))
    # timm rounds to pixels: so does this
    a = [tuple(round(edge * SIDE) / SIDE for edge in box) for box in a]
    for name, of in {
        "erasing: area": lambda t, left, bottom, right: (bottom - t) * (right - left),
        "erasing: aspect": lambda t, left, bottom, right: (bottom - t) / (right - left),
        "erasing: top": lambda t, left, bottom, right: t,
    }.items():
        table.continuous(name, [of(*box) for box in a], [of(*box) for box in b])


def mixing(table: Table, count: int) -> None:
    config = ViewsConfig(mixup_alpha=0.2, cutmix_alpha=1.0, mix_prob=0.9, switch_prob=0.4, hflip=0)
    ours = [how.mix for how in drawn(config, count)]
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, prob=0.9, switch_prob=0.4, mode="elem")
    shares, boxed = mixup._params_per_elem(count)
    mixed = shares < 1
    kinds = ["cutmix" if mix.box else "mixup" for mix in ours if mix is not None and mix.lam < 1]
    table.counted("mixing: mixup or cutmix", kinds, np.where(boxed, "cutmix", "mixup")[mixed])
    blended = [np.float32(mix.lam) for mix in ours if mix and not mix.box and mix.lam < 1]
    table.continuous(
        "mixup: share, alpha = 0.2",
        [float(share) for share in blended if share < 1],
        shares[mixed & ~boxed].tolist(),
    )
    theirs = [
        cutmix_bbox_and_lam((3, SIDE, SIDE), lam) for lam in shares[mixed & boxed].astype(float)
    ]
    own = [mix for mix in ours if mix and mix.box]
    table.continuous("cutmix: share", [m.lam for m in own], [lam for _, lam in theirs])
    heights = [m.box[2] - m.box[0] for m in own if m.box]
    table.continuous(
        "cutmix: height of the box", heights, [(b[1] - b[0]) / SIDE for b, _ in theirs]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=100_000)
    count = parser.parse_args().draws
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    table = Table()
    print("| what | draws of ours | p |\n|---|---|---|")
    for compare in (crops, flips, rand_augment, jitter, erasing, mixing):
        compare(table, count)
    smallest, bound = min(table.values), 0.01 / len(table.values)
    verdict = "no difference" if smallest > bound else "A DIFFERENCE"
    print(f"\n{verdict}: smallest p {smallest:.4f} of {len(table.values)}, bound {bound:.5f}")
    assert math.isfinite(smallest)


if __name__ == "__main__":
    main()
