"""Images that must not be trained on any more, although their answers are committed.

A withdrawal is a file of its own, so that no committed byte is touched: every reader puts it over
the status of the rows. It is digested in itself, and never taken back: a cache without it is a
cache made anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.faults import Cause, Fault
from logitcache.cache.format import FORMAT, canonical_json, sha256
from logitcache.cache.ledger import parse_json
from logitcache.cache.location import numbers
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from logitcache.cache.location import Location

__all__ = ["read_withdrawn", "withdrawal_faults", "write_withdrawal"]

_PREFIX = "withdrawn"


def write_withdrawal(location: Location, keys: Collection[str], reason: str) -> str:
    """Write a withdrawal and return its key; the caller sees to it that the images exist."""
    content = {"format": FORMAT, "keys": sorted(keys), "reason": reason}
    digested = {**content, "sha256": sha256(canonical_json(content))}
    key = f"{_PREFIX}/{max(numbers(location, _PREFIX), default=0) + 1}.json"
    location.write(key, canonical_json(digested))
    return key


def read_withdrawn(location: Location) -> frozenset[str]:
    """Return the keys of all withdrawn images.

    Raises:
        CacheDamaged: A withdrawal is not what was written.
    """
    return frozenset(key for _, keys in _withdrawals(location) for key in keys)


def withdrawal_faults(location: Location) -> list[Fault]:
    """Return what is wrong with withdrawals; nothing else knows what they said."""
    try:
        list(_withdrawals(location))
    except CacheDamaged as error:
        return [Fault(Cause.WITHDRAWAL, error.what, str(error.where).removeprefix(f"{location}/"))]
    return []


def _withdrawals(location: Location) -> Iterator[tuple[str, list[str]]]:
    for number in numbers(location, _PREFIX):
        name = f"{number}.json"
        where = f"{location}/{_PREFIX}/{name}"
        values = parse_json(location.read(f"{_PREFIX}/{name}") or b"", where)
        digest, keys = values.pop("sha256", None), values.get("keys")
        texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if digest != sha256(canonical_json(values)) or not isinstance(keys, list) or not texts:
            raise CacheDamaged(
                "a withdrawal is not what was written",
                where=where,
                hint="restore it from a backup, or withdraw the images again and remove it",
            )
        yield name, keys
