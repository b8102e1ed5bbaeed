"""Selection of images of a cache by class, by key or pattern, and by a share of the hashes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import translate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitcache.cache.format.names import sha256
from logitcache.data.identity import normalize_key
from logitcache.errors import UsageError, first_of, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.share.source import SourceCache

__all__ = ["RowSelection", "parse_share", "read_keys", "selected_rows"]

_SHARE = re.compile(r"(\d*\.?\d+)(?:-(\d*\.?\d+))?")
_HASHES = 2.0**64
_Test = Callable[..., NDArray[np.bool_]]
_Named = tuple[tuple[str, ...], _Test]


@dataclass(frozen=True)
class RowSelection:
    """Conditions that a row has to meet, all of them.

    Attributes:
        classes: Names of classes; of images with label sets, those with at least one of them.
            Images of all classes, and those without a label, if empty.
        keys: Keys of images; None for any.
        patterns: Patterns of keys as ``train/cat/*``, of which one has to match; any key if empty.
        share: (low, high), the part of the range of the hashes of keys, from 0 to 1.
        excluded: Whether images that were excluded from training are taken as well.
    """

    classes: tuple[str, ...] = ()
    keys: frozenset[str] | None = None
    patterns: tuple[str, ...] = ()
    share: tuple[float, float] | None = None
    excluded: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        """Check the share."""
        if self.share is not None and not 0 <= self.share[0] < self.share[1] <= 1:
            raise _unusable_share(str(self.share))

    @property
    def is_everything(self) -> bool:
        """Whether every row meets it."""
        return self == RowSelection()

    def to_json(self) -> dict[str, Any]:
        """Return the conditions as JSON values; of a list of keys, its digest."""
        values: dict[str, Any] = {}
        if self.classes:
            values["classes"] = list(self.classes)
        if self.keys is not None:
            values["keys_sha256"] = sha256("\n".join(sorted(self.keys)).encode())
        if self.patterns:
            values["patterns"] = list(self.patterns)
        if self.share is not None:
            values["share"] = list(self.share)
        if not self.excluded:
            values["excluded"] = False
        return values


def parse_share(text: str) -> tuple[float, float]:
    """Return the bounds that ``0.1`` (from 0) or ``0.1-0.5`` stands for.

    Raises:
        UsageError: It is neither, or not an ascending part of 0 to 1.
    """
    found = _SHARE.fullmatch(text.strip())
    if found is not None:
        low, high = (0.0, float(found[1])) if found[2] is None else map(float, found.groups())
        if 0 <= low < high <= 1:
            return low, high
    raise _unusable_share(repr(text[:80]))


def _unusable_share(got: str) -> UsageError:
    return UsageError(
        "the share cannot be used",
        where="--share",
        expected="a number above 0 and up to 1 as 0.1, or a range as 0.1-0.5",
        got=got,
    )


def read_keys(path: Path) -> frozenset[str]:
    """Return the keys in a text file, one per line.

    Raises:
        UsageError: It cannot be read, or has no key.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()  # editors of Windows write a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "the list of images cannot be read",
            where=f"--keys {path}",
            expected="a text file in UTF-8 with one path per line",
            got=error,
        ) from None
    keys = frozenset(normalize_key(line) for line in lines if line)
    if not keys:
        raise UsageError("the list of images is empty", where=f"--keys {path}")
    return keys


def selected_rows(source: SourceCache, selection: RowSelection) -> NDArray[np.bool_]:
    """Return which rows of a cache are selected, bool up to the end of its last block.

    The samples are read unit by unit: only the arrays that the conditions need, and only units
    that may have a selected row. All keys are read where keys are given, to find unknown ones.

    Raises:
        UsageError: A class or a key does not exist, or nothing is selected.
        CacheDamaged: An object of the samples is not the one that was committed.
    """
    selected = source.has_image.copy()
    if selection.share is not None:
        selected &= _near_share(source, selection.share)
    _refuse_unknown_keys(source, selection.keys or frozenset())
    tests = _tests(source, selection)
    size = source.cache.unit_rows
    for unit in source.cache.units() if tests else ():
        here = selected[unit * size : (unit + 1) * size]
        for names, test in tests:
            if here.any():
                arrays = source.sample_unit(unit, names)
                here &= test(*(arrays[name] for name in names))
    if not selected.any():
        raise UsageError(
            "no image of the cache is selected",
            where=source.location,
            got=f"{selection.to_json()}"[:200],
            hint="logitcache inspect lists the classes; keys are paths relative to the data root",
        )
    return selected


def _refuse_unknown_keys(source: SourceCache, keys: frozenset[str]) -> None:
    unknown = set(keys)
    for unit in source.cache.units():
        if unknown:
            unknown.difference_update(source.sample_unit(unit, ["key"])["key"])
    if unknown:
        raise UsageError(
            f"{len(unknown)} of the {len(keys)} keys are not in the cache",
            where=source.location,
            expected="paths of images relative to the data root",
            got=first_of(sorted(unknown), 3),
        )


def _near_share(source: SourceCache, share: tuple[float, float]) -> NDArray[np.bool_]:
    """Return which rows are in units that may have a hash of a share, bool as ``has_image``.

    Rows of a segment are ordered by hash, and hashes are evenly distributed.
    """
    size = source.cache.unit_rows
    near = np.zeros(len(source.has_image), np.bool_)
    for segment in source.segments:
        first, last = (_unit_of(source, bound, segment) for bound in _bounds(share))
        near[first * size : (last + 1) * size] = True
    return near


def _unit_of(source: SourceCache, bound: int, segment: tuple[int, int]) -> int:
    """Return the last unit of a segment that begins below a hash; the first one without any.

    The search begins where the hash is to be expected, and ends in most cases with one unit.
    """
    start, count = segment
    size = source.cache.unit_rows
    low, high = start // size, (start + count - 1) // size  # the unit is one of these
    unit = (start + int(bound / _HASHES * count)) // size
    while low < high:
        unit = min(max(unit, low), high)
        end = min((unit + 1) * size, start + count)
        hashes = source.sample_unit(unit, ["hash"])["hash"][: end - unit * size]
        if int(hashes[0]) >= bound:
            if unit == low:
                break
            unit = high = unit - 1
        elif int(hashes[-1]) >= bound:
            return unit
        else:
            low, unit = unit, unit + 1
    return low


def _tests(source: SourceCache, selection: RowSelection) -> list[_Named]:
    """Return functions of arrays of the samples, with names of the arrays; each has to hold."""
    tests: list[_Named] = []
    if selection.classes:
        numbers = _class_numbers(source, selection.classes)
        if source.cache.manifest.data.label_width is None:
            tests.append((("label",), lambda labels: np.isin(labels, numbers)))
        else:
            tests.append((("label_count", "label_ids"), _any_of(numbers)))
    if selection.share is not None:
        share = selection.share
        tests.append((("hash",), lambda hashes: _between(hashes, share)))
    if selection.keys is not None:
        keys = selection.keys
        tests.append((("key",), _each(lambda key: key in keys)))
    if selection.patterns:
        pattern = re.compile("|".join(translate(pattern) for pattern in selection.patterns))
        tests.append((("key",), _each(lambda key: pattern.match(key) is not None)))
    if not selection.excluded and source.cache.withdrawn:
        gone = source.cache.withdrawn
        tests.append((("key",), _each(lambda key: key not in gone)))
    return tests


def _each(test: Callable[[str], bool]) -> _Test:
    return lambda keys: np.fromiter((test(key) for key in keys), np.bool_, len(keys))


def _any_of(numbers: list[int]) -> _Test:
    """Return a function that tests which label sets have at least one of some classes."""

    def test(count_N: NDArray[np.int32], ids_NW: NDArray[np.int32]) -> NDArray[np.bool_]:
        used_NW = np.arange(ids_NW.shape[1]) < count_N[:, None]  # zeros fill the rest
        found_N: NDArray[np.bool_] = (np.isin(ids_NW, numbers) & used_NW).sum(axis=1) > 0
        return found_N

    return test


def _bounds(share: tuple[float, float]) -> tuple[int, int]:
    """Return the first hash of a part of their range, and the one after the last."""
    low, high = (int(bound * _HASHES) for bound in share)
    return low, high


def _between(hashes: NDArray[Any], share: tuple[float, float]) -> NDArray[np.bool_]:
    """Return which hashes are in a part of their range; parts that adjoin share no hash."""
    first, end = _bounds(share)
    below: NDArray[np.bool_] = (
        hashes < np.uint64(end) if end < 2**64 else np.ones(len(hashes), np.bool_)
    )
    return (hashes >= np.uint64(first)) & below


def _class_numbers(source: SourceCache, names: tuple[str, ...]) -> list[int]:
    known = list(source.cache.class_names)
    for name in names:
        if name not in known:
            raise UsageError(
                f"no class {name!r} in this cache",
                where=source.location,
                expected=first_of(known, 5) or "the cache has no labels",
                hint=nearest(name, known),
            )
    return [known.index(name) for name in names]
