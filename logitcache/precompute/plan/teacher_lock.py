"""The lock of a teacher: the settings that determine its outputs, compared field by field.

Device, threads and library versions are not part of it: they change outputs by rounding at most.
They are recorded with every commit, and a run with other versions prints a note.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from timm import create_model

from logitcache.cache.format.names import teacher_group
from logitcache.errors import CacheError
from logitcache.networks.forms import form_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.cache.format.teacher_lock import LockedFields
    from logitcache.teachers.member import TeacherConfig

__all__ = ["as_locked", "check_lock", "lock_differences"]

# Resizing and cropping of the network's authors; views have their own operations.
_WITHOUT_EFFECT = {"input.interpolation", "input.crop_pct"}
_ABSENT = "-"


def lock_differences(
    locked: Mapping[str, Any], actual: Mapping[str, Any]
) -> list[tuple[str, object, object]]:
    """Return (field, locked value, actual value) of differing fields that affect outputs."""
    before, after = _flat(locked), _flat(actual)
    return [
        (field, before.get(field, _ABSENT), after.get(field, _ABSENT))
        for field in sorted(before.keys() | after.keys())
        if field not in _WITHOUT_EFFECT and before.get(field) != after.get(field)
    ]


def check_lock(
    cache: object, name: str, locked: Mapping[str, Any], actual: Mapping[str, Any]
) -> None:
    """Raise an error if a teacher differs from the one in the cache.

    Args:
        cache: Location of the cache, for the message.
        name: Name of the teacher.
        locked: Lock in the manifest.
        actual: Lock of the given teacher.

    Raises:
        CacheError: The locks differ; the message has both values of every differing field.
    """
    differing = lock_differences(locked, actual)
    if not differing:
        return
    raise CacheError(
        f"the cache was computed with another teacher named {name!r}",
        where=f"{cache}/{teacher_group(name)}",
        expected="; ".join(f"{field} {before}" for field, before, _ in differing),
        got="; ".join(f"{field} {after}" for field, _, after in differing),
        hint="use the same weights and settings, or give the teacher another name",
    )


def as_locked(config: TeacherConfig, locked: LockedFields) -> TeacherConfig:
    """Return the configuration of a teacher, completed by the settings in its lock.

    Arguments with which timm reads files or downloads weights are not taken from the lock: a cache
    may come from an untrusted origin, and only the user decides what is read. Code of the user
    gets no argument from the lock at all.

    Args:
        config: Configuration by the user; its settings take precedence.
        locked: Lock in the manifest.
    """
    reading = signature(create_model).parameters.keys()
    shared = locked.arguments if form_of(config.model).shared_kwargs else {}
    kwargs = {name: value for name, value in shared.items() if name not in reading}
    return config.model_copy(
        update={
            "kwargs": {**kwargs, **config.kwargs},
            "size": config.size or locked.input.size,
            "mean": config.mean or locked.input.mean,
            "std": config.std or locked.input.std,
            "class_map": config.class_map
            or (tuple(locked.class_map) if locked.class_map else "position"),
            "channels_last": config.channels_last or locked.channels_last,
            "compile": config.compile or locked.compile,
            "head": locked.head,
        }
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries by dotted path."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
