"""Distillation of teachers with a sigmoid for each class, compared with plain loops over floats."""

from __future__ import annotations

import pytest
import torch

from logitcache.batch import DenseLogits, SigmoidLogits, TargetBatch, TeacherLogits
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.label import Label, LabelConfig
from logitcache.objectives.soft import Soft, SoftConfig
from logitcache.objectives.split import Split
from tests.objectives import reference

Z = 3 * torch.randn(4, 3, dtype=torch.float64, generator=torch.manual_seed(0))
T = 3 * torch.randn(4, 3, dtype=torch.float64, generator=torch.manual_seed(1))
U = torch.randn(4, 3, dtype=torch.float64, generator=torch.manual_seed(2))
LABELS = torch.tensor([0, 2, -1, 1])


def batch(**teachers: torch.Tensor) -> TargetBatch:
    found = {name: SigmoidLogits(logits) for name, logits in teachers.items()}
    return TargetBatch(torch.arange(4), LABELS, found)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_it_is_the_binary_divergence_of_the_loops(temperature: float, scale: float) -> None:
    soft = Soft(SoftConfig(temperature=temperature, teachers={"t": 2.0, "u": 0.5}))
    loss = soft(scale * Z, batch(t=scale * T, u=U))
    expected = 0.0
    for i in range(4):
        z = (scale * Z[i]).tolist()
        t, u = (scale * T[i]).tolist(), U[i].tolist()
        expected += 2.0 * reference.binary_divergence(z, t, temperature) / 4
        expected += 0.5 * reference.binary_divergence(z, u, temperature) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_is_that_of_the_loops(temperature: float) -> None:
    """T (sigmoid(z / T) - sigmoid(t / T)) over the number of rows."""
    soft = Soft(SoftConfig(temperature=temperature))
    z = Z.clone().requires_grad_()
    torch.autograd.backward(soft(z, batch(t=T)))
    assert z.grad is not None
    for i in range(4):
        for c in range(3):
            student = reference.sigmoid(float(Z[i, c]) / temperature)
            teacher = reference.sigmoid(float(T[i, c]) / temperature)
            expected = temperature * (student - teacher) / 4
            assert float(z.grad[i, c]) == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(lambda z: soft(z, batch(t=T)), (Z.clone().requires_grad_(),))


def test_it_is_zero_for_a_student_that_agrees_and_positive_else() -> None:
    soft = Soft()
    assert float(soft(T, batch(t=T))) == 0.0
    assert float(soft(T.float() + 1e-3, batch(t=T))) > 0
    half = soft(T.half(), batch(t=T.half().double()))
    assert half.dtype == torch.float32
    assert float(half) == 0.0


def test_classes_are_independent_of_each_other() -> None:
    """A shift of the logits of a row changes the loss, as it does not with a softmax."""
    assert float(Soft()(Z + 1, batch(t=T))) != pytest.approx(float(Soft()(Z, batch(t=T))))


def test_teachers_of_both_kinds_are_refused_in_one_term() -> None:
    teachers: dict[str, TeacherLogits] = {"a": SigmoidLogits(T), "b": DenseLogits(U.log_softmax(1))}
    targets = TargetBatch(torch.arange(4), LABELS, teachers)
    with pytest.raises(UsageError, match=r"softmax and with sigmoid[\s\S]*a: sigmoid, b: softmax"):
        Soft()(Z, targets)
    alone = Soft(SoftConfig(teachers={"a": 1.0}))(Z, targets)
    assert float(alone) == pytest.approx(float(Soft()(Z, batch(a=T))))


def test_objectives_of_a_distribution_refuse_them() -> None:
    with pytest.raises(UsageError, match=r"split needs a distribution[\s\S]*head: softmax"):
        Split()(Z, batch(t=T))


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="different numbers of classes"):
        Soft()(Z[:, :2], batch(t=T))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_label_is_a_binary_target_too(smoothing: float) -> None:
    """By default where all teachers have a sigmoid; or as configured."""
    expected = 0.0
    for i, label in ((0, 0), (1, 2), (3, 1)):
        y = [float(c == label) for c in range(3)]
        expected += reference.binary_cross_entropy(Z[i].tolist(), y, smoothing) / 3
    by_teachers = Label(LabelConfig(smoothing=smoothing))(Z, batch(t=T))
    assert float(by_teachers) == pytest.approx(expected, rel=1e-6)
    none = TargetBatch(torch.arange(4), LABELS, {})
    configured = Label(LabelConfig(smoothing=smoothing, binary=True))(Z, none)
    assert float(configured) == pytest.approx(expected, rel=1e-6)
    softmax = Label(LabelConfig(smoothing=smoothing, binary=False))(Z, batch(t=T))
    assert float(softmax) == pytest.approx(float(Label(LabelConfig(smoothing=smoothing))(Z, none)))


def test_mixed_images_have_both_labels_as_binary_targets() -> None:
    targets = TargetBatch(
        torch.arange(4),
        LABELS,
        {"t": SigmoidLogits(T)},
        partner_labels=torch.tensor([1, 2, 0, -1]),
        lam=torch.tensor([0.25, 0.5, 0.5, 1.0]),
    )
    y = [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0], None, [0.0, 1.0, 0.0]]
    rows = [
        reference.binary_cross_entropy(Z[i].tolist(), one)
        for i, one in enumerate(y)
        if one is not None
    ]
    assert float(Label()(Z, targets)) == pytest.approx(sum(rows) / 3, rel=1e-6)


def test_sets_cannot_be_one_label() -> None:
    sets = TargetBatch(torch.arange(4), -torch.ones(4).long(), {}, label_sets=torch.ones(4, 3))
    objective = build_objective([ObjectiveConfig.model_validate({"label": {"binary": False}})])
    with pytest.raises(UsageError, match="needs one label per image"):
        objective(Z, sets)


def test_the_most_probable_classes_have_their_probabilities() -> None:
    logits = torch.tensor([[0.0, 2.0, -1.0], [float("nan")] * 3])
    log_probs, ids = SigmoidLogits(logits).top_classes(2)
    assert ids.tolist() == [[1, 0], [-1, -1]]
    assert log_probs[0].exp().tolist() == pytest.approx([reference.sigmoid(2.0), 0.5])
    assert log_probs[1].isnan().all()
