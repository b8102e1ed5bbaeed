"""Lazy registration of this package's models with timm."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
else:
    Loader = object  # importlib.abc takes longer to import than this package

__all__ = ["register_with_timm"]

_TIMM = "timm"
_MODELS = (
    "logitcache.networks.adapter",
    "logitcache.networks.branches",
    "logitcache.networks.civt",
    "logitcache.networks.rednet",
)


def register_with_timm() -> None:
    """Let ``timm.create_model`` know this package's models: now, or once timm is loaded."""
    if _TIMM in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _register() -> None:
    for name in _MODELS:
        importlib.import_module(name)


class _AfterTimm:
    """Import hook that registers the models after the first import of timm."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of timm with a loader that registers; None for any other module."""
        del path, target
        if fullname != _TIMM:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(_TIMM)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """The loader of timm, followed by the registration."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as timm's own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run timm, then register."""
        self._loader.exec_module(module)
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        _register()
