"""Settings of pipelines and commands: YAML files, built-in pipelines, and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitcache.errors import UsageError, nearest, redacted
from logitcache.yaml_text import load_yaml, load_yaml_file

__all__ = [
    "IMAGE_SETS",
    "find_pipeline",
    "merged",
    "override",
    "read_yaml",
    "shipped_pipelines",
    "with_images_of",
]


IMAGE_SETS = frozenset({"data", "val"})
"""Sections that may be written as a string, which stands for ``name``."""


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UsageError: The file cannot be read, or is not a YAML mapping.
    """
    try:
        values = load_yaml_file(Path(path))
    except OSError as error:
        raise UsageError("the file cannot be read", where=path, got=error.strerror) from None
    except ValueError as error:
        raise UsageError("invalid YAML", where=path, got=" ".join(str(error).split())) from None
    if not isinstance(values, dict):
        raise UsageError("no YAML mapping", where=path, expected="lines like 'name: value'")
    _refuse_joined(values, path)
    return values


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return values with ``a.b=c`` assignments applied; c is parsed as YAML.

    Stages are addressed by name: ``stages.cnn.train.steps=10``. A section that is given as a string
    stands for its main field: ``data.limit=9`` keeps the name in ``data``, and ``data.name=photos``
    is the same as ``data=photos``.

    Raises:
        UsageError: An assignment has another form, or its path leads into a value.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path:
            raise UsageError("no assignment", where=f"--set {assignment}", expected="a.b=value")
        value = parse_value(text, f"--set {assignment}")
        values = _assigned(values, path.split("."), value, f"--set {path}")
    return values


def parse_value(text: str, where: str) -> Any:
    """Parse one value as YAML.

    Raises:
        UsageError: It is not valid YAML.
    """
    try:
        value = load_yaml(text)
    except ValueError:
        raise UsageError("the value is invalid YAML", where=where) from None
    _refuse_joined(value, where)
    return value


def _refuse_joined(value: object, where: object) -> None:
    """Raise an error for ``{size:32}``, which YAML reads as a name without a value."""
    joined = _joined_key(value)
    if joined is not None:
        name, _, rest = joined.partition(":")
        raise UsageError(
            "in YAML, a colon between name and value needs a space after it",
            where=where,
            expected=f"{name}: {rest}",
            got=joined,
        )


def _joined_key(value: object) -> str | None:
    """Return a key such as ``size:32``, which YAML reads as one name without a value."""
    waiting, seen = [value], set[int]()
    while waiting:
        found = waiting.pop()
        if not isinstance(found, dict | list) or id(found) in seen:  # aliases may form cycles
            continue
        seen.add(id(found))
        if isinstance(found, dict):
            for key, inner in found.items():
                if inner is None and isinstance(key, str) and ":" in key:
                    return key
        waiting.extend(found.values() if isinstance(found, dict) else found)
    return None


def shipped_pipelines() -> dict[str, Path]:
    """Return the built-in pipelines by name, of a wheel or of a source checkout.

    The name is the path without its ending, ``vitkd`` or ``full/vitkd``.
    """
    here = Path(__file__).parents[1]
    for folder in (here / "pipelines", here.parent / "pipelines"):
        found = sorted(folder.rglob("*.yaml"))
        if found:
            return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    return {}


def find_pipeline(name: str) -> Path:
    """Return a pipeline file by its path or by the name of a built-in pipeline.

    Raises:
        UsageError: There is no such pipeline.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_pipelines()
    wanted = name.removesuffix(".yaml").removeprefix("pipelines/")
    if wanted in shipped:
        return shipped[wanted]
    raise UsageError(
        "there is no such pipeline",
        where=name,
        expected="a YAML file, or the name of a built-in pipeline",
        hint=nearest(wanted, shipped),
    )


def _assigned(values: Any, path: list[str], value: object, where: str) -> Any:
    """Return a copy of nested values with one of them replaced."""
    head, *rest = path
    if isinstance(values, list):
        names = [str(item["name"]) for item in values if isinstance(item, dict) and "name" in item]
        if not names:
            raise UsageError(
                f"{head!r} is inside a list, and a list can only be set as a whole",
                where=where,
                hint="for example objectives=[{soft: {temperature: 2}}]",
            )
        if head not in names:
            raise UsageError(
                f"the list has no entry named {head!r}", where=where, hint=nearest(head, names)
            )
        index = names.index(head)
        return [*values[:index], _assigned(values[index], rest, value, where), *values[index + 1 :]]
    if not isinstance(values, dict):
        raise UsageError(
            f"{head!r} cannot be set, because it is below a single value",
            where=where,
            got=redacted(repr(values)),
            hint=f"set that value instead: {where.rpartition(f'.{head}')[0]}=VALUE",
        )
    before = values.get(head, {})
    if isinstance(before, str) and head in IMAGE_SETS and rest:
        before = {"name": before}
    inner = _assigned(before, rest, value, where) if rest else value
    return {**values, head: inner}


def merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return shared settings overridden by own ones; nested mappings are merged."""
    found = dict(shared)
    for name, value in own.items():
        before = found.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            found[name] = merged(before, value)
        else:
            found[name] = value
    return found


def with_images_of(pipeline: object, own: Any) -> Any:
    """Return the images of a stage with what they leave out taken from those of the pipeline.

    ``{limit: 50}`` are 50 images of the pipeline; parts of a joined set without a name are of the
    pipeline, too.

    Args:
        pipeline: The images of the pipeline.
        own: The images of the stage.
    """
    if not isinstance(own, Mapping):
        return own
    if isinstance(own.get("parts"), Mapping):
        return {**own, "parts": {n: with_images_of(pipeline, p) for n, p in own["parts"].items()}}
    shared = {"name": pipeline} if isinstance(pipeline, str) else pipeline
    if not isinstance(shared, Mapping) or "name" in own or "name" not in shared:
        return own
    return {**shared, **own}
