"""Kinds of paths that a report is made of: caches, training runs, and folders of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.card import read_facts
from logitcache.cache.store.open import locate
from logitcache.errors import LogitcacheError, UsageError, redacted
from logitcache.files import read_json
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import DONE, PIPELINE
from logitcache.pipeline.settings import merged, read_yaml
from logitcache.report.describe import describe
from logitcache.report.page.contents import CacheContents, Contents, Origin, Run, StageTime
from logitcache.training.config import TrainConfig
from logitcache.training.run.journal import read_journal
from logitcache.training.run.result import parse_result, read_result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from logitcache.report.page.cache_outputs import ReportSettings

__all__ = ["KINDS", "PathKind", "read_paths"]

_SETTINGS = "config.yaml"
_ROOT = "zarr.json"
_LEVELS = 3  # of folders below a path
_SEED = "seed-"


@dataclass(frozen=True)
class PathKind:
    """A kind of path.

    Attributes:
        matches: Returns whether a path is of this kind.
        read: Adds what is at a path to the contents of a report.
    """

    matches: Callable[[str], bool]
    read: Callable[[Origin, Contents, int], None]


def read_paths(paths: Sequence[str], settings: ReportSettings) -> Contents:
    """Return what some paths lead to; those that cannot be read become problems.

    Args:
        paths: Caches, training runs, or folders of them.
        settings: What is read of caches.

    Raises:
        LogitcacheError: None of the paths can be read; the error of the first one.
    """
    contents = Contents(paths, settings)
    for path in paths:
        try:
            _read(Origin(path, Path(redacted(path)).name or path), contents, _LEVELS)
        except LogitcacheError as error:
            contents.problems.append((redacted(path), error))
    if contents.problems and not contents.caches and not contents.runs:
        raise contents.problems[0][1]
    return contents


def _read(origin: Origin, contents: Contents, levels: int) -> None:
    """Add what is at a path.

    Raises:
        LogitcacheError: It is of no kind, or cannot be read.
    """
    for kind in KINDS.values():
        if kind.matches(origin.path):
            kind.read(origin, contents, levels)
            return
    raise UsageError(
        "there is nothing to report on here",
        where=redacted(origin.path),
        expected="a cache (folder or URL), the output folder of logitcache train, or a folder of "
        "them, such as the output folder of logitcache run",
        got="a file" if Path(origin.path).is_file() else "no such folder",
        hint="check the path",
    )


def _is_cache(path: str) -> bool:
    return "://" in path or (Path(path) / _ROOT).is_file()


def _read_cache(origin: Origin, contents: Contents, levels: int) -> None:
    description = describe(origin.path)
    facts = read_facts(locate(origin.path))
    contents.caches.append(CacheContents(origin, description, facts))


def _is_run(path: str) -> bool:
    return (Path(path) / _SETTINGS).is_file()


def _read_run(origin: Origin, contents: Contents, levels: int) -> None:
    folder = Path(origin.path)
    result = read_result(folder)
    settings: Mapping[str, Any] = {}
    try:
        settings = _settings(folder / _SETTINGS, contents)
    except UsageError as error:
        contents.problems.append((str(folder / _SETTINGS), error))
    contents.runs.append(Run(origin, settings, read_journal(folder), result))
    if result is not None:
        contents.times.append(StageTime(origin, result.seconds, result.data_wait))


def _settings(path: Path, contents: Contents) -> Mapping[str, Any]:
    """Return the settings of a run; those that only other versions know are counted.

    Raises:
        UsageError: A setting has a value that this version does not know.
    """
    values = read_yaml(path)
    known = {name: value for name, value in values.items() if name in TrainConfig.model_fields}
    contents.unread.update(values.keys() - known.keys())
    TrainConfig.parse(known, path.name)
    return known


def _read_folder(origin: Origin, contents: Contents, levels: int) -> None:
    """Add the stages of a pipeline, and other caches and runs below a folder."""
    before = len(contents.caches) + len(contents.runs) + len(contents.problems)
    folder = Path(origin.path)
    stages = _stages_of(folder)
    children = {child.name for child in folder.iterdir() if child.is_dir()}
    is_pipeline = bool(stages) or bool(origin.pipeline)
    names = [*stages, *sorted(children - stages.keys())]
    for name in names:
        pipeline = origin.pipeline or (origin.path if is_pipeline or _has_seeds(children) else "")
        seed = name if name.startswith(_SEED) else origin.seed
        child = Origin(str(folder / name), name, pipeline, seed)
        try:
            _read_child(child, contents, levels, stages.get(name))
        except LogitcacheError as error:
            contents.problems.append((child.path, error))
    if len(contents.caches) + len(contents.runs) + len(contents.problems) == before:
        raise UsageError(
            "there is no cache and no training run in this folder",
            where=origin.path,
            expected=f"folders with {_ROOT} or {_SETTINGS}, or files *{DONE} of finished stages",
            hint="give the output folder of logitcache train, precompute or run",
        )


def _read_child(
    child: Origin, contents: Contents, levels: int, stage: Mapping[str, Any] | None
) -> None:
    """Add a stage or a folder of a pipeline; other folders without caches and runs are left out."""
    marker = read_json(Path(f"{child.path}{DONE}"))
    result = marker.get("result") if marker is not None else None
    result = result if isinstance(result, dict) else {}
    if _is_cache(child.path) or _is_run(child.path):
        _read(child, contents, levels)
        seconds, computed = result.get("seconds"), result.get("computed")
        if isinstance(seconds, int | float) and isinstance(computed, int):
            forward = _forward_seconds(result.get("forward"))
            contents.times.append(StageTime(child, float(seconds), None, computed, forward))
    elif "set_images" in result:  # a network whose folder was removed
        found = parse_result(result, Path(f"{child.path}{DONE}"))
        contents.runs.append(Run(child, stage or {}, (), found))
        if found is not None:
            contents.times.append(StageTime(child, found.seconds, found.data_wait))
    elif levels > 0 and Path(child.path).is_dir() and _has_contents(Path(child.path)):
        _read_folder(child, contents, levels - 1)


def _forward_seconds(forward: object) -> float | None:
    """Return the seconds of all teachers per image and view; None in results without them."""
    if not isinstance(forward, dict):  # results of other versions have another type or none
        return None
    try:
        each = [time["seconds"] / time["images"] for time in forward.values()]
        return float(sum(each)) if each else None
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def _has_contents(folder: Path) -> bool:
    """Return whether there are stages, caches or runs in a folder or in its folders."""
    found = [path for path in folder.iterdir() if path.is_dir() or path.name.endswith(DONE)]
    return any(
        path.name.endswith(DONE) or _is_cache(str(path)) or _is_run(str(path)) for path in found
    )


def _has_seeds(names: set[str]) -> bool:
    return any(name.startswith(_SEED) for name in names)


def _stages_of(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the settings of the stages of a pipeline in order, by name; empty outside of one.

    Folders of earlier versions have no pipeline file: their stages come in the order in which they
    were finished, without settings.
    """
    markers = sorted(folder.glob(f"*{DONE}"), key=lambda path: path.stat().st_mtime_ns)
    finished: dict[str, Mapping[str, Any]] = {path.name.removesuffix(DONE): {} for path in markers}
    if not (folder / PIPELINE).is_file():
        return finished
    try:
        config = PipelineConfig.parse(read_yaml(folder / PIPELINE), PIPELINE)
    except UsageError:
        return finished  # written by another version
    stages = {
        stage.name: merged(getattr(config, stage.kind), stage.settings) for stage in config.stages
    }
    return {**stages, **{name: {} for name in finished if name not in stages}}


KINDS: dict[str, PathKind] = {
    "cache": PathKind(_is_cache, _read_cache),
    "training run": PathKind(_is_run, _read_run),
    "folder": PathKind(lambda path: Path(path).is_dir(), _read_folder),
}
"""Kinds of paths in the order in which they are tried; a new kind is one entry."""
