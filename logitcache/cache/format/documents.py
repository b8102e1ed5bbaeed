"""Parsing of JSON documents with limits on bytes, values and depth.

A cache may come from anybody. What is read of it is parsed here, then validated by pydantic.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic_core
from pydantic import ValidationError

from logitcache.cache.format.names import ATTRIBUTE
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from logitcache.cache.store.base import Location

__all__ = [
    "MAX_VALUES",
    "numbers",
    "parse_group",
    "parse_json",
    "validated",
    "validation_detail",
]

MAX_VALUES = 2**20
"""Lists, objects and their elements in a document: one takes about 120 bytes when it is parsed."""

MOST_NUMBERED = 10_000
"""Documents below one prefix: withdrawals, probes. Each of them is read when a cache is opened."""

_NUMBERED = re.compile(r"([1-9][0-9]{0,8})\.json")
_Parsed = TypeVar("_Parsed")
# what may be read as infinity: an exponent of three digits, or hundreds of digits
_HUGE_NUMBER = re.compile(rb"[\[:,\s]-?\d+(?:\.\d+)?[eE]\+?\d{3}|\d{300}")


def parse_json(content: bytes, where: str, *, most_values: int = MAX_VALUES) -> dict[str, Any]:
    """Parse a JSON object.

    NaN, infinity, lone surrogates and more than 200 levels are refused.

    Args:
        content: UTF-8 text.
        where: The document, for error messages.
        most_values: Largest number of lists, objects and elements.

    Raises:
        CacheDamaged: It is not a JSON object, or it has too many values.
    """
    # an upper bound of the values, counted before the parser allocates memory for them
    values = content.count(b",") + content.count(b"[") + content.count(b"{")
    if values > most_values:
        raise CacheDamaged(
            "a JSON document has more values than the format allows",
            where=where,
            expected=f"at most {most_values}",
            got=values,
        )
    try:
        found = pydantic_core.from_json(content, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise CacheDamaged(
            "a document is not valid JSON", where=where, got=str(error)[:200]
        ) from None
    if not isinstance(found, dict):
        got = f"a JSON value of type {type(found).__name__}"
        raise CacheDamaged("a document is not a JSON object", where=where, got=got)
    if _HUGE_NUMBER.search(content) and _has_infinity(found):
        got = "a number beyond the range of float64"
        raise CacheDamaged("a document is not valid JSON", where=where, got=got)
    return found


def parse_group(content: bytes, where: str) -> dict[str, Any]:
    """Parse the ``zarr.json`` of a group and return logitcache's attributes of it.

    Raises:
        CacheDamaged: It is not a group of Zarr format 3, or it has no such attributes.
    """
    values = parse_json(content, where)
    if (values.get("zarr_format"), values.get("node_type")) != (3, "group"):
        raise CacheDamaged(
            "not a group of Zarr format 3",
            where=where,
            expected="zarr_format 3 and node_type 'group'",
            got=f"{values.get('zarr_format')!r} and {values.get('node_type')!r}"[:200],
        )
    attributes = values.get("attributes")
    found = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    if not isinstance(found, dict):
        raise CacheDamaged(f"a Zarr group has no attributes[{ATTRIBUTE!r}]", where=where)
    return found


def _has_infinity(values: dict[str, Any]) -> bool:
    pending: list[Any] = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, float) and math.isinf(value):
            return True
        if isinstance(value, dict | list):
            pending += value.values() if isinstance(value, dict) else value
    return False


def validated(adapter: TypeAdapter[_Parsed], values: object, where: str, what: str) -> _Parsed:
    """Validate parsed JSON.

    Raises:
        CacheDamaged: It does not have the expected fields; ``what`` is the message.
    """
    try:
        return adapter.validate_python(values)
    except ValidationError as error:
        place, detail = validation_detail(error)
        raise CacheDamaged(
            what, where=where, got=f"{place}: {detail}" if place else detail
        ) from None


def validation_detail(error: ValidationError) -> tuple[str, str]:
    """Return the place and the message of the first thing that pydantic found."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ".".join(str(part) for part in first["loc"])[:200], first["msg"][:200]


def numbers(location: Location, prefix: str) -> list[int]:
    """Return the numbers n of the objects ``<prefix>/<n>.json``, ascending.

    Where keys cannot be listed, they are probed: the numbers count from 1 without a gap.

    Raises:
        CacheDamaged: There are more than the format allows. A server that responds to every number
            is detected after about fifteen requests.
    """
    if location.lists:
        found = sorted(int(m[1]) for m in map(_NUMBERED.fullmatch, location.names(prefix)) if m)
        if len(found) > MOST_NUMBERED:
            raise _too_many(location, prefix, f"{len(found)} documents")
        return found

    def exists(number: int) -> bool:
        return location.size(f"{prefix}/{number}.json") is not None

    # doubling, then bisection: a few requests instead of one for each document
    known, first_absent = 0, 1
    while exists(first_absent):
        if first_absent > MOST_NUMBERED:
            raise _too_many(location, prefix, f"a document of number {first_absent}")
        known, first_absent = first_absent, min(2 * first_absent, MOST_NUMBERED + 1)
    while first_absent - known > 1:
        middle = (known + first_absent) // 2
        known, first_absent = (middle, first_absent) if exists(middle) else (known, middle)
    return list(range(1, first_absent))


def _too_many(location: Location, prefix: str, got: str) -> CacheDamaged:
    return CacheDamaged(
        "more numbered documents than the format allows",
        where=f"{location}/{prefix}",
        expected=f"at most {MOST_NUMBERED}",
        got=got,
        hint=None
        if location.lists
        else "check the URL: a server has to respond with status 404 where no object is",
    )
