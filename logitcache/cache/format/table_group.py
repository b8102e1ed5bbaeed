"""Tables of a teacher: arrays with a row for each class instead of each image, written once.

A table has no views and one unit, number 0, under the view :data:`.NO_VIEW`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from logitcache.cache.format.group import Group
from logitcache.cache.format.names import (
    FORMAT,
    MAX_CLASSES,
    NO_VIEW,
    table_name,
    teacher_of,
)
from logitcache.cache.format.placement import Placement
from logitcache.encoding.arrays import ArraySpec
from logitcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.format.shards import ShardLayout
    from logitcache.cache.store.base import Location

__all__ = ["CLASS_EMBEDDINGS", "TABLES", "TableGroup"]

CLASS_EMBEDDINGS = "class_embeddings"
"""Table of the weights of a teacher's classifier: an embedding of each class."""
TABLES = "tables"
"""Kind of group, and what the root requires of readers of a cache with tables."""

_VALUES = "values"


class _Attributes(BaseModel):
    """The attributes as they are read."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    num_classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)]
    width: Annotated[int, Field(ge=1, le=2**20)]
    lock_sha256: str
    class_names_sha256: str


@dataclass(frozen=True, kw_only=True)
class TableGroup(Group):
    """What the attributes of ``teachers/<name>/tables/<table>`` say.

    Attributes:
        table: Name of the table.
        width: E, the numbers for each class.
        class_names_sha256: Digest of the class names.
    """

    kind = TABLES

    table: str
    width: int
    class_names_sha256: str

    @classmethod
    def parse(cls, name: str, values: object, where: str) -> TableGroup:
        """Read the attributes of the group of a table."""
        found = _Attributes.model_validate(values)
        return cls(
            teacher=teacher_of(name),
            table=name.rpartition("/")[2],
            width=found.width,
            unit_rows=found.num_classes,
            lock_sha256=found.lock_sha256,
            class_names_sha256=found.class_names_sha256,
        )

    @property
    def name(self) -> str:
        """Name of the group: ``<teacher>/tables/<table>``."""
        return table_name(self.teacher, self.table)

    @property
    def requirements(self) -> tuple[str, ...]:
        """Names that the root has to require of readers."""
        return (TABLES,)

    @property
    def view_ids(self) -> tuple[str, ...]:
        """Ids of the views: none."""
        return ()

    @property
    def ledger_views(self) -> tuple[str, ...]:
        """The placeholder that commits name instead of a view."""
        return (NO_VIEW,)

    @property
    def classes_digest(self) -> str:
        """Digest of the class names that the table was made for."""
        return self.class_names_sha256

    def specs(self) -> dict[str, ArraySpec]:
        """Return the only array; it has a single inner chunk, since it is always read whole."""
        return {_VALUES: ArraySpec((self.width,), "float32", np.nan, whole=True)}

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""
        return {
            "format": FORMAT,
            "num_classes": self.unit_rows,
            "width": self.width,
            "lock_sha256": self.lock_sha256,
            "class_names_sha256": self.class_names_sha256,
        }

    def encode(self, values_CE: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
        """Return a table as it is stored, by array.

        Raises:
            CacheError: It has another shape than declared.
        """
        expected = (self.unit_rows, self.width)
        if values_CE.shape != expected:
            raise CacheError(
                "a table has another shape than the cache declares",
                where=self.path,
                expected=f"{expected[0]} classes of {expected[1]} numbers",
                got=f"an array of shape {values_CE.shape}",
            )
        return {_VALUES: values_CE.astype(np.float32)}

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the table, float32 (C, E)."""
        values_CE: NDArray[np.float32] = arrays[_VALUES]
        return values_CE

    def fault_of(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return None: any stored numbers can be decoded."""

    def placement(self, view_id: str) -> Placement:
        """Return the path of the array."""
        if view_id != NO_VIEW:
            raise CacheError("a table has no views", where=self.path, got=f"view {view_id}")
        return _TablePlacement(self.path, NO_VIEW, self.unit_rows, None, self.specs())

    def leading_shape(self, manifest: Manifest) -> tuple[int, ...]:
        """Return the number of classes."""
        return (self.unit_rows,)

    def needed_units(self, manifest: Manifest) -> set[int]:
        """Return the only unit."""
        return {0}


class _TablePlacement(Placement):
    """Placement of an array whose rows are classes, whatever images there are."""

    def layout(self, location: Location, name: str, rows_end: int = 0) -> ShardLayout:
        return super().layout(location, name, self.unit_rows)

    def units(self, segments: Iterable[tuple[int, int]], block_rows: int) -> list[int]:
        return [0]
