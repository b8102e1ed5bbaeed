"""Code of a user for the tests of ``MODULE:FACTORY``, as text; and programs made from it."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from torch import nn

SIZE = 8
HALF = (0.5, 0.5, 0.5)
QUARTER = (0.25, 0.25, 0.25)
INPUT: dict[str, Any] = {"size": SIZE, "mean": HALF, "std": QUARTER}

SOURCE = '''
"""Networks of a user."""
import torch
from torch import nn

INPUT = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class Tiny(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.body = nn.Conv2d(3, width, 3, 2, 1)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.body(images).relu().mean((2, 3)))


class Embedding(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.body = nn.Conv2d(3, width, 4, 4)

    def forward(self, images):
        return self.body(images).flatten(2).mean(2)


class Wordy(Embedding):
    def forward(self, images):
        return {"pooled": super().forward(images)}


def tiny(classes=3, width=8):
    torch.manual_seed(0)
    network = Tiny(classes, width)
    network.pretrained_cfg = {**INPUT, "interpolation": "bilinear", "tag": "mine"}
    return network


def bare(classes=3):
    torch.manual_seed(0)
    return Tiny(classes, 8)


def embedding():
    torch.manual_seed(0)
    return Embedding(), {"size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def named():
    return bare(), {**INPUT, "label_names": ["bird", "cat", "dog"]}


def misnamed():
    return bare(), {**INPUT, "label_names": ["bird", "cat"]}


def wordy():
    return Wordy(), INPUT


def half():
    return bare().half(), INPUT


def typo():
    return bare(), {"maen": (0.5, 0.5, 0.5)}


def scalar_mean():
    return bare(), {**INPUT, "mean": 0.5}


def broken():
    raise KeyError("no such checkpoint")


def other():
    return {"state_dict": {}}


ready = bare()
number = 3
'''


def write_module(folder: Path, name: str, source: str = SOURCE) -> Path:
    """Write a module of a user; a name is imported once a process, so each test has its own."""
    path = folder / f"{name}.py"
    path.write_text(source)
    return path


def load(path: Path) -> ModuleType:
    """Import a module without logitcache."""
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_exported(
    network: nn.Module, path: Path, *, batch: int = 4, dynamic: bool = True, size: int = SIZE
) -> Path:
    """Export a network by ``torch.export``."""
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    images = torch.zeros(batch, 3, size, size)
    torch.export.save(torch.export.export(network.eval(), (images,), dynamic_shapes=shapes), path)
    return path


def write_torchscript(
    network: nn.Module, path: Path, *, batch: int | None = 2, size: int = SIZE
) -> Path:
    """Trace a network; without a batch, compile it."""
    jit: Any = torch.jit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        if batch is None:
            jit.script(network.eval()).save(path)
        else:
            jit.trace(network.eval(), torch.zeros(batch, 3, size, size)).save(path)
    return path
