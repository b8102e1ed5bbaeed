"""Terms on parts of a joined image set: selection, pseudo labels, and the gap between two parts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from logitcache.batch import DenseLogits, Outputs, SigmoidLogits, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.gap import GapConfig
from tests.objectives import feature_reference as reference
from tests.objectives.features import noise, vector

LABELS = [0, 2, -1, 1, 2, 0, -1]
A = [True, True, True, False, False, False, False]
B = [not one for one in A]
Z = noise(7, 3, seed=0)
T = noise(7, 3, seed=1) * 3


def targets(**fields: Any) -> TargetBatch:
    parts = {"a": torch.tensor(A), "b": torch.tensor(B), "none": torch.zeros(7, dtype=torch.bool)}
    teachers = {"t": DenseLogits(T.log_softmax(1))}
    values = {"labels": torch.tensor(LABELS), "teachers": teachers, "parts": parts, **fields}
    return TargetBatch(torch.arange(7), **values)


def loss(
    *terms: object, batch: TargetBatch | None = None, logits: torch.Tensor = Z
) -> torch.Tensor:
    built = build_objective([ObjectiveConfig.model_validate(term) for term in terms])
    found: torch.Tensor = built(Outputs(logits), targets() if batch is None else batch)
    return found


def cross_entropy(z: list[list[float]], labels: list[int]) -> float:
    """The mean over labeled rows, over Python floats."""
    found = [
        math.log(math.fsum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(z, labels, strict=True)
        if label >= 0
    ]
    return math.fsum(found) / len(found)


def of_part(z: torch.Tensor, mask: list[bool]) -> float:
    rows = [i for i, own in enumerate(mask) if own]
    return cross_entropy([z[i].tolist() for i in rows], [LABELS[i] for i in rows])


def test_a_term_is_computed_on_its_parts_alone() -> None:
    assert loss({"label": {"parts": ["a"]}}).item() == pytest.approx(of_part(Z, A))
    assert loss({"label": {"parts": ["b"]}}).item() == pytest.approx(of_part(Z, B))
    both = loss({"soft": {"parts": ["a", "b"]}})
    torch.testing.assert_close(both, loss("soft"))
    z = Z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss({"soft": {"parts": ["b"]}}, logits=z), z)
    assert gradient.norm(dim=1).gt(0).tolist() == B


def test_a_batch_without_a_row_of_a_part_has_no_loss() -> None:
    z = Z.clone().requires_grad_()
    found = loss({"soft": {"parts": ["none"]}}, logits=z)
    torch.autograd.backward(found)
    assert found.item() == 0
    with pytest.raises(UsageError, match="the batch has no part 'c'"):
        loss({"soft": {"parts": ["c"]}})


def test_a_loss_without_rows_depends_on_what_it_depends_on_with_rows() -> None:
    """Processes wait for each other's gradients of the same parameters in every step."""
    pair = {"teacher": "t", "tap": "x", "projector": "linear", "parts": ["a"]}
    loss = build_objective([ObjectiveConfig.model_validate({"match": pair})])
    values = noise(7, 4, seed=2).float().requires_grad_()
    outputs = Outputs(Z, {"x": vector(values)})
    held = {"t/x": vector(noise(7, 5, seed=3).float())}
    loss.fit(outputs.take(torch.arange(1)), targets(features=held).take(torch.arange(1)))
    nothing = torch.zeros(7, dtype=torch.bool)
    for rows in (torch.tensor(A), nothing):
        found = loss(outputs, targets(features=held, parts={"a": rows}))
        gradients = torch.autograd.grad(found, [values, *loss.parameters()])
        assert any(gradient.any() for gradient in gradients) == bool(rows.any())


@pytest.mark.parametrize("above", [0.0, 0.6, 0.9])
def test_pseudo_labels_are_the_sure_classes_of_a_teacher(above: float) -> None:
    """And labels of the images are not read: with others the loss is the same."""
    p = T.softmax(1).tolist()
    pseudo = [row.index(max(row)) if max(row) >= above else -1 for row in p]
    assert -1 in pseudo or above == 0
    config = {"label": {"pseudo": "t", "above": above}}
    expected = pytest.approx(cross_entropy(Z.tolist(), pseudo))
    assert loss(config).item() == expected
    others = targets(labels=torch.tensor([1] * 7))
    sets = targets(label_sets=torch.ones(7, 3))
    assert loss(config, batch=others).item() == loss(config, batch=sets).item() == expected


def test_the_gradient_of_pseudo_labels_is_that_of_the_plain_loops() -> None:
    p = T.softmax(1).tolist()
    pseudo = [row.index(max(row)) if max(row) >= 0.6 else -1 for row in p]
    z = Z.clone().requires_grad_()
    (got,) = torch.autograd.grad(loss({"label": {"pseudo": "t", "above": 0.6}}, logits=z), z)
    expected = reference.gradient(lambda z: cross_entropy(z.tolist(), pseudo), Z)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_pseudo_labels_of_a_sigmoid_are_refused() -> None:
    batch = targets(teachers={"t": SigmoidLogits(T)})
    with pytest.raises(UsageError, match="the most likely class of a softmax"):
        loss({"label": {"pseudo": "t"}}, batch=batch)
    with pytest.raises(UsageError, match="no teacher 'u' in this batch"):
        loss({"label": {"pseudo": "u"}})


def test_value_and_gradient_of_the_gap_are_those_of_the_plain_loops() -> None:
    def loop(z: torch.Tensor) -> float:
        return (of_part(z, A) - of_part(z, B)) ** 2

    z = Z.clone().requires_grad_()
    found = loss({"gap": {"parts": ["a", "b"]}}, logits=z)
    assert found.item() == pytest.approx(loop(Z), rel=1e-6)
    (got,) = torch.autograd.grad(found, z)
    torch.testing.assert_close(got, reference.gradient(loop, Z), rtol=1e-4, atol=1e-6)


def test_the_gap_is_zero_without_labeled_rows_of_one_part() -> None:
    unlabeled = targets(labels=torch.tensor([0, 2, -1, -1, -1, -1, -1]))
    for parts, batch in ((["a", "none"], targets()), (["a", "b"], unlabeled)):
        z = Z.clone().requires_grad_()
        found = loss({"gap": {"parts": parts}}, batch=batch, logits=z)
        torch.autograd.backward(found)
        assert found.item() == 0


@pytest.mark.parametrize("parts", [None, ["a"], ["a", "a"], ["a", "b", "c"]])
def test_a_gap_needs_two_parts(parts: object) -> None:
    with pytest.raises(UsageError):
        GapConfig.parse({"parts": parts}, "gap")
