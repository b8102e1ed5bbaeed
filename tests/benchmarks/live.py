"""Train a stage of a pipeline again, with its teachers answering live: the control of a cache.

Same student, steps, batches and order. By default the same views too, so that only *when* the
teachers were asked differs; with ``--fresh-views`` every epoch draws a view of its own, as training
with live teachers usually does::

    python -m tests.benchmarks.live cifar10 from-both --out runs/cifar10 [--fresh-views]

The folder is the one of ``logitcache run``; the teachers are those its cache was made with, at the
student's own size or their own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from logitcache.batch import DenseLogits, TargetBatch
from logitcache.networks.build import InputSpec, NetworkConfig, build_network, input_spec
from logitcache.pipeline import Pipeline, PipelineConfig, find_pipeline, override, read_yaml
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student

if TYPE_CHECKING:
    from torch import Tensor, nn


class LiveTeachers:
    """Answers a batch of normalised images at once.

    Args:
        teachers: Networks by name.
        student: What the student is fed; undone before a teacher's own normalisation.
    """

    def __init__(self, teachers: dict[str, nn.Module], student: InputSpec) -> None:
        self._teachers = {name: network.eval() for name, network in teachers.items()}
        self._specs = {name: input_spec(network) for name, network in teachers.items()}
        self._student = student
        self.forwards = 0

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: TargetBatch) -> TargetBatch:
        answers = {
            name: DenseLogits(network(self._for(images, self._specs[name])).log_softmax(1))
            for name, network in self._teachers.items()
        }
        self.forwards += len(self._teachers)
        return TargetBatch(targets.rows, targets.labels, answers)

    def _for(self, images: Tensor, spec: InputSpec) -> Tensor:
        own_mean, own_std = _column(self._student.mean), _column(self._student.std)
        pixels = images * own_std + own_mean
        if spec.size != self._student.size:
            pixels = functional.interpolate(
                pixels, size=(spec.size, spec.size), mode="bicubic", antialias=True
            ).clamp(0, 1)
        return (pixels - _column(spec.mean)) / _column(spec.std)


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def live_config(
    pipeline: Pipeline, stage_name: str, *, fresh_views: bool
) -> tuple[TrainConfig, dict[str, NetworkConfig]]:
    """Return the stage's configuration for live teachers, and the teachers."""
    stages = {stage.name: stage for stage in pipeline.stages}
    values: dict[str, Any] = dict(stages[stage_name].values)
    cache = next(s for s in pipeline.stages if s.values.get("cache") == values["cache"])
    named = values.get("objectives", [{"soft": {}}])[0]["soft"].get("teachers")
    configs = {
        name: NetworkConfig.model_validate(teacher)
        for name, teacher in cache.values["teachers"].items()
        if named is None or name in named
    }
    suffix = "live-fresh" if fresh_views else "live"
    values["out"] = str(pipeline.out / f"{stage_name}-{suffix}")
    if fresh_views:
        values["cache"] = None
        values["views"] = cache.values["views"]
    return TrainConfig.parse(values, stage_name), configs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline")
    parser.add_argument("stage", help="a train stage that learns from a cache")
    parser.add_argument("--out", required=True, help="folder of the pipeline's outputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh-views", action="store_true")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="A.B=VALUE")
    arguments = parser.parse_args()
    values = override(read_yaml(find_pipeline(arguments.pipeline)), arguments.sets)
    config = PipelineConfig.parse(values, arguments.pipeline)
    pipeline = Pipeline(config, out=arguments.out, seed=arguments.seed)
    train, configs = live_config(pipeline, arguments.stage, fresh_views=arguments.fresh_views)
    networks = {name: build_network(teacher) for name, teacher in configs.items()}
    live = LiveTeachers(networks, input_spec(build_network(train.student), train.student.size))
    result = train_student(train, resume=True, answer=live)
    document = {**result.to_json(), "teacher_forwards": live.forwards}
    (Path(result.out) / "live.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
