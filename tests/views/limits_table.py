"""The table of limits in ``docs/views.md``, written from the types that check them.

``python -m tests.views.limits_table`` writes it; ``test_limits.py`` compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from logitcache.views.operations import MAX_SIDE, OPERATIONS
from logitcache.views.recipe import RecipeFields

__all__ = ["PAGE", "page", "properties", "table"]

PAGE = Path(__file__).parents[2] / "docs" / "views.md"
_BEGIN, _END = "<!-- limits -->\n", "<!-- end of limits -->\n"
_OF_A_RECIPE = ("seed", "draw", "operations")


def table() -> str:
    """Return the table."""
    recipe = TypeAdapter(RecipeFields).json_schema()["properties"]
    rows = [("recipe", name, recipe[name]) for name in _OF_A_RECIPE]
    rows += [
        (kind.name, name, schema)
        for kind in OPERATIONS.values()
        for name, schema in properties(kind).items()
    ]
    lines = [f"| {where} | {name} | {_words(schema)} |" for where, name, schema in rows]
    sizes = f"| pictures | S | 1 to {MAX_SIDE} |"
    return "\n".join(["| of | number | limits |", "|---|---|---|", *lines, sizes, ""])


def properties(kind: type) -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of the fields of an operation, by name."""
    found: dict[str, dict[str, Any]] = TypeAdapter(kind).json_schema()["properties"]
    return found


def page() -> str:
    """Return the page with the table that the code implies."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}{table()}{_END}{after}"


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(option) for option in schema["anyOf"])
    if "enum" in schema:
        names = schema["enum"]
        return ", ".join(names) if len(names) < 5 else "the names of the table above"
    if schema["type"] == "null":
        return "null"
    if schema["type"] == "array":
        return _of_array(schema)
    whole = "" if schema["type"] == "number" else "whole, "
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{whole}{_number(low)} to {_number(high)}"
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    parts = [f"above {_number(above)}"] if low is None else [f"from {_number(low)}"]
    parts += [f"below {_number(below)}"] if high is None else [f"up to {_number(high)}"]
    return f"{whole}{', '.join(parts)}"


def _of_array(schema: dict[str, Any]) -> str:
    if "prefixItems" in schema:
        first, *others = schema["prefixItems"]
        assert all(other == first for other in others)
        ascending = ", ascending" if not others[1:] else ""
        return f"{len(others) + 1} numbers{ascending}, {_words(first)}"
    items = "" if schema["items"]["type"] == "object" else f", {_words(schema['items'])}"
    return f"{schema['minItems']} to {schema['maxItems']}{items}"


def _number(value: Any) -> str:
    if isinstance(value, int) or value.is_integer():
        whole = int(value)
        power = whole.bit_length()
        if whole > 2**31:
            return f"2^{power} - 1" if whole == 2**power - 1 else f"{value:g}"
    return f"{value:g}"


if __name__ == "__main__":
    PAGE.write_text(page())
