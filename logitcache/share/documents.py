"""View fingerprints, exclusions and stated facts of a cache that is made from others."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.card import joined_facts, read_facts, state_facts
from logitcache.cache.format.fingerprints import (
    FingerprintsDocument,
    fingerprint_keys,
    write_fingerprints,
)
from logitcache.cache.read.exclusions import read_exclusions, withdrawal_keys, write_withdrawal

if TYPE_CHECKING:
    from logitcache.cache.store.base import Location
    from logitcache.share.plan import CachePlan
    from logitcache.share.source import SourceCache

__all__ = ["copy_documents", "fingerprint_counts", "fingerprints_of"]


def copy_documents(plan: CachePlan, location: Location) -> None:
    """Write those documents of the sources that concern rows and views of the new cache.

    Documents that were written before a process was killed are left as they are.
    """
    facts = [read_facts(source.location) for source in plan.sources]
    state_facts(location, joined_facts(facts, plan.records))
    for document in fingerprints_of(plan)[len(fingerprint_keys(location)) :]:
        write_fingerprints(location, document)
    for keys, reason in _exclusions(plan)[len(withdrawal_keys(location)) :]:
        write_withdrawal(location, keys, reason)


def fingerprint_counts(plan: CachePlan) -> dict[str, int]:
    """Return the number of view fingerprints of each view of the new cache."""
    probes = (probe for document in fingerprints_of(plan) for probe in document["probes"])
    found = Counter(str(probe["view"]) for probe in probes)
    return {view_id: found[view_id] for view_id in plan.views}


def fingerprints_of(plan: CachePlan) -> list[dict[str, Any]]:
    """Return the documents of view fingerprints, with the rows of the new cache.

    A fingerprint is taken with its image. A document names only views that it has a fingerprint
    of, so that a later precompute renders those of the others.
    """
    documents = []
    known: set[tuple[str, int]] = set()
    for number, source in enumerate(plan.sources):
        for document in source.cache.probes():
            probes = []
            for probe in _renumbered(plan, number, document):
                place = (probe["view"], probe["row"])
                if place not in known:
                    known.add(place)
                    probes.append(probe)
            if probes:
                documents.append(
                    {
                        "views": sorted({probe["view"] for probe in probes}),
                        "segments": _segments(plan, number, source, document),
                        "versions": document.versions,
                        "probes": probes,
                    }
                )
    return documents


def _renumbered(
    plan: CachePlan, number: int, document: FingerprintsDocument
) -> list[dict[str, Any]]:
    """Return the fingerprints of rows and views of the new cache, with its row numbers."""
    named = [
        int(probe[field])
        for probe in document.probes
        for field in ("row", "partner")
        if probe.get(field) is not None
    ]
    rows = plan.rows.mapped(number, named)
    found = []
    for probe in document.probes:
        row, partner = rows.get(probe.get("row", -1)), probe.get("partner")
        if row is None or probe.get("view") not in plan.views:
            continue
        mixed_in = None if partner is None else rows.get(partner)
        if (partner is None) == (mixed_in is None):
            found.append({**probe, "row": row, "partner": mixed_in})
    return found


def _segments(
    plan: CachePlan, number: int, source: SourceCache, document: FingerprintsDocument
) -> list[int]:
    """Return the first rows of the segments that have images of the segments of a document."""
    starts = set()
    for start, count in plan.rows.segments:
        theirs = plan.rows.taken_from(number, start, start + count)
        for first, rows in source.segments:
            if first in document.segments and ((theirs >= first) & (theirs < first + rows)).any():
                starts.add(start)
    return sorted(starts)


def _exclusions(plan: CachePlan) -> list[tuple[list[str], str]]:
    """Return the exclusions of images of the new cache: keys and reason of each."""
    found = []
    for source in plan.sources:
        if not source.cache.withdrawn:
            continue
        for keys, reason in read_exclusions(source.location):
            here = sorted(keys & plan.facts.excluded)
            if here and (here, reason) not in found:
                found.append((here, reason))
    return found
