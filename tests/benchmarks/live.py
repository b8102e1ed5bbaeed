"""Train a stage of a pipeline again, with its teachers answering live: the control of a cache.

Same student, steps, batches and order. By default the same views too, so that only *when* the
teachers were asked differs; with ``--fresh-views`` every epoch draws a view of its own, as training
with live teachers usually does::

    python -m tests.benchmarks.live cifar10 from-both --out runs/cifar10 [--fresh-views]

The folder is the one of ``logitcache run``; the teachers are those its cache was made with.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from logitcache.batch import DenseLogits
from logitcache.data.readers import open_source
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.objectives.combine import build_objective
from logitcache.pipeline import Pipeline, PipelineConfig, find_pipeline, override, read_yaml
from logitcache.targets.loader import Loader, LoaderSettings
from logitcache.targets.match import CheckedReader
from logitcache.training.config import TrainConfig
from logitcache.training.images import training_images
from logitcache.training.loop import train_student
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from logitcache.batch import TargetBatch
    from logitcache.data.source import Source


class LiveTeachers:
    """Answers every batch at once, each teacher from the same view at its own size.

    Args:
        teachers: Networks by name.
        shown: A twin of the loader of the run: it knows the views of its epochs.
        source: The images.
    """

    def __init__(self, teachers: dict[str, nn.Module], shown: Loader, source: Source) -> None:
        self._teachers = {name: network.eval() for name, network in teachers.items()}
        self._specs = {name: input_spec(network) for name, network in teachers.items()}
        self._shown = shown
        sizes = sorted({spec.size for spec in self._specs.values()})
        self._renderer = ViewRenderer(CheckedReader(shown.rows), sizes, threads=2)
        self._batches = 0
        self.forwards = 0

    @torch.no_grad()
    def __call__(self, _: Tensor, targets: TargetBatch) -> TargetBatch:
        view = self._shown.view(self._batches // len(self._shown))
        if view.mixing is not None:
            raise SystemExit("live teachers are shown views that mix nothing")
        self._batches += 1
        rows = self._shown.rows
        positions = rows.positions(targets.rows.numpy())
        request = BatchRequest(view, positions, rows.hashes_of(positions))
        pixels = next(iter(self._renderer.batches([request]))).pixels
        answers = {name: self._ask(name, pixels) for name in self._teachers}
        self.forwards += len(answers)
        return replace(targets, teachers=answers)

    def _ask(self, name: str, pixels: dict[int, NDArray[np.uint8]]) -> DenseLogits:
        spec = self._specs[name]
        images = torch.from_numpy(pixels[spec.size]).float() / 255
        logits = self._teachers[name]((images - _column(spec.mean)) / _column(spec.std))
        return DenseLogits(logits.log_softmax(1))


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def twin_loader(config: TrainConfig, source: Source) -> Loader:
    """Return a loader that walks the views and rows of a run."""
    rows, targets = training_images(config, source, build_objective(config.terms).needs)
    settings = LoaderSettings(config.batch_size, size=1, seed=config.seed)
    views = None if targets else config.views or ViewsConfig()
    return Loader(rows, settings, targets=targets, views=views)


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
    source = open_source(train.data)
    live = LiveTeachers(networks, twin_loader(train, source), source)
    result = train_student(train, answer=live)
    document = {**result.to_json(), "teacher_forwards": live.forwards}
    (Path(result.out) / "live.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
