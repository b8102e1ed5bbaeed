"""What the systems of ``pipelines/`` are worth on CIFAR-10: the rows of ``docs/results.md``.

Every pipeline runs as it is written, with more steps, horizontal flips and smaller crops. Teachers
learn from 10 000 of the training images, and are trained once per seed for all systems; students
see 2500 of those and their labels (few-shot ones choose among 10 000), or as many of another folder
that no teacher saw (``--students``). Whatever is done is not repeated, so a command can be given
again to go on or to print::

    python -m tests.benchmarks.systems table rkd --train cifar10/train --val cifar10/val
    python -m tests.benchmarks.systems live vitkd ...
    python -m tests.benchmarks.systems heads libkd ...
    python -m tests.benchmarks.systems shares wecolora ...

``table``: the student compared with labels alone, plain soft targets and shuffled ones. ``live``:
cached less live, from the same views and from fresh ones, with 1, 4 and 16 views in the cache.
``heads``: LIB-KD's heads, its teachers one by one, and one teacher for both stems. ``shares``:
WeCoLoRA with 1 and 10 % of the images.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from filelock import FileLock

from logitcache.cli.interrupt import StopRequest
from logitcache.cli.stages import stage_runner
from logitcache.data.readers import DataConfig, open_source
from logitcache.networks.build import input_spec
from logitcache.networks.taps import TappedNetwork
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import Pipeline
from logitcache.pipeline.settings import find_pipeline, read_yaml
from logitcache.targets.images.image_rows import number_rows
from logitcache.targets.loader import Loader
from logitcache.targets.settings import LoaderSettings
from logitcache.training.evaluation.evaluator import eval_views
from logitcache.training.run.result import read_result
from tests.benchmarks.live import train_live

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Correct = NDArray[np.bool_]

TEACHERS = {"cnn": "nkd", "rednet": "nfd", "vit": "vitkd"}
"""Stages that train a shared teacher, and the pipeline whose settings of it count."""
TEACH = {*TEACHERS, "pvt"}
"""Stages that train a teacher."""

TEACHER_IMAGES, IMAGES, DIGITS = 10_000, 2500, 1347
FEW_SHOT = {"wecolora"}
TEACHER_STEPS, STEPS, PROBE_STEPS = 2000, 500, 300
BATCH_SIZE = 64
VIEWS = {"scale": [0.5, 1.0], "hflip": 0.5}
CACHED_VIEWS = 4
LIVE_VIEWS = (1, CACHED_VIEWS, 16)
SHARES = {"1 %": TEACHER_IMAGES // 100, "10 %": TEACHER_IMAGES // 10}
RESAMPLES = 10_000


@dataclass(frozen=True)
class Place:
    """Where images are and runs go.

    Attributes:
        train: Folder of the images that teachers learn from.
        val: Folder of the images to evaluate on.
        out: Folder of all runs.
        students: Folder of the images that students learn from.
    """

    train: str
    val: str
    out: Path
    students: str

    def pipeline(
        self,
        system: str,
        seed: int,
        *,
        variant: str = "",
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> Pipeline:
        """Return a system's pipeline on CIFAR-10.

        Args:
            system: Its name.
            seed: Of every training.
            variant: Suffix of its folder.
            change: Changes the values of the file.
        """
        images = TEACHER_IMAGES if system in FEW_SHOT else IMAGES
        values = self._on_cifar(read_yaml(find_pipeline(system)), images)
        if change is not None:
            change(values)
        folder = self.out / f"seed-{seed}" / f"{system}{variant}"
        return Pipeline(PipelineConfig.parse(values, system), out=str(folder), seed=seed)

    def _on_cifar(self, values: dict[str, Any], images: int) -> dict[str, Any]:
        """Return the values of a file with other images, views and steps."""
        values = copy.deepcopy(values)
        values["data"] = {"name": self.students, "limit": images}
        values["val"] = {"name": self.val}
        values["train"] |= {"threads": 1, "device": "cpu", "batch_size": BATCH_SIZE}
        for stage in values["stages"]:
            own = next(settings for kind, settings in stage.items() if kind != "name")
            if "views" in own:
                own["views"] |= VIEWS
            if stage["name"] in TEACH:
                own["data"] = {"name": self.train, "limit": TEACHER_IMAGES}
                # those of all networks: a teacher's own ones are for a few seconds on digits
                own.pop("batch_size", None)
                own.pop("optimizer", None)
            if "steps" in own:
                own["steps"] = _steps(stage["name"])
            for field in ("labels", "seen"):
                if field in own:
                    own[field] = {**own[field], "count": own[field]["count"] * images // DIGITS}
        return values


def _steps(stage: str) -> int:
    if stage in TEACH:
        return TEACHER_STEPS
    return PROBE_STEPS if stage.startswith("probe") else STEPS


def run(place: Place, pipeline: Pipeline, seed: int, names: Sequence[str] = ()) -> None:
    """Run stages of a pipeline, and all the caches and networks that they build on.

    Args:
        place: Where the teachers are trained.
        pipeline: Which pipeline.
        seed: Its seed.
        names: Which stages; all by default.
    """
    pipeline.out.mkdir(parents=True, exist_ok=True)
    with FileLock(pipeline.out.with_suffix(".lock")), StopRequest() as stop:
        for stage in pipeline.stages:
            if stage.name in TEACHERS:
                _copy_teacher(place, stage.name, seed, pipeline.out)
            elif not names or stage.name in names or stage.kind != "train":
                pipeline.run(stage_runner(stop), [stage.name])


def _copy_teacher(place: Place, name: str, seed: int, folder: Path) -> None:
    """Train a teacher if no system has yet, and copy it to a system's stages."""
    owner = place.pipeline(TEACHERS[name], seed)
    shared = Pipeline(owner.config, out=str(owner.out.with_name("teachers")), seed=seed)
    shared.out.mkdir(parents=True, exist_ok=True)
    with FileLock(shared.out / f"{name}.lock"), StopRequest() as stop:
        shared.run(stage_runner(stop), [name])
    if not (folder / name).exists():
        shutil.copytree(shared.out / name, folder / name)


def top1(folder: Path) -> float:
    """Return the accuracy of a finished run in per cent."""
    result = read_result(folder)
    assert result is not None
    assert result.evaluation is not None
    return 100 * result.evaluation.score


@torch.inference_mode()
def correct(folder: Path, val: str, heads: Sequence[str] = ()) -> dict[str, Correct]:
    """Return which images the network of a run gets right, by head; "" is its own answer."""
    network = timm.create_model(f"local-dir:{folder / 'export'}", pretrained=True).eval()
    spec = input_spec(network)
    tapped = TappedNetwork(network, heads, size=spec.size)
    rows = number_rows(open_source(DataConfig(name=val)))
    right = {head: np.zeros(len(rows), dtype=np.bool_) for head in ("", *heads)}
    settings = LoaderSettings(256, spec.size, mean=spec.mean, std=spec.std, threads=1)
    with Loader(rows, settings, views=eval_views(spec)) as loader:
        for images, targets in loader.epoch(0):
            logits, held = tapped(images)
            for head, values in {"": logits, **held}.items():
                right[head][targets.rows.numpy()] = values.argmax(1) == targets.labels
    return right


def interval(mine: Correct, theirs: Correct) -> tuple[float, float, float]:
    """Return the difference of two accuracies on the same images, with its 95 % bootstrap interval.

    Args:
        mine: Which images one network gets right, (N,).
        theirs: Which the other does.

    Returns:
        The difference and both ends of the interval, in points.
    """
    difference = mine.astype(np.int8) - theirs.astype(np.int8)
    # resampling images is drawing how often each of the three differences comes up
    counts = np.array([(difference == value).sum() for value in (-1, 0, 1)])
    drawn = np.random.default_rng(0).multinomial(
        len(difference), counts / len(difference), size=RESAMPLES
    )
    means = 100 * (drawn[:, 2] - drawn[:, 0]) / len(difference)
    low, high = np.quantile(means, (0.025, 0.975))
    return 100 * float(difference.mean()), float(low), float(high)


def mean_and_seeds(values: Sequence[float]) -> str:
    """Return mean and standard deviation, and the values behind them."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} | {', '.join(f'{v:.1f}' for v in values)}"


def table(place: Place, system: str, seeds: Sequence[int]) -> list[str]:
    """Return a row for each network of a system."""
    pipelines = [place.pipeline(system, seed) for seed in seeds]
    for pipeline, seed in zip(pipelines, seeds, strict=True):
        run(place, pipeline, seed)
    names = [stage.name for stage in pipelines[0].stages if stage.kind == "train"]
    return [
        f"| {system} | {name} | {mean_and_seeds([top1(p.out / name) for p in pipelines])} |"
        for name in names
    ]


def live(place: Place, system: str, seeds: Sequence[int]) -> list[str]:
    """Return a row for each number of views: cached, live, and cached less live by seed."""
    runs: dict[int, dict[str, list[Path]]] = {}
    for views in LIVE_VIEWS:
        runs[views] = {"cached": [], "live": [], "fresh": []}
        for seed in seeds:
            pipeline = _with_views(place, system, seed, views)
            run(place, pipeline, seed, ["student"])
            train_live(pipeline, "student", fresh_views=False)
            fresh = place.pipeline(system, seed)
            run(place, fresh, seed, ["student"])
            train_live(fresh, "student", fresh_views=True)
            runs[views]["cached"].append(pipeline.out / "student")
            runs[views]["live"].append(pipeline.out / "student-live")
            runs[views]["fresh"].append(fresh.out / "student-live-fresh")
    lines = []
    for views, found in runs.items():
        accuracies = " | ".join(
            mean_and_seeds([top1(out) for out in outs]).partition(" | ")[0]
            for outs in found.values()
        )
        right = {
            kind: [correct(out, place.val)[""] for out in outs] for kind, outs in found.items()
        }
        differences = " | ".join(
            "; ".join(
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(*interval(mine, theirs))
                for mine, theirs in zip(right["cached"], right[other], strict=True)
            )
            for other in ("live", "fresh")
        )
        lines.append(f"| {system} | {views} | {accuracies} | {differences} |")
    return lines


def _with_views(place: Place, system: str, seed: int, views: int) -> Pipeline:
    if views == CACHED_VIEWS:
        return place.pipeline(system, seed)

    def change(values: dict[str, Any]) -> None:
        for stage in values["stages"]:
            if "precompute" in stage:
                stage["precompute"]["views"]["count"] = views

    return place.pipeline(system, seed, variant=f"-{views}-views", change=change)


def heads(place: Place, system: str, seeds: Sequence[int]) -> list[str]:
    """Return a row for each head of a student of several teachers, and for each teacher alone."""
    by_head: dict[str, list[float]] = {}
    for seed in seeds:
        pipeline = place.pipeline(system, seed)
        run(place, pipeline, seed, ["student"])
        names = ["heads.cls", "heads.cnn", "heads.rednet"]
        for head, right in correct(pipeline.out / "student", place.val, names).items():
            by_head.setdefault(head or "mean of all heads", []).append(100 * float(right.mean()))
        for teacher in ("cnn", "rednet"):
            change = partial(_only, teacher=teacher)
            alone = place.pipeline(system, seed, variant=f"-{teacher}-alone", change=change)
            run(place, alone, seed, ["student"])
            by_head.setdefault(f"{teacher} alone, mean of its heads", []).append(
                top1(alone.out / "student")
            )
        change = partial(_for_both, teacher="cnn")
        same = place.pipeline(system, seed, variant="-cnn-for-both", change=change)
        run(place, same, seed, ["student"])
        by_head.setdefault("cnn for both stems, mean of all heads", []).append(
            top1(same.out / "student")
        )
    return [f"| {system} | {name} | {mean_and_seeds(v)} |" for name, v in by_head.items()]


def _only(values: dict[str, Any], teacher: str) -> None:
    """Leave one teacher, with its stem, token and head."""
    stems = {"cnn": "convolution", "rednet": "involution"}
    for stage in values["stages"]:
        if "precompute" in stage:
            teachers = stage["precompute"]["teachers"]
            stage["precompute"]["teachers"] = {teacher: teachers[teacher]}
        if stage["name"] == "student":
            own = stage["train"]
            own["student"] = copy.deepcopy(own["student"])
            own["student"]["kwargs"] |= {"heads": [teacher], "stems": [stems[teacher]]}
            own["objectives"] = [
                term
                for term in own["objectives"]
                if term.get("soft", {}).get("teachers", {teacher: 1.0}) == {teacher: 1.0}
            ]


def _for_both(values: dict[str, Any], teacher: str) -> None:
    """Leave one teacher, from which all stems, tokens and heads learn."""
    for stage in values["stages"]:
        if "precompute" in stage:
            teachers = stage["precompute"]["teachers"]
            stage["precompute"]["teachers"] = {teacher: teachers[teacher]}
        if stage["name"] == "student":
            for term in stage["train"]["objectives"]:
                if "soft" in term:
                    term["soft"]["teachers"] = {teacher: 1.0}


def shares(place: Place, system: str, seeds: Sequence[int]) -> list[str]:
    """Return a row for each share of the images that a student saw before its probe."""
    lines = []
    for share, images in SHARES.items():
        pipelines = [_with_images(place, system, seed, images) for seed in seeds]
        for pipeline, seed in zip(pipelines, seeds, strict=True):
            run(place, pipeline, seed)
        names = {
            "probe": "low-rank updates",
            "probe-tuned": "all weights tuned",
            "probe-copy": "copied, not trained",
        }
        lines += [
            f"| {share} | {what} | {mean_and_seeds([top1(p.out / name) for p in pipelines])} |"
            for name, what in names.items()
        ]
    return lines


def _with_images(place: Place, system: str, seed: int, images: int) -> Pipeline:
    def change(values: dict[str, Any]) -> None:
        for stage in values["stages"]:
            own = stage.get("train", {})
            if "labels" in own:
                own["labels"] = {"count": images, "images": "labeled"}

    return place.pipeline(system, seed, variant=f"-{images}-images", change=change)


HEADERS = {
    "table": "| system | network | top-1 | seeds |\n|---|---|---|---|",
    "live": (
        "| system | views | cached | live, same views | live, fresh views | cached less live, "
        "same views, by seed | cached less live, fresh views, by seed |\n" + "|---" * 7 + "|"
    ),
    "heads": "| system | answer | top-1 | seeds |\n|---|---|---|---|",
    "shares": "| images | student | top-1 of its probe | seeds |\n|---|---|---|---|",
}
EXPERIMENTS = {"table": table, "live": live, "heads": heads, "shares": shares}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.systems",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("system", help="name of a pipeline")
    parser.add_argument("--train", required=True, help="image folder to learn from")
    parser.add_argument("--students", help="image folder of students (that to learn from)")
    parser.add_argument("--val", required=True, help="image folder to evaluate on")
    parser.add_argument("--out", type=Path, default=Path("runs/systems"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    students = arguments.students or arguments.train
    place = Place(arguments.train, arguments.val, arguments.out, students)
    lines = EXPERIMENTS[arguments.experiment](place, arguments.system, arguments.seeds)
    print(HEADERS[arguments.experiment], *lines, sep="\n")


if __name__ == "__main__":
    main()
