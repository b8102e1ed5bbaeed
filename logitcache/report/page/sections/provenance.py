"""Where everything comes from: images, weights, licenses and versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.format.card import NOT_STATED
from logitcache.report.page.blocks import Section, Table

if TYPE_CHECKING:
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import CacheContents, Contents

__all__ = ["provenance"]


def provenance(contents: Contents) -> Section | None:
    """Return origins, digests, licenses and versions of all caches."""
    if not contents.caches:
        return None
    blocks: list[Block] = []
    for cache in contents.first_caches:
        blocks.append(
            Table(
                f"Provenance of {cache.origin.name}.",
                ["what", "value"],
                _facts(cache),
                text_columns=(1,),
            )
        )
        blocks.append(
            Table(
                f"Teachers of {cache.origin.name}.",
                ["teacher", "network", "weights", "SHA-256 of the weights", "license"],
                [
                    [
                        teacher.name,
                        teacher.architecture,
                        teacher.source,
                        teacher.weights_sha256 or "unknown",
                        cache.facts.teacher_licenses.get(teacher.name, NOT_STATED),
                    ]
                    for teacher in cache.description.teachers
                ],
                text_columns=(1, 2, 3, 4),
            )
        )
    return Section("Provenance and licenses", blocks)


def _facts(cache: CacheContents) -> list[list[str]]:
    found, facts = cache.description, cache.facts
    rows = [
        ["location", found.url],
        ["revision", f"{found.revision}, SHA-256 {found.revision_sha256}"],
        ["images", found.data],
        ["fingerprint of the images", found.fingerprint or "unknown"],
        ["license of the cache", facts.license or NOT_STATED],
        ["license of the images", facts.images_license or NOT_STATED],
        ["source of the images", facts.source or NOT_STATED],
        ["created by", ", ".join(facts.creator) or NOT_STATED],
        ["computed with", ", ".join(f"{name} {v}" for name, v in found.versions.items())],
    ]
    if found.signers:
        rows.append(["signatures, not checked", ", ".join(found.signers)])
    return rows
