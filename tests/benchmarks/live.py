"""Train a stage of a pipeline again, with teachers run live: the control of a cache.

Same student, steps, batches and order. By default the same views too, so that the only
differences are *when* the teachers are run, and what storage loses; with ``--fresh-views`` every
epoch draws a view of its own, as training with live teachers usually does::

    python -m tests.benchmarks.live cifar10 from-both --out runs/cifar10 [--fresh-views]

The folder is the one of ``logitcache run``; the teachers are those its cache was made with.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from logitcache.batch import DenseLogits
from logitcache.cache.format.names import tap_of, teacher_of
from logitcache.cache.read.reader import open_cache
from logitcache.objectives.combine import build_objective
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import Pipeline
from logitcache.pipeline.settings import find_pipeline, override, read_yaml
from logitcache.targets.decoding.feature_groups import example_features, features_of
from logitcache.targets.images.image_rows import CheckedReader
from logitcache.targets.loader import Loader
from logitcache.targets.settings import LoaderSettings
from logitcache.teachers.ensemble import Ensemble, Tap
from logitcache.teachers.member import TeacherConfig
from logitcache.training.config import TrainConfig
from logitcache.training.images import training_images
from logitcache.training.loop import train_student
from logitcache.training.run.result import read_result
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig
from logitcache.views.tokens import kept_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.batch import Features, TargetBatch
    from logitcache.cache.format.groups import FeatureGroup
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.objectives.term import Needs
    from logitcache.pipeline.run import Stage
    from logitcache.training.run.result import TrainResult
    from logitcache.views.spec import View


class LiveTeachers:
    """Live outputs for every batch, each teacher run on the same view at its own size.

    Args:
        stage: The stage that computed the cache, with the teachers.
        needs: What the objectives need.
        shown: A copy of the loader of the run, for the views of its epochs.
    """

    def __init__(self, stage: Stage, needs: Needs, shown: Loader) -> None:
        cache = open_cache(stage.values["cache"])
        self._logits = tuple(cache.teachers) if needs.teachers is None else needs.teachers
        self._taps: dict[str, FeatureGroup] = {name: cache.tap(name) for name in needs.features}
        names = {*self._logits, *(teacher_of(group.name) for group in self._taps.values())}
        configs = {
            name: TeacherConfig.model_validate(teacher)
            for name, teacher in stage.values["teachers"].items()
            if name in names
        }
        self._ensemble = Ensemble(configs, device=torch.device("cpu"), precision="float32")
        self._ensemble.keep({name: _tap(group) for name, group in self._taps.items()})
        self._shown = shown
        sizes = self._ensemble.sizes
        self._renderer = ViewRenderer(
            CheckedReader(shown.rows), sizes, threads=torch.get_num_threads()
        )
        self._batches = 0
        self.forwards = 0

    @property
    def features(self) -> dict[str, Features]:
        """One example row of every tap."""
        return {name: example_features(group.encoding) for name, group in self._taps.items()}

    def __call__(self, _: Tensor, targets: TargetBatch) -> TargetBatch:
        view = self._shown.view(self._batches // len(self._shown))
        if view.mixing is not None:
            raise SystemExit("live teachers do not support views that mix images")
        self._batches += 1
        self.forwards += len(self._ensemble.members)
        rows = self._shown.rows
        positions = rows.positions(targets.rows.numpy())
        hashes = rows.hashes_of(positions)
        pixels = next(iter(self._renderer.batches([BatchRequest(view, positions, hashes)]))).pixels
        kept = {
            name: self._kept(group.encoding, view, hashes) for name, group in self._taps.items()
        }
        names = {**dict.fromkeys(self._logits), **kept}
        outputs = self._ensemble.run(pixels, dict.fromkeys(names, len(hashes)), names)
        answered = {name: torch.from_numpy(values) for name, values in outputs.items()}
        return replace(
            targets,
            teachers={name: DenseLogits(answered[name].log_softmax(1)) for name in self._logits},
            features={
                name: features_of(group.encoding, answered[name], _tensor(kept[name]))
                for name, group in self._taps.items()
            },
        )

    def close(self) -> None:
        """Stop the renderer."""
        self._renderer.close()
        self._shown.close()

    @staticmethod
    def _kept(
        encoding: FeatureEncoding, view: View, hashes: NDArray[np.uint64]
    ) -> NDArray[np.int64] | None:
        """Return which patches of each row are kept; None for all."""
        if encoding.kept is None:
            return None
        return kept_tokens(view, hashes, encoding.patches, encoding.kept)


def _tensor(array: NDArray[np.int64] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)


def _tap(group: FeatureGroup) -> Tap:
    tap = tap_of(group.name)
    assert tap is not None  # a group of a tap
    return Tap(teacher_of(group.name), tap, group.encoding)


def twin_loader(config: TrainConfig) -> Loader:
    """Return a loader that walks the views and rows of a run."""
    rows, targets = training_images(config, build_objective(config.terms).needs)
    settings = LoaderSettings(config.batch_size, size=1, seed=config.seed)
    views = None if targets else config.views or ViewsConfig()
    return Loader(rows, settings, targets=targets, views=views)


def live_config(pipeline: Pipeline, stage_name: str, *, fresh_views: bool) -> TrainConfig:
    """Return a stage's configuration for live teachers, and the stage that made its cache."""
    stages = {stage.name: stage for stage in pipeline.stages}
    values: dict[str, Any] = dict(stages[stage_name].values)
    suffix = "live-fresh" if fresh_views else "live"
    values["out"] = str(pipeline.out / f"{stage_name}-{suffix}")
    if fresh_views:
        values["views"] = _maker(pipeline, values["cache"]).values["views"]
        values["cache"] = None
    return TrainConfig.parse(values, stage_name)


def _maker(pipeline: Pipeline, cache: str) -> Stage:
    """Return the stage that made a cache."""
    return next(stage for stage in pipeline.stages if stage.values.get("cache") == cache)


def train_live(pipeline: Pipeline, stage_name: str, *, fresh_views: bool) -> TrainResult:
    """Train a stage with live teachers; a finished run is not repeated."""
    config = live_config(pipeline, stage_name, fresh_views=fresh_views)
    cached = next(stage for stage in pipeline.stages if stage.name == stage_name)
    maker = _maker(pipeline, cached.values["cache"])
    if read_result(Path(config.out)) is None:  # batches are counted from the first one
        shutil.rmtree(config.out, ignore_errors=True)
    live = LiveTeachers(maker, build_objective(config.terms).needs, twin_loader(config))
    try:
        result = train_student(config, resume=True, answer=live, answer_features=live.features)
    finally:
        live.close()
    document = {**result.to_json(), "teacher_forwards": live.forwards}
    (Path(result.out) / "live.json").write_text(json.dumps(document, indent=2) + "\n")
    return result


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
    result = train_live(pipeline, arguments.stage, fresh_views=arguments.fresh_views)
    print((Path(result.out) / "live.json").read_text())


if __name__ == "__main__":
    main()
