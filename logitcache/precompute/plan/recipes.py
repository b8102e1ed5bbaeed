"""Comparison of the configured views with those of a cache.

Draws of one recipe are interchangeable; views of two recipes are two data sets. Without this check,
a forgotten setting would add another set of views, and double the time of a run, without a message.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.manifest import read_manifest
from logitcache.errors import UsageError
from logitcache.views.spec import parse_view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.cache.store.base import Location
    from logitcache.precompute.config import PrecomputeConfig

__all__ = ["check_recipes"]

_OF_A_DRAW = {"draw", "base"}


def check_recipes(config: PrecomputeConfig, location: Location) -> list[str]:
    """Compare the configured views with those of a cache.

    Args:
        config: Configuration of precompute.
        location: The cache; it may not exist yet.

    Returns:
        A note on the views of another recipe that are added, if there are any.

    Raises:
        UsageError: There are views of another recipe, and ``add_views`` is not set.
        CacheError: A recipe of the cache is malformed.
    """
    known = {} if location.is_empty() else _known(location)
    wanted = {view.id: view.to_json() for view in config.views.views()}
    recipes = {_recipe(values): values for values in known.values()}
    other = {i: v for i, v in wanted.items() if i not in known and _recipe(v) not in recipes}
    if not recipes or not other:
        return []
    changes = (_differences(_nearest(values, known), values) for values in other.values())
    text = "; ".join(dict.fromkeys(changes))
    if config.add_views:
        return [f"{len(other)} views of another recipe are added: {text}"]
    raise UsageError(
        f"{len(other)} of the views have another recipe than those of the cache",
        where=location,
        expected=f"the {len(known)} views of the cache, or further draws of them",
        got=text,
        hint="use the settings the cache was created with, or add these views with --add-views",
    )


def _known(location: Location) -> dict[str, dict[str, Any]]:
    """Return the recipes of a cache by id, parsed and with every field; no unknown views."""
    recipes = read_manifest(location).views
    views = {v: parse_view(r, f"{location}, view {v}") for v, r in recipes.items()}
    return {view_id: view.to_json() for view_id, view in views.items() if view.is_known}


def _recipe(values: Mapping[str, Any]) -> str:
    """Return the fields that all draws of a view share, as text."""
    common = {name: value for name, value in values.items() if name not in _OF_A_DRAW}
    return json.dumps(common, sort_keys=True)


def _settings(values: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings of a recipe by name, those of an operation as ``crop.scale``."""
    found: dict[str, object] = {"seed": values["seed"], **values["size"]}
    for operation in values["operations"]:
        found[operation["op"]] = "on"
        found |= {f"{operation['op']}.{n}": v for n, v in operation.items() if n != "op"}
    return found


def _nearest(
    values: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return the view of the cache with the fewest different settings."""
    own = _settings(values)

    def distance(other: Mapping[str, Any]) -> int:
        theirs = _settings(other)
        return sum(own.get(name) != theirs.get(name) for name in own.keys() | theirs.keys())

    return min(known.values(), key=distance)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return a description of the differences between two recipes."""
    ours, theirs = _settings(before), _settings(after)
    operations = [name for name in (*ours, *theirs) if "." not in name]
    lone = {name for name in operations if (name in ours) != (name in theirs)}
    words = []
    for name in dict.fromkeys((*ours, *theirs)):
        if name.partition(".")[0] in lone and "." in name:
            continue  # the operation as a whole is named
        if name in lone:
            words.append(f"{'with' if name in theirs else 'without'} {name}")
        elif ours.get(name) != theirs.get(name):
            words.append(f"{name} {theirs.get(name)} instead of {ours.get(name)}")
    return ", ".join(words)
