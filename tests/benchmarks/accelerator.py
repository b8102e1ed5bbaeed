"""What a CUDA device makes of precompute and training: one command, under eight minutes.

::

    python -m tests.benchmarks.accelerator            # on a machine with a CUDA device
    python -m tests.benchmarks.accelerator --smoke    # small, on a processor: does it still run?

Precompute has a ResNet-50 and a RedNet-50 with random weights at 224 pixels (bfloat16,
``channels_last``, ``torch.compile``) and photographs of noise; it is compared with the bare loop,
which has the same loader and the same teachers and drops their outputs, and with a decoding for
every view. A student's step (DeiT-Ti, bfloat16) has pixels and targets that travel to the device
as in training; it is compared with a step on labels. Then the tests of ``tests/accelerator`` run.
Sections that no time is left for are listed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from logitcache.batch import EncodedLogits, TargetBatch
from logitcache.cache.read.reader import open_cache
from logitcache.cache.write.claims import Claims
from logitcache.data.readers import open_source
from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.transform import TransformEncoding
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.objectives.label import Label
from logitcache.objectives.soft import Soft
from logitcache.platforms import available_processors, tune_allocator
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.plan.plan import make_plan
from logitcache.precompute.run.compute import compute_plan
from logitcache.precompute.run.source_renderer import SourceRenderer
from logitcache.targets.decoding.transform_decoder import TransformDecoder
from logitcache.targets.transfer import Transfer
from logitcache.teachers.ensemble import Ensemble
from logitcache.training.export.export import export_network
from logitcache.views.render import IMAGE_MEMORY
from tests.benchmarks.__main__ import markdown
from tests.benchmarks.logits import CLASSES
from tests.benchmarks.measuring import Measurement, ratio_of_times
from tests.benchmarks.reading import gather, make_cache, repeated, whole
from tests.benchmarks.synthetic import teacher_logits
from tests.benchmarks.view_rates import photographs
from tests.cache.building import samples_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from logitcache.batch import TeacherLogits
    from logitcache.precompute.plan.plan import Plan

    Answers = Callable[[NDArray[np.int64]], Mapping[str, TeacherLogits]]

SECONDS = 320  # after which no section starts
TESTS_SECONDS = 150
TESTS = "tests/accelerator"
TOP_K = 50


@dataclass(frozen=True)
class Scale:
    """Sizes of everything that is measured.

    Attributes:
        device: Device of teachers and students.
        teachers: Networks by name of the teacher, with their arguments.
        how: Further fields of each teacher.
        side: Side of all images in pixels.
        precision: Floating-point type of teachers and students.
        images: Number of images of a cache, in files that are partly equal.
        photographs: Number of different files.
        views: Number of views of a cache.
        batch: Images of a forward pass of the teachers.
        student: The student's model, and its arguments.
        student_batch: Images of a step of the student.
        steps: Steps of one round.
        rows: Rows of the cache that the student's targets are drawn from.
        rounds: Neighboring pairs of a ratio, at most.
        seconds: Seconds for one ratio, which limit the number of pairs to no less than two.
        bounds: Whether the bounds apply: not to networks that are too small.
        tests: Arguments of pytest.
    """

    device: str
    teachers: dict[str, dict[str, Any]]
    how: dict[str, bool]
    side: int
    precision: Any
    images: int
    photographs: int
    views: int
    batch: int
    student: dict[str, Any]
    student_batch: int
    steps: int
    rows: int
    rounds: int
    seconds: float = 60.0
    bounds: bool = True
    tests: tuple[str, ...] = ("-rs",)


FULL = Scale(
    device="cuda",
    teachers={"cnn": {"model": "resnet50"}, "involution": {"model": "rednet50"}},
    how={"channels_last": True, "compile": True},
    side=224,
    precision="bfloat16",
    images=1024,
    photographs=128,
    views=4,
    batch=128,
    student={"model_name": "deit_tiny_patch16_224"},
    student_batch=256,
    steps=10,
    rows=8192,
    rounds=5,
)
SMOKE = Scale(
    device="cpu",
    teachers={
        "cnn": {"model": "resnet10t", "kwargs": {"channels": [16] * 4, "stem_width": 16}},
        "involution": {
            "model": "rednet26_small",
            "kwargs": {"layers": [1], "width": 32, "kernel_size": 3},
        },
    },
    how={"channels_last": True},
    side=32,
    precision="bfloat16",
    images=16,
    photographs=4,
    views=2,
    batch=4,
    student={
        "model_name": "deit_tiny_patch16_224",
        "img_size": 32,
        "embed_dim": 24,
        "depth": 1,
        "num_heads": 3,
    },
    student_batch=8,
    steps=1,
    rows=1024,
    rounds=2,
    seconds=1.0,
    bounds=False,
    tests=("--collect-only",),  # on a processor they are part of the ordinary tests
)


def no_targets(folder: Path, scale: Scale) -> None:
    """Return nothing: the student is trained on labels."""
    del folder, scale


def sparse_targets(folder: Path, scale: Scale) -> Answers:
    """Return the targets of rows of a cache of the default encoding, K = 50."""
    rows = scale.rows
    make_cache(folder / "sparse", repeated(rows), samples_of(rows, unit=rows))
    window = whole(open_cache(folder / "sparse"))
    return lambda rows_B: {"t": gather(window, rows_B)}


def transform_targets(folder: Path, scale: Scale) -> Answers:
    """Return the targets of rows in the transform encoding, which are decoded on the device."""
    del folder
    count = min(scale.rows, 1024)  # synthetic rows have no directions worth fitting to more
    log_p = log_softmax(teacher_logits(count, CLASSES))[0]
    basis = Basis.of(principal_directions(log_p), step=6.0)
    encoding = TransformEncoding.of(basis, refined=32)
    stored, decoder = encoding.encode(log_p), TransformDecoder(encoding)

    def answers(rows_B: NDArray[np.int64]) -> dict[str, EncodedLogits]:
        rows = {n: torch.from_numpy(array[rows_B % count]) for n, array in stored.items()}
        return {"t": EncodedLogits(rows, CLASSES, decoder)}

    return answers


TARGETS: dict[str, Callable[[Path, Scale], Answers | None]] = {
    "labels only": no_targets,
    f"sparse, K = {TOP_K}": sparse_targets,
    "transform": transform_targets,
}
"""Targets of the student's step. Another encoding is one more entry; the first is the reference."""


@dataclass
class Precompute:
    """Caches to compute, the teachers that compute them, and the same loop without a cache."""

    scale: Scale
    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        scale = self.scale
        (self.folder / "photos").mkdir()
        files = photographs(scale.photographs)
        for number in range(scale.images):
            path = self.folder / "photos" / f"{number:05d}.jpg"
            path.write_bytes(files[number % len(files)])
        torch.manual_seed(0)
        teachers = {}
        for name, network in scale.teachers.items():
            built = build_network(NetworkConfig.parse(network, name), CLASSES)
            export_network(built, input_spec(built, scale.side), self.folder / name)
            model = f"local-dir:{self.folder / name}"
            teachers[name] = {"model": model, "size": scale.side, **scale.how}
        self._values = {
            "data": str(self.folder / "photos"),
            "teachers": teachers,
            "views": {"count": scale.views},
            "encoding": {"top_k": TOP_K},
            "unit_rows": scale.images,
            "batch_size": scale.batch,
        }
        self._source = open_source(str(self._values["data"]))
        config = PrecomputeConfig.parse({**self._values, "cache": "-"}, "")
        self._ensemble = Ensemble(
            config.teachers, device=torch.device(scale.device), precision=scale.precision
        )

    @property
    def rows(self) -> int:
        """Number of images of a cache, every view counted."""
        return self.scale.images * self.scale.views

    def planned(self) -> Plan:
        """Return the plan of a new cache."""
        cache = str(self.folder / f"cache-{next(self._numbers)}")
        config = PrecomputeConfig.parse({**self._values, "cache": cache}, "")
        return make_plan(config, self._source, self._ensemble)

    def compute(self, plans: list[Plan], image_memory: int) -> None:
        """Compute a new cache."""
        plan = plans.pop()
        shown = compute_plan(
            plan,
            self._ensemble,
            Claims(plan.writer.location),
            precision=self.scale.precision,
            threads=None,
            image_memory=image_memory,
            skip_bad_images=False,
        )
        assert shown == self.rows

    def bare(self, plan: Plan) -> None:
        """Show every image to every teacher and drop the outputs."""
        batch = self.scale.batch
        renderer = SourceRenderer(
            plan.source,
            plan.views,
            self._ensemble.sizes,
            batch_rows=batch,
            threads=available_processors(),
            table=plan.decoding,
            partners=plan.partners,
            image_memory=IMAGE_MEMORY,
        )
        batches = dict.fromkeys(self._ensemble.members, batch)
        requested = dict.fromkeys(self._ensemble.members)
        block = plan.block(0)
        try:
            for view_id in plan.views:
                starts = range(0, len(block.indices), batch)
                for each in renderer.batches(view_id, starts, block):
                    self._ensemble.run(each.pixels, batches, requested)
        finally:
            renderer.close()


def precompute(scale: Scale) -> Iterator[Measurement]:
    """Yield precompute against the bare loop and against a decoding for every view."""
    with tempfile.TemporaryDirectory() as name:
        work = Precompute(scale, Path(name))
        forget_peak(scale)
        first = [work.planned() for _ in range(3)]
        bare = partial(work.bare, first.pop())
        rounds = affordable(partial(work.compute, first, IMAGE_MEMORY), scale)
        plans = [work.planned() for _ in range(rounds + 1)]
        what = f"{len(scale.teachers)} teachers at {scale.side}, {scale.views} views"
        against = ratio_of_times(
            f"precompute images/s of the bare loop, {what}",
            partial(work.compute, plans, IMAGE_MEMORY),
            bare,
            rounds=rounds,
            target=0.97 if scale.bounds else None,
            inverse=True,
        )
        yield against
        yield Measurement("precompute", work.rows / own_seconds(against), "images/s")
        yield peak("precompute", scale)
        plans = [work.planned() for _ in range(2 * (rounds + 1))]
        yield ratio_of_times(
            f"precompute images/s with one decoding of an image, of one a view, {what}",
            partial(work.compute, plans, IMAGE_MEMORY),
            partial(work.compute, plans, 0),
            rounds=rounds,
            inverse=True,
        )


class Steps:
    """Steps of a student on one kind of targets, from pixels and rows on the processor.

    Args:
        scale: Sizes.
        answers: Returns the targets of rows; None to train on labels.
    """

    def __init__(self, scale: Scale, answers: Answers | None) -> None:
        torch.manual_seed(0)
        self._scale, self._answers = scale, answers
        network = timm.create_model(num_classes=CLASSES, **scale.student)
        self._network = network.to(scale.device).train()
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=1e-4)
        self._objective: Any = Label() if answers is None else Soft()
        self._transfer = Transfer(
            torch.device(scale.device), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        )
        self._rng = np.random.default_rng(0)
        shape = (scale.student_batch, 3, scale.side, scale.side)
        self.pixels = self._rng.integers(0, 256, shape, dtype=np.uint8)

    def batch(self) -> TargetBatch:
        """Return the labels and targets of some rows, on the processor."""
        rows_B = self._rng.integers(self._scale.rows, size=self._scale.student_batch)
        labels_B = torch.from_numpy(self._rng.integers(CLASSES, size=len(rows_B)))
        teachers = {} if self._answers is None else self._answers(rows_B)
        return TargetBatch(torch.from_numpy(rows_B), labels_B, teachers)

    def __call__(self) -> None:
        """Take the steps of one round, and wait for the device."""
        scale = self._scale
        dtype = getattr(torch, scale.precision)
        for _ in range(scale.steps):
            images = self._transfer.images(self.pixels)
            targets = self._transfer.targets(self.batch())
            with torch.autocast(scale.device, dtype=dtype, enabled=dtype != torch.float32):
                outputs = self._network(images)
            self._optimizer.zero_grad()
            self._objective(outputs, targets).backward()
            self._optimizer.step()
        if scale.device == "cuda":
            torch.cuda.synchronize()


def student(scale: Scale) -> Iterator[Measurement]:
    """Yield time, bytes to the device and peak memory of a step, by kind of targets."""
    with tempfile.TemporaryDirectory() as name:
        reference, rounds = None, scale.rounds
        for kind, make in TARGETS.items():
            forget_peak(scale)
            steps = Steps(scale, make(Path(name), scale))
            what = f"student step, {kind}"
            if reference is None:
                reference, rounds = steps, affordable(steps, scale)
            else:
                yield ratio_of_times(
                    f"{what}, against {next(iter(TARGETS))}",
                    steps,
                    reference,
                    rounds=rounds,
                    target=1.03 if scale.bounds else None,
                )
            yield peak(what, scale)
            targets = bytes_of(steps.batch()) / scale.student_batch
            pixels = steps.pixels.nbytes / scale.student_batch
            note = f"{pixels:.0f} of pixels"
            yield Measurement(f"{what}: to the device", targets + pixels, "B a row", note=note)


def bytes_of(value: Any) -> int:
    """Return the bytes of all tensors of a batch of targets."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(bytes_of, value.values()))
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, each.name)) for each in fields(value))
    return 0


def tests(scale: Scale) -> Iterator[Measurement]:
    """Yield the number of tests of the device that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", TESTS]
    try:
        done = subprocess.run(
            [*command, *scale.tests], capture_output=True, text=True, timeout=TESTS_SECONDS
        )
    except subprocess.TimeoutExpired:
        note = f"not finished in {TESTS_SECONDS} s"
        yield Measurement(f"failures of {TESTS}", float("nan"), "tests", target=0, note=note)
        return
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-200:]]
    found = re.search(r"(\d+) (?:failed|errors?)", last[0])
    failed = int(found.group(1)) if found else int(done.returncode != 0)
    if failed:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
    yield Measurement(f"failures of {TESTS}", failed, "tests", target=0, note=last[0])


def affordable(call: Callable[[], object], scale: Scale) -> int:
    """Return the number of rounds that there is time for, after a first call that compiles."""
    call()
    started = time.monotonic()
    call()
    each = time.monotonic() - started
    return max(2, min(scale.rounds, int(scale.seconds / (2 * each))))


def own_seconds(ratio: Measurement) -> float:
    """Return the seconds of our side of a ratio, from its note."""
    return float(ratio.note.split(" ms")[0]) / 1e3


def forget_peak(scale: Scale) -> None:
    """Start to measure the peak of the memory of the device."""
    if scale.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak(what: str, scale: Scale) -> Measurement:
    """Return the peak of the memory: of the device, or of this process so far."""
    if scale.device == "cuda":
        used = torch.cuda.max_memory_allocated() / 2**20
        return Measurement(f"{what}: peak memory", used, "MiB")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return Measurement(f"{what}: peak memory", used, "MiB", note="of the process so far")


SECTIONS: dict[str, Callable[[Scale], Iterator[Measurement]]] = {
    "precompute": precompute,
    "student": student,
    "tests": tests,
}


def measure(scale: Scale | None = None) -> list[Measurement]:
    """Return all rows; small ones without a CUDA device."""
    if scale is None:
        scale = FULL if torch.cuda.is_available() else SMOKE
    tune_allocator()
    started, rows = time.monotonic(), []
    for name, section in SECTIONS.items():
        if time.monotonic() - started > SECONDS:
            rows.append(Measurement(f"{name}: left out, no time", 0.0, ""))
            continue
        rows += section(scale)
    rows.append(Measurement("all of this", time.monotonic() - started, "s", target=480))
    return rows


def machine(scale: Scale) -> str:
    """Return the device and the versions."""
    card = platform.machine()
    if scale.device == "cuda":
        card = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return (
        f"{card}, torch {torch.__version__}, timm {timm.__version__}, "
        f"{available_processors()} processors"
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the table of all rows."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.accelerator")
    parser.add_argument("--smoke", action="store_true", help="small networks, on a processor")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    chosen = parser.parse_args(arguments)
    if not chosen.smoke and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --smoke runs everything in small on a processor")
    scale = SMOKE if chosen.smoke else FULL
    rows = measure(scale)
    if chosen.json:
        print(json.dumps({"machine": machine(scale), "rows": [row.to_json() for row in rows]}))
        return
    print(f"{machine(scale)}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
