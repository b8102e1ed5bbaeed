"""Notation of policies and derived views: timm's strings, ``rot90(1)``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from logitcache.errors import nearest
from logitcache.views.operations import (
    LowRes,
    Mask,
    RandAugment,
    Rot90,
    operation_from_json,
)
from logitcache.views.randaugment import SETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.views.operations import Operation

__all__ = ["parse_derived", "parse_rand_augment"]

_UNIFORM_ABOVE = 100.0  # timm draws the strength uniformly where mstd is larger
_KEYS: dict[str, Callable[[str], float]] = {
    "m": int,
    "n": int,
    "p": float,
    "mstd": float,
    "mmax": int,
    "inc": int,
}
_DERIVED: dict[str, tuple[str, ...]] = {
    Rot90.name: ("turns",),
    LowRes.name: ("factor",),
    Mask.name: ("ratio", "grid"),
}


def parse_rand_augment(text: str) -> RandAugment:
    """Parse timm's notation of RandAugment, ``rand-m9-n2-mstd0.5-inc1``.

    Args:
        text: ``rand`` and any of m (strength, 10), n (layers, 2), p (probability of each, 0.5),
            mstd (deviation of the strength; above 100 it is uniform up to m), mmax (largest
            strength, 10), inc (1 for operations that grow with it) and t (a set by name).

    Raises:
        ValueError: A part is not known; the message names it and the known ones.
    """
    kind, *sections = text.split("-")
    if kind != "rand":
        raise ValueError(
            f"{text!r}: only RandAugment is supported, for example 'rand-m9-n2-mstd0.5-inc1'"
        )
    values: dict[str, float] = {}
    set_name = None
    for section in sections:
        if section.startswith("t"):
            set_name = section[1:]
            continue
        found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?|inf)", section)
        if found is None or found[1] not in _KEYS:
            known = ", ".join([*_KEYS, "t"])
            raise ValueError(f"{text!r}: unknown part {section!r}; the known parts are {known}")
        values[found[1]] = _number(found[1], found[2], text)
    return _rand_augment(values, set_name, text)


def _number(key: str, digits: str, text: str) -> float:
    try:
        return _KEYS[key](digits)
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r}: {key} has to be a whole number, not {digits}") from None


def _rand_augment(values: dict[str, float], set_name: str | None, text: str) -> RandAugment:
    chosen = set_name or ("increasing" if values.get("inc") else "normal")
    if chosen not in SETS:
        raise ValueError(f"{text!r}: unknown set {chosen!r}: {nearest(chosen, SETS)}")
    deviation = values.get("mstd", 0.0)
    weights = list(SETS[chosen].values())
    layers = values.get("n", 2)
    if weights[0] is not None and layers > len(weights):
        raise ValueError(
            f"{text!r}: n is {layers}, but the weighted set has {len(weights)} operations"
        )
    recipe = {
        "op": RandAugment.name,
        "names": list(SETS[chosen]),
        "weights": None if weights[0] is None else weights,
        "layers": layers,
        "magnitude": values.get("m", 10),
        "std": None if deviation > _UNIFORM_ABOVE else deviation,
        "upper": values.get("mmax", 10) or 10,
        "p": values.get("p", 0.5),
    }
    operation = _checked(recipe, text)
    assert isinstance(operation, RandAugment)
    return operation


def parse_derived(text: str) -> Operation:
    """Parse a derived view: ``rot90(turns)``, ``lowres(factor)`` or ``mask(ratio[, grid])``.

    Raises:
        ValueError: It has another form.
    """
    found = re.fullmatch(r"\s*(\w+)\s*\(([^()]*)\)\s*", text)
    known = ", ".join(f"{name}({', '.join(names)})" for name, names in _DERIVED.items())
    if found is None or found[1] not in _DERIVED:
        raise ValueError(f"unknown derived view {text!r}; the known ones are {known}")
    names = _DERIVED[found[1]]
    given = [part.strip() for part in found[2].split(",")]
    if len(given) > len(names):
        raise ValueError(f"the derived view {text!r} has too many numbers; expected {known}")
    numbers = [_value(part) for part in given]
    return _checked({"op": found[1], **dict(zip(names, numbers, strict=False))}, text)


def _value(text: str) -> int | float | str:
    """Return a number, or a text that is not one, which the operation then refuses."""
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if number.is_integer() else number


def _checked(recipe: dict[str, Any], text: str) -> Operation:
    """Build an operation; errors quote the notation."""
    try:
        return operation_from_json(recipe)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{text!r}: {name}: {first['msg']}, not {first['input']}") from None
