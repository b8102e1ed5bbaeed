"""Import paths of version 0.1: they work for one release, with a deprecation warning."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from types import ModuleType
else:
    Loader = object  # importlib.abc takes longer to import than this package

__all__ = ["MOVED", "forward", "install"]

MOVED: dict[str, tuple[str, ...]] = {
    "cache.describe": ("report.describe",),
    "cache.drop": ("cache.write.drop",),
    "cache.format": ("cache.format.names",),
    "cache.groups": ("cache.format.groups", "cache.format.placement"),
    "cache.location": ("cache.store.base", "cache.store.open", "cache.format.documents"),
    "cache.manifest": ("cache.format.manifest",),
    # the first home that has a name is used: the cache of the package, not its base class
    "cache.reader": ("targets.cache_targets", "cache.read.reader"),
    "cache.survey": ("report.survey",),
    "cache.verify": ("cache.verify.integrity",),
    "cache.withdraw": ("cache.write.exclude",),
    "cache.writer": ("cache.write.writer",),
    "pipeline": ("pipeline.run", "pipeline.config", "pipeline.settings"),
    "precompute.audit": ("check.audit",),
    "precompute.estimate": ("precompute.estimate.estimate",),
    "precompute.images": ("check.images",),
    "precompute.local": ("precompute.build",),
    "precompute.repair": ("check.repair",),
    "targets.opening": ("targets.selection",),
}
"""Modules below ``logitcache`` in version 0.1, and those that have their names now."""


def forward(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module of version 0.1.

    Args:
        module: Its full name.
    """
    homes = MOVED[module.removeprefix("logitcache.")]

    def getattr_(name: str) -> Any:
        # importlib reads __path__ and the like while the module is being imported; importing the
        # new module for them would be a circular import
        if not name.startswith("__"):
            for home in homes:
                found = importlib.import_module(f"logitcache.{home}")
                if name in found.__all__:
                    text = f"{module}.{name} has moved to logitcache.{home}.{name}"
                    warnings.warn(text, DeprecationWarning, stacklevel=2)
                    return getattr(found, name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return getattr_


class _MovedModules(Loader):
    """Finder and loader of the modules of version 0.1 that no longer exist as files or packages."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module that has moved; None for any other."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "logitcache" and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None, for a module as importlib creates it."""

    def exec_module(self, module: ModuleType) -> None:
        """Set the function that looks up the former names of a module."""
        module.__dict__["__getattr__"] = forward(module.__name__)


def install() -> None:
    """Make the import paths of version 0.1 work in this process."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
