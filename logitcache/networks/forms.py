"""Forms of the name of a network: which kind of network a name stands for.

Nothing is imported or read here; the functions that build networks are in the table of
:mod:`logitcache.networks.build`, under the same keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FORMS", "HUB", "LOCAL", "TORCHVISION", "Form", "form_of", "kind_of_name"]

LOCAL = "local-dir:"
"""Prefix of a folder with an exported network."""
HUB = "hf-hub:"
"""Prefix of a model in a repository of the Hugging Face Hub."""
TORCHVISION = "torchvision/"
"""Prefix of a model of torchvision."""

_EXPORTED = (".pt2",)
_SCRIPTED = (".torchscript", ".ts", ".jit", ".pt", ".pth")
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Form:
    """A form in which networks are named.

    Attributes:
        notation: The form, as documentation and messages write it.
        matches: Whether a name has this form.
        own_weights: Whether networks of this form come with weights.
        takes_weights: Whether a weights file, or ``pretrained``, may be given in addition.
        student: Whether such networks can be trained and exported.
        shared_kwargs: Whether arguments that a cache records are passed on when the network is
            built again. A cache may come from anybody, so they are passed to timm alone.
    """

    notation: str
    matches: Callable[[str], bool]
    own_weights: bool = False
    takes_weights: bool = True
    student: bool = False
    shared_kwargs: bool = False


FORMS: dict[str, Form] = {
    "local-dir": Form(
        f"{LOCAL}FOLDER",
        lambda name: name.startswith(LOCAL),
        own_weights=True,
        takes_weights=False,
        student=True,
        shared_kwargs=True,
    ),
    "hf-hub": Form(
        f"{HUB}REPOSITORY",
        lambda name: name.startswith(HUB),
        own_weights=True,
        takes_weights=False,
        student=True,
        shared_kwargs=True,
    ),
    "torchvision": Form(f"{TORCHVISION}NAME", lambda name: name.startswith(TORCHVISION)),
    "exported": Form(
        "FILE.pt2",
        lambda name: name.lower().endswith(_EXPORTED),
        own_weights=True,
        takes_weights=False,
    ),
    "torchscript": Form(
        "FILE.torchscript",
        lambda name: name.lower().endswith(_SCRIPTED),
        own_weights=True,
        takes_weights=False,
    ),
    "factory": Form(
        "MODULE:FACTORY", lambda name: _FACTORY.fullmatch(name) is not None, own_weights=True
    ),
    "timm": Form("NAME", lambda name: True, student=True, shared_kwargs=True),
}
"""Forms by key; the first one that matches a name is its form."""


def kind_of_name(model: str) -> str:
    """Return the key of the form of a name."""
    return next(key for key, form in FORMS.items() if form.matches(model))


def form_of(model: str) -> Form:
    """Return the form of a name."""
    return FORMS[kind_of_name(model)]
