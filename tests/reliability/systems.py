"""Kill the students of all systems at random moments, resume them, compare the bits.

Teachers, caches and files of a pipeline are made once, with few images and steps; then its student
is trained for three epochs with a checkpoint after each.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

from tests.reliability.runs import kill_and_compare, outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["kill_systems"]

_IMAGES = 160
_STEPS = 2
"""Of every training but the one that is killed."""


def kill_systems(
    folder: Path, count: int, seed: int, systems: Sequence[str] | None = None
) -> dict[str, Any]:
    """Kill the student of each system ``count`` times.

    Args:
        folder: An empty folder.
        count: How many kills of each.
        seed: Random seed of the moments.
        systems: Names of pipelines; all systems by default.
    """
    from tests.end_to_end.test_systems import SYSTEMS

    return {
        name: kill_and_compare(
            folder / name, _student(name, folder / name), count, seed, _train, _trained
        )
        for name in systems or SYSTEMS
    }


def _student(system: str, folder: Path) -> Path:
    """Run a pipeline up to its student, and return a file with the student's settings."""
    from logitcache.cli.run import load_pipelines
    from logitcache.pipeline.settings import find_pipeline, read_yaml
    from tests.end_to_end.test_systems import STUDENT, run

    path = find_pipeline(system)
    labels = re.findall(r"labels: (?:&\S+ )?(?:\{count: )?(\d+)", path.read_text())
    images = max(map(int, labels), default=0) + _IMAGES  # more than those whose labels are used
    sets = [f"data={{name: digits, limit: {images}}}", "precompute.min_accuracy=0"]
    for stage in read_yaml(path)["stages"]:
        inner = [f"{stage['name']}.stages.{each['name']}" for each in stage.get("stages", ())]
        trained = [stage["name"]] if "train" in stage else inner
        sets += [f"stages.{name}.train.steps={_STEPS}" for name in trained if "cache" not in name]
    (pipeline,) = load_pipelines(system, out=str(folder / "run"), seeds=1, sets=sets)
    names, student = [stage.name for stage in pipeline.stages], STUDENT.get(system, "student")
    compared = {"labels", "kd", "any", "real", "alone"}
    run(pipeline, [n for n in names[: names.index(student) + 1] if n not in compared])
    values = yaml.safe_load((folder / "run" / student / "config.yaml").read_text())
    values |= {"val": None, "steps": None, "epochs": 3, "checkpoint_every": 1}
    settings = folder / "student.json"
    settings.write_text(json.dumps(values))
    return settings


def _train(out: Path, settings: Path) -> None:
    from logitcache.training.config import TrainConfig
    from logitcache.training.loop import train_student

    values = {**json.loads(settings.read_text()), "out": str(out)}
    train_student(TrainConfig.parse(values, ""), resume=True)


def _trained(out: Path) -> dict[str, Any]:
    """Return what came of a run, and the last state of all that was trained with the student."""
    last = max((out / "checkpoints").iterdir())
    return {**outcome(out), "state": (last / "tensors.safetensors").read_bytes()}
