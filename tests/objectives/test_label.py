from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from logitcache.batch import Features, Outputs, TargetBatch
from logitcache.errors import UsageError
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


VIEWS = ("base", "rot90(1)", "rot90(2)")


def joint_batch(labels: list[int]) -> TargetBatch:
    """Return a batch of the same images in all views, view by view."""
    return replace(batch(labels * len(VIEWS)), views=VIEWS)


def test_joint_labels_are_pairs_of_class_and_view() -> None:
    """Row i of view k has the class y_i V + k; value and gradient as in plain loops."""
    labels, classes = [3, -1, 0], 4
    z = torch.randn(9, 12, dtype=torch.float64, generator=torch.manual_seed(2), requires_grad=True)
    loss = Label(LabelConfig(joint=True))(z, joint_batch(labels))
    expected, wanted = [], torch.zeros(9, 12, dtype=torch.float64)
    for view in range(3):
        for image, label in enumerate(labels):
            row = view * len(labels) + image
            if label < 0:
                continue
            scores = z[row].tolist()
            expected.append(reference.cross_entropy(scores, label * 3 + view, 0.0))
            for output, log_p in enumerate(reference.log_softmax(scores)):
                hit = output == label * 3 + view
                wanted[row, output] = (math.exp(log_p) - hit) / 6
    assert float(loss.detach()) == pytest.approx(sum(expected) / 6, rel=1e-6)
    torch.autograd.backward(loss)
    assert z.grad is not None
    torch.testing.assert_close(z.grad, wanted, atol=1e-6, rtol=1e-5)
    assert int(Label(LabelConfig(joint=True)).count(joint_batch(labels))) == 6
    assert classes * len(VIEWS) == z.shape[1]


def test_the_sum_over_views_of_a_joint_distribution_is_one_over_classes() -> None:
    """A head p(y) r(k | y) has the cross-entropy of the class plus that of the view."""
    generator = torch.manual_seed(3)
    classes_BC = torch.randn(6, 4, dtype=torch.float64, generator=generator)
    views_BCV = torch.randn(6, 4, 3, dtype=torch.float64, generator=generator).log_softmax(2)
    joint = (classes_BC.log_softmax(1)[:, :, None] + views_BCV).flatten(1)
    summed_BC = joint.softmax(1).view(6, 4, 3).sum(2)
    torch.testing.assert_close(summed_BC, classes_BC.softmax(1))
    targets = joint_batch([2, 1])
    chosen = views_BCV[torch.arange(6), targets.labels, torch.arange(3).repeat_interleave(2)]
    whole = Label(LabelConfig(joint=True))(joint, targets)
    torch.testing.assert_close(whole, Label()(classes_BC, targets) - chosen.mean().float())


def test_joint_labels_of_some_views_count_these_alone() -> None:
    z = torch.randn(6, 8, generator=torch.manual_seed(4))
    term = {"label": {"joint": True, "views": ["rot90(1)", "base"]}}
    found = build_objective([ObjectiveConfig.model_validate(term)])(z, joint_batch([2, 1]))
    rows = torch.tensor([2, 3, 0, 1])
    expected = functional.cross_entropy(z[rows], torch.tensor([4, 2, 5, 3]))
    torch.testing.assert_close(found, expected)


HEAD = "branches.layer1"


def of_head(logits_BC: torch.Tensor, classes: int) -> Outputs:
    """Return outputs of a network with logits (B, classes) and logits of a head."""
    head = {HEAD: Features(logits_BC, "vector")}
    return Outputs(torch.zeros(len(logits_BC), classes), head)


@pytest.mark.parametrize(
    ("config", "outputs"),
    [
        ({"head": HEAD}, of_head(torch.zeros(6, 2), 3)),
        ({"head": HEAD, "binary": True}, of_head(torch.zeros(6, 2), 3)),
        ({"joint": True}, Outputs(torch.zeros(6, 6))),  # 6 = 2 classes in 3 views
        ({"head": HEAD, "joint": True}, of_head(torch.zeros(6, 6), 0)),
    ],
)
def test_labels_without_an_output_are_refused(config: dict[str, Any], outputs: Outputs) -> None:
    with pytest.raises(UsageError, match="labels have no output of this head"):
        Label(LabelConfig(**config))(outputs, joint_batch([2, 1]))


def test_joint_labels_of_a_network_that_is_run_up_to_the_head() -> None:
    """Its logits have no columns, since no term needs them."""
    z = torch.randn(6, 9, generator=torch.manual_seed(4))
    alone, whole = (
        Label(LabelConfig(joint=True, head=HEAD))(of_head(z, classes), joint_batch([2, 1]))
        for classes in (0, 3)
    )
    assert torch.equal(alone, whole)


def test_joint_labels_need_one_label_and_an_output_for_each_pair() -> None:
    with pytest.raises(UsageError, match="an output for each class and view"):
        Label(LabelConfig(joint=True))(torch.zeros(6, 8), joint_batch([2, 1]))
    mixed = replace(
        batch([2, 1]), partner_labels=torch.tensor([0, 0]), lam=torch.tensor([0.5, 1.0])
    )
    with pytest.raises(UsageError, match="mixed images"):
        Label(LabelConfig(joint=True))(torch.zeros(2, 8), mixed)
    with pytest.raises(UsageError, match="remove binary"):
        LabelConfig(joint=True, binary=True)
