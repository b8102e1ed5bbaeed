"""Groups of commands whose help has a placeholder such as ``N`` for each value of an option.

typer prints the type in Python, ``<int>`` or ``<list[str]>``, and ``<bool>`` for what has no value.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Commands"]

F = TypeVar("F", bound="Callable[..., Any]")

_BY_NAME = {
    "cache": "PATH|URL",
    "data": "IMAGES",
    "device": "DEVICE",
    "form": "html|md",
    "on_bad_image": "error|skip",
    "only": "STAGE",
    "out": "PATH",
    "precision": "float32|bfloat16|float16",
    "student": "MODEL",
    "teacher": "NAME",
    "val": "IMAGES",
    "view": "ID|N",
}
_BY_TYPE = {int: "N", float: "X", Path: "PATH"}


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> Any:
        return _with_placeholders(super().get_params(ctx), self.callback)


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> Any:
        return _with_placeholders(super().get_params(ctx), self.callback)


class Commands(typer.Typer):
    """A group of commands, or a part of one, with readable placeholders."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        """Return a decorator that makes a function a command; see :meth:`typer.Typer.command`."""
        return super().command(name, cls=_Command, **settings)


def _with_placeholders(parameters: Any, function: Any) -> Any:
    """Give parameters without a placeholder one, by name or else by type."""
    hints = get_type_hints(function) if function else {}
    for parameter in parameters:
        if parameter.metavar is None:
            parameter.metavar = _placeholder(parameter, hints.get(parameter.name))
    return parameters


def _placeholder(parameter: Any, hint: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).strip("_").upper().replace("_", "-")
    if getattr(parameter, "is_flag", False):
        return ""
    kinds = {hint, *get_args(hint), *(inner for kind in get_args(hint) for inner in get_args(kind))}
    by_type = next((text for kind, text in _BY_TYPE.items() if kind in kinds), "TEXT")
    return _BY_NAME.get(parameter.name, by_type)
