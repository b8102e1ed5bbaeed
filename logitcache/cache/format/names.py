"""Names, numbers and digests of cache format 1; ``docs/format.md`` is normative.

Layout::

    zarr.json                                     attributes["logitcache"]: the root manifest
    samples/{key,hash,digest,bytes,label,status}  one row per image
    samples/{label_count,label_ids}               where an image may have several classes
    images/{content,end,source_bytes,source_digest}  encoded images, in caches that have them
    teachers/<name>/<array>                       teacher outputs, by view slot and row
    teachers/<name>/features/<tap>/<array>        activations of a layer
    teachers/<name>/tables/<table>/values         one row per class, the same for all images
    views/<id>/partner                            mixing partners, in views that mix
    squares/<id>/{content,end,digest}             rendered views, in caches that have them
    commits/<group>/<view, - for samples>/<unit>.json
    ledger/<group>/<view>.<revision>.json
    revisions/<n>.json · revisions/<n>.copies.json
    withdrawn/<n>.json
    claims/…                                      processes at work: advisory, not part of the cache
"""

from __future__ import annotations

import hashlib
import json
import re
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.encoding.arrays import ArraySpec
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = [
    "ATTRIBUTE",
    "CARD_DOCUMENTS",
    "CLAIMS",
    "FEATURES",
    "FORMAT",
    "FORMATS",
    "GROUP_FEATURES",
    "HEADLESS",
    "IMAGES",
    "INDEX",
    "LABEL_SETS",
    "MANIFEST",
    "MANIFEST_CLAIM",
    "MAX_CLASSES",
    "MAX_CONTENT_BYTES",
    "MAX_UNIT_BYTES",
    "NO_VIEW",
    "SAMPLES",
    "SAMPLE_ARRAYS",
    "SQUARES",
    "STORED_VIEWS",
    "TEACHERS",
    "UNKNOWN_VIEWS",
    "VIEWS",
    "VISIBLE_PATCHES",
    "WITHDRAWN",
    "Status",
    "canonical_json",
    "check_name",
    "check_new_name",
    "commit_key",
    "commit_prefix",
    "content_sha256",
    "copies_key",
    "default_unit_rows",
    "feature_name",
    "group_unit_rows",
    "inner_rows",
    "is_withdrawal",
    "kind_of",
    "ledger_key",
    "max_key_bytes",
    "revision_key",
    "sha256",
    "table_name",
    "tap_of",
    "teacher_group",
    "teacher_of",
]

FORMAT = 1
"""Format of every document but the root, and of a root that requires nothing."""
FORMATS = (1, 2)
"""Formats of the root document: 2 is 1 with the field ``requires``."""
HEADLESS = "headless"
"""Name that the root requires of readers where a teacher has no logits."""
UNKNOWN_VIEWS = "unknown-views"
"""Name that the root requires of readers where outputs of unknown views were imported."""
VISIBLE_PATCHES = "visible-patches"
"""Name that the root requires of readers where a view drops patches."""
STORED_VIEWS = "stored-views"
"""Name that the root requires of readers where rendered views are in the cache."""
LABEL_SETS = "label-sets"
"""Name that the root requires of readers where an image may have several classes."""
FEATURES = {
    "decoding-2": "images are decoded by table 2 of docs/views.md",
    LABEL_SETS: "images have sets of classes instead of one class",
    "dropping": "commits of teachers or taps that the root does not name are still to be removed",
    "tables": "teachers have tables: groups without views and rows",
    "transform": "teachers have outputs in the transform encoding",
    "sigmoid": "teachers have a sigmoid for each class instead of a softmax over all",
    HEADLESS: "teachers have features alone, and no group of logits",
    "teacher-classes": "teachers have other classes than the images",
    "images": "the images are in the cache, and samples describe these",
    STORED_VIEWS: "the views of the images are in the cache, rendered and encoded",
    UNKNOWN_VIEWS: "the pixels of some views are not known",
    VISIBLE_PATCHES: "views have patches that networks are not run on",
    "dropped-views": "groups have slots, and probes, of views that the root does not name",
}
"""What the root may require of its readers, with the meaning; any other name is refused."""
GROUP_FEATURES = ("tables", "teacher-classes", "transform", "sigmoid")
"""Those that are required as long as a group needs them."""
ATTRIBUTE = "logitcache"
MAX_CLASSES = 2**26
"""A row of that many numbers is half a unit's bytes."""
MAX_UNIT_BYTES = 256_000_000
"""Largest unit of one view of a group, before compression."""
MAX_CONTENT_BYTES = 2**28
"""Largest size of the encoded images of a unit."""
IMAGES = "images"
SAMPLES = "samples"
SQUARES = "squares"
TEACHERS = "teachers"
VIEWS = "views"
WITHDRAWN = "withdrawn"
CARD_DOCUMENTS = ("card.json", "README.md", "croissant.json")
"""Documents that describe a cache; the first has the facts that people state."""
INDEX = "index.parquet"
"""Index of the rows; the last document of the card has its digest."""
CLAIMS = "claims"
MANIFEST = "manifest"
"""The claim of a run that declares or seals."""
MANIFEST_CLAIM = f"{CLAIMS}/{MANIFEST}.json"
NO_VIEW = "-"
"""Stands for the view in the commits of samples, images and tables, which have none."""

SAMPLE_ARRAYS = {
    "hash": ArraySpec((), "uint64", 0),
    "digest": ArraySpec((16,), "uint8", 0, "raw"),
    "bytes": ArraySpec((), "int64", 0),
    "label": ArraySpec((), "int32", -1),
    "status": ArraySpec((), "uint8", 0),
}
"""The samples' arrays but for ``key``, which is a string."""

_KEY_BYTES, _KEYS_BYTES = 1024, 2**20  # on average, and for a few long ones
_MAX_INNER_ROWS = 4096
_MIN_UNIT_ROWS, _SMALLEST_UNIT_ROWS, _MAX_UNIT_ROWS = 1024, 16, 65536
_FEATURES = "/features/"
_RESERVED = frozenset(
    {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Status(IntEnum):
    """What is in a row of the samples."""

    PADDING = 0
    OK = 1
    UNREADABLE = 2
    WITHDRAWN = 3  # in memory only: withdrawals override the committed status


def canonical_json(value: object) -> bytes:
    """Return JSON with the same bytes for equal values, which are digested and stored."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def max_key_bytes(rows: int) -> int:
    """Return the bytes that the names of so many rows may have together, as UTF-8."""
    return rows * _KEY_BYTES + _KEYS_BYTES


def sha256(content: bytes | bytearray | memoryview) -> str:
    """Return the SHA-256 of bytes as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def content_sha256(array: NDArray[Any]) -> str:
    """Return the sha256 of decoded rows: little-endian C order, strings as UTF-8 joined by NUL."""
    if array.dtype.kind in "OUT":
        return sha256(b"\0".join(str(value).encode() for value in array))
    # little-endian, whatever the machine: the digest is compared on others
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return sha256(content.reshape(-1).view(np.uint8).data)  # without a copy


def check_name(name: str, what: str) -> str:
    """Return a name that is safe as a path segment everywhere.

    Raises:
        UsageError: It is not safe.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"unusable name for a {what}",
            got=repr(name),
            expected="at most 64 letters, digits, '.', '_' and '-', a letter or digit first",
        )
    return name


def check_new_name(name: str, what: str, others: Iterable[str]) -> str:
    """Return a name that can be added to a cache: its folder can exist on every file system.

    Args:
        name: The name.
        what: What it is a name of, for messages.
        others: Names that are there or are added with it.

    Raises:
        UsageError: It is unusable, reserved on Windows, or differs from another name by the case of
            its letters alone.
    """
    check_name(name, what)
    if name.endswith(".") or name.partition(".")[0].upper() in _RESERVED:
        raise UsageError(
            f"unusable name for a {what}",
            got=repr(name),
            expected="a name that Windows accepts, too: no final dot, and not CON, PRN, AUX, NUL, "
            "COM1 or LPT1",
        )
    same = next((o for o in others if o != name and o.casefold() == name.casefold()), None)
    if same is not None:
        raise UsageError(
            f"two names of a {what} differ in upper and lower case only",
            got=f"{same!r} and {name!r}",
            expected="names that are different folders on macOS and Windows, too",
        )
    return name


def teacher_group(name: str) -> str:
    """Return the path of the group of a teacher, or of one of its taps."""
    return f"{TEACHERS}/{name}"


def feature_name(teacher: str, tap: str) -> str:
    """Return the name of the group of a tap: ``<teacher>/features/<tap>``."""
    return f"{teacher}{_FEATURES}{tap}"


def table_name(teacher: str, table: str) -> str:
    """Return the name of the group of a table: ``<teacher>/tables/<table>``."""
    return f"{teacher}/tables/{table}"


def teacher_of(name: str) -> str:
    """Return the teacher of the group of this name."""
    return name.partition("/")[0]


def tap_of(name: str) -> str | None:
    """Return the tap of the group of this name; None for teacher outputs."""
    return name.partition(_FEATURES)[2] or None


def kind_of(name: str) -> str:
    """Return the kind of the group of this name: the folder below the teacher's group."""
    return name.split("/")[1] if "/" in name else ""


def commit_prefix(group: str, view: str) -> str:
    """Return the prefix of the keys of the commits of one view of a group."""
    return f"commits/{group}/{view}"


def commit_key(group: str, view: str, unit: int) -> str:
    """Return the key of the commit of one unit."""
    return f"{commit_prefix(group, view)}/{unit}.json"


def ledger_key(group: str, view: str, revision: int) -> str:
    """Return the key of a ledger."""
    return f"ledger/{group}/{view}.{revision}.json"


def revision_key(revision: int) -> str:
    """Return the key of a revision."""
    return f"revisions/{revision}.json"


def copies_key(revision: int) -> str:
    """Return the key of the second copies of a revision's metadata."""
    return f"revisions/{revision}.copies.json"


def is_withdrawal(key: str) -> bool:
    """Return whether a key is that of a withdrawal."""
    return key.startswith(f"{WITHDRAWN}/")


def default_unit_rows(rows: int, requested: int | None = None) -> int:
    """Return the rows of a unit: a power of two, about a sixteenth of the set.

    Args:
        rows: Images of the first segment.
        requested: Rows of a unit that the user requests; None for the default.

    Raises:
        UsageError: The requested number is not a power of two in the permitted range.
    """
    if requested is None:
        sixteenth = 1 << max(0, (rows // 16).bit_length() - 1)
        return min(max(sixteenth, _MIN_UNIT_ROWS), _MAX_UNIT_ROWS)
    if requested < _SMALLEST_UNIT_ROWS or requested & (requested - 1) or requested > _MAX_UNIT_ROWS:
        raise UsageError(
            "the requested number of rows in a unit cannot be used",
            where="unit_rows",
            expected=f"a power of two from {_SMALLEST_UNIT_ROWS} to {_MAX_UNIT_ROWS}",
            got=requested,
        )
    return requested


def group_unit_rows(unit_rows: int, row_bytes: int) -> int:
    """Return the rows of a group's unit: the root's, halved until a unit is under 256 MB."""
    while unit_rows > 1 and unit_rows * row_bytes >= MAX_UNIT_BYTES:
        unit_rows //= 2
    return unit_rows


def inner_rows(unit_rows: int, most: int = _MAX_INNER_ROWS) -> int:
    """Return the rows of an inner chunk of a unit, at most ``most``."""
    return min(unit_rows, _MAX_INNER_ROWS, most)
