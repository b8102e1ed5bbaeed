"""A teacher's group: which views it saw, how its answers are encoded and cut into units."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitcache.cache.arrays import read_array
from logitcache.cache.format import ATTRIBUTE, FORMAT, MAX_UNIT_BYTES, teacher_group
from logitcache.cache.manifest import ViewId
from logitcache.encoding.arrays import ArraySpec
from logitcache.encoding.choice import Encoding, parse_encoding
from logitcache.errors import CacheDamaged, CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.cache.location import LocalLocation, RecordingStore
    from logitcache.cache.manifest import Segment
    from logitcache.encoding.arrays import Encoded

__all__ = ["TeacherGroup", "read_group", "read_rows", "units_of", "units_of_segment"]

_MAX_CLASSES = 2**26  # one row of them is half a unit's bytes
_OPTIONAL = {
    "lse": ArraySpec((), "float32", float("nan")),
    "label_logp": ArraySpec((), "float16", float("nan")),
}


@dataclass(frozen=True)
class TeacherGroup:
    """What the attributes of ``teachers/<name>`` say.

    Attributes:
        name: The teacher.
        num_classes: C.
        encoding: How its log-probabilities are stored.
        optional: Which of ``lse`` and ``label_logp`` are kept.
        unit_rows: Rows of a unit of this group.
        view_ids: Views by slot.
        lock_sha256: Digest of the lock in the root manifest.
        class_names_sha256: Digest of the names of the classes.
    """

    name: str
    num_classes: int
    encoding: Encoding
    optional: tuple[str, ...]
    unit_rows: int
    view_ids: tuple[str, ...]
    lock_sha256: str
    class_names_sha256: str

    @property
    def path(self) -> str:
        """Path of the group below the root."""
        return teacher_group(self.name)

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of the group by name."""
        return self.encoding.specs() | {name: _OPTIONAL[name] for name in self.optional}

    def slot(self, view_id: str) -> int:
        """Return where a view lies on the first axis.

        Raises:
            CacheError: This teacher did not see it.
        """
        if view_id not in self.view_ids:
            raise CacheError(
                f"teacher {self.name!r} did not see this view",
                got=view_id,
                expected=f"one of its {len(self.view_ids)} views",
            )
        return self.view_ids.index(view_id)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {
            "format": FORMAT,
            "head": "softmax",
            "num_classes": self.num_classes,
            "encoding": self.encoding.to_json(),
            "optional": list(self.optional),
            "unit_rows": self.unit_rows,
            "view_ids": list(self.view_ids),
            "lock_sha256": self.lock_sha256,
            "class_names_sha256": self.class_names_sha256,
        }


class _Attributes(BaseModel):
    """The attributes as they are read: bounded before anything is allocated for them."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    head: Literal["softmax"]
    num_classes: Annotated[int, Field(ge=2, le=_MAX_CLASSES)]
    encoding: dict[str, Any]
    optional: list[str] = Field(max_length=16)
    unit_rows: Annotated[int, Field(ge=1, le=65536)]
    view_ids: list[ViewId] = Field(max_length=65536)
    lock_sha256: str
    class_names_sha256: str


def read_group(location: LocalLocation, name: str, document: bytes | None = None) -> TeacherGroup:
    """Read the attributes of a teacher's group.

    Args:
        location: The cache.
        name: The teacher.
        document: The group's ``zarr.json``, if not the one that lies there.

    Raises:
        CacheDamaged: They are missing, malformed or larger than a unit may be.
    """
    key = f"{teacher_group(name)}/zarr.json"
    where = f"{location}/{key}"
    content = document if document is not None else location.read(key)
    try:
        values = json.loads(content or b"")["attributes"][ATTRIBUTE]
        found = _Attributes.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        raise CacheDamaged(
            "a group's attributes are damaged", where=f"{where} {place}", got=first["msg"]
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheDamaged("a group's attributes are damaged", where=where, got=error) from None
    group = TeacherGroup(
        name=name,
        num_classes=found.num_classes,
        encoding=parse_encoding(found.encoding, found.num_classes, where),
        optional=tuple(array for array in found.optional if array in _OPTIONAL),
        unit_rows=found.unit_rows,
        view_ids=tuple(found.view_ids),
        lock_sha256=found.lock_sha256,
        class_names_sha256=found.class_names_sha256,
    )
    unit_bytes = group.unit_rows * sum(spec.row_bytes for spec in group.specs().values())
    if group.unit_rows > 1 and unit_bytes >= 2 * MAX_UNIT_BYTES:
        raise CacheDamaged("a unit cannot be that large", where=where, got=f"{unit_bytes} bytes")
    return group


def read_rows(
    store: RecordingStore,
    group: TeacherGroup,
    view_id: str,
    start: int,
    stop: int,
    arrays: Sequence[str] | None = None,
) -> Encoded:
    """Read encoded rows [start, stop) of one view of a teacher, trusting that they are committed.

    Raises:
        CacheDamaged: A checksum does not hold, or an object cannot be read.
    """
    slot, specs = group.slot(view_id), group.specs()
    return {
        name: read_array(store, f"{group.path}/{name}", slice(start, stop), specs[name], slot)
        for name in arrays or specs
    }


def units_of(start: int, stop: int, unit_rows: int) -> range:
    """Return the units that rows [start, stop) touch."""
    return range(start // unit_rows, -(-stop // unit_rows))


def units_of_segment(segment: Segment, block_rows: int, unit_rows: int) -> range:
    """Return the units of a segment: those of all its blocks, padding at the end included.

    Args:
        segment: The rows.
        block_rows: U.
        unit_rows: Rows of a unit of the group; divides U.
    """
    blocks = units_of(segment.start, segment.stop, block_rows)
    return units_of(blocks.start * block_rows, blocks.stop * block_rows, unit_rows)
