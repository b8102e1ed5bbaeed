"""Groups of a cache: the views of a teacher or layer, their encoding, and their units.

A teacher has a group for its outputs and one for each tap of its network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from logitcache.cache.format.arrays import create_array, create_group, resize
from logitcache.cache.format.documents import parse_group, validation_detail
from logitcache.cache.format.ledger import sealed_bytes
from logitcache.cache.format.names import (
    FORMAT,
    MAX_UNIT_BYTES,
    canonical_json,
    feature_name,
    sha256,
    tap_of,
    teacher_group,
    teacher_of,
)
from logitcache.cache.format.placement import Placement, units_of
from logitcache.encoding.arrays import ArraySpec
from logitcache.encoding.features import FeatureEncoding, parse_features
from logitcache.encoding.kinds import Encoding, parse_encoding
from logitcache.errors import CacheDamaged, CacheError
from logitcache.views.recipe import ViewId

if TYPE_CHECKING:
    from logitcache.cache.format.manifest import Manifest, Segment
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore

__all__ = [
    "OPTIONAL_ARRAYS",
    "FeatureGroup",
    "Group",
    "TeacherGroup",
    "check_group",
    "create_group_arrays",
    "group_bytes",
    "group_names",
    "placement_of",
    "read_group",
    "resize_group_arrays",
    "units_of",
    "units_of_segment",
]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_CLASSES = 2**26  # one row of them is half a unit's bytes
OPTIONAL_ARRAYS = {
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
        slots: Id of the view in each slot of the first axis; empty where it was dropped.
        lock_sha256: Digest of the lock in the root manifest.
        class_names_sha256: Digest of the names of the classes.
    """

    name: str
    num_classes: int
    encoding: Encoding
    optional: tuple[str, ...]
    unit_rows: int
    slots: tuple[str, ...]
    lock_sha256: str
    class_names_sha256: str

    @property
    def path(self) -> str:
        """Path of the group below the root."""
        return teacher_group(self.name)

    @property
    def view_ids(self) -> tuple[str, ...]:
        """Views of the group, in the order of their slots."""
        return tuple(view_id for view_id in self.slots if view_id)

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of the group by name."""
        return self.encoding.specs() | {name: OPTIONAL_ARRAYS[name] for name in self.optional}

    def slot(self, view_id: str) -> int:
        """Return the index of a view on the first axis.

        Raises:
            CacheError: This teacher did not see it.
        """
        return _slot(self, view_id)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {
            "format": FORMAT,
            "head": "softmax",
            "num_classes": self.num_classes,
            "encoding": self.encoding.to_json(),
            "optional": list(self.optional),
            "unit_rows": self.unit_rows,
            "view_ids": list(self.slots),
            "lock_sha256": self.lock_sha256,
            "class_names_sha256": self.class_names_sha256,
        }


@dataclass(frozen=True)
class FeatureGroup:
    """What the attributes of ``teachers/<name>/features/<tap>`` say.

    Attributes:
        teacher: The teacher.
        tap: Where its network was listened to, see :mod:`logitcache.networks.taps`.
        encoding: What was kept and how it is stored.
        unit_rows: Rows of a unit of this group.
        slots: Id of the view in each slot of the first axis; empty where it was dropped.
        lock_sha256: Digest of the teacher's lock in the root manifest.
    """

    teacher: str
    tap: str
    encoding: FeatureEncoding
    unit_rows: int
    slots: tuple[str, ...]
    lock_sha256: str

    @property
    def name(self) -> str:
        """Name of the group: ``<teacher>/features/<tap>``."""
        return feature_name(self.teacher, self.tap)

    @property
    def path(self) -> str:
        """Path of the group below the root."""
        return teacher_group(self.name)

    @property
    def view_ids(self) -> tuple[str, ...]:
        """Views of the group, in the order of their slots."""
        return tuple(view_id for view_id in self.slots if view_id)

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of the group by name."""
        return self.encoding.specs()

    def slot(self, view_id: str) -> int:
        """Return the index of a view on the first axis.

        Raises:
            CacheError: It is not kept of this tap.
        """
        return _slot(self, view_id)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {
            "format": FORMAT,
            "encoding": self.encoding.to_json(),
            "unit_rows": self.unit_rows,
            "view_ids": list(self.slots),
            "lock_sha256": self.lock_sha256,
        }


Group = TeacherGroup | FeatureGroup


def _slot(group: Group, view_id: str) -> int:
    if view_id not in group.view_ids:
        raise CacheError(
            f"teacher {group.name!r} did not see this view",
            got=view_id,
            expected=f"one of its {len(group.view_ids)} views",
        )
    return group.slots.index(view_id)


def group_names(manifest: Manifest) -> list[str]:
    """Return the names of all declared groups: each teacher, then its taps."""
    return [
        name
        for teacher, record in manifest.teachers.items()
        for name in (teacher, *(feature_name(teacher, tap) for tap in record.features))
    ]


def group_bytes(location: Location, group: Group) -> int:
    """Return how many bytes a group takes: its arrays and documents, not those of its taps.

    Where keys cannot be listed, those of its sealed shards.
    """
    if not location.lists:
        return sealed_bytes(location, group.path, group.view_ids)
    arrays = sum(location.bytes_below(f"{group.path}/{name}") for name in group.specs())
    return arrays + (location.size(f"{group.path}/zarr.json") or 0)


def create_group_arrays(store: RecordingStore, manifest: Manifest, group: Group) -> None:
    """Make a group and its arrays; what lay there undeclared is removed."""
    create_group(store, group.path, group.to_json())
    for name, spec in group.specs().items():
        path, leading = f"{group.path}/{name}", (len(group.slots), manifest.capacity)
        create_array(store, path, spec, leading, group.unit_rows)


def resize_group_arrays(store: RecordingStore, manifest: Manifest, group: Group) -> None:
    """Make room for more views or rows."""
    for name in group.specs():
        resize(store, f"{group.path}/{name}", (len(group.slots), manifest.capacity))


def check_group(group: Group, manifest: Manifest, where: object) -> None:
    """Compare a group with what the manifest records of its teacher, views and classes.

    Raises:
        CacheDamaged: It was made with another teacher, of unknown views, or for other classes.
    """
    teacher = teacher_of(group.name)
    record = manifest.teachers.get(teacher)
    if record is None:
        raise CacheDamaged(
            "a group of a teacher that the manifest does not name",
            where=f"{where}/{group.path}",
            expected=f"one of {', '.join(manifest.teachers)[:200]}",
        )
    known = _SHA256.fullmatch(group.lock_sha256)  # earlier versions accepted any text
    if known and group.lock_sha256 != sha256(canonical_json(record.lock)):
        raise CacheDamaged(
            "a group was made with another teacher than the manifest records",
            where=f"{where}/{group.path}/zarr.json lock_sha256",
            expected=f"the sha256 of the lock of teacher {teacher!r}",
            got=group.lock_sha256[:80],
        )
    unnamed = [view for view in group.view_ids if view not in manifest.views]
    if unnamed and "dropped-views" not in manifest.requires:
        raise CacheDamaged(
            "a group has views that the manifest does not name",
            where=f"{where}/{group.path}/zarr.json view_ids",
            got=f"{len(unnamed)} views, as {unnamed[0]}",
        )
    names = sha256(canonical_json(list(manifest.data.class_names)))
    own = group.class_names_sha256 if isinstance(group, TeacherGroup) else ""
    if _SHA256.fullmatch(own) and own != names:
        raise CacheDamaged(
            "a group was made for other classes than the manifest names",
            where=f"{where}/{group.path}/zarr.json class_names_sha256",
            expected=names,
            got=own,
        )


class _Attributes(BaseModel):
    """The attributes as they are read: bounded before anything is allocated for them."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    encoding: dict[str, Any]
    unit_rows: Annotated[int, Field(ge=1, le=65536)]
    view_ids: list[ViewId | Literal[""]] = Field(max_length=65536)
    lock_sha256: str


class _TeacherAttributes(_Attributes):
    """Those of teacher outputs."""

    head: Literal["softmax"]
    num_classes: Annotated[int, Field(ge=2, le=_MAX_CLASSES)]
    optional: list[str] = Field(max_length=16)
    class_names_sha256: str


def read_group(location: Location, name: str, document: bytes | None = None) -> Group:
    """Read the attributes of a group.

    Args:
        location: The cache.
        name: A teacher, or ``<teacher>/features/<tap>``.
        document: The group's ``zarr.json``, if not the stored one.

    Raises:
        CacheDamaged: They are missing, malformed or larger than a unit may be.
    """
    key = f"{teacher_group(name)}/zarr.json"
    where = f"{location}/{key}"
    content = document if document is not None else location.read(key)
    attributes = parse_group(content or b"", where)
    try:
        group = _parsed(name, attributes, where)
    except ValidationError as error:
        place, detail = validation_detail(error)
        raise CacheDamaged(
            "a group's attributes are damaged", where=f"{where} {place}", got=detail
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheDamaged("a group's attributes are damaged", where=where, got=error) from None
    unit_bytes = group.unit_rows * sum(spec.row_bytes for spec in group.specs().values())
    if group.unit_rows > 1 and unit_bytes >= 2 * MAX_UNIT_BYTES:
        raise CacheDamaged("a unit cannot be that large", where=where, got=f"{unit_bytes} bytes")
    return group


def _parsed(name: str, values: object, where: str) -> Group:
    tap = tap_of(name)
    if tap is not None:
        found = _Attributes.model_validate(values)
        return FeatureGroup(
            teacher=teacher_of(name),
            tap=tap,
            encoding=parse_features(found.encoding, where),
            unit_rows=found.unit_rows,
            slots=tuple(found.view_ids),
            lock_sha256=found.lock_sha256,
        )
    said = _TeacherAttributes.model_validate(values)
    return TeacherGroup(
        name=name,
        num_classes=said.num_classes,
        encoding=parse_encoding(said.encoding, said.num_classes, where),
        optional=tuple(array for array in said.optional if array in OPTIONAL_ARRAYS),
        unit_rows=said.unit_rows,
        slots=tuple(said.view_ids),
        lock_sha256=said.lock_sha256,
        class_names_sha256=said.class_names_sha256,
    )


def placement_of(group: Group, view_id: str) -> Placement:
    """Return where the arrays of a view of a group are.

    Raises:
        CacheError: The group does not have this view.
    """
    return Placement(group.path, view_id, group.unit_rows, group.slot(view_id), group.specs())


def units_of_segment(segment: Segment, block_rows: int, unit_rows: int) -> range:
    """Return the units of a segment: those of all its blocks, padding at the end included.

    Args:
        segment: The rows.
        block_rows: U.
        unit_rows: Rows of a unit of the group; divides U.
    """
    blocks = units_of(segment.start, segment.stop, block_rows)
    return units_of(blocks.start * block_rows, blocks.stop * block_rows, unit_rows)
