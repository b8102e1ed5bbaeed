"""Slices that store fewer classes or fewer bits than their source."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from logitcache.cache.format.groups import TeacherGroup, groups_of
from logitcache.cache.format.names import group_unit_rows
from logitcache.encoding.reencode import reencode, smaller
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from logitcache.cache.format.group import Group
    from logitcache.cache.format.manifest import TeacherRecord
    from logitcache.encoding.arrays import Encoded

__all__ = ["converter", "reencoded_groups", "without_fidelity"]


def reencoded_groups(
    groups: Mapping[str, Group], block_rows: int, top_k: int | None, bits: int | None
) -> tuple[dict[str, Group], list[str]]:
    """Return groups with at most so many classes and bits, and notes on those that have no more.

    Args:
        groups: Groups of a source by name.
        block_rows: U of the source.
        top_k: Largest number of classes; None to keep all.
        bits: Largest number of bits of a code; None to keep all.

    Raises:
        UsageError: A number is out of range, or no teacher has more.
    """
    found: dict[str, Group] = dict(groups)
    if top_k is None and bits is None:
        return found, []
    if (top_k is not None and top_k < 1) or (bits is not None and not 4 <= bits <= 8):
        raise UsageError(
            "a number of classes or bits is out of range",
            expected="at least 1 class, and 4 to 8 bits",
            got=f"top_k {top_k}, bits {bits}",
        )
    notes = []
    for name, group in groups_of(groups, TeacherGroup).items():
        encoding = smaller(group.encoding, top_k, bits)
        row_bytes = sum(spec.row_bytes for spec in encoding.specs().values())
        if encoding == group.encoding:
            stored = ", ".join(f"{key} {value}" for key, value in encoding.settings().items())
            notes.append(f"teacher {name} is stored as it is: {stored}")
        else:
            units = group_unit_rows(block_rows, row_bytes)
            found[name] = replace(group, encoding=encoding, unit_rows=units)
    if len(notes) == len(groups_of(groups, TeacherGroup)):
        raise UsageError(
            "no teacher stores more classes or bits",
            where="--top-k" if bits is None else "--bits" if top_k is None else "--top-k, --bits",
            got="; ".join(notes),
        )
    return found, notes


def converter(source: Group, target: Group) -> Callable[[Encoded], Encoded] | None:
    """Return the function that encodes rows of a group of a source as another group stores them.

    None where they are stored in the same way.
    """
    both = groups_of({"source": source, "target": target}, TeacherGroup)
    if len(both) < 2 or both["source"].encoding == both["target"].encoding:
        return None
    return partial(reencode, both["source"].encoding, both["target"].encoding)


def without_fidelity(
    records: Mapping[str, TeacherRecord], before: Mapping[str, Group], after: Mapping[str, Group]
) -> dict[str, TeacherRecord]:
    """Return records of teachers without the encoding losses of outputs that are encoded again."""
    found = dict(records)
    for name, record in records.items():
        if name in after and name in before and converter(before[name], after[name]) is not None:
            kept = {n: getattr(record, n) for n in record.model_fields_set if n != "fidelity"}
            found[name] = type(record)(**kept)
    return found
