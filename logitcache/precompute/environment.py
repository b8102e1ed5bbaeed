"""Which libraries and which processor: what may change an answer in its last bits."""

from __future__ import annotations

from importlib.metadata import version

import torch

__all__ = ["versions"]

_LIBRARIES = ("logitcache", "torch", "torchvision", "timm", "pillow", "simplejpeg", "zarr", "numpy")


def versions() -> dict[str, str]:
    """Return the version of each library that matters, and the class of the processor.

    ``cpu`` is ``vector`` with AVX2 or better and ``none`` without: bilinear resizing takes another
    path there (``docs/views.md``).
    """
    capability = torch.backends.cpu.get_cpu_capability()
    found = {name: version(name) for name in _LIBRARIES}
    return {**found, "cpu": "none" if capability == "DEFAULT" else "vector"}
