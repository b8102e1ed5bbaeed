"""Runs of pipelines: the stages of one YAML file in order; finished stages are skipped.

A file has settings that all stages share, and stages with settings of their own::

    name: quickstart
    out: runs/quickstart
    data: digits                     # shared by every stage
    train: {batch_size: 128}         # shared by every train stage
    stages:
      - name: cnn
        train: {student: {model: resnet10t}, steps: 200}
      - name: cache
        precompute: {teachers: {cnn: {model: "stage:cnn"}}}
      - name: student
        train: {student: {model: deit_tiny_patch16_224}, cache: "stage:cache", steps: 500}

``stage:NAME`` refers to the output of an earlier stage: the exported network of a ``train`` stage,
the cache of a ``precompute`` stage, the file of a ``fit_weights`` stage. ``stage:NAME/FIELD``
refers to a field of its result, once it has run: ``soft: {teachers: stage:weights/teachers}``, and
a longer path to what is inside of it: ``tap: stage:hints/taps/0``. Keys of mappings may be
references too: ``features: {stage:hints/taps/0: {}}``.

The settings of a stage are the configuration of the component that runs it; the table of
:mod:`logitcache.pipeline.stage_kinds` names those that the pipeline fills in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.errors import UsageError, nearest, redacted
from logitcache.files import read_json, warn_damaged, write_file
from logitcache.pipeline.settings import IMAGE_SETS, merged, with_images_of
from logitcache.pipeline.stage_kinds import STAGE_KINDS
from logitcache.yaml_text import dump_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from logitcache.pipeline.config import PipelineConfig, StageConfig

__all__ = ["DONE", "PIPELINE", "Pipeline", "Stage", "StageResult", "with_results"]

DONE = ".done.json"
"""Ending of the file that marks a stage as finished and contains its result."""
PIPELINE = "pipeline.yaml"
"""File with the configuration of a pipeline in its output folder."""

_REFERENCE = "stage:"


@dataclass(frozen=True)
class Stage:
    """A stage with resolved references and shared settings.

    Attributes:
        name: Name of the stage.
        kind: Kind of the stage, a key of :data:`.STAGE_KINDS`.
        values: Fields of the configuration of its component.
        number: Position in the pipeline, from 1.
        total: Number of stages of the pipeline.
    """

    name: str
    kind: str
    values: dict[str, Any]
    number: int = 1
    total: int = 1

    @property
    def title(self) -> str:
        """Position and name for progress lines, such as ``[3/9] student``."""
        return f"[{self.number}/{self.total}] {self.name}"

    @property
    def digest(self) -> str:
        """sha256 of the settings; a stage with the same digest is not run again."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StageResult:
    """Result of a stage.

    Attributes:
        stage: The stage.
        values: The result as JSON values.
        skipped: Whether the stage had been finished before.
    """

    stage: Stage
    values: dict[str, Any]
    skipped: bool


class Pipeline:
    """A pipeline with one random seed.

    Args:
        config: Configuration of the pipeline.
        out: Folder of all outputs; that of the configuration by default.
        seed: Random seed of every training run; that of the configuration by default.

    Raises:
        UsageError: A stage refers to one that does not come earlier.
    """

    def __init__(
        self, config: PipelineConfig, *, out: str | None = None, seed: int | None = None
    ) -> None:
        self.config = config
        self.out = Path(out or config.out)
        self.seed = config.seed if seed is None else seed
        self.stages = self._resolve()

    def run(
        self, run_stage: Callable[[Stage], dict[str, Any]], only: Sequence[str] = ()
    ) -> list[StageResult]:
        """Run the stages in order, and read the results of finished ones.

        The configuration of the pipeline is written into the output folder.

        Args:
            run_stage: Runs a stage and returns its result as JSON values.
            only: Names of the stages to run; all by default.

        Raises:
            UsageError: There is no stage of this name.
        """
        for name in only:
            if name not in {stage.name for stage in self.stages}:
                known = [stage.name for stage in self.stages]
                raise UsageError(f"the pipeline has no stage {name!r}", hint=nearest(name, known))
        self._write_settings()
        chosen = [stage for stage in self.stages if not only or stage.name in only]
        return [self._run_stage(stage, run_stage) for stage in chosen]

    def unfinished(self) -> list[str]:
        """Return the names of the stages from the first one that is not finished."""
        for index, stage in enumerate(self.stages):
            if self._finished_result(with_results(stage, self._result_of)) is None:
                return [later.name for later in self.stages[index:]]
        return []

    def _write_settings(self) -> None:
        """Write the configuration into the output folder, without passwords of URLs."""
        values = self.config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        values |= {"out": str(self.out), "seed": self.seed}
        write_file(self.out / PIPELINE, dump_yaml(_without_credentials(values)))

    def _run_stage(self, stage: Stage, run_stage: Callable[[Stage], dict[str, Any]]) -> StageResult:
        # references to results are resolved first, so that a new result changes the digest
        stage = with_results(stage, self._result_of)
        found = self._finished_result(stage)
        if found is not None:
            return StageResult(stage, found, skipped=True)
        values = run_stage(stage)
        marker = self._marker(stage.name)
        write_file(marker, json.dumps({"digest": stage.digest, "result": values}, indent=2) + "\n")
        return StageResult(stage, values, skipped=False)

    def _finished_result(self, stage: Stage) -> dict[str, Any] | None:
        """Return the result of a stage, None if it has not been run with these settings."""
        done = _read_marker(self._marker(stage.name))
        return done["result"] if done is not None and done["digest"] == stage.digest else None

    def _marker(self, name: str) -> Path:
        """Return the file that marks a stage as finished and contains its result."""
        return self.out / f"{name}{DONE}"

    def _result_of(self, name: str) -> dict[str, Any] | None:
        done = _read_marker(self._marker(name))
        return None if done is None else done["result"]

    def _resolve(self) -> list[Stage]:
        made: dict[str, str] = {}
        stages = []
        for number, config in enumerate(self.config.stages, start=1):
            shared = getattr(self.config, config.kind)
            common, settings = self._common(config), merged(shared, config.settings)
            images = {
                name: with_images_of(common.get(name), settings[name])
                for name in IMAGE_SETS & settings.keys()
            }
            values = {**merged(common, settings), **images}
            values = _replace_references(values, made, f"stages.{config.name}")
            total = len(self.config.stages)
            stages.append(Stage(config.name, config.kind, values, number, total))
            made[config.name] = self.output_of(config)
        return stages

    def _common(self, stage: StageConfig) -> dict[str, Any]:
        """Return the fields of a stage's configuration that the pipeline sets."""
        of_pipeline = {
            "data": self.config.data,
            "val": self.config.val,
            "seed": self.seed,
            "{folder}": str(self.out / stage.name),
            "{output}": self.output_of(stage),
        }
        given = STAGE_KINDS[stage.kind].given
        return {field: of_pipeline[source] for field, source in given.items()}

    def output_of(self, stage: Stage | StageConfig) -> str:
        """Return what ``stage:NAME`` refers to."""
        return STAGE_KINDS[stage.kind].output.format(folder=self.out / stage.name)


def _without_credentials(value: Any) -> Any:
    """Return values whose URLs have no user, password or values of a query."""
    if isinstance(value, Mapping):
        return {key: _without_credentials(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_credentials(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


def with_results(stage: Stage, result_of: Callable[[str], dict[str, Any] | None]) -> Stage:
    """Return a stage with ``stage:NAME/FIELD`` replaced everywhere by the result of that stage.

    Args:
        stage: The stage.
        result_of: Returns the result of a stage by its name; None if it has not run.

    Raises:
        UsageError: A stage has not run, or its result has no such field.
    """
    values = _with_results(stage.values, result_of, f"stages.{stage.name}")
    return replace(stage, values=values)


def _with_results(value: Any, result_of: Callable[[str], dict[str, Any] | None], where: str) -> Any:
    if isinstance(value, Mapping):
        return {
            _with_results(k, result_of, where): _with_results(v, result_of, f"{where}.{k}")
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_with_results(item, result_of, where) for item in value]
    if not isinstance(value, str) or not value.startswith(_REFERENCE):
        return value
    name, _, field = value.removeprefix(_REFERENCE).partition("/")
    result = result_of(name)
    if result is None:
        raise UsageError(
            f"stage {name!r}, whose result is used here, has not run yet",
            where=where,
            hint=f"run it first: --only {name}",
        )
    return _inside(result, field, name, where)


def _inside(result: dict[str, Any], path: str, stage: str, where: str) -> Any:
    """Return the value at a path of names and numbers in the result of a stage."""
    value: Any = result
    for part in path.split("/"):
        inner: Any = value if isinstance(value, Mapping) else {}
        if isinstance(value, list):
            inner = {str(index): item for index, item in enumerate(value)}
        if part not in inner:
            raise UsageError(
                f"the result of stage {stage!r} has no field {path!r}",
                where=where,
                hint=nearest(part, inner),
            )
        value = inner[part]
    return value


def _read_marker(path: Path) -> dict[str, Any] | None:
    """Return the result of a stage and the digest of its settings; None if not finished."""
    done = read_json(path)
    if done is None:
        return None
    if not isinstance(done.get("digest"), str) or not isinstance(done.get("result"), dict):
        warn_damaged(path, "it lacks the digest or the result of a stage")
        return None
    return done


def _replace_references(value: Any, made: Mapping[str, str], where: str) -> Any:
    """Replace ``stage:NAME`` everywhere; ``stage:NAME/FIELD`` is replaced when a stage runs."""
    if isinstance(value, Mapping):
        return {
            _replace_references(k, made, where): _replace_references(v, made, f"{where}.{k}")
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_replace_references(item, made, where) for item in value]
    if isinstance(value, str) and value.startswith(_REFERENCE):
        name, _, field = value.removeprefix(_REFERENCE).partition("/")
        if name not in made:
            raise UsageError(f"no earlier stage {name!r}", where=where, hint=nearest(name, made))
        return value if field else made[name]
    return value
