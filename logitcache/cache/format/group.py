"""A kind of cached group: the methods in which kinds differ, and what all of them share.

A new kind is one file with a subclass of :class:`Group`, an entry in :data:`.GROUP_KINDS`, and, if
its rows become part of a batch, an entry in the table of
:mod:`logitcache.targets.decoding.batch_parts`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from logitcache.cache.format.manifest import MAX_UNITS
from logitcache.cache.format.names import teacher_group
from logitcache.cache.format.placement import Placement, units_of_segments
from logitcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.cache.format.manifest import Manifest
    from logitcache.encoding.arrays import ArraySpec, Encoded

__all__ = ["Group", "RowGroup", "needed_units"]


@dataclass(frozen=True, kw_only=True)
class Group(ABC):
    """Cached outputs of one kind of one teacher.

    Attributes:
        teacher: The teacher.
        unit_rows: Rows of a unit of this group.
        lock_sha256: Digest of the teacher's lock in the root manifest.
    """

    kind: ClassVar[str]
    """Name of the kind: the folder below the teacher's group; empty for the teacher's group."""

    teacher: str
    unit_rows: int
    lock_sha256: str

    @classmethod
    @abstractmethod
    def parse(cls, name: str, values: object, where: str) -> Self:
        """Read the attributes of the group of this name.

        Raises:
            CacheError: This version does not know what they describe.
        """

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the group, unique in a cache."""

    @property
    def path(self) -> str:
        """Path of the group below the root."""
        return teacher_group(self.name)

    @property
    @abstractmethod
    def view_ids(self) -> tuple[str, ...]:
        """Views of the group, in the order of their slots; empty for a group without views."""

    @property
    def ledger_views(self) -> tuple[str, ...]:
        """Views as commits and ledgers name them; see :data:`.NO_VIEW`."""
        return self.view_ids

    @abstractmethod
    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of the group by name."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON values."""

    @abstractmethod
    def fault_of(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return why stored rows cannot be decoded; None if they can."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """Names that the root has to require of readers; none for groups of logitcache 0.1."""
        return ()

    @property
    def classes_digest(self) -> str:
        """Digest of the class names that the group was made for; empty if it does not matter."""
        return ""

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit of one view before compression."""
        return self.unit_rows * sum(spec.row_bytes for spec in self.specs().values())

    @abstractmethod
    def placement(self, view_id: str) -> Placement:
        """Return the paths of the arrays of a view.

        Raises:
            CacheError: The group does not have this view.
        """

    @abstractmethod
    def leading_shape(self, manifest: Manifest) -> tuple[int, ...]:
        """Return the shape of the arrays before the axes of a row."""

    @abstractmethod
    def needed_units(self, manifest: Manifest) -> set[int]:
        """Return the units that a complete view of the group has."""


@dataclass(frozen=True, kw_only=True)
class RowGroup(Group):
    """Cached outputs for every image and view: arrays over views and rows.

    Attributes:
        slots: Id of the view in each slot of the first axis; empty where it was dropped.
    """

    slots: tuple[str, ...]

    @property
    def view_ids(self) -> tuple[str, ...]:
        """Views of the group, in the order of their slots."""
        return tuple(view_id for view_id in self.slots if view_id)

    def slot(self, view_id: str) -> int:
        """Return the index of a view on the first axis.

        Raises:
            CacheError: The group does not have this view.
        """
        if view_id not in self.view_ids:
            raise CacheError(
                f"teacher {self.name!r} has no outputs for this view",
                got=f"view {view_id}",
                expected=f"one of the {len(self.view_ids)} views of its group",
                hint="logitcache inspect lists the views of each teacher",
            )
        return self.slots.index(view_id)

    @property
    @abstractmethod
    def row_numbers(self) -> int:
        """Numbers of one row before encoding: classes, or values of a layer."""

    @property
    @abstractmethod
    def compressed_share(self) -> float:
        """Compressed size of a unit, roughly, as a share of its size before compression."""

    @abstractmethod
    def encode(self, outputs_N: NDArray[np.float32], labels_N: NDArray[np.int32]) -> Encoded:
        """Encode rows.

        Args:
            outputs_N: Outputs of the teacher for each row, (N, ...).
            labels_N: Class of each row, -1 without one.
        """

    @abstractmethod
    def row_losses(
        self, outputs_N: NDArray[np.float32], encoded: Encoded
    ) -> dict[str, NDArray[np.float64]]:
        """Return the encoding loss of each row, as summands by the name of the sum."""

    @abstractmethod
    def fidelity(self, sums: Mapping[str, float]) -> dict[str, Any]:
        """Return sums over rows as fields of the teacher's record; mappings are merged."""

    @property
    def batch_arrays(self) -> list[str]:
        """Names of the arrays that are read for a batch."""
        return list(self.specs())

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a batch, encoded."""
        specs = self.specs()
        return sum(specs[name].row_bytes for name in self.batch_arrays)

    @property
    def kept_patches(self) -> tuple[int, int] | None:
        """Patches of the grid, and how many are kept of each row; None where all are kept."""
        return None

    def placement(self, view_id: str) -> Placement:
        """Return the paths of the arrays of a view."""
        return Placement(self.path, view_id, self.unit_rows, self.slot(view_id), self.specs())

    def leading_shape(self, manifest: Manifest) -> tuple[int, ...]:
        """Return the numbers of views and rows."""
        return len(self.slots), manifest.capacity

    def needed_units(self, manifest: Manifest) -> set[int]:
        """Return the units of all segments."""
        return needed_units(manifest, self.unit_rows, self.path)


def needed_units(manifest: Manifest, unit_rows: int, where: object) -> set[int]:
    """Return the units of a size that cover all segments.

    Raises:
        CacheError: There are more than :data:`.MAX_UNITS`: the manifest or the group is wrong.
    """
    if manifest.capacity > MAX_UNITS * unit_rows:  # before a set of them is made
        raise CacheError(
            "more units than a cache can have",
            where=where,
            expected=f"at most {MAX_UNITS} units",
            got=f"{manifest.capacity} rows in units of {unit_rows}",
        )
    segments = ((segment.start, segment.rows) for segment in manifest.segments)
    return set(units_of_segments(segments, manifest.unit_rows, unit_rows))
