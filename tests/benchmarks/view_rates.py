"""How fast views are rendered, against timm's transforms in a DataLoader, and what costs what.

::

    python -m tests.benchmarks.view_rates [--rounds 5] [--images 512] [--costs]

Synthetic photographs of 500 x 375 pixels as JPEG, uint8 views of 224 pixels in batches of 64. Both
sides run in every round, in alternating order, and only ratios within a round count: other work on
the machine changes rates from minute to minute. Processor time per image ("core ms") hardly depends
on that; its ratio is timm's over ours.
"""

from __future__ import annotations

import argparse
import gc
import io
import resource
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset

from logitcache.data.decode import decode
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.mix import match_partners
from logitcache.views.parameters import Box, Mix, Parameters, Step
from logitcache.views.render import BatchRequest, ViewRenderer, finish, render
from logitcache.views.spec import View, ViewsConfig
from tests.benchmarks.measuring import Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

SIZE, BATCH, THREADS, WORKERS = 224, 64, 2, 2
IMAGES, ROUNDS, BOUND = 320, 5, 1.2  # of the table of all benchmarks
POLICIES: dict[str, dict[str, Any]] = {
    "crop + flip": {},
    "crop + flip + RandAugment": {"auto_augment": "rand-m9-mstd0.5-inc1"},
}


def photographs(count: int) -> list[bytes]:
    """Return JPEG files of smoothed noise, 60 to 70 kB each, landscape and portrait."""
    files = []
    for index in range(count):
        generator = np.random.default_rng(index)
        side = (500, 375) if index % 3 else (375, 500)
        coarse = generator.integers(0, 256, (side[1] // 5, side[0] // 5, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC)
        grain = generator.normal(0, 12, (side[1], side[0], 3))
        noisy = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).filter(ImageFilter.GaussianBlur(0.6)).save(
            buffer, "JPEG", quality=90
        )
        files.append(buffer.getvalue())
    return files


class TimmDataset(Dataset[Any]):
    """timm's way: PIL, one transform per image, a uint8 tensor."""

    def __init__(self, files: Sequence[bytes], policy: dict[str, Any]) -> None:
        self._files = files
        settings: dict[str, Any] = {
            "input_size": SIZE,
            "interpolation": "bicubic",
            "color_jitter": None,
            "normalize": False,
            **policy,
        }
        self._transform: Any = create_transform(is_training=True, **settings)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(io.BytesIO(self._files[index])).convert("RGB")
        return torch.as_tensor(self._transform(image))


def rate(batches: Iterator[Any], count: int) -> float:
    """Return images per second, the first batch left out: workers are up by then."""
    next(batches)
    started = time.perf_counter()
    for _ in batches:
        pass
    return (count - BATCH) / (time.perf_counter() - started)


def ours(files: Sequence[bytes], view: View) -> float:
    hashes = np.arange(len(files), dtype=np.uint64) * np.uint64(2**40 + 1)
    partners = match_partners(0, 1, hashes) if view.mixing else None
    order = np.arange(len(files))
    if partners is not None:  # as the loader orders them: pairs together
        order = np.lexsort((order, np.minimum(order, partners)))
    with ViewRenderer(lambda index: files[index], [SIZE], threads=THREADS) as renderer:
        requests = (
            BatchRequest(
                view,
                chosen,
                hashes[chosen],
                partners=None if partners is None else partners[chosen],
                partner_hashes=None if partners is None else hashes[partners[chosen]],
            )
            for chosen in np.split(order, range(BATCH, len(files), BATCH))
        )
        return rate(renderer.batches(requests), len(files))


def theirs(files: Sequence[bytes], policy: dict[str, Any]) -> float:
    loader = DataLoader(
        TimmDataset(files, policy),
        batch_size=BATCH,
        num_workers=WORKERS,
        multiprocessing_context="fork",
    )
    return rate(iter(loader), len(files))


def core_seconds() -> float:
    """Return the processor time of this process and of the children it has seen end."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _middle(values: Any, digits: int) -> str:
    return f"{statistics.median(values):.{digits}f}"


def steal() -> float:
    """Return the share of processor time that other machines took since the start of this one."""
    with Path("/proc/stat").open() as file:
        values = [int(value) for value in file.readline().split()[1:9]]
    return values[7] / sum(values)


def both(
    files: Sequence[bytes], policy: dict[str, Any], rounds: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return images per second and core ms an image by round, ours and timm's: (rounds, 2)."""
    view = ViewsConfig(**policy).random_view(1)
    measured: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        for side in ("ours", "theirs")[:: 1 if number % 2 else -1]:
            before = core_seconds()
            found = ours(files, view) if side == "ours" else theirs(files, policy)
            gc.collect()  # ends the workers, whose time counts from then on
            measured[side].append((found, 1000 * (core_seconds() - before) / len(files)))
    return np.array(measured["ours"]), np.array(measured["theirs"])


def measure() -> list[Measurement]:
    """Return our rate over that of timm's transforms in a DataLoader, for each policy."""
    files, rows = photographs(IMAGES), []
    for name, policy in POLICIES.items():
        a, b = both(files, policy, ROUNDS)
        low, middle, high = statistics.quantiles((a[:, 0] / b[:, 0]).tolist(), n=4)
        rates = (statistics.median(side[:, 0]) for side in (a, b))
        note = "{:.0f} against {:.0f} images/s".format(*rates)
        what = f"rendering views, {name}: rate against timm's"
        rows.append(Measurement(what, middle, "x", low, high, BOUND, at_most=False, note=note))
    return rows


def compare(files: Sequence[bytes], rounds: int) -> None:
    print(
        "| views | timm: images/s, core ms | ours: images/s, core ms | ratio of rates | of cores |"
    )
    print("|---|---|---|---|---|")
    for name, policy in POLICIES.items():
        a, b = both(files, policy, rounds)
        rates, cores = a[:, 0] / b[:, 0], b[:, 1] / a[:, 1]
        print(
            f"| {name} | {_middle(b[:, 0], 0)}, {_middle(b[:, 1], 2)} "
            f"| {_middle(a[:, 0], 0)}, {_middle(a[:, 1], 2)} "
            f"| {' '.join(f'{r:.2f}' for r in rates)}: {_middle(rates, 2)} "
            f"| {' '.join(f'{r:.2f}' for r in cores)}: {_middle(cores, 2)} |",
            flush=True,
        )
    mixed = ViewsConfig(mixup_alpha=0.8, cutmix_alpha=1.0).random_view(1)
    print(f"\ncrop + flip + mixup or cutmix, ours: {ours(files, mixed):.0f} images/s")


def costs(files: Sequence[bytes]) -> None:
    """Print what each part takes of a core, in ms an image: the median of 5 passes."""
    torch.set_num_threads(1)
    files = files[:64]
    images = [decode(file) for file in files]
    whole = Parameters(Box(0, 0, 375, 375))
    squares = [render(image, whole, SIZE, "bicubic") for image in images]
    view = ViewsConfig(**POLICIES["crop + flip + RandAugment"]).random_view(1)
    floats = view_floats(view, np.arange(len(files), dtype=np.uint64))
    parts: dict[str, Callable[[int], object]] = {
        "decode": lambda i: decode(files[i]),
        "crop and resize, bicubic": lambda i: render(images[i], whole, SIZE, "bicubic"),
        "crop and resize, bilinear": lambda i: render(images[i], whole, SIZE, "bilinear"),
        "words of crop, flip, RandAugment": lambda i: (
            view_floats(view, np.arange(64, dtype=np.uint64)) if i == 0 else None
        ),
        "their parameters": lambda i: parameters(view, [f[i].tolist() for f in floats], 375, 500),
        "blend (mixup)": lambda i: finish(
            squares[i], Parameters(Box(0, 0, 1, 1), mix=Mix(0.3)), "bicubic", squares[i - 1]
        ),
        "paste (cutmix)": lambda i: finish(
            squares[i],
            Parameters(Box(0, 0, 1, 1), mix=Mix(0.75, (0.1, 0.1, 0.6, 0.6))),
            "bicubic",
            squares[i - 1],
        ),
    }
    for name, values in STEPS.items():
        after = Parameters(Box(0, 0, 1, 1), after=(Step(name, values),))
        parts[name] = lambda i, after=after: finish(squares[i], after, "bicubic", None)  # type: ignore[misc]  # mypy infers no default
    print("| part | ms an image |\n|---|---|")
    for name, part in parts.items():
        passes = []
        for _ in range(5):
            started = time.process_time()
            for index in range(len(files)):
                part(index)
            passes.append((time.process_time() - started) / len(files))
        print(f"| {name} | {1000 * statistics.median(passes):.3f} |", flush=True)


FILL = (124.0, 116.0, 104.0)
STEPS: dict[str, tuple[float, ...]] = {
    "flip": (),
    "autocontrast": (),
    "equalize": (),
    "invert": (),
    "posterize": (4,),
    "solarize": (128,),
    "solarize_add": (60,),
    "color": (1.5,),
    "contrast": (1.5,),
    "brightness": (1.5,),
    "sharpness": (1.5,),
    "rotate": (20, *FILL),
    "shear_x": (0.2, *FILL),
    "shear_y": (0.2, *FILL),
    "translate_x": (0.2, *FILL),
    "translate_y": (0.2, *FILL),
    "hue": (20,),
    "grey": (),
    "blur": (1.0,),
    "erase": (0.2, 0.2, 0.6, 0.6, *FILL),
    "noise": (0.2, 0.2, 0.6, 0.6, 5, *FILL, 58.0, 57.0, 57.0),
    "rot90": (1,),
    "lowres": (4,),
    "mask": (14, *FILL, *range(0, 196, 2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--costs", action="store_true", help="only the costs of each part")
    arguments = parser.parse_args()
    files = photographs(arguments.images)
    size = statistics.mean(len(file) for file in files) / 1000
    print(f"{len(files)} JPEG files of {size:.0f} kB on average, views of {SIZE} pixels\n")
    if arguments.costs:
        costs(files)
        return
    before = steal()
    compare(files, arguments.rounds)
    print(f"share of time stolen since boot: {before:.3f} before, {steal():.3f} after")


if __name__ == "__main__":
    main()
