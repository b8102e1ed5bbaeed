"""Students of a real teacher: the experiments of ``pipelines/real.yaml`` and ``claims.yaml``.

Images are divided into two tables, those that the teacher learns from with their labels, and a pool
of others that it never sees with a label. The pipeline then runs for several seeds. The teacher and
the caches, like all stages that others build on, are made once, with the first seed; seeds of the
students are paired across arms::

    python -m tests.benchmarks.real split cifar10/train
    python -m tests.benchmarks.real run cifar10 --weights efficientnet-lite0-57934424.pth
    python -m tests.benchmarks.real live cifar10 --weights ...
    python -m tests.benchmarks.real table cifar10 --weights ...

``split`` writes ``labeled.csv`` and ``pool.csv`` next to the folder of the images. ``run`` trains
the students from labels and caches, ``live`` those of the teacher that is run again in every step,
on the views that are cached. What is finished is not repeated. ``table`` prints the accuracies, and
paired differences with 95 % intervals over seeds.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

import torch
from scipy.stats import t as student_t

from logitcache.cli.interrupt import StopRequest
from logitcache.cli.stages import stage_runner
from logitcache.data.identity import key_hash
from logitcache.data.readers import open_source
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import DONE, Pipeline
from logitcache.pipeline.settings import find_pipeline, override, read_yaml
from logitcache.training.run.result import read_result
from tests.benchmarks.live import train_live

if TYPE_CHECKING:
    from collections.abc import Sequence

LIVE = "from-dense"
BOUND = 1.0
"""Largest difference, in points, at which cached and live students count as equivalent."""
COMPARED = [
    ("from-dense", "labels"),
    ("from-dense", "shuffled"),
    ("from-sparse", "from-dense"),
    ("from-transform", "from-dense"),
    ("from-dense", f"{LIVE}-live"),
    ("few-dense", "few-labels"),
    ("few-sparse", "few-dense"),
    ("few-dense", "few-one-view"),
    ("few-dense", "few-shuffled"),
    ("soft-1", "labels"),
    ("nkd", "soft-1"),
    ("nkd", "soft-4"),
    ("nkd", "nkd-0"),
    ("maps-normalized", "maps-labels"),
    ("maps-normalized", "maps-plain"),
    ("fitted", "equal"),
    ("fitted", "good-alone"),
]
"""Pairs of stages of either pipeline; those that a pipeline does not have are left out."""


def split(folder: Path, labeled: int, pool: int) -> None:
    """Write the tables of the teacher's images and of the pool, in the order of hashes of keys."""
    source = open_source(str(folder))
    order = sorted(range(len(source.keys)), key=lambda index: key_hash(source.keys[index]))
    parts = {"labeled": order[:labeled], "pool": order[labeled : labeled + pool]}
    for name, indices in parts.items():
        with (folder.parent / f"{name}.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["file", "label"])
            for index in sorted(indices):
                label = source.class_names[source.labels[index]]
                table.writerow([f"{folder.name}/{source.keys[index]}", label])


def pipeline_of(name: str, images: str, weights: str, out: Path, seed: int) -> Pipeline:
    """Return the pipeline of one seed, whose teacher and caches are those of the first one."""
    sets = [
        f"data={images}/pool.csv",
        f"val.name={images}/val",
        f"stages.teacher.train.data={images}/labeled.csv",
        f"stages.teacher.train.val.name={images}/val",
        f"stages.teacher.train.student.weights={weights}",
        "train.threads=1",
        "train.device=cpu",
    ]
    values = override(read_yaml(find_pipeline(name)), sets)
    return Pipeline(PipelineConfig.parse(values, name), out=str(out / f"seed-{seed}"), seed=seed)


def shared_stages(pipeline: Pipeline) -> list[str]:
    """Return the stages that others build on, which are run for the first seed only."""
    referred = set(re.findall(r'"stage:([^"/]+)', pipeline.config.model_dump_json()))
    return [stage.name for stage in pipeline.stages if stage.name in referred]


def run(pipeline: Pipeline, first: Pipeline, only: Sequence[str] = ()) -> None:
    """Run the stages of one seed; those that all seeds share are run in the folder of the first.

    Args:
        pipeline: That of the seed.
        first: That of the first seed.
        only: Students to train; all by default.
    """
    shared = shared_stages(first)
    own = [s.name for s in pipeline.stages if s.name not in shared and (not only or s.name in only)]
    with StopRequest() as stop:
        first.run(stage_runner(stop), shared)
        link(pipeline, first, shared)
        for name in own:
            pipeline.run(stage_runner(stop), [name])
            print(pipeline.out.name, name, f"{top1(pipeline.out / name):.2f}", flush=True)


def link(pipeline: Pipeline, first: Pipeline, shared: Sequence[str]) -> None:
    """Make the shared stages and their results visible in the folder of another seed."""
    pipeline.out.mkdir(parents=True, exist_ok=True)
    names = [name + ending for name in shared for ending in ("", DONE)]
    for name in names if pipeline.out != first.out else ():
        place = pipeline.out / name
        if not place.exists():
            place.symlink_to((first.out / name).absolute())


def top1(folder: Path) -> float:
    """Return the accuracy of a finished run in percent."""
    result = read_result(folder)
    assert result is not None
    assert result.evaluation is not None
    return 100 * result.evaluation.score


def table(pipelines: Sequence[Pipeline]) -> list[str]:
    """Return rows of accuracies, and rows of paired differences over the seeds that have both."""
    folders = [pipeline.out for pipeline in pipelines]
    shared = shared_stages(pipelines[0])
    names = [s.name for s in pipelines[0].stages if s.name not in shared]
    lines = [f"teacher: {top1(folders[0] / 'teacher'):.2f}", "| student | top-1 | seeds |"]
    for name in [*names, *([f"{LIVE}-live"] if LIVE in names else [])]:
        values = [top1(f / name) for f in folders if (f / name / "result.json").exists()]
        if len(values) > 1:
            seeds = ", ".join(f"{value:.2f}" for value in values)
            lines.append(f"| {name} | {mean(values):.2f} ± {stdev(values):.2f} | {seeds} |")
    lines.append("| difference | mean | 95 % interval | seeds |")
    for one, other in COMPARED:
        both = [f for f in folders if (f / one).exists() and (f / other / "result.json").exists()]
        if len(both) > 1:
            lines.append(f"| {one} less {other} | {paired(both, one, other)} |")
    return lines


def paired(folders: Sequence[Path], one: str, other: str) -> str:
    """Return the mean difference of two students, its interval, and the differences by seed."""
    found = [top1(folder / one) - top1(folder / other) for folder in folders]
    text = differences(found)
    if not other.endswith("-live"):
        return text
    reach = abs(mean(found)) + half_width(found, 0.95)  # two one-sided tests at the level 0.05
    verdict = "equivalent" if reach < BOUND else "not shown to be equivalent"
    return f"{text}; {verdict} within {BOUND} (90 % interval reaches {reach:.2f})"


def differences(found: Sequence[float]) -> str:
    """Return the mean of paired differences, its 95 % interval, and the differences by seed."""
    half = half_width(found, 0.975)
    seeds = ", ".join(f"{value:+.2f}" for value in found)
    return f"{mean(found):+.2f} | {mean(found) - half:+.2f} to {mean(found) + half:+.2f} | {seeds}"


def half_width(values: Sequence[float], quantile: float) -> float:
    """Return half of the width of Student's interval of a mean."""
    size = len(values)
    return float(student_t.ppf(quantile, size - 1)) * stdev(values) / math.sqrt(size)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["split", "run", "live", "table"])
    parser.add_argument("images", type=Path, help="folder with train, val and the tables")
    parser.add_argument("--pipeline", default="real")
    parser.add_argument("--labeled", type=int, default=1000, help="of split: the teacher's images")
    parser.add_argument("--pool", type=int, default=1500, help="of split: the students' images")
    parser.add_argument("--weights", default="efficientnet-lite0-57934424.pth")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="of run: students")
    arguments = parser.parse_args()
    if arguments.action == "split":
        split(arguments.images, arguments.labeled, arguments.pool)
        return
    torch.set_num_threads(1)
    pipelines = [
        pipeline_of(
            arguments.pipeline, str(arguments.images), arguments.weights, arguments.out, seed
        )
        for seed in arguments.seeds
    ]
    if arguments.action == "run":
        for pipeline in pipelines:
            run(pipeline, pipelines[0], arguments.only)
    if arguments.action == "live":
        for pipeline in pipelines:
            link(pipeline, pipelines[0], shared_stages(pipelines[0]))
            train_live(pipeline, LIVE, fresh_views=False)
    print(*table(pipelines), sep="\n")


if __name__ == "__main__":
    main()
