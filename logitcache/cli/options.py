"""Configurations from a file, flags and ``--set``, in increasing order of precedence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.errors import UsageError, nearest
from logitcache.networks.forms import form_of
from logitcache.text import encodable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from logitcache.config import Config

__all__ = [
    "SCHEMA_VERSION",
    "class_maps",
    "gather",
    "named_values",
    "network",
    "objectives",
    "print_json",
    "print_settings",
    "saved_config",
    "teachers",
    "with_teacher_options",
]

SCHEMA_VERSION = 1
"""Version of the layout of the documents that ``--json`` prints."""

_SAVED = "config.yaml"
_HIDDEN = "***"  # replaces credentials


def gather(
    config: str | dict[str, Any] | None, flags: Mapping[str, Any], sets: Sequence[str]
) -> dict[str, Any]:
    """Return the values of a configuration.

    Args:
        config: A YAML file to begin with, or its values.
        flags: Values by dotted path; those that are None were not given.
        sets: ``a.b=value`` assignments.
    """
    from logitcache.pipeline.settings import override, read_yaml

    values = read_yaml(config) if isinstance(config, str) else config or {}
    for path, value in flags.items():
        if value is not None:
            values = _put(values, path.split("."), value)
    return override(values, sets)


def saved_config(out: str | None, *, data: str | None, cache: str | None) -> dict[str, Any] | None:
    """Return the settings of the run in a folder, None if it contains no run yet.

    Args:
        out: Folder of the run.
        data: Images given on the command line, if any.
        cache: Cache given on the command line, if any.

    Raises:
        UsageError: There is no run, and the command line does not suffice to start one; or the
            run's cache was opened with credentials, which are not saved.
    """
    path = Path(out or "") / _SAVED
    values = None if out is None else _read_saved(path)
    if values is None:
        if data is None and cache is None:
            raise UsageError(
                "there is no run to resume",
                where=out,
                expected=f"a folder with {_SAVED}, as logitcache train writes it",
                hint="give the folder of the run with --out, or --data and --student to start one",
            )
        return None
    if cache is None and _HIDDEN in str(values.get("cache")):
        raise UsageError(
            "the address of the cache was saved without its credentials",
            where=path,
            got=values["cache"],
            hint="give the complete address: --cache URL",
        )
    return values


def _read_saved(path: Path) -> dict[str, Any] | None:
    """Return the settings of a run; those of its last checkpoint if the file is damaged."""
    from logitcache.files import warn_damaged
    from logitcache.pipeline.settings import read_yaml

    if path.is_file():
        try:
            return read_yaml(path)
        except UsageError as error:
            warn_damaged(path, f"{error.what}: {error.got or error.expected}")
    if not path.parent.is_dir():
        return None
    from logitcache.training.run.checkpoint import read_last_config

    return read_last_config(path.parent)


def teachers(specifications: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """Read ``NAME=MODEL[@WEIGHTS]``; None if none was given.

    Raises:
        UsageError: A specification has another form, or a name is given twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for specification in specifications:
        name, separator, model = specification.partition("=")
        if not separator or not name or not model:
            raise UsageError(
                "the specification of a teacher cannot be parsed",
                where=f"--teacher {specification}",
                expected="NAME=MODEL[@WEIGHTS], for example cnn=resnet50@resnet50.safetensors",
            )
        if name in found:
            raise UsageError("two teachers have the same name", where=f"--teacher {specification}")
        found[name] = network(model)
    return found or None


def with_teacher_options(
    values: Mapping[str, Any], specifications: Sequence[str], compiled: bool
) -> dict[str, Any]:
    """Return values of a configuration with options of its teachers added.

    Args:
        values: Values of the configuration.
        specifications: ``NAME=TAP[,OPTION=VALUE…]``, options as in
            :class:`~logitcache.encoding.feature_choice.FeatureConfig`.
        compiled: Whether to compile all teachers.

    Raises:
        UsageError: A specification has another form, or there is no such teacher.
    """
    from logitcache.pipeline.settings import parse_value

    teachers = dict(values.get("teachers") or {})
    for specification in specifications:
        where = f"--feature {specification}"
        name, separator, rest = specification.partition("=")
        tap, *options = rest.split(",")
        if not separator or not tap or not all("=" in option for option in options):
            raise UsageError(
                "the specification of a feature cannot be parsed",
                where=where,
                expected="NAME=TAP[,OPTION=VALUE…], for example vit=blocks.11,values=int8",
            )
        if name not in teachers:
            raise UsageError(f"unknown teacher {name!r}", where=where, hint=nearest(name, teachers))
        pairs = [option.partition("=") for option in options]
        chosen = {key: parse_value(text, where) for key, _, text in pairs}
        features = {**teachers[name].get("features", {}), tap: chosen}
        teachers[name] = {**teachers[name], "features": features}
    if compiled:
        teachers = {name: {**teacher, "compile": True} for name, teacher in teachers.items()}
    return {**values, "teachers": teachers} if specifications or compiled else dict(values)


def class_maps(files: Sequence[str]) -> dict[str, str] | None:
    """Read ``[TEACHER=]FILE``; None if none was given.

    Raises:
        UsageError: A teacher has two files.
    """
    from logitcache.data.class_map import EVERY_TEACHER  # numpy is not needed for the help

    found: dict[str, str] = {}
    for text in files:
        name, separator, file = text.partition("=")
        teacher = name if separator else EVERY_TEACHER
        if teacher in found:
            raise UsageError(
                "two class maps are given for one teacher",
                where=f"--class-map {text}",
                expected="one file, or TEACHER=FILE for each teacher",
            )
        found[teacher] = file if separator else text
    return found or None


def objectives(names: Sequence[str]) -> list[dict[str, Any]] | None:
    """Read ``NAME[=WEIGHT]``; None if none was given."""
    found = []
    for name in names:
        kind, separator, weight = name.partition("=")
        try:
            found.append({kind: {"weight": float(weight)} if separator else {}})
        except ValueError:
            raise UsageError(
                "the weight of an objective is not a number",
                where=f"--objective {name}",
                expected="NAME=WEIGHT, for example soft=0.5",
                got=weight,
            ) from None
    return found or None


def named_values(flag: str, assignments: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=VALUE`` of a flag that is repeatable.

    Raises:
        UsageError: One has another form.
    """
    found = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or not name or not value:
            where, expected = f"{flag} {assignment}", "NAME=VALUE"
            raise UsageError("the option cannot be parsed", where=where, expected=expected)
        found[name] = value
    return found


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout, in ASCII, with the version of its layout."""
    text = json.dumps(_encodable({"schema_version": SCHEMA_VERSION, **document}), indent=2)
    # json escapes all control characters but DEL, which a terminal obeys
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")


def print_settings(command: str, config: Config, *, as_json: bool) -> None:
    """Print all settings of a run, as a file for its ``--config``.

    Args:
        command: Name of the command.
        config: The settings.
        as_json: Whether to print one JSON document instead of YAML.
    """
    values = config.model_dump(mode="json")
    if as_json:
        print_json({"command": command, "settings": values})
        return
    from logitcache.yaml_text import dump_yaml

    sys.stdout.write(f"# logitcache {command} --config FILE\n{dump_yaml(values)}")


def _encodable(value: Any) -> Any:
    """Return JSON values without lone surrogates, which JSON can write and UTF-8 cannot."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {_encodable(key): _encodable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(inner) for inner in value]
    return value


def network_or_folder(model: str) -> dict[str, Any]:
    """Return the fields of a :class:`.NetworkConfig` for a folder or ``MODEL[@WEIGHTS]``."""
    is_folder = Path(model).expanduser().is_dir()
    return {"model": f"local-dir:{model}"} if is_folder else network(model)


def network(model: str) -> dict[str, Any]:
    """Return the fields of a :class:`.NetworkConfig` for ``MODEL[@WEIGHTS]``."""
    name, separator, weights = model.partition("@")
    if not separator or not form_of(name).takes_weights:
        return {"model": model}
    return {"model": name, "weights": weights}


def _put(values: dict[str, Any], path: list[str], value: object) -> dict[str, Any]:
    head, *rest = path
    inner = values.get(head)
    if rest:
        return {**values, head: _put(inner if isinstance(inner, dict) else {}, rest, value)}
    if isinstance(inner, dict) and isinstance(value, dict):
        return {**values, head: {**inner, **value}}
    return {**values, head: value}
