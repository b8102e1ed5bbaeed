"""What makes the commands of pages end in seconds, in processes of :mod:`tests.pages.warm`.

Large architectures are built small, with the same names of layers, and options that make runs
short are added to commands. Everything else is run as it is written. Importing this module
changes timm and the command line of the process, so only those processes import it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from timm.models import _registry, model_entrypoint

from logitcache.cli import app
from tests.pages.small_networks import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["shortened"]

_SHORTER = {
    "train": ["--batch-size", "16", "--accumulate", "1", "--set", "threads=1"],
    "precompute": ["--views", "4", "--batch-size", "16"],
    "evaluate": ["--batch-size", "16"],
    "plan": ["--views", "4", "--batch-size", "16"],
}


def shortened(arguments: list[str]) -> list[str]:
    """Return the arguments of a call with those that make it short."""
    command = next((word for word in arguments if word in {*_SHORTER, "export"}), "")
    more = list(_SHORTER.get(command, []))
    if command == "train":
        more += ["--steps", "2"] if "--steps" in arguments else ["--epochs", "1"]
    if command == "export" and "--top-k" in arguments:
        more += ["--top-k", "2"]  # the teachers have two classes
    return [*arguments, *more]


def _small(name: str, settings: dict[str, Any]) -> Callable[..., Any]:
    build = model_entrypoint(name)

    def small(pretrained: bool = False, **kwargs: Any) -> Any:
        assert not pretrained
        network = build(**{**settings, **kwargs})
        if not name.startswith("vit"):  # images of the tests have a side of 32 pixels
            network.pretrained_cfg |= {"input_size": (3, 32, 32), "test_input_size": (3, 32, 32)}
        return network

    return small


def _main() -> None:
    sys.argv = [sys.argv[0], *shortened(sys.argv[1:])]
    _real_main()


_real_main = app.main
app.main = _main
_registry._model_entrypoints.update({name: _small(*network) for name, network in NETWORKS.items()})
