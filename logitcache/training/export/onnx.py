"""Export of a network as an ONNX file."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from logitcache.errors import NetworkError, UsageError
from logitcache.files import written_together

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from logitcache.networks.build import InputSpec

__all__ = ["check_onnx_installed", "export_onnx"]

_NEEDED = ("onnx", "onnxscript")


def check_onnx_installed() -> None:
    """Check that the packages for the ONNX export are installed.

    Raises:
        UsageError: A package is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the ONNX export needs packages that are not installed: {', '.join(missing)}",
            where="onnx",
            hint='pip install "logitcache[onnx]", or train without --onnx',
        )


def export_onnx(network: nn.Module, spec: InputSpec, path: Path) -> None:
    """Write a network as an ONNX file and validate the file.

    Its input ``images`` is float32 (batch, 3, S, S), normalized; its output ``logits`` (batch, C).

    Args:
        network: The network.
        spec: Input size and normalization of the network.
        path: ONNX file to write.

    Raises:
        NetworkError: torch cannot export this network as ONNX.
    """
    import onnx

    training, device = network.training, next(network.parameters()).device
    # two images: torch.export would treat a batch of one as a constant
    images = torch.zeros(2, len(spec.mean), spec.size, spec.size, device=device)
    try:
        program = torch.onnx.export(
            network.eval(),
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", max=2**31 - 1)},),
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise NetworkError(
            "torch cannot export this network as ONNX",
            where=path,
            got=str(error).strip().split("\n")[0][:200],
            hint="train without --onnx; the export for timm is complete",
        ) from error
    finally:
        network.train(training)
    assert program is not None
    with written_together(path.parent) as partial:
        program.save(str(partial / path.name))
        onnx.checker.check_model(str(partial / path.name), full_check=True)
