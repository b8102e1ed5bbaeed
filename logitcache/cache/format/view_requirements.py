"""What a manifest requires of its readers for the views that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cache.format.names import UNKNOWN_VIEWS, VISIBLE_PATCHES
from logitcache.views.recipe import DROP, UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.cache.format.manifest import Manifest

__all__ = ["with_views"]

_REQUIRED = {DROP: VISIBLE_PATCHES, UNKNOWN: UNKNOWN_VIEWS}
"""By operation, what readers have to know about its views."""


def with_views(manifest: Manifest, recipes: Mapping[str, dict[str, Any]]) -> Manifest:
    """Return a copy of a manifest with these views, and what readers have to know about them.

    Args:
        manifest: The root manifest.
        recipes: Recipes of all its views, by id.
    """
    changed = manifest.changed(views=dict(recipes))
    operations = {o["op"] for recipe in recipes.values() for o in recipe["operations"]}
    for operation, feature in _REQUIRED.items():
        if operation in operations:
            changed = changed.requiring(feature)
        else:
            changed = changed.no_longer_requiring(feature)
    return changed
