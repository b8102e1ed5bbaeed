from __future__ import annotations

import pytest
import torch

from logitcache.batch import TargetBatch
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.label import Label, LabelConfig
from tests.objectives import reference


def batch(labels: list[int]) -> TargetBatch:
    return TargetBatch(torch.arange(len(labels)), torch.tensor(labels), {})


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_it_is_the_mean_over_labeled_rows(smoothing: float) -> None:
    z = torch.randn(4, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    expected = [reference.cross_entropy(z[i].tolist(), c, smoothing) for i, c in ((0, 3), (2, 5))]
    loss = Label(LabelConfig(smoothing=smoothing))(z, batch([3, -1, 5, -1]))
    assert float(loss) == pytest.approx(sum(expected) / 2, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_rows_have_both_labels(smoothing: float) -> None:
    """A row counts if the labels of all it shows are known; a share of 1 shows one image."""
    z = torch.randn(5, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    targets = TargetBatch(
        torch.arange(5),
        torch.tensor([3, 1, -1, 2, 4]),
        {},
        partner_labels=torch.tensor([0, -1, 5, -1, 4]),
        lam=torch.tensor([0.25, 0.5, 0.5, 1.0, 0.125]),
    )

    def row(i: int, label: int) -> float:
        return reference.cross_entropy(z[i].tolist(), label, smoothing)

    expected = [0.25 * row(0, 3) + 0.75 * row(0, 0), row(3, 2), row(4, 4)]
    loss = Label(LabelConfig(smoothing=smoothing))(z, targets)
    assert float(loss) == pytest.approx(sum(expected) / 3, rel=1e-6)


def test_without_a_label_there_is_no_loss_and_no_gradient() -> None:
    z = torch.randn(2, 3, requires_grad=True)
    loss = Label()(z, batch([-1, -1]))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0
    assert z.grad is not None
    assert torch.count_nonzero(z.grad) == 0


def test_terms_are_summed_with_their_weights() -> None:
    z = torch.randn(3, 4, generator=torch.manual_seed(1))
    configs = [{"label": {"weight": 2.0}}, {"label": {"weight": 0.5, "smoothing": 0.5}}]
    total = build_objective([ObjectiveConfig.model_validate(c) for c in configs])
    parts = total.parts(z, batch([0, 1, 2]))
    assert list(parts) == ["label", "label_2"]
    assert float(total(z, batch([0, 1, 2]))) == pytest.approx(
        float(2 * parts["label"] + 0.5 * parts["label_2"])
    )


def test_the_teachers_that_are_asked_for() -> None:
    def teachers(*configs: object) -> tuple[str, ...] | None:
        return build_objective([ObjectiveConfig.model_validate(c) for c in configs]).needs.teachers

    assert teachers("label") == ()
    assert teachers("soft", "label") is None
    named = {"soft": {"teachers": {"b": 1, "a": 1}}}
    assert teachers(named, {"soft": {"teachers": {"c": 1}}}) == ("a", "b", "c")
