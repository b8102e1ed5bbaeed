"""How each kind of stage of a pipeline is run; stage 1 is imported only if it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cli.progress import ProgressLine
from logitcache.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.cli.interrupt import StopRequest
    from logitcache.pipeline.run import Stage

__all__ = ["runners"]


def runners(stop: StopRequest) -> dict[str, Callable[[Stage], dict[str, Any]]]:
    """Return what runs a stage, by its kind."""

    def run_precompute(stage: Stage) -> dict[str, Any]:
        from logitcache.precompute.build import build_cache
        from logitcache.precompute.config import PrecomputeConfig

        config = PrecomputeConfig.parse(stage.values, f"stages.{stage.name}")
        with ProgressLine(stage.title) as line:
            summary = build_cache(config, on_progress=line.precompute, should_stop=stop)
        return summary.to_json()

    def run_train(stage: Stage) -> dict[str, Any]:
        from logitcache.training.config import TrainConfig
        from logitcache.training.loop import train_student

        config = TrainConfig.parse(stage.values, f"stages.{stage.name}")
        with ProgressLine(stage.title) as line:
            try:
                result = train_student(
                    config, resume=True, on_progress=line.train, should_stop=stop
                )
            except Interrupted as stopped:
                stopped.hint = "run the same command again"  # a pipeline always resumes
                raise
        return result.to_json()

    def run_fit_weights(stage: Stage) -> dict[str, Any]:
        from logitcache.tools.fit_weights import FitWeightsConfig, fit_weights

        return fit_weights(FitWeightsConfig.parse(stage.values, f"stages.{stage.name}")).to_json()

    return {"precompute": run_precompute, "train": run_train, "fit_weights": run_fit_weights}
