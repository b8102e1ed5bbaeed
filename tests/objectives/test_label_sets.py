"""Labels of images that may have several classes, compared with plain loops over floats."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from logitcache.batch import DenseLogits, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.label import Label, LabelConfig
from logitcache.objectives.split import Split
from tests.objectives import reference

NAN = [float("nan")] * 3
# two sets, an empty one, an image without labels, and a mixture of two sets
Y = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], NAN, [0.25, 1.0, 0.75]])
KNOWN = [0, 1, 3]
Z = 3 * torch.randn(4, 3, dtype=torch.float64, generator=torch.manual_seed(0))


def batch(sets: torch.Tensor = Y) -> TargetBatch:
    none = torch.full((len(sets),), -1)
    teacher = DenseLogits(torch.zeros(len(sets), 3).log_softmax(1))
    return TargetBatch(torch.arange(len(sets)), none, {"t": teacher}, label_sets=sets)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_it_is_the_binary_cross_entropy_of_the_loops(smoothing: float, scale: float) -> None:
    z = scale * Z
    loss = Label(LabelConfig(smoothing=smoothing))(z, batch())
    rows = [reference.binary_cross_entropy(z[i].tolist(), Y[i].tolist(), smoothing) for i in KNOWN]
    assert float(loss) == pytest.approx(sum(rows) / len(KNOWN), rel=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_is_that_of_the_loops(smoothing: float) -> None:
    """sigmoid(z) - y over the number of labeled rows; zero for a row without labels."""
    z = Z.clone().requires_grad_()
    label = Label(LabelConfig(smoothing=smoothing))
    torch.autograd.backward(label(z, batch()))
    assert z.grad is not None
    for i in range(4):
        for c in range(3):
            target = (1 - smoothing) * float(Y[i, c]) + smoothing / 2
            expected = (reference.sigmoid(float(Z[i, c])) - target) / 3 if i in KNOWN else 0.0
            assert float(z.grad[i, c]) == pytest.approx(expected, abs=1e-7)
    assert torch.autograd.gradcheck(lambda z: label(z, batch()), (Z.clone().requires_grad_(),))


def test_it_is_the_sum_over_the_classes_of_pytorchs_loss() -> None:
    own = Label()(Z, batch(Y[KNOWN][[0, 1, 2, 2]]))
    theirs = functional.binary_cross_entropy_with_logits(Z, Y[KNOWN][[0, 1, 2, 2]].double())
    assert float(own) == pytest.approx(3 * float(theirs), rel=1e-7)


def test_without_labels_there_is_no_loss_and_no_gradient() -> None:
    z = Z[:2].clone().requires_grad_()
    loss = Label()(z, batch(torch.tensor([NAN, NAN])))
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0
    assert z.grad is not None
    assert torch.count_nonzero(z.grad) == 0


def test_rows_with_labels_are_counted() -> None:
    total = build_objective([ObjectiveConfig.model_validate("label")])
    assert total.counts(batch())["label"] == 3
    assert len(batch().take(torch.tensor([0, 3]))) == 2


def test_further_outputs_are_classes_that_no_image_has() -> None:
    z = torch.cat([Z, Z[:, :1]], 1)
    rows = [reference.binary_cross_entropy(z[i].tolist(), [*Y[i].tolist(), 0.0]) for i in KNOWN]
    assert float(Label()(z, batch())) == pytest.approx(sum(rows) / 3, rel=1e-7)
    with pytest.raises(UsageError, match=r"different numbers of classes[\s\S]*3 logits"):
        Label()(Z[:, :2], batch())


def test_objectives_of_one_label_refuse_sets() -> None:
    with pytest.raises(UsageError, match=r"objective split needs one label[\s\S]*label sets"):
        Split()(Z, batch())
