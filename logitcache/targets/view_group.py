"""View groups: several views of the same images in one batch, each with targets of a view.

A group is a view and views derived from it, which share its draws: the same crop, flipped and
colored alike, then rotated or at a lower resolution. Rows of a batch are ordered view by view. A
view has its own targets by default, or those of another view of the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from logitcache.config import Config
from logitcache.errors import UsageError
from logitcache.views.notation import parse_derived

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.views.spec import View, ViewsConfig

__all__ = [
    "BASE",
    "Show",
    "ShownView",
    "ViewGroup",
    "ViewName",
    "shown_views",
    "student_view",
]

BASE = "base"
"""Name of the view that the others of a group are derived from."""


def _of_group(name: str) -> str:
    if name != BASE:
        parse_derived(name)
    return name


ViewName = Annotated[str, AfterValidator(_of_group)]
"""``base``, or a derived view as in the settings of views: ``rot90(1)``, ``lowres(4)``."""


class ShownView(Config):
    """A view that a student is shown, and the view whose targets it gets.

    A name alone, such as ``rot90(1)``, is a view with its own targets.

    Attributes:
        student: Name of the view of the images: ``base``, or a view derived from it.
        targets: Name of the view that the cached outputs of teachers belong to.
    """

    student: ViewName
    targets: ViewName

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"student": value, "targets": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_name(self, plain: SerializerFunctionWrapHandler) -> object:
        """Return a view with its own targets as its name, and another one as a mapping."""
        return self.student if self.student == self.targets else plain(self)


def _distinct(show: list[ShownView]) -> list[ShownView]:
    names = [view.student for view in show]
    if len(set(names)) < len(names):
        raise ValueError(
            f"the views of a batch have to be distinct, but these are {', '.join(names)}"
        )
    return show


Show = Annotated[list[ShownView], Field(min_length=1), AfterValidator(_distinct)]
"""The views of a batch."""


class _Group(Config):
    """A list of views, for the checks of its type."""

    show: Show


def shown_views(show: Sequence[object]) -> tuple[ShownView, ...]:
    """Return the views of a batch from names, and from mappings with ``student`` and ``targets``.

    Raises:
        UsageError: There is no view, a duplicate or an unknown name.
    """
    return tuple(_Group.parse({"show": list(show)}, "loader").show)


def student_view(views: ViewsConfig, epoch: int) -> View:
    """Return the view of an epoch where the cache has none: random view ``epoch`` + 1.

    It is the ``eval`` view each time if no random view is configured.
    """
    return views.random_view(epoch + 1) if views.count else views.eval_view()


@dataclass(frozen=True)
class ViewGroup:
    """The views of one batch.

    Attributes:
        shown: The views that the student is shown, by name.
        targets: For each of them, the view that its targets belong to.
    """

    shown: dict[str, View]
    targets: tuple[View, ...]

    @classmethod
    def of(cls, base: View, show: Sequence[ShownView]) -> Self:
        """Return the group of a base view.

        Raises:
            UsageError: The view mixes images, and the group has another view.
        """
        names = {name for view in show for name in (view.student, view.targets)}
        if base.mixing is not None and names != {BASE}:
            raise UsageError(
                "a batch of several views cannot mix images, nor can a derived view",
                where="show",
                got=f"view {base.id}: {base.mixing.name}",
                hint="choose views without mixing (use_views), or set show to base alone",
            )
        views = {
            name: base if name == BASE else base.derived(parse_derived(name)) for name in names
        }
        return cls(
            {view.student: views[view.student] for view in show},
            tuple(views[view.targets] for view in show),
        )

    @property
    def read(self) -> tuple[View, ...]:
        """The views whose targets are read, each once."""
        return tuple(dict.fromkeys(self.targets))

    def rendered(self, *, pixels: bool) -> tuple[View, ...]:
        """Return the views that are rendered, each once.

        Args:
            pixels: Whether the images of the target views are needed, too.
        """
        return tuple(dict.fromkeys([*self.shown.values(), *(self.targets if pixels else ())]))
