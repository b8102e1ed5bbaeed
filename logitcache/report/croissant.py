"""Croissant metadata of a cache: licenses, files with digests, the class list, an index of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cache.format.card import NOT_STATED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.report.card import Card

__all__ = ["VERSION", "croissant"]

VERSION = "http://mlcommons.org/croissant/1.1"

_MOST_CLASSES = 65536
_TERMS = (
    "arrayShape",
    "citeAs",
    "column",
    "containedIn",
    "equivalentProperty",
    "extract",
    "field",
    "fileObject",
    "fileProperty",
    "fileSet",
    "format",
    "includes",
    "isArray",
    "isLiveDataset",
    "jsonPath",
    "key",
    "md5",
    "parentField",
    "path",
    "recordSet",
    "references",
    "regex",
    "repeated",
    "replace",
    "samplingRate",
    "separator",
    "source",
    "subField",
    "transform",
)
# the standard context of version 1.1, which readers compare
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{name: f"cr:{name}" for name in _TERMS},
}


def croissant(card: Card, ledgers: Mapping[str, str], index_sha256: str | None) -> dict[str, Any]:
    """Return the metadata as JSON-LD.

    Args:
        card: The card.
        ledgers: sha256 of every ledger by key; a ledger has the digests of all shards of its view.
        index_sha256: sha256 of ``index.parquet``; None if there is no index.
    """
    facts, names = card.facts, card.cache.class_names
    files = {key: (digest, "application/json") for key, digest in ledgers.items()}
    if index_sha256 is not None:
        files["index.parquet"] = (index_sha256, "application/x-parquet")
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": card.title,
        "description": card.description,
        "conformsTo": VERSION,
        "version": f"{card.cache.format}.0.0",
        "keywords": ["logitcache", "knowledge distillation", "image classification"],
        "license": facts.license,
        "citeAs": facts.citation,
        "isBasedOn": facts.source,
        "creator": [{"@type": "sc:Organization", "name": name} for name in facts.creator],
        "usageInfo": _usage(card),
        "distribution": [_file(key, digest, kind) for key, (digest, kind) in sorted(files.items())],
        "recordSet": [],
    }
    if 0 < len(names) <= _MOST_CLASSES:
        document["recordSet"].append(_classes(names))
    if index_sha256 is not None:
        document["recordSet"].append(_rows())
    return {name: value for name, value in document.items() if value}


def _usage(card: Card) -> str:
    """Return the licenses of images and weights, for which Croissant has no fields."""
    facts = card.facts
    stated = {"images": facts.images_license}
    stated |= {
        f"weights of {teacher.name}": facts.teacher_licenses.get(teacher.name)
        for teacher in card.cache.teachers
    }
    return "; ".join(f"license of {what}: {text or NOT_STATED}" for what, text in stated.items())


def _file(key: str, digest: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": key,
        "name": key,
        "contentUrl": key,
        "encodingFormat": kind,
        "sha256": digest,
    }


def _field(of: str, name: str, kind: str, description: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{of}/{name}",
        "name": name,
        "description": description,
        "dataType": kind,
    }


def _classes(names: list[str]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "classes",
        "name": "classes",
        "description": "Classes of the labels, by number.",
        "key": {"@id": "classes/number"},
        "field": [
            _field("classes", "number", "sc:Integer", "Number of the class."),
            _field("classes", "class_name", "sc:Text", "Name of the class."),
        ],
        "data": [
            {"classes/number": number, "classes/class_name": name}
            for number, name in enumerate(names)
        ],
    }


def _rows() -> dict[str, Any]:
    columns = {
        "key": ("sc:Text", "Name of the image, relative to the root of the images."),
        "row": ("sc:Integer", "Row of the image in the arrays of the cache."),
        "label": ("sc:Integer", "Number of its class; -1 without a label."),
        "digest": ("sc:Text", "blake2b of its stored bytes, 16 bytes in hexadecimal digits."),
    }
    fields = []
    for name, (kind, description) in columns.items():
        source = {"fileObject": {"@id": "index.parquet"}, "extract": {"column": name}}
        fields.append({**_field("rows", name, kind, description), "source": source})
    return {
        "@type": "cr:RecordSet",
        "@id": "rows",
        "name": "rows",
        "description": "Images of the cache that students are trained on.",
        "key": {"@id": "rows/key"},
        "field": fields,
    }
