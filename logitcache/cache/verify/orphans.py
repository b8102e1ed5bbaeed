"""Orphans: files that interrupted runs have left, and files that are not part of a cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.cache.format.data_arrays import DATA
from logitcache.cache.format.envelope import SIGNATURES
from logitcache.cache.format.names import CARD_DOCUMENTS, INDEX, TEACHERS
from logitcache.cache.store.temporary import is_temporary
from logitcache.cache.write.claims import CLAIMS, TRIAL, is_left, read_holder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location

__all__ = ["Orphan", "find_orphans"]

_NUMBERED = re.compile(r"(?:revisions/|ledger/.*\.)(\d{1,18})(?:\.copies)?\.json")
_KEPT = {"commits", "withdrawn", "probes", SIGNATURES, *CARD_DOCUMENTS, INDEX}


@dataclass(frozen=True)
class Orphan:
    """A file that is not part of the cache, and its probable origin."""

    key: str
    why: str


def find_orphans(
    location: Location, manifest: Manifest, named: Collection[str]
) -> Iterator[Orphan]:
    """Yield files in the folder of a cache that are not part of it.

    Args:
        location: The cache.
        manifest: Its manifest.
        named: Keys of all shards that are committed.
    """
    current = manifest.revision.number if manifest.revision else 0
    for key in sorted(location.keys()):
        why = _why(location, key, current, named)
        if why is not None:
            yield Orphan(key, why)


def _why(location: Location, key: str, current: int, named: Collection[str]) -> str | None:
    if is_temporary(key):
        return "a temporary file of a write that was interrupted or is in progress"
    top = key.partition("/")[0]
    if top == CLAIMS:
        return _why_claim(location, key)
    numbered = _NUMBERED.fullmatch(key)
    if numbered is not None:
        return None if int(numbered[1]) <= current else "a document of a seal that was interrupted"
    if key in named or key.endswith("zarr.json") or top in _KEPT:
        return None
    if top in {*DATA, TEACHERS} and "/c/" in key:
        return "a shard without a commit: its unit was interrupted or dropped"
    return "not a file of a cache"


def _why_claim(location: Location, key: str) -> str:
    if key.startswith(f"{CLAIMS}/{TRIAL}"):
        return "a test object of a run that is active or was killed"
    holder = read_holder(location, key)
    if is_left(location, key):
        return f"the claim of a run that was killed ({holder}); the next precompute removes it"
    return f"the claim of a run that is active or was killed ({holder})"
