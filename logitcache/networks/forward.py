"""Forward passes that check whether a network can be run at all."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

__all__ = ["check_forward", "evaluating", "one_row"]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Context in which a network is run once in evaluation mode, without gradients.

    Batch norm cannot learn from a batch of one. Widths, strides and sizes that do not fit are only
    found by layers when they are run; what they raise then is an error of the arguments.

    Args:
        network: The network; its mode is restored.

    Raises:
        UsageError: The network cannot be run on its input.
    """
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise UsageError(
            "the network cannot be run on an image",
            expected="arguments with which each layer takes what the one before it returns",
            got=str(error).partition("\n")[0][:200] or type(error).__name__,
            hint="check its arguments (kwargs) and the size of its input",
        ) from error
    finally:
        network.train(training)


def check_forward(network: nn.Module, size: int, example: Tensor | None = None) -> None:
    """Check that a network can be run on one black image.

    Args:
        network: Any network.
        size: Side of the image in pixels.
        example: Input of one row, for a network whose inputs are not images.

    Raises:
        UsageError: The network cannot be run on its input.
    """
    with evaluating(network):
        network(one_row(network, size, example))


def one_row(network: nn.Module, size: int, example: Tensor | None = None) -> Tensor:
    """Return one black image (1, 3, S, S), or the example, in dtype and device of a network."""
    first = next(network.parameters())
    return first.new_zeros(1, 3, size, size) if example is None else example.to(first)
