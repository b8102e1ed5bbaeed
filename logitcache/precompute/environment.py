"""Versions of libraries and class of the processor, which may change the last bits of outputs."""

from __future__ import annotations

from importlib.metadata import version

from logitcache.views.environment import rendering_versions

__all__ = ["versions"]

_LIBRARIES = ("logitcache", "timm", "zarr")


def versions() -> dict[str, str]:
    """Return the version of each library that matters, and the class of the processor."""
    return {**{name: version(name) for name in _LIBRARIES}, **rendering_versions()}
