"""Groups of a cache: the views of a teacher or layer, their encoding, and their units.

A teacher has a group for its outputs and one for each tap of its network.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from logitcache.cache.format.arrays import create_array, create_group, resize
from logitcache.cache.format.documents import parse_group, validation_detail
from logitcache.cache.format.group import Group, RowGroup
from logitcache.cache.format.ledger import sealed_bytes
from logitcache.cache.format.manifest import FeatureFidelityRecord, FidelityRecord
from logitcache.cache.format.names import (
    FORMAT,
    MAX_CLASSES,
    MAX_UNIT_BYTES,
    canonical_json,
    feature_name,
    kind_of,
    sha256,
    table_name,
    tap_of,
    teacher_group,
    teacher_of,
)
from logitcache.cache.format.table_group import TableGroup
from logitcache.encoding.arrays import ArraySpec, encode_in_parts
from logitcache.encoding.feature_fidelity import feature_fidelity_of, row_feature_losses
from logitcache.encoding.features import FeatureEncoding, parse_features
from logitcache.encoding.fidelity import fidelity_of, row_losses
from logitcache.encoding.heads import HEADS
from logitcache.encoding.kinds import Encoding, parse_encoding
from logitcache.encoding.logits import label_log_probs
from logitcache.errors import CacheDamaged
from logitcache.views.recipe import ViewId

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location
    from logitcache.cache.store.zarr_store import RecordingStore
    from logitcache.encoding.arrays import Encoded

__all__ = [
    "GROUP_KINDS",
    "OPTIONAL_ARRAYS",
    "FeatureGroup",
    "Group",
    "RowGroup",
    "TableGroup",
    "TeacherGroup",
    "check_group",
    "create_group_arrays",
    "group_bytes",
    "group_names",
    "groups_of",
    "read_group",
    "resize_group_arrays",
    "row_groups",
]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPARSE_SHARE = 0.5  # compressed share of features that are mostly zero, measured
KindT = TypeVar("KindT", bound=Group)
MAX_CLASS_NAMES = 1_000_000
ClassName = Annotated[str, Field(min_length=1, max_length=1024)]
OPTIONAL_ARRAYS = {
    "lse": ArraySpec((), "float32", float("nan")),
    "label_logp": ArraySpec((), "float16", float("nan")),
}


class _Attributes(BaseModel):
    """The attributes as they are read: bounded before anything is allocated for them."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    encoding: dict[str, Any]
    unit_rows: Annotated[int, Field(ge=1, le=65536)]
    view_ids: list[ViewId | Literal[""]] = Field(max_length=65536)
    lock_sha256: str


class _TeacherAttributes(_Attributes):
    """The attributes of a group of teacher outputs."""

    head: Literal["softmax", "sigmoid"]
    num_classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)]
    optional: list[str] = Field(max_length=16)
    class_names_sha256: str
    class_names: Annotated[list[ClassName], Field(max_length=MAX_CLASS_NAMES)] | None = None

    @model_validator(mode="after")
    def _one_name_a_class(self) -> Self:
        names = self.class_names
        if names is not None and len(set(names)) != self.num_classes:
            raise ValueError(f"{len(set(names))} class names for {self.num_classes} classes")
        return self


@dataclass(frozen=True, kw_only=True)
class TeacherGroup(RowGroup):
    """What the attributes of ``teachers/<name>`` say.

    Attributes:
        num_classes: C.
        encoding: How its log-probabilities are stored.
        optional: Which of ``lse`` and ``label_logp`` are kept.
        class_names_sha256: Digest of the names of the images' classes.
        class_names: Names of the teacher's classes in order, if they are not those of the images;
            None if they are.
    """

    kind = ""

    num_classes: int
    encoding: Encoding
    optional: tuple[str, ...]
    class_names_sha256: str
    class_names: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, name: str, values: object, where: str) -> TeacherGroup:
        """Read the attributes of a teacher's group."""
        found = _TeacherAttributes.model_validate(values)
        encoding = parse_encoding(found.encoding, found.num_classes, where)
        if encoding.head != found.head:
            raise CacheDamaged(
                "the encoding of a group does not fit its head",
                where=f"{where} head",
                expected=encoding.head,
                got=found.head,
            )
        return cls(
            teacher=name,
            num_classes=found.num_classes,
            encoding=encoding,
            optional=tuple(array for array in found.optional if array in OPTIONAL_ARRAYS),
            unit_rows=found.unit_rows,
            slots=tuple(found.view_ids),
            lock_sha256=found.lock_sha256,
            class_names_sha256=found.class_names_sha256,
            class_names=None if found.class_names is None else tuple(found.class_names),
        )

    @property
    def name(self) -> str:
        """Name of the group: that of the teacher."""
        return self.teacher

    @property
    def requirements(self) -> tuple[str, ...]:
        """Names that the root has to require of readers: of the encoding and of the classes."""
        own = () if self.class_names is None else ("teacher-classes",)
        return (*own, self.encoding.required) if self.encoding.required else own

    @property
    def classes_digest(self) -> str:
        """Digest of the class names that the group was made for."""
        return self.class_names_sha256

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of the group by name."""
        return self.encoding.specs() | {name: OPTIONAL_ARRAYS[name] for name in self.optional}

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {
            "format": FORMAT,
            "head": self.encoding.head,
            "num_classes": self.num_classes,
            "encoding": self.encoding.to_json(),
            "optional": list(self.optional),
            "unit_rows": self.unit_rows,
            "view_ids": list(self.slots),
            "lock_sha256": self.lock_sha256,
            "class_names_sha256": self.class_names_sha256,
            **({} if self.class_names is None else {"class_names": list(self.class_names)}),
        }

    @property
    def row_numbers(self) -> int:
        """Number of classes, C."""
        return self.num_classes

    @property
    def compressed_share(self) -> float:
        """Compressed size of a unit, roughly, as a share of its size before compression."""
        return self.encoding.compressed_share

    @property
    def batch_arrays(self) -> list[str]:
        """The arrays of the encoding, and ``label_logp`` where a label may be an absent class."""
        names = list(self.encoding.specs())
        keeps_label = self.encoding.truncates and "label_logp" in self.optional
        return [*names, "label_logp"] if keeps_label else names

    def fault_of(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return why stored rows cannot be decoded, None if they can."""
        return self.encoding.fault_of(arrays)

    def encode(self, outputs_N: NDArray[np.float32], labels_N: NDArray[np.int32]) -> Encoded:
        """Encode raw logits (N, C), with the optional arrays."""
        return encode_in_parts(
            lambda rows: self._encode_rows(outputs_N[rows], labels_N[rows]),
            len(outputs_N),
            self.num_classes,
        )

    def _encode_rows(self, outputs_N: NDArray[np.float32], labels_N: NDArray[np.int32]) -> Encoded:
        log_probs_NC, lse_N = HEADS[self.encoding.head].normalize(outputs_N)
        encoded = self.encoding.encode(log_probs_NC)
        if "lse" in self.optional:
            encoded["lse"] = lse_N.astype("float32")
        if "label_logp" in self.optional:
            encoded["label_logp"] = label_log_probs(log_probs_NC, labels_N)
        return encoded

    def row_losses(
        self, outputs_N: NDArray[np.float32], encoded: Encoded
    ) -> dict[str, NDArray[np.float64]]:
        """Return what encoding raw logits (N, C) loses of each row."""
        values_NC, _ = HEADS[self.encoding.head].normalize(outputs_N)
        return row_losses(self.encoding, values_NC, encoded)

    def fidelity(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return the teacher's ``fidelity``."""
        return {"fidelity": FidelityRecord.model_validate(fidelity_of(sums).to_json())}


@dataclass(frozen=True, kw_only=True)
class FeatureGroup(RowGroup):
    """What the attributes of ``teachers/<name>/features/<tap>`` say.

    Attributes:
        tap: The layer whose output is kept, see :mod:`logitcache.networks.taps`.
        encoding: What was kept and how it is stored.
    """

    kind = "features"

    tap: str
    encoding: FeatureEncoding

    @classmethod
    def parse(cls, name: str, values: object, where: str) -> FeatureGroup:
        """Read the attributes of the group of a tap."""
        found = _Attributes.model_validate(values)
        return cls(
            teacher=teacher_of(name),
            tap=str(tap_of(name)),
            encoding=parse_features(found.encoding, where),
            unit_rows=found.unit_rows,
            slots=tuple(found.view_ids),
            lock_sha256=found.lock_sha256,
        )

    @property
    def name(self) -> str:
        """Name of the group: ``<teacher>/features/<tap>``."""
        return feature_name(self.teacher, self.tap)

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of the group by name."""
        return self.encoding.specs()

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {
            "format": FORMAT,
            "encoding": self.encoding.to_json(),
            "unit_rows": self.unit_rows,
            "view_ids": list(self.slots),
            "lock_sha256": self.lock_sha256,
        }

    @property
    def row_numbers(self) -> int:
        """Number of values of one row."""
        return math.prod(self.encoding.shape)

    @property
    def compressed_share(self) -> float:
        """Compressed size of a unit, roughly, as a share of its size before compression."""
        return _SPARSE_SHARE if self.encoding.sparse else 1.0

    @property
    def kept_patches(self) -> tuple[int, int] | None:
        """Patches of the grid, and how many are kept of each row; None where all are kept."""
        kept = self.encoding.kept
        return None if kept is None else (self.encoding.patches, kept)

    def fault_of(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return why stored rows cannot be decoded, None if they can."""
        return self.encoding.fault_of(arrays)

    def encode(self, outputs_N: NDArray[np.float32], labels_N: NDArray[np.int32]) -> Encoded:
        """Encode features as they are kept, (N, ...)."""
        return self.encoding.encode(outputs_N)

    def row_losses(
        self, outputs_N: NDArray[np.float32], encoded: Encoded
    ) -> dict[str, NDArray[np.float64]]:
        """Return what encoding features loses of each row."""
        whole = outputs_N if self.encoding.principal is None else None
        return row_feature_losses(outputs_N, self.encoding.decode(encoded), whole)

    def fidelity(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return the teacher's ``feature_fidelity`` of this tap."""
        found = FeatureFidelityRecord.model_validate(feature_fidelity_of(sums).to_json())
        return {"feature_fidelity": {self.tap: found}}


GROUP_KINDS: dict[str, type[Group]] = {
    kind.kind: kind for kind in (TeacherGroup, FeatureGroup, TableGroup)
}
"""All kinds of groups by the folder below the teacher's group."""


def row_groups(groups: Mapping[str, Group]) -> dict[str, RowGroup]:
    """Return the groups with rows by name."""
    return {name: group for name, group in groups.items() if isinstance(group, RowGroup)}


def groups_of(groups: Mapping[str, Group], kind: type[KindT]) -> dict[str, KindT]:
    """Return the groups of one kind by name."""
    return {name: group for name, group in groups.items() if isinstance(group, kind)}


def group_names(manifest: Manifest) -> list[str]:
    """Return the names of all declared groups: each teacher's logits, then taps and tables."""
    names = []
    for teacher, record in manifest.teachers.items():
        names += [teacher] if record.has_logits else []
        names += [feature_name(teacher, tap) for tap in record.features]
        names += [table_name(teacher, table) for table in record.tables]
    return names


def group_bytes(location: Location, group: Group) -> int:
    """Return how many bytes a group takes: its arrays and documents, not those of its taps.

    Where keys cannot be listed, only the sealed shards count.
    """
    if not location.lists:
        return sealed_bytes(location, group.path, group.ledger_views)
    arrays = sum(location.bytes_below(f"{group.path}/{name}") for name in group.specs())
    return arrays + (location.size(f"{group.path}/zarr.json") or 0)


def create_group_arrays(store: RecordingStore, manifest: Manifest, group: Group) -> None:
    """Create a group and its arrays; undeclared objects at its path are removed."""
    create_group(store, group.path, group.to_json())
    for name, spec in group.specs().items():
        leading = group.leading_shape(manifest)
        create_array(store, f"{group.path}/{name}", spec, leading, group.unit_rows)


def resize_group_arrays(store: RecordingStore, manifest: Manifest, group: Group) -> None:
    """Make room for more views or rows."""
    for name in group.specs():
        resize(store, f"{group.path}/{name}", group.leading_shape(manifest))


def check_group(group: Group, manifest: Manifest, where: object) -> None:
    """Compare a group with what the manifest records of its teacher, views and classes.

    Raises:
        CacheDamaged: It was made with another teacher, of unknown views, or for other classes.
    """
    teacher = group.teacher
    record = manifest.teachers.get(teacher)
    if record is None:
        raise CacheDamaged(
            "a group belongs to a teacher that the manifest does not list",
            where=f"{where}/{group.path}",
            expected=f"one of {', '.join(manifest.teachers)[:200]}",
        )
    known = _SHA256.fullmatch(group.lock_sha256)  # earlier versions accepted any text
    if known and group.lock_sha256 != sha256(canonical_json(record.lock)):
        raise CacheDamaged(
            "a group was computed by another teacher than the manifest records",
            where=f"{where}/{group.path}/zarr.json lock_sha256",
            expected=f"the sha256 of the lock of teacher {teacher!r}",
            got=group.lock_sha256[:80],
        )
    unnamed = [view for view in group.view_ids if view not in manifest.views]
    if unnamed and "dropped-views" not in manifest.requires:
        raise CacheDamaged(
            "a group has views that the manifest does not list",
            where=f"{where}/{group.path}/zarr.json view_ids",
            expected="views of the manifest only",
            got=f"{len(unnamed)} other views, for example {unnamed[0]}",
        )
    names = sha256(canonical_json(list(manifest.data.class_names)))
    own = group.classes_digest
    if _SHA256.fullmatch(own) and own != names:
        raise CacheDamaged(
            "a group was computed for other classes than the manifest lists",
            where=f"{where}/{group.path}/zarr.json class_names_sha256",
            expected=f"sha256 {names} of the class names",
            got=f"sha256 {own}",
        )


def read_group(location: Location, name: str, document: bytes | None = None) -> Group:
    """Read the attributes of a group.

    Args:
        location: The cache.
        name: A teacher, or ``<teacher>/features/<tap>``.
        document: The group's ``zarr.json``, if not the stored one.

    Raises:
        CacheDamaged: They are missing or malformed, or describe units that are too large.
    """
    key = f"{teacher_group(name)}/zarr.json"
    where = f"{location}/{key}"
    content = document if document is not None else location.read(key)
    attributes = parse_group(content or b"", where)
    damaged = "the attributes of a group are damaged"
    try:
        group = GROUP_KINDS[kind_of(name)].parse(name, attributes, where)
    except ValidationError as error:
        place, detail = validation_detail(error)
        raise CacheDamaged(damaged, where=f"{where} {place}", got=detail) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CacheDamaged(damaged, where=where, got=error) from None
    if group.unit_rows > 1 and group.unit_bytes >= 2 * MAX_UNIT_BYTES:
        got = f"{group.unit_bytes} bytes"
        most = f"less than {2 * MAX_UNIT_BYTES} bytes"
        what = "the units of a group are larger than the format allows"
        raise CacheDamaged(what, where=where, expected=most, got=got)
    return group
