"""Versions of libraries and class of the processor, which may change the last bits of outputs."""

from __future__ import annotations

from importlib.metadata import version

from logitcache.views.environment import rendering_versions

__all__ = ["versions"]

_LIBRARIES = ("logitcache", "timm", "zarr")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that outputs depend on, and the class of processor."""
    return {**{name: version(name) for name in _LIBRARIES}, **rendering_versions()}
