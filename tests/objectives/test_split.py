from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from logitcache.batch import DenseLogits, SparseLogits, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.sparse_cross_entropy import log_absent_mass
from logitcache.objectives.split import Split, SplitConfig
from tests.memory import peak_bytes
from tests.objectives import reference
from tests.objectives.feature_reference import gradient
from tests.objectives.test_soft import random_logits, sparse_of

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TeacherLogits

Form = Literal["nkd", "dkd"]
FORMS: list[Form] = ["nkd", "dkd"]
LABELS = torch.tensor([0, 5, -1, 8])


def batch(teacher: TeacherLogits, labels: Tensor = LABELS) -> TargetBatch:
    return TargetBatch(torch.arange(len(labels)), labels, {"t": teacher})


def dense(t: Tensor) -> DenseLogits:
    return DenseLogits(t.log_softmax(1))


def with_label(t: Tensor, teacher: SparseLogits, labels: Tensor = LABELS) -> SparseLogits:
    """Add what the cache keeps of the label's own log-probability."""
    own = t.log_softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    own = torch.where(labels >= 0, own, torch.nan)
    return SparseLogits(teacher.class_ids, teacher.log_probs, teacher.tail, t.shape[1], own)


def loops(z: Tensor, t: Tensor, form: str, others: float, temperature: float) -> float:
    rows = [
        reference.split(a, b, label, form, others, temperature)
        for a, b, label in zip(z.tolist(), t.log_softmax(1).tolist(), LABELS.tolist(), strict=True)
        if label >= 0
    ]
    return math.fsum(rows) / len(rows)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("form", FORMS)
def test_the_value_is_that_of_the_plain_loops(form: Form, temperature: float) -> None:
    z, t = random_logits(4, 9, 0), random_logits(4, 9, 1)
    loss = Split(SplitConfig(form=form, others=0.7, temperature=temperature))
    expected = loops(z, t, form, 0.7, temperature)
    assert float(loss(z, batch(dense(t)))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("form", "others", "temperature"), [("nkd", 1.5, 1.0), ("dkd", 8.0, 4.0)])
def test_the_defaults_are_the_published_ones(form: Form, others: float, temperature: float) -> None:
    z, t = random_logits(4, 9, 2), random_logits(4, 9, 3)
    expected = loops(z, t, form, others, temperature)
    assert float(Split(SplitConfig(form=form))(z, batch(dense(t)))) == pytest.approx(expected)


@pytest.mark.parametrize("form", FORMS)
def test_with_all_classes_sparse_targets_are_dense_ones(form: Form) -> None:
    z, t = random_logits(4, 9, 4).requires_grad_(), random_logits(4, 9, 5)
    loss = Split(SplitConfig(form=form, temperature=1.0))
    every = with_label(t, sparse_of(t, 9))
    of_sparse, of_dense = loss(z, batch(every)), loss(z, batch(dense(t)))
    torch.testing.assert_close(of_sparse, of_dense)
    grads = [torch.autograd.grad(value, z)[0] for value in (of_sparse, of_dense)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_below_all_classes_it_is_the_dense_loss_of_the_reconstruction(
    form: Form, top_k: int
) -> None:
    """Labels inside and outside of the top K: theirs is exact, the rest shares the tail."""
    z, t = random_logits(4, 9, 6), random_logits(4, 9, 7)
    log_p = t.log_softmax(1)
    rebuilt = torch.zeros_like(log_p)
    for row, label in enumerate(LABELS.tolist()):
        known = set(log_p[row].topk(top_k).indices.tolist()) | ({label} - {-1})
        absent = [c for c in range(9) if c not in known]
        for c in known:
            rebuilt[row, c] = log_p[row, c].exp()
        for c in absent:
            rebuilt[row, c] = log_p[row, absent].exp().mean()
    loss = Split(SplitConfig(form=form, temperature=1.0))
    expected = loss(z, batch(DenseLogits(rebuilt.log())))
    found = loss(z, batch(with_label(t, sparse_of(t, top_k))))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_the_gradient_is_right(form: Form, kind: str) -> None:
    z, t = random_logits(4, 9, 8).requires_grad_(), random_logits(4, 9, 9)
    teacher = with_label(t, sparse_of(t, 3)) if kind == "sparse" else dense(t)
    loss = Split(SplitConfig(form=form, temperature=1.0))
    assert gradcheck(lambda z: loss(z, batch(teacher)), (z,))


@pytest.mark.parametrize("student", [1.0, 30.0])
def test_the_mass_of_absent_classes_is_that_of_the_plain_sum(student: float) -> None:
    z, ids = student * random_logits(70, 9, 18), torch.arange(70)[:, None] % 9
    z.requires_grad_()
    weights = torch.linspace(-1, 1, 70, dtype=torch.float64)
    found = (weights * log_absent_mass(z.log_softmax(1), ids)).sum()
    rest = z.log_softmax(1).masked_fill(F.one_hot(ids[:, 0], 9).bool(), -math.inf)
    expected = (weights * rest.logsumexp(1)).sum()
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (torch.autograd.grad(value, z)[0] for value in (found, expected))
    torch.testing.assert_close(of_found, of_expected)
    every = torch.arange(9).expand(2, 9)
    whole = z[:2].detach().log_softmax(1).requires_grad_()
    nothing = log_absent_mass(whole, every)
    (gradient,) = torch.autograd.grad(nothing.sum(), whole)
    assert (nothing == 0).all()
    assert (gradient == 0).all()


def test_without_others_only_the_target_is_left() -> None:
    z, t = random_logits(4, 9, 10), random_logits(4, 9, 11)
    known = LABELS >= 0
    chosen = LABELS.clamp(min=0)[:, None]
    expected = -(t.softmax(1) * z.log_softmax(1)).gather(1, chosen)[known].mean()
    torch.testing.assert_close(Split(SplitConfig(others=0.0))(z, batch(dense(t))), expected)


def test_dkd_is_the_whole_divergence_when_its_parts_are_weighted_as_in_it() -> None:
    """KL = KL of the binary + (1 - p_y) KL of the others, for one row."""
    z, t = random_logits(1, 9, 12), random_logits(1, 9, 13)
    labels = torch.tensor([4])
    rest = float(1 - t.softmax(1)[0, 4])
    loss = Split(SplitConfig(form="dkd", others=rest, temperature=1.0))
    expected = F.kl_div(z.log_softmax(1), t.softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss(z, batch(dense(t), labels)), expected)


def test_a_confident_student_does_not_overflow() -> None:
    z = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    t = torch.tensor([[5.0, 1.0, 0.0]])
    for form in FORMS:
        loss = Split(SplitConfig(form=form))(z, batch(dense(t), torch.tensor([0])))
        (grad,) = torch.autograd.grad(loss, z)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("tail", [-1e-3, -25.0, -120.0, -3e4, -65504.0, -math.inf])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_confident_teacher_leaves_to_others_is_spread_over_all_of_them(
    form: Form, tail: float
) -> None:
    classes, labels = 9, torch.tensor([3, 0])
    z = random_logits(2, classes, 14).float().requires_grad_()
    log_p = torch.full((2, 1), math.log1p(-math.exp(tail)) if tail < -1e-9 else -50.0)
    teacher = SparseLogits(labels[:, None], log_p, torch.full((2, 1), tail), classes)
    loss = Split(SplitConfig(form=form, others=0.7, temperature=1.0))(z, batch(teacher, labels))
    (grad,) = torch.autograd.grad(loss, z)

    exact = z.detach().double().requires_grad_()
    log_s = exact.log_softmax(1)
    is_y = F.one_hot(labels, classes).bool()
    log_rest = log_s.masked_fill(is_y, -math.inf).logsumexp(1)
    uniform = (log_s - log_rest[:, None])[~is_y].view(2, -1).mean(1)
    p = math.exp(float(log_p[0, 0]))
    log_s_y = log_s[is_y]
    if form == "nkd":
        rows = -p * log_s_y - 0.7 * uniform
    else:
        binary = -p * log_s_y - (1 - p) * log_rest
        binary = binary + sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
        rows = binary - 0.7 * (uniform + math.log(classes - 1))
    (expected,) = torch.autograd.grad(rows.mean(), exact)
    torch.testing.assert_close(loss.double(), rows.mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [[0, 1], [900, 2], [0, 900]])
@pytest.mark.parametrize("student", [1.0, 1e2, 1e4, -1e4])
@pytest.mark.parametrize("form", FORMS)
def test_value_and_gradient_are_finite_at_every_extreme(
    form: Form, student: float, labels: list[int]
) -> None:
    for k in (1, 2, 3):
        for least in (-0.5, -60.0, -104.0, -65504.0):
            log_p = torch.full((2, k), least)
            log_p[:, 0] = -1e-7
            teacher = SparseLogits(
                torch.arange(k).expand(2, k), log_p, torch.full((2, 1), least), 1000
            )
            z = (student * torch.eye(2, 1000)).requires_grad_()
            loss = Split(SplitConfig(form=form, temperature=1.0))(
                z, batch(teacher, torch.tensor(labels))
            )
            (grad,) = torch.autograd.grad(loss, z)
            assert bool(torch.isfinite(loss)), (k, least)
            assert bool(torch.isfinite(grad).all()), (k, least)


def test_without_labels_there_is_nothing_to_ask() -> None:
    z = random_logits(2, 9, 14).requires_grad_()
    loss = Split()(z, batch(dense(random_logits(2, 9, 15)), torch.tensor([-1, -1])))
    (grad,) = torch.autograd.grad(loss, z)
    assert (float(loss.detach()), int(torch.count_nonzero(grad))) == (0.0, 0)


def test_sparse_targets_are_not_asked_at_other_temperatures() -> None:
    t = random_logits(4, 9, 16)
    with pytest.raises(UsageError, match="kind: dense"):
        Split(SplitConfig(form="dkd"))(t, batch(sparse_of(t, 3)))


def mixed(teacher: TeacherLogits) -> TargetBatch:
    """Return rows whose own label is likelier, the partner's, equal shares, and an unknown one."""
    own, partner = torch.tensor([0, 5, 3, 8]), torch.tensor([4, 2, 7, -1])
    lam = torch.tensor([0.7, 0.2, 0.5, 0.1])
    return replace(batch(teacher, own), partner_labels=partner, lam=lam)


LIKELIER = torch.tensor([0, 2, 3, -1])


def test_mixed_images_have_two_labels_and_are_refused() -> None:
    t = random_logits(4, 9, 16)
    with pytest.raises(UsageError, match="set mixed: likelier"):
        Split()(t, mixed(dense(t)))
    with pytest.raises(UsageError, match="two"):
        Split().count(mixed(dense(t)))


@pytest.mark.parametrize("form", FORMS)
def test_the_likelier_label_of_mixed_images_is_that_of_the_larger_share(form: Form) -> None:
    """Value and gradient are those of the plain loops with that label."""
    z, t = random_logits(4, 9, 18).requires_grad_(), random_logits(4, 9, 19)
    config = SplitConfig(form=form, others=0.7, temperature=2.0, mixed="likelier")
    loss = Split(config)
    assert int(loss.count(mixed(dense(t)))) == 3

    def loop(z: Tensor) -> float:
        rows = zip(z.tolist(), t.log_softmax(1).tolist(), LIKELIER.tolist(), strict=True)
        each = [reference.split(a, b, y, form, 0.7, 2.0) for a, b, y in rows if y >= 0]
        return math.fsum(each) / 3

    value = loss(z, mixed(dense(t)))
    assert value.item() == pytest.approx(loop(z.detach()), rel=1e-10)
    (got,) = torch.autograd.grad(value, z)
    torch.testing.assert_close(got, gradient(loop, z.detach()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_sparse_targets_of_mixed_images_keep_the_probability_of_their_own_label(form: Form) -> None:
    """Outside of the top K the own label is exact; that of a partner shares the tail."""
    z, t = random_logits(4, 9, 20), random_logits(4, 9, 21)
    loss = Split(SplitConfig(form=form, temperature=1.0, mixed="likelier"))
    targets = mixed(with_label(t, sparse_of(t, 3), torch.tensor([0, 5, 3, 8])))
    found = loss(z, targets)
    exact = torch.tensor([True, False, True, False])
    own = t.log_softmax(1).gather(1, LIKELIER.clamp(min=0)[:, None])[:, 0]
    known = replace(sparse_of(t, 3), label_log_probs=torch.where(exact, own, torch.nan))
    torch.testing.assert_close(found, loss(z, batch(known, LIKELIER)))
    torch.testing.assert_close(
        loss(z, mixed(with_label(t, sparse_of(t, 9)))), loss(z, batch(dense(t), LIKELIER))
    )


def test_it_is_one_of_the_objectives() -> None:
    t = random_logits(4, 9, 17)
    terms = [ObjectiveConfig.model_validate({"split": {"teachers": {"t": 1.0}}})]
    whole = build_objective([*terms, ObjectiveConfig.model_validate("label")])
    assert whole.needs.teachers == ("t",)
    assert whole.parts(t, batch(dense(t))).keys() == {"split", "label"}


def test_no_dense_teacher_is_built() -> None:
    z, t = torch.randn(64, 1000, requires_grad=True), torch.randn(64, 1000)
    teacher, labels = sparse_of(t, 20), torch.arange(64)
    plain = peak_bytes(lambda: F.cross_entropy(z, labels), z)
    ours = peak_bytes(lambda: Split()(z, batch(teacher, labels)), z)
    assert ours - plain < 2 * z.numel() * z.element_size()  # a second softmax of the student
