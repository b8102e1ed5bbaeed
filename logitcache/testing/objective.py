"""Contract of an objective.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.batch import DenseLogits, Outputs, TargetBatch
from logitcache.objectives.combine import CountsRows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ObjectiveContract", "example_batch"]


def example_batch(rows: int = 6, classes: int = 5) -> tuple[Outputs, TargetBatch]:
    """Return outputs of a student, and labels and dense outputs of a teacher ``teacher``.

    Args:
        rows: B; the last row has no label.
        classes: C.
    """
    generator = torch.Generator().manual_seed(0)
    logits_BC, teacher_BC = torch.randn(2, rows, classes, generator=generator)
    labels_B = torch.arange(rows) % classes
    labels_B[-1] = -1
    teachers = {"teacher": DenseLogits((2 * teacher_BC).log_softmax(-1))}
    return Outputs(logits_BC), TargetBatch(torch.arange(rows), labels_B, teachers)


class ObjectiveContract:
    """Tests that every objective passes.

    Define a fixture ``objective`` that returns one, and override the fixture ``batch`` where it
    needs other targets than labels and the outputs of one teacher.
    """

    @pytest.fixture
    def batch(self) -> tuple[Outputs, TargetBatch]:
        """Outputs and targets of a batch of at least two rows."""
        return example_batch()

    def test_it_is_a_finite_scalar_with_a_gradient(
        self, objective: Any, batch: tuple[Outputs, TargetBatch]
    ) -> None:
        """The loss is one finite number, and some gradient reaches the student."""
        loss, gradient_BC = _loss_and_gradient(objective, *batch)
        assert loss.shape == ()
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient_BC).all()
        assert gradient_BC.any()

    def test_it_is_deterministic_and_changes_no_target(
        self, objective: Any, batch: tuple[Outputs, TargetBatch]
    ) -> None:
        """A second call returns the same bits; targets are not written to."""
        outputs, targets = batch
        before = targets.take(torch.arange(len(targets)))
        first, second = (_loss_and_gradient(objective, outputs, targets) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert torch.equal(targets.labels, before.labels)
        for name, teacher in targets.teachers.items():
            was = vars(before.teachers[name])
            found = {key: value for key, value in vars(teacher).items() if torch.is_tensor(value)}
            assert found
            assert all(torch.equal(value, was[key]) for key, value in found.items())

    def test_it_does_not_depend_on_the_order_of_rows(
        self, objective: Any, batch: tuple[Outputs, TargetBatch]
    ) -> None:
        """A permuted batch has the same loss and the permuted gradient."""
        outputs, targets = batch
        order = torch.arange(len(targets)).flip(0)
        loss, gradient_BC = _loss_and_gradient(objective, outputs, targets)
        other, permuted_BC = _loss_and_gradient(objective, outputs.take(order), targets.take(order))
        torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(permuted_BC, gradient_BC[order], rtol=1e-4, atol=1e-6)

    def test_its_count_is_over_rows(
        self, objective: Any, batch: tuple[Outputs, TargetBatch]
    ) -> None:
        """The rows that it averages over add up over parts of a batch."""
        _, targets = batch
        half = len(targets) // 2
        parts = torch.arange(half), torch.arange(half, len(targets))
        whole = _count(objective, targets)
        assert 0 <= whole <= len(targets)
        assert sum(_count(objective, targets.take(part)) for part in parts) == whole

    def test_float64_is_a_reference(
        self, objective: Any, batch: tuple[Outputs, TargetBatch]
    ) -> None:
        """Logits in float64 give the same loss and gradient up to float32 rounding."""
        outputs, targets = batch
        loss, gradient_BC = _loss_and_gradient(objective, outputs, targets)
        wide = replace(outputs, logits=outputs.logits.double())
        reference, wide_gradient_BC = _loss_and_gradient(objective, wide, targets)
        torch.testing.assert_close(loss.double(), reference.double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            gradient_BC.double(), wide_gradient_BC.double(), rtol=1e-3, atol=1e-5
        )


def _loss_and_gradient(
    objective: Any, outputs: Outputs, targets: TargetBatch
) -> tuple[Tensor, Tensor]:
    logits_BC = outputs.logits.detach().clone().requires_grad_()
    loss = objective(replace(outputs, logits=logits_BC), targets)
    (gradient_BC,) = torch.autograd.grad(loss, logits_BC)
    return loss.detach(), gradient_BC


def _count(objective: Any, targets: TargetBatch) -> int:
    return int(objective.count(targets)) if isinstance(objective, CountsRows) else len(targets)
