"""Kinds of pipeline stages: their configurations, functions and outputs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from logitcache.config import Config

__all__ = ["STAGE_KINDS", "StageKind"]


@dataclass(frozen=True)
class StageKind:
    """One kind of stage.

    The function takes the configuration, and returns a result with ``to_json()``.

    Attributes:
        config: Class of the configuration, as ``module:name``. It is imported when a stage runs, so
            that students can be trained in a process that cannot import teachers.
        function: Function that runs a stage, as ``module:name``.
        output: Value that ``stage:NAME`` refers to; ``{folder}`` is the folder of the stage.
        given: Fields of the configuration that the pipeline sets, and their sources: a field of the
            pipeline (``data``, ``val``, ``seed``), ``{folder}``, or ``{output}``.
        progress: Method of the progress line that is passed as ``on_progress``; None for a function
            that does not report progress.
        stoppable: Whether the function takes ``should_stop``.
        options: Further keyword arguments of the function.
    """

    config: str
    function: str
    output: str
    given: Mapping[str, str]
    progress: str | None = None
    stoppable: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def config_class(self) -> type[Config]:
        """Import and return the class of the configuration."""
        found: type[Config] = _imported(self.config)
        return found

    def runner(self) -> Callable[..., Any]:
        """Import and return the function."""
        found: Callable[..., Any] = _imported(self.function)
        return found


STAGE_KINDS: dict[str, StageKind] = {
    "precompute": StageKind(
        config="logitcache.precompute.config:PrecomputeConfig",
        function="logitcache.precompute.build:build_cache",
        output="{folder}",
        given={"data": "data", "cache": "{folder}"},
        progress="precompute",
        stoppable=True,
    ),
    "train": StageKind(
        config="logitcache.training.config:TrainConfig",
        function="logitcache.training.loop:train_student",
        output="local-dir:{folder}/export",
        given={"data": "data", "val": "val", "out": "{folder}", "seed": "seed"},
        progress="train",
        stoppable=True,
        options={"resume": True},  # running a pipeline again continues an interrupted stage
    ),
    "fit_weights": StageKind(
        config="logitcache.tools.fit_weights:FitWeightsConfig",
        function="logitcache.tools.fit_weights:fit_weights",
        output="{folder}/weights.yaml",
        given={"out": "{output}"},
    ),
    "pick_hints": StageKind(
        config="logitcache.tools.pick_hints:PickHintsConfig",
        function="logitcache.tools.pick_hints:pick_hints",
        output="{folder}/hints.yaml",
        given={"out": "{output}"},
    ),
    "class_means": StageKind(
        config="logitcache.tools.class_means:ClassMeansConfig",
        function="logitcache.tools.class_means:class_means",
        output="{folder}/class-means.safetensors",
        given={"out": "{output}"},
    ),
    "pick_bits": StageKind(
        config="logitcache.tools.pick_bits:PickBitsConfig",
        function="logitcache.tools.pick_bits:pick_bits",
        output="{folder}/bits.yaml",
        given={"out": "{output}"},
    ),
    "synthesize": StageKind(
        config="logitcache.tools.synthesize:SynthesizeConfig",
        function="logitcache.tools.synthesize:synthesize",
        output="{folder}/images",
        given={"data": "data", "out": "{output}"},
        options={"replace": True},  # images of a stage that was interrupted or changed
    ),
    "learn_prototypes": StageKind(
        config="logitcache.tools.learn_prototypes:LearnPrototypesConfig",
        function="logitcache.tools.learn_prototypes:learn_prototypes",
        output="{folder}/prototypes.safetensors",
        given={"out": "{output}"},
        progress="count",
        stoppable=True,
    ),
    "evaluate": StageKind(
        config="logitcache.training.evaluation.evaluate:EvaluateConfig",
        function="logitcache.training.evaluation.evaluate:evaluate_network",
        output="{folder}",
        given={"data": "val"},
        progress="count",
    ),
}
"""A new kind of stage is one entry here."""


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
