"""Settings of pipelines and commands: YAML files, references to shipped files, and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitcache.errors import UsageError, nearest, redacted
from logitcache.yaml_text import load_yaml, load_yaml_file

__all__ = ["find_pipeline", "merged", "override", "read_yaml", "shipped_pipelines"]


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
    here = Path(__file__).parents[1]
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
    # to set the main field itself is to set the string, and the error below reports that
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


_MAIN_FIELDS = {"data": "name", "val": "name"}
"""Sections that may be written as one string, and the field that it stands for."""
