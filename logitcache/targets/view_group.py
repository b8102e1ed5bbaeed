"""View groups: several views of the same images in one batch, by name.

A group is a view and views derived from it, which share its draws: the same crop, flipped and
colored alike, then rotated or at a lower resolution. Rows of a batch are ordered view by view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.errors import UsageError
from logitcache.views.notation import parse_derived

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.views.spec import View

__all__ = ["BASE", "check_show", "view_group"]

BASE = "base"
"""Name of the view that the others of a group are derived from."""


def check_show(names: Sequence[str]) -> None:
    """Check the names of the views of a batch.

    Args:
        names: ``base``, or derived views as in the settings of views: ``rot90(1)``, ``lowres(4)``.

    Raises:
        UsageError: There is no name, a duplicate or an unknown name.
    """
    if not names or len(set(names)) < len(names):
        raise UsageError(
            "the views of a batch have to be distinct, and at least one",
            where="show",
            expected="for example base, rot90(1)",
            got=", ".join(names) or "no view",
        )
    for name in names:
        if name != BASE:
            try:
                parse_derived(name)
            except ValueError as error:
                raise UsageError(str(error), where="show") from None


def view_group(base: View, names: Sequence[str]) -> tuple[View, ...]:
    """Return the views of a group in the order of their names.

    Raises:
        UsageError: The view mixes images, and the group has several views.
    """
    if base.mixing is not None and len(names) > 1:
        raise UsageError(
            "a batch of several views cannot mix images",
            where="show",
            got=f"view {base.id}: {base.mixing.name}",
            hint="choose views without mixing (use_views), or set show to base alone",
        )
    return tuple(base if name == BASE else base.derived(parse_derived(name)) for name in names)
