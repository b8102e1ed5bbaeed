"""Runs of pipeline stages with a progress line; each imports its packages when it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cli.progress import ProgressLine
from logitcache.errors import Interrupted
from logitcache.pipeline.stage_kinds import STAGE_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.cli.interrupt import StopRequest
    from logitcache.pipeline.run import Stage

__all__ = ["stage_runner"]


def stage_runner(stop: StopRequest) -> Callable[[Stage], dict[str, Any]]:
    """Return the function that runs a stage and returns its result as JSON values.

    Args:
        stop: Returns whether the user has interrupted the command.
    """

    def run(stage: Stage) -> dict[str, Any]:
        kind = STAGE_KINDS[stage.kind]
        config = kind.config_class().parse(stage.values, f"stages.{stage.name}")
        function, options = kind.runner(), dict(kind.options)
        with ProgressLine(stage.title) as line:
            if kind.progress is not None:
                options["on_progress"] = getattr(line, kind.progress)
            if kind.stoppable:
                options["should_stop"] = stop
            try:
                result = function(config, **options)
            except Interrupted as stopped:
                stopped.hint = "re-run the same command"  # a pipeline always resumes
                raise
            line.finish()
        found: dict[str, Any] = result.to_json()
        return found

    return run
