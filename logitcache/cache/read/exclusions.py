"""Images that are excluded from training although their targets are committed.

A withdrawal, the document of an exclusion, is a file of its own, so that no committed byte changes:
every reader overrides the status of the rows with it. It contains its own digest, and cannot be
undone in the same cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.format.documents import numbers, parse_json
from logitcache.cache.format.names import FORMAT, WITHDRAWN, canonical_json, is_withdrawal, sha256
from logitcache.cache.read.diagnose import Cause, Fault
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from logitcache.cache.store.base import Location

__all__ = [
    "read_exclusions",
    "read_withdrawn",
    "withdrawal_faults",
    "withdrawal_keys",
    "write_withdrawal",
]


def write_withdrawal(location: Location, keys: Collection[str], reason: str) -> str:
    """Write a withdrawal of images that the cache has, and return its key."""
    content = {"format": FORMAT, "keys": sorted(keys), "reason": reason}
    digested = {**content, "sha256": sha256(canonical_json(content))}
    key = f"{WITHDRAWN}/{max(numbers(location, WITHDRAWN), default=0) + 1}.json"
    location.write(key, canonical_json(digested))
    return key


def withdrawal_keys(location: Location) -> list[str]:
    """Return the keys of the withdrawals, oldest first."""
    return [f"{WITHDRAWN}/{number}.json" for number in numbers(location, WITHDRAWN)]


def read_withdrawn(location: Location, sealed: Mapping[str, str] | None = None) -> frozenset[str]:
    """Return the keys of all withdrawn images.

    Args:
        location: The cache.
        sealed: sha256 of documents by key, as the revision has them. Withdrawals among them must
            exist; revisions of versions before 0.2 have none.

    Raises:
        CacheDamaged: A withdrawal is missing or has changed.
    """
    found = dict(_withdrawals(location))
    for key, digest in (sealed or {}).items():
        if not is_withdrawal(key):
            continue
        content = location.read(key)
        if content is None or sha256(content) != digest:
            raise CacheDamaged(
                "the document of an exclusion "
                + ("is missing" if content is None else "has changed since it was sealed"),
                where=f"{location}/{key}",
                expected=f"sha256 {digest}",
                hint=f"logitcache repair {location} restores it",
            )
    return frozenset(key for keys in found.values() for key in keys)


def read_exclusions(location: Location) -> list[tuple[frozenset[str], str]]:
    """Return the keys and the reason of each withdrawal, oldest first.

    Raises:
        CacheDamaged: One has changed since it was written.
    """
    return [(frozenset(keys), reason) for _, keys, reason in _documents(location)]


def withdrawal_faults(location: Location) -> list[Fault]:
    """Return the faults of withdrawals, which no other document describes."""
    try:
        list(_withdrawals(location))
    except CacheDamaged as error:
        return [Fault(Cause.WITHDRAWAL, error.what, str(error.where).removeprefix(f"{location}/"))]
    return []


def _withdrawals(location: Location) -> Iterator[tuple[str, list[str]]]:
    yield from ((name, keys) for name, keys, _ in _documents(location))


def _documents(location: Location) -> Iterator[tuple[str, list[str], str]]:
    for name in withdrawal_keys(location):
        where = f"{location}/{name}"
        values = parse_json(location.read(name) or b"", where)
        digest, keys = values.pop("sha256", None), values.get("keys")
        texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if digest != sha256(canonical_json(values)) or not isinstance(keys, list) or not texts:
            raise CacheDamaged(
                "the document of an exclusion has changed since it was written",
                where=where,
                expected="a list of keys with its sha256",
                hint="restore it from a backup, or remove it and exclude the images again",
            )
        yield name, keys, str(values.get("reason", ""))
