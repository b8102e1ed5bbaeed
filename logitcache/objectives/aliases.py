"""Names of published losses, accepted in configurations next to the names of the terms.

An alias is one or several terms with the settings of that paper as defaults. It is resolved when a
configuration is read; everything else, including saved configurations, has the terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ALIASES", "long_forms"]

ALIASES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "kd": (("soft", {}),),
    "tinyvit": (("soft", {"tail": "uniform"}),),
    "nkd": (("split", {"form": "nkd"}),),
    "dkd": (("split", {"form": "dkd"}),),
    "fitnet": (("match", {"metric": "l2"}),),
    "nfd": (("match", {"normalize": "standardize"}),),
    "wecolora": (("match", {"metric": "l1"}),),
    "vitkd_mimicking": (("match", {"reduction": "sum", "weight": 3e-5}),),
    "vitkd_generation": (
        ("match", {"projector": "generator", "reduction": "sum", "weight": 6e-6}),
    ),
    "rkd": (
        ("relation", {"form": "distance", "normalize": {"teacher": "l2"}, "weight": 1}),
        ("relation", {"form": "angle", "normalize": {"teacher": "l2"}, "weight": 2}),
    ),
    "gram": (
        ("relation", {"form": "gram", "over": "taps", "normalize": "l2", "reduction": "sum"}),
    ),
}
"""Terms and the published defaults of each, by the name of the loss."""


def long_forms(entry: object) -> list[object]:
    """Return the terms of one entry of ``objectives``.

    Options of the entry override the defaults of its alias. The weight of an alias of several terms
    multiplies their weights, so that the published ratio is kept.

    Args:
        entry: A name or a mapping, as YAML gives it; anything but an alias is returned unchanged.
    """
    named = {entry: None} if isinstance(entry, str) else entry
    if not isinstance(named, Mapping) or len(named) != 1:
        return [entry]
    ((name, options),) = named.items()
    if name not in ALIASES:
        return [entry]
    terms = ALIASES[name]
    return [{term: _overridden(defaults, options, len(terms) > 1)} for term, defaults in terms]


def _overridden(defaults: Mapping[str, Any], options: object, scales: bool) -> object:
    if options is None:
        return dict(defaults)
    if not isinstance(options, Mapping):  # an error, which the validation of the term reports
        return options
    found = {**defaults, **options}
    if scales and "weight" in options:
        found["weight"] = _scaled(options["weight"], defaults["weight"])
    return found


def _scaled(weight: object, factor: float) -> object:
    """Return the product of a weight, constant or scheduled, and a factor."""
    if isinstance(weight, Mapping):
        ends = {"value": 1.0, **weight}
        return {
            name: _scaled(end, factor) if name in {"value", "initial"} else end
            for name, end in ends.items()
        }
    return weight * factor if isinstance(weight, int | float) else weight
