"""Selection of views by number, range or id, as the command line and configurations write it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from logitcache.errors import UsageError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["choose_views"]

_SHORTEST = 4  # characters of the beginning of an id
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def choose_views(
    view_ids: Sequence[str], wanted: Sequence[str], where: str | None = None
) -> list[str]:
    """Return the ids of some views, each once, in the order in which they are requested.

    Args:
        view_ids: All views, in the order of their numbers.
        wanted: Ids, beginnings of ids of at least four characters, numbers from 0, or ranges of
            numbers with both ends as ``2-5``; one text may name several, separated by commas. All
            views if empty.
        where: The option and the cache, for messages.

    Raises:
        UsageError: There is no such view, or several ids begin with the text.
    """
    if not wanted:
        return list(view_ids)
    found: dict[str, None] = {}
    for name in (part.strip() for text in wanted for part in text.split(",")):
        found |= dict.fromkeys(_views_of(view_ids, name, where))
    return list(found)


def _views_of(view_ids: Sequence[str], name: str, where: str | None) -> Sequence[str]:
    """Return the views that one name stands for; an id comes before a number that looks like it."""
    if name in view_ids:
        return [name]
    numbers = _RANGE.fullmatch(name)
    if numbers is not None:
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        if first <= last < len(view_ids):
            return view_ids[first : last + 1]
    longer = [view_id for view_id in view_ids if view_id.startswith(name)]
    if len(name) >= _SHORTEST and len(longer) == 1:
        return longer
    if len(name) >= _SHORTEST and longer:
        raise UsageError(
            f"{len(longer)} views begin with {name!r}",
            where=where,
            got=", ".join(longer[:3]),
            hint="give more characters of the id",
        )
    names = [*map(str, range(len(view_ids))), *view_ids]
    last_number = f"numbers up to {len(view_ids) - 1}, " if numbers is not None else ""
    raise UsageError(
        f"no view {name!r}",
        where=where,
        expected=f"{last_number}ids, or at least {_SHORTEST} characters of an id",
        hint=nearest(name, names),
    )
