"""Recipes of views as stored in a cache: id and outline.

A manifest may contain tens of thousands of recipes, of which a reader uses a few. So a manifest is
read with the checks of this module, and :func:`logitcache.views.spec.parse_view` parses a recipe
completely before it is used.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict

__all__ = [
    "DERIVED",
    "DROP",
    "UNKNOWN",
    "Interpolation",
    "Recipe",
    "RecipeFields",
    "ViewId",
    "recipe_id",
    "root_id",
]

_MOST_CHARACTERS = 65536  # of a recipe; the longest one has some thousands
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode

DROP = "drop"
"""Name of the operation that drops patches, which readers have to know about."""
DERIVED = frozenset({"rot90", "lowres", "mask", DROP})
"""Names of the operations that derive a view from another one, which has the same draws."""
UNKNOWN = "unknown"
"""Name of the operation of views whose pixels no recipe describes."""
Interpolation = Literal["bicubic", "bilinear"]
"""Interpolation of resizing."""
ViewId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""The id of a view; it is part of paths, so nothing else is accepted."""
Seed = Annotated[int, Strict(), Field(ge=0, le=2**64 - 1)]
"""First word of the key of all draws of a view."""
Draw = Annotated[int, Strict(), Field(ge=0, le=2**32 - 1)]
"""Number of a draw."""


class _Operation(BaseModel):
    op: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]


class _Outline(BaseModel):
    """Fields that recipes of every version of the view algorithm have."""

    model_config = ConfigDict(extra="ignore")

    algorithm: Annotated[int, Strict(), Field(ge=1, le=65535)]
    operations: Annotated[list[_Operation], Field(min_length=1, max_length=64)]
    seed: Seed
    draw: Draw


def _with_outline(values: dict[str, Any]) -> dict[str, Any]:
    _Outline.model_validate(values)
    return values


Recipe = Annotated[dict[str, Any], AfterValidator(_with_outline)]
"""Unchanged JSON values that have the outline of a recipe."""


class _Size(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rule: Literal["square"]
    interpolation: Interpolation


class RecipeFields(BaseModel):
    """All fields of a recipe of this version; operations are still JSON values."""

    model_config = ConfigDict(extra="forbid")

    algorithm: int
    base: ViewId | None
    draw: Draw
    operations: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=16)]
    seed: Seed
    size: _Size


def recipe_id(values: object) -> str:
    """Return the id of a recipe: ``v`` and 16 hex digits of the sha256 of its canonical JSON.

    Raises:
        ValueError: It is too long or too deeply nested to be a recipe.
    """
    try:
        canonical = _canonical(values)
    except RecursionError:
        raise ValueError("a recipe is nested too deeply") from None
    if len(canonical) > _MOST_CHARACTERS:
        raise ValueError(
            f"a recipe has {len(canonical)} instead of at most {_MOST_CHARACTERS} characters"
        )
    return "v" + hashlib.sha256(canonical.encode()).hexdigest()[:16]


def root_id(recipe: dict[str, Any]) -> str:
    """Return the id of the view that a view is derived from, by one operation or several.

    That is its own id where it is not derived.
    """
    kept = [operation for operation in recipe["operations"] if operation["op"] not in DERIVED]
    return recipe_id({**recipe, "operations": kept, "base": None})
