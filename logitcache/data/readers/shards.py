"""Names of shards: ``shards-{000000..000099}.tar``, on this machine or behind a URL."""

from __future__ import annotations

import math
import re
from itertools import product
from typing import TYPE_CHECKING

from logitcache.data.readers.paths import holds, user_path
from logitcache.data.readers.shard_copies import copy_of_shard
from logitcache.errors import DataError, UsageError, first_of, redacted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["expand_braces", "find_shards"]

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 100_000


def find_shards(pattern: str) -> list[Path]:
    """Return the paths of the shards of a pattern, or of all tar files of a folder.

    Shards behind a URL are copied to this machine first.

    Raises:
        UsageError: It is no pattern, or a URL that cannot be read.
        DataError: Shards do not exist, or the folder has none.
        StorageError: A server fails.
    """
    if "://" in pattern:
        if not pattern.lower().endswith(".tar"):
            raise UsageError(
                "a folder behind a URL cannot be listed",
                where=redacted(pattern),
                expected="the URL of a shard, or a pattern: https://host/x-{000..099}.tar",
            )
        return [copy_of_shard(url) for url in expand_braces(pattern)]
    place = user_path(pattern)
    if holds(place.is_dir):
        found = sorted(path for path in place.iterdir() if path.suffix.lower() == ".tar")
        if not found:
            raise DataError("the folder has no shards", where=place, expected=".tar files")
        return found
    shards = [user_path(name) for name in expand_braces(pattern)]
    missing = [str(shard) for shard in shards if not holds(shard.is_file)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(shards)} shards do not exist",
            where=pattern,
            got=first_of(missing),
            hint="check the path, and the first and the last number of the pattern",
        )
    return shards


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for, as a shell expands them.

    Args:
        pattern: Text with ranges of ascending numbers, which keep their leading zeros, and lists in
            braces: ``{train,extra}-{000..099}.tar``.

    Raises:
        UsageError: It has other braces, or stands for too many names.
    """
    fixed = _BRACES.split(pattern)[::2]
    choices = [_choices(inner) for inner in _BRACES.findall(pattern)]
    stray = any(brace in part for part in fixed for brace in "{}")
    if stray or not 0 < math.prod(map(len, choices)) <= _MOST_SHARDS:
        raise UsageError(
            "the pattern of the shards cannot be expanded",
            where=pattern,
            expected="a range of ascending numbers or a list in braces, such as "
            f"x-{{000000..000099}}.tar or {{a,b}}.tar, for at most {_MOST_SHARDS} shards",
        )
    return [
        "".join(part for pair in zip(fixed, (*chosen, ""), strict=True) for part in pair)
        for chosen in product(*choices)
    ]


def _choices(inner: str) -> Sequence[str]:
    """Return what one pair of braces stands for; nothing if it is neither a range nor a list."""
    ends = _RANGE.fullmatch(inner)
    if ends is None:
        return inner.split(",") if "," in inner else ()
    first, last = (int(end) for end in ends.groups())
    last = min(last, first + _MOST_SHARDS)  # one too many at most, to be refused
    return [str(number).zfill(len(ends[1])) for number in range(first, last + 1)]
