"""The lock of a teacher: the settings that determine its outputs, compared field by field.

Device, threads and library versions are no part of it: they change outputs by noise at most. They
are recorded with every commit, and a run that meets other versions reports them.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from timm import create_model

from logitcache.cache.format.names import teacher_group
from logitcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.cache.format.teacher_lock import LockedFields
    from logitcache.teachers.member import TeacherConfig

__all__ = ["as_locked", "check_lock", "lock_differences"]

# What the network's authors resized and cropped with; views have operations of their own.
_WITHOUT_EFFECT = {"input.interpolation", "input.crop_pct"}
_ABSENT = "-"


def lock_differences(
    locked: Mapping[str, Any], actual: Mapping[str, Any]
) -> list[tuple[str, object, object]]:
    """Return (field, locked value, actual value) of every field that matters and differs."""
    before, after = _flat(locked), _flat(actual)
    return [
        (field, before.get(field, _ABSENT), after.get(field, _ABSENT))
        for field in sorted(before.keys() | after.keys())
        if field not in _WITHOUT_EFFECT and before.get(field) != after.get(field)
    ]


def check_lock(
    cache: object, name: str, locked: Mapping[str, Any], actual: Mapping[str, Any]
) -> None:
    """Refuse another teacher under the same name.

    Args:
        cache: Its cache, for the message.
        name: Its name.
        locked: The lock in the manifest.
        actual: The lock of the given teacher.

    Raises:
        CacheError: It is another one; every field that differs is named with both values.
    """
    differing = lock_differences(locked, actual)
    if not differing:
        return
    raise CacheError(
        f"this cache was computed with another teacher {name!r}",
        where=f"{cache}/{teacher_group(name)}",
        expected="; ".join(f"{field} {before}" for field, before, _ in differing),
        got="; ".join(f"{field} {after}" for field, _, after in differing),
        hint="use the same weights and settings, or another name",
    )


def as_locked(config: TeacherConfig, locked: LockedFields) -> TeacherConfig:
    """Return a teacher with the settings of the cache, unless the user gives others.

    Arguments by which timm reads files or fetches weights are left out: a cache may come from
    anywhere, and what is read is for the user alone to say.
    """
    reading = signature(create_model).parameters.keys()
    kwargs = {name: value for name, value in locked.arguments.items() if name not in reading}
    return config.model_copy(
        update={
            "kwargs": {**kwargs, **config.kwargs},
            "size": config.size or locked.input.size,
            "class_map": config.class_map
            or (tuple(locked.class_map) if locked.class_map else "position"),
            "channels_last": config.channels_last or locked.channels_last,
            "compile": config.compile or locked.compile,
        }
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted path."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
