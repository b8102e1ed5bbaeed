"""Versions of libraries and class of the processor, which may change pixels."""

from __future__ import annotations

from importlib.metadata import version

import torch
from PIL import features

__all__ = ["rendering_versions"]

_LIBRARIES = ("numpy", "pillow", "simplejpeg", "torch", "torchvision")


def rendering_versions() -> dict[str, str]:
    """Return the version of each library that pixels depend on, and the class of the processor.

    ``cpu`` is ``vector`` with AVX2 or better and ``none`` without, where bilinear resizing uses
    another algorithm (``docs/views.md``). ``libjpeg`` is Pillow's; simplejpeg has its own.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    found = {name: version(name) for name in _LIBRARIES}
    found["libjpeg"] = str(features.version("libjpeg_turbo") or features.version("jpg"))
    return {**found, "cpu": "none" if capability == "DEFAULT" else "vector"}
