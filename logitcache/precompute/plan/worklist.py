"""Missing items of work: arithmetic on unit numbers, without input or output.

A block has U rows, the unit of the samples. A group with large rows divides a block into several
units, so an item is one view of one block, with the units that each group lacks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from logitcache.cache.format.names import SAMPLE_ARRAYS, Status
from logitcache.cache.format.samples import label_set_arrays
from logitcache.encoding.arrays import Encoded, filled

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence, Set

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.label_sets import LabelSets

__all__ = ["Missing", "WorkItem", "in_words", "worklist"]


@dataclass(frozen=True)
class Missing:
    """Missing units of one group.

    Attributes:
        unit_rows: Rows per unit of the group, a divisor of the rows of a block.
        units: Missing units by view id; only views of the group.
    """

    unit_rows: int
    units: Mapping[str, Set[int]]


@dataclass(frozen=True)
class WorkItem:
    """One view of one block.

    Attributes:
        view_id: The view.
        block: Number of the block; its rows are [block * U, (block + 1) * U).
        samples: Whether the samples of the block are written with this item.
        units: Missing units by group, ascending; empty if only samples are written.
    """

    view_id: str
    block: int
    samples: bool = False
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def claim(self) -> str:
        """Name of the claim of this item."""
        return f"{self.view_id}-{self.block}"


def worklist(
    block_rows: int,
    view_ids: list[str],
    samples: Set[int],
    groups: Mapping[str, Missing],
    mixed: Collection[str] = (),
) -> list[WorkItem]:
    """Return the missing items in the order of the computation: block by block.

    The views of a block follow each other, so that they are rendered from one decoding of its
    images.

    Samples are written with the first view of their block. They get a separate item before it if a
    unit could be committed before the whole block is computed, since outputs are never committed
    before the images they belong to; and if the view mixes images, since partners must be readable.

    Args:
        block_rows: Rows of a block, U.
        view_ids: Ids of the views in order.
        samples: Blocks whose samples are missing.
        groups: Missing units of each group, by name.
        mixed: Ids of the views that mix images.
    """
    unwritten = set(samples)
    items = []
    units_of = {view_id: _by_block(block_rows, view_id, groups) for view_id in view_ids}
    for block in sorted(unwritten.union(*units_of.values())):
        for view_id in view_ids:
            units = units_of[view_id].get(block, {})
            if not units and block not in unwritten:
                continue
            early = any(groups[name].unit_rows < block_rows for name in units)
            if block in unwritten and (early or view_id in mixed):
                items.append(WorkItem(view_id, block, samples=True))
                unwritten.discard(block)
            items.append(WorkItem(view_id, block, block in unwritten, units))
            unwritten.discard(block)
    return items


def _by_block(
    block_rows: int, view_id: str, groups: Mapping[str, Missing]
) -> dict[int, dict[str, tuple[int, ...]]]:
    """Return the missing units of one view, by block and group."""
    found: dict[int, dict[str, list[int]]] = {}
    for name, missing in groups.items():
        per_block = block_rows // missing.unit_rows
        for unit in sorted(missing.units.get(view_id, ())):
            found.setdefault(unit // per_block, {}).setdefault(name, []).append(unit)
    return {
        block: {name: tuple(units) for name, units in by_name.items()}
        for block, by_name in found.items()
    }


def in_words(item: WorkItem) -> str:
    """Return a description of an item, for messages."""
    units = [f"{name} {_few(numbers)}" for name, numbers in item.units.items()]
    what = [*(["samples"] if item.samples else []), *units]
    return f"block {item.block} of view {item.view_id} ({', '.join(what)})"


def _few(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"unit {numbers[0]}"
    return f"units {numbers[0]} to {numbers[-1]}"


@dataclass
class Block:
    """The U rows of a block.

    Attributes:
        start: First row.
        indices: Position of each row in the source, int32 or int64 (U,); -1 for padding and for
            rows that are not readable.
        keys: Key of each row, object (U,).
        hashes: Hash of each key, uint64 (U,).
        labels: Label of each row, int32 (U,); -1 without one.
        label_sets: Classes of each row, and the width that they are stored in; None where a row has
            one class at most.
        status: Status of each row, uint8 (U,); see :class:`.Status`.
        digests: Content digest of each image, uint8 (U, 16); filled while images are read.
        sizes: Bytes of each image, int64 (U,); filled while images are read.
    """

    start: int
    indices: NDArray[np.signedinteger]
    keys: NDArray[np.object_]
    hashes: NDArray[np.uint64]
    labels: NDArray[np.int32]
    status: NDArray[np.uint8]
    digests: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    label_sets: tuple[LabelSets, int] | None = None

    def samples(self) -> Encoded:
        """Return the block as arrays of the samples group."""
        arrays = filled(SAMPLE_ARRAYS, len(self.indices))
        here = self.status != Status.PADDING
        readable = self.status == Status.OK
        arrays["hash"][here] = self.hashes[here]
        arrays["label"][here] = self.labels[here]
        arrays["bytes"][here] = self.sizes[here]
        arrays["digest"][readable] = self.digests[readable]
        arrays["status"] = self.status
        arrays["key"] = self.keys
        return arrays if self.label_sets is None else arrays | label_set_arrays(*self.label_sets)
