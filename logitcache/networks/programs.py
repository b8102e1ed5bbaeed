"""Programs: networks that were exported by ``torch.export`` (.pt2) or as TorchScript.

A program is run, never imported; nevertheless a file of this kind is as trusted as code. Its layers
cannot be looked into, so of its activations only its output can be cached.

Shapes: B batch, S side of the square images.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from logitcache.errors import NetworkError, UsageError
from logitcache.networks.timm_attributes import adopt
from logitcache.networks.weights_file import short_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.export import ExportedProgram

    from logitcache.networks.config import NetworkConfig

__all__ = ["Program", "build_exported", "build_torchscript", "check_program"]

_RGB = 3


@dataclass(frozen=True)
class _Shape:
    """Input of an exported program: sizes that it was exported for, None where any is accepted.

    Attributes:
        least: Smallest number of images.
        most: Largest number of images.
        side: Side of the images in pixels.
    """

    least: int
    most: int | None
    side: int | None


class Program(nn.Module):
    """A program that is run as a network.

    A program that was exported for a fixed number of images is given batches of that number; the
    last one is padded with black images, whose outputs are dropped.

    Args:
        program: Module that runs the program.
        path: File of the program, for messages.
        shape: Sizes that it was exported for.
        moved: Returns the module for another device; by default, modules can be moved.
    """

    is_program = True

    def __init__(
        self,
        program: nn.Module,
        path: Path,
        shape: _Shape,
        moved: Callable[[torch.device], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.program = program
        self._path = path
        self._shape = shape
        self._moved = moved
        self._device = torch.device("cpu")

    @property
    def fixed_batch(self) -> int | None:
        """Number of images that it was exported for; None if it accepts any number."""
        return self._shape.most

    def train(self, mode: bool = True) -> Self:
        """Do nothing: the mode of a program was fixed when it was exported."""
        del mode
        return self

    def forward(self, images_B3SS: Tensor) -> Any:
        """Return the outputs of the program.

        Raises:
            NetworkError: The program cannot be run on these images.
        """
        count = len(images_B3SS)
        step = self._shape.most or max(count, self._shape.least)
        parts = [self._run(images_B3SS[at : at + step], step) for at in range(0, count, step)]
        if len(parts) == 1 and len(images_B3SS) == step:
            return parts[0]
        if not all(isinstance(part, Tensor) for part in parts):
            return parts[0]  # refused by whoever needs a tensor
        return torch.cat(parts)[:count]

    def _run(self, images: Tensor, step: int) -> Any:
        if len(images) < step:
            images = torch.cat([images, images.new_zeros(step - len(images), *images.shape[1:])])
        try:
            return self.program(images)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a program may contain any operation
            raise NetworkError(
                "the program cannot be run on these images",
                where=self._path,
                expected=f"a program for {len(images)} images of shape {tuple(images.shape[1:])} "
                f"on {images.device}",
                got=f"{type(error).__name__}: {short_text(error)}",
                hint="it was probably exported for another batch size, input size or device: set "
                "size, or export it again, with dynamic_shapes for the batch",
            ) from error

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move the program to another device, with the devices that are part of its graph."""
        device = fn(torch.empty(0)).device
        if self._moved is None:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # PyTorch has no types for it
        elif device != self._device:
            self.program = self._moved(device)
        self._device = device
        return self


def check_program(model: str) -> None:
    """Refuse a program whose file does not exist.

    Raises:
        UsageError: There is no such file.
    """
    path = Path(model).expanduser()
    if not path.is_file():
        raise UsageError(
            "the file of the program does not exist",
            where=path,
            hint="check the path; the name of a timm model is given without an ending, and its "
            "weights file after @: MODEL@FILE",
        )


def build_exported(
    config: NetworkConfig, num_classes: int | None, *, untrained: bool = False
) -> nn.Module:
    """Load a program of ``torch.export``; see :func:`logitcache.networks.build.build_network`."""
    del untrained
    path = _path(config)
    try:
        with _quiet():
            exported = torch.export.load(path)
    except Exception as error:  # torch raises errors of many types for other files
        raise _unreadable(path, "torch.export.save", error) from error
    shape = _input_of(exported, path)
    _check_side(shape.side, config)

    def moved(device: torch.device) -> nn.Module:
        from torch.export.passes import move_to_device_pass

        return move_to_device_pass(exported, str(device)).module()

    try:
        program = moved(torch.device("cpu"))
    except Exception as error:  # torch raises errors of many types
        raise _unreadable(path, "torch.export.save", error) from error
    return _adopted(Program(program, path, shape, moved), config, shape, num_classes)


def build_torchscript(
    config: NetworkConfig, num_classes: int | None, *, untrained: bool = False
) -> nn.Module:
    """Load a TorchScript file; see :func:`logitcache.networks.build.build_network`."""
    del untrained
    path = _path(config)
    try:
        with _quiet():
            program = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]  # PyTorch has no types for it
    except Exception as error:  # torch raises errors of many types for other files
        raise _unreadable(path, "torch.jit.save", error) from error
    program.eval()
    shape = _Shape(1, None, None)
    return _adopted(Program(program, path, shape), config, shape, num_classes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress deprecation warnings, and the traceback that torch logs of other files."""
    log = logging.getLogger("torch.export")
    disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = disabled


def _adopted(
    program: Program, config: NetworkConfig, shape: _Shape, num_classes: int | None
) -> nn.Module:
    own = {} if shape.side is None else {"input_size": (_RGB, shape.side, shape.side)}
    return adopt(program, config, own, num_classes=num_classes, code=_path(config))


def _path(config: NetworkConfig) -> Path:
    check_program(config.model)
    path = Path(config.model).expanduser()
    if config.weights is not None or config.kwargs:
        raise UsageError(
            "a program contains its weights and arguments",
            where=path,
            got=config.weights or config.kwargs,
            hint="leave out weights and kwargs, or give the network itself instead of a program",
        )
    return path


def _unreadable(path: Path, function: str, error: Exception) -> NetworkError:
    return NetworkError(
        "the program cannot be loaded",
        where=path,
        expected=f"a file of {function}, of this version of torch or an earlier one",
        got=f"{type(error).__name__}: {short_text(error)}",
        hint="a file with weights alone is given after the name of its model, as MODEL@FILE; "
        "a program for another device has to be moved to the CPU before it is exported",
    )


def _input_of(exported: ExportedProgram, path: Path) -> _Shape:
    """Return the sizes of the input of a program.

    Raises:
        NetworkError: It takes something else than a batch of RGB images.
    """
    names = exported.graph_signature.user_inputs
    values = [n.meta.get("val") for n in exported.graph.nodes if n.name in names]
    image = values[0] if len(values) == 1 else None
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[1] != _RGB:
        got = ", ".join(
            str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
            for value in values
        )
        raise NetworkError(
            "the program does not take RGB images",
            where=path,
            expected="one input of shape (batch, 3, size, size)",
            got=got or "no input",
            hint="export a network that takes normalized images alone",
        )
    if image.dtype != torch.float32:
        raise NetworkError(
            "the program takes images of another data type",
            where=path,
            expected="float32",
            got=str(image.dtype).removeprefix("torch."),
            hint="export the network in float32",
        )
    batch, _, height, width = image.shape
    if isinstance(height, int) != isinstance(width, int) or (
        isinstance(height, int) and height != width
    ):
        raise NetworkError(
            "views are rendered as squares, but the input of the program is not square",
            where=path,
            got=f"{height} x {width} pixels",
        )
    side = height if isinstance(height, int) else None
    if isinstance(batch, int):
        return _Shape(batch, batch, side)
    bounds = exported.range_constraints.get(batch.node.expr)
    least = 1 if bounds is None else max(1, int(bounds.lower))
    return _Shape(least, None, side)


def _check_side(side: int | None, config: NetworkConfig) -> None:
    if side is not None and config.size not in (None, side):
        raise UsageError(
            "the program was exported for images of another size",
            where=config.model,
            expected=f"size {side}",
            got=config.size,
            hint="leave out size, or export the network again",
        )
