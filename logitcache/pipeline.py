"""A pipeline: several stages in one YAML file, run in order, skipping what is done.

A file has settings that all stages share, and stages that say what is theirs::

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

``stage:NAME`` stands for what an earlier stage made: the exported network of a ``train`` stage, the
cache of a ``precompute`` stage, the file of a ``fit_weights`` stage. ``stage:NAME/FIELD`` stands
for a field of its result, once it has run: ``soft: {teachers: stage:weights/teachers}``.

What a stage may say is the configuration of the component that runs it; nothing here knows a field
of it but ``out``, ``cache``, ``data`` and ``seed``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from logitcache.config import Config
from logitcache.errors import UsageError, nearest, redacted
from logitcache.files import read_json, warn_damaged, write_file
from logitcache.yaml_text import load_yaml, load_yaml_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Pipeline",
    "PipelineConfig",
    "Stage",
    "StageResult",
    "find_pipeline",
    "merged",
    "override",
    "read_yaml",
    "shipped_pipelines",
]

_REFERENCE = "stage:"
_EXPORT = "export"
_WEIGHTS = "weights.yaml"
_KINDS = ("train", "precompute", "fit_weights")
_MAIN_FIELDS = {"data": "name", "val": "name"}
"""Sections that may be written as one string, and the field that it stands for."""


class StageConfig(Config):
    """One stage.

    Attributes:
        name: Names its folder, and what later stages call it.
        train: Fields of a :class:`~logitcache.training.config.TrainConfig`.
        precompute: Fields of a :class:`~logitcache.precompute.config.PrecomputeConfig`.
        fit_weights: Fields of a :class:`~logitcache.tools.fit_weights.FitWeightsConfig`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    train: dict[str, Any] | None = None
    precompute: dict[str, Any] | None = None
    fit_weights: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in _KINDS) != 1:
            raise ValueError(f"a stage is one of {', '.join(_KINDS)}")
        return self

    @property
    def kind(self) -> str:
        """``train``, ``precompute`` or ``fit_weights``."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def settings(self) -> dict[str, Any]:
        """What the stage says."""
        settings: dict[str, Any] = getattr(self, self.kind)
        return settings


class PipelineConfig(Config):
    """A pipeline file.

    Attributes:
        name: What it is called.
        description: What it shows.
        out: Folder of all its outputs.
        seed: Of every training; ``logitcache run --seeds`` sets it.
        data: Images of every stage.
        val: Images every training is evaluated on.
        train: Settings shared by train stages.
        precompute: Settings shared by precompute stages.
        stages: In order.
    """

    name: str
    description: str = ""
    out: str
    seed: int = 0
    data: Any
    val: Any = None
    train: dict[str, Any] = Field(default_factory=dict)
    precompute: dict[str, Any] = Field(default_factory=dict)
    stages: list[StageConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages are called {name}")
        return self


@dataclass(frozen=True)
class Stage:
    """A stage, resolved: references replaced, shared settings filled in.

    Attributes:
        name: Its name.
        kind: ``train``, ``precompute`` or ``fit_weights``.
        values: Fields of the configuration of its component.
        number: Its position in the pipeline, from 1.
        total: Number of stages of the pipeline.
    """

    name: str
    kind: str
    values: dict[str, Any]
    number: int = 1
    total: int = 1

    @property
    def title(self) -> str:
        """Name and position for people, as ``[3/9] student``."""
        return f"[{self.number}/{self.total}] {self.name}"

    @property
    def digest(self) -> str:
        """sha256 of what the stage says; a stage with the same digest is not run again."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class StageResult:
    """What a stage made.

    Attributes:
        stage: Which.
        values: Its result, as JSON values.
        skipped: Whether it was done before.
    """

    stage: Stage
    values: dict[str, Any]
    skipped: bool


class Pipeline:
    """A pipeline with one seed.

    Args:
        config: The file.
        out: Folder of its outputs; the file's own by default.
        seed: Of every training; the file's own by default.

    Raises:
        UsageError: A reference to a stage that does not come earlier.
    """

    def __init__(
        self, config: PipelineConfig, *, out: str | None = None, seed: int | None = None
    ) -> None:
        self.config = config
        self.out = Path(out or config.out)
        self.seed = config.seed if seed is None else seed
        self.stages = self._resolve()

    def run(
        self, runners: Mapping[str, Callable[[Stage], dict[str, Any]]], only: Sequence[str] = ()
    ) -> list[StageResult]:
        """Run the stages in order; those that are done are read back.

        Args:
            runners: By kind: runs a stage and returns its result as JSON values.
            only: Names of the stages to run; all by default.

        Raises:
            UsageError: An unknown stage.
        """
        for name in only:
            if name not in {stage.name for stage in self.stages}:
                known = [stage.name for stage in self.stages]
                raise UsageError(f"no stage {name!r}", hint=nearest(name, known))
        chosen = [stage for stage in self.stages if not only or stage.name in only]
        return [self._run_stage(stage, runners) for stage in chosen]

    def _run_stage(
        self, stage: Stage, runners: Mapping[str, Callable[[Stage], dict[str, Any]]]
    ) -> StageResult:
        stage = replace(stage, values=self._with_results(stage.values, f"stages.{stage.name}"))
        marker = self._marker(stage.name)
        done = _read_marker(marker)
        if done is not None and done["digest"] == stage.digest:
            return StageResult(stage, done["result"], skipped=True)
        values = runners[stage.kind](stage)
        write_file(marker, json.dumps({"digest": stage.digest, "result": values}, indent=2) + "\n")
        return StageResult(stage, values, skipped=False)

    def _marker(self, name: str) -> Path:
        """Return the file that says a stage is done, and what came of it."""
        return self.out / f"{name}.done.json"

    def _with_results(self, value: Any, where: str) -> Any:
        """Replace ``stage:NAME/FIELD`` everywhere by what came of the stage."""
        if isinstance(value, Mapping):
            return {k: self._with_results(v, f"{where}.{k}") for k, v in value.items()}
        if isinstance(value, list):
            return [self._with_results(item, where) for item in value]
        if not isinstance(value, str) or not value.startswith(_REFERENCE):
            return value
        name, _, field = value.removeprefix(_REFERENCE).partition("/")
        done = _read_marker(self._marker(name))
        if done is None:
            raise UsageError(
                f"stage {name!r} has not run yet", where=where, hint=f"run it first: --only {name}"
            )
        result: dict[str, Any] = done["result"]
        if field not in result:
            raise UsageError(
                f"stage {name!r} has no result {field!r}", where=where, hint=nearest(field, result)
            )
        return result[field]

    def _resolve(self) -> list[Stage]:
        made: dict[str, str] = {}
        stages = []
        for number, config in enumerate(self.config.stages, start=1):
            shared = getattr(self.config, config.kind, {})
            values = merged(self._common(config), merged(shared, config.settings))
            values = _replace_references(values, made, f"stages.{config.name}")
            total = len(self.config.stages)
            stages.append(Stage(config.name, config.kind, values, number, total))
            folder = self.out / config.name
            made[config.name] = {
                "train": f"local-dir:{folder / _EXPORT}",
                "precompute": str(folder),
                "fit_weights": str(folder / _WEIGHTS),
            }[config.kind]
        return stages

    def _common(self, stage: StageConfig) -> dict[str, Any]:
        """Return the fields that the pipeline itself knows of."""
        folder = str(self.out / stage.name)
        if stage.kind == "precompute":
            return {"data": self.config.data, "cache": folder}
        if stage.kind == "fit_weights":
            return {"out": str(self.out / stage.name / _WEIGHTS)}
        return {
            "data": self.config.data,
            "val": self.config.val,
            "out": folder,
            "seed": self.seed,
        }


def _read_marker(path: Path) -> dict[str, Any] | None:
    """Return what came of a stage and the digest of what it was told; None if it is not done."""
    done = read_json(path)
    if done is None:
        return None
    if not isinstance(done.get("digest"), str) or not isinstance(done.get("result"), dict):
        warn_damaged(path, "no digest and result of a stage")
        return None
    return done


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UsageError: There is no such file, or it is no YAML mapping.
    """
    try:
        values = load_yaml_file(Path(path))
    except OSError as error:
        raise UsageError("cannot read this file", where=path, got=error.strerror) from None
    except ValueError as error:
        raise UsageError("not YAML", where=path, got=" ".join(str(error).split())) from None
    if not isinstance(values, dict):
        raise UsageError("not a mapping", where=path, expected="lines like 'name: value'")
    _refuse_joined(values, path)
    return values


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return values with ``a.b=c`` assignments applied; c is read as YAML.

    A list of stages is addressed by their names: ``stages.cnn.train.steps=10``. Where a section is
    given as one string, that is its main field: ``data.limit=9`` keeps the name in ``data``.

    Raises:
        UsageError: Not an assignment, or its path leads into something that is no mapping.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise UsageError("not an assignment", where=f"--set {assignment}", expected="a.b=value")
        value = parse_value(text, f"--set {assignment}")
        values = _assigned(values, path.split("."), value, f"--set {path}")
    return values


def parse_value(text: str, where: str) -> Any:
    """Read one value as YAML has it.

    Raises:
        UsageError: It is none.
    """
    try:
        value = load_yaml(text)
    except ValueError:
        raise UsageError("the value is not YAML", where=where) from None
    _refuse_joined(value, where)
    return value


def _refuse_joined(value: object, where: object) -> None:
    """Refuse ``{size:32}``: its one name has no value, and what has none is taken as not given."""
    joined = _joined_key(value)
    if joined is not None:
        name, _, rest = joined.partition(":")
        raise UsageError(
            "a colon without a space after it separates nothing in YAML",
            where=where,
            expected=f"{name}: {rest}",
            got=joined,
        )


def _joined_key(value: object) -> str | None:
    """Return a key such as ``size:32``, which YAML reads as one name without a value."""
    waiting, seen = [value], set[int]()
    while waiting:
        found = waiting.pop()
        if not isinstance(found, dict | list) or id(found) in seen:  # aliases may lead in a circle
            continue
        seen.add(id(found))
        if isinstance(found, dict):
            for key, inner in found.items():
                if inner is None and isinstance(key, str) and ":" in key:
                    return key
        waiting.extend(found.values() if isinstance(found, dict) else found)
    return None


def shipped_pipelines() -> list[Path]:
    """Return the pipeline files that come with logitcache."""
    here = Path(__file__).parent
    for folder in (here / "pipelines", here.parent / "pipelines"):
        found = sorted(folder.glob("*.yaml"))
        if found:
            return found
    return []


def find_pipeline(name: str) -> Path:
    """Return a pipeline file by path, or by the name of a shipped one.

    Raises:
        UsageError: There is none.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = {path.stem: path for path in shipped_pipelines()}
    stem = Path(name).stem
    if stem in shipped:
        return shipped[stem]
    raise UsageError("no such pipeline", where=name, hint=nearest(stem, shipped))


def _assigned(values: Any, path: list[str], value: object, where: str) -> Any:
    """Return a copy of nested values with one of them replaced."""
    head, *rest = path
    if isinstance(values, list):
        names = [str(item["name"]) for item in values if isinstance(item, dict) and "name" in item]
        if not names:
            raise UsageError(
                f"{head!r} is inside a list, and a list is set as a whole",
                where=where,
                hint="as objectives=[{soft: {temperature: 2}}]",
            )
        if head not in names:
            raise UsageError(
                f"nothing called {head!r} here", where=where, hint=nearest(head, names)
            )
        index = names.index(head)
        return [*values[:index], _assigned(values[index], rest, value, where), *values[index + 1 :]]
    if not isinstance(values, dict):
        raise UsageError(
            f"{head!r} is below something that is no mapping",
            where=where,
            got=redacted(repr(values)),
            hint=f"set that as a whole: {where.rpartition(f'.{head}')[0]}=VALUE",
        )
    before = values.get(head, {})
    main = _MAIN_FIELDS.get(head)
    # to set the main field itself is to set the string, and the error below says so
    if isinstance(before, str) and main is not None and rest[:1] != [main]:
        before = {main: before}
    inner = _assigned(before, rest, value, where) if rest else value
    return {**values, head: inner}


def merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return shared settings overridden by own ones, mapping by mapping."""
    found = dict(shared)
    for name, value in own.items():
        before = found.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            found[name] = merged(before, value)
        else:
            found[name] = value
    return found


def _replace_references(value: Any, made: Mapping[str, str], where: str) -> Any:
    """Replace ``stage:NAME`` everywhere; results, ``stage:NAME/FIELD``, are not there yet."""
    if isinstance(value, Mapping):
        return {k: _replace_references(v, made, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_replace_references(item, made, where) for item in value]
    if isinstance(value, str) and value.startswith(_REFERENCE):
        name, _, field = value.removeprefix(_REFERENCE).partition("/")
        if name not in made:
            raise UsageError(f"no earlier stage {name!r}", where=where, hint=nearest(name, made))
        return value if field else made[name]
    return value
