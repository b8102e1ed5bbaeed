"""Terms with modules that are created from an example: the loss is not defined before.

The shapes of these modules follow from the student's layers and the cached ones, so a term creates
them in ``fit(outputs, targets)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from logitcache.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from logitcache.batch import Outputs, TargetBatch

__all__ = ["created", "try_on"]

_Part = TypeVar("_Part")


def created(part: _Part | None, what: str, where: str) -> _Part:
    """Return a module of a term that was fitted.

    Args:
        part: The module; None before ``fit``.
        what: What it is, for messages.
        where: Name of the term, for messages.

    Raises:
        UsageError: It is None.
    """
    if part is None:
        raise UsageError(
            f"the {what} of this objective has not been created yet",
            where=where,
            hint="call fit(outputs, targets) before the optimizer is built",
        )
    return part


def try_on(term: nn.Module, outputs: Outputs, targets: TargetBatch) -> None:
    """Compute a term on an example of one row, for the errors that only the computation can find.

    Batch norm cannot learn from one row, so the term is in evaluation mode meanwhile.

    Args:
        term: The term, with all of its modules.
        outputs: Example of outputs of the student.
        targets: Example of targets.
    """
    term.eval()
    term(outputs, targets)
    term.train()
