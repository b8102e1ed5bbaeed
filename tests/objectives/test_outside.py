"""Losses with a class map, against plain loops over Python floats: value and gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch.autograd import gradcheck

from logitcache.batch import DenseLogits, TargetBatch
from logitcache.objectives.outside import show_a_class
from logitcache.objectives.soft import Soft, SoftConfig, soft_divergence
from logitcache.objectives.split import Split, SplitConfig
from tests.objectives.reference import kl, log_softmax

if TYPE_CHECKING:
    from typing import Literal

    from torch import Tensor

    from logitcache.objectives.outside import Outside

CHOICES: list[Outside] = ["auto", "weight", "uniform", "renorm"]
TEMPERATURES = [1.0, 2.0, 4.0]


def random(rows: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, dtype=torch.float64, generator=generator)


def teacher_of(rows: int, classes: int, seed: int, known: int | None = None) -> DenseLogits:
    """Return outputs whose last class is outside, with no probability above class ``known``."""
    log_p = random(rows, classes + 1, seed)
    log_p[:, known or classes : classes] = -torch.inf
    log_p = log_p.log_softmax(1)
    return DenseLogits(log_p[:, :-1], log_p[:, -1])


def distribution(
    log_p: list[float], log_outside: float, temperature: float, outside: str
) -> tuple[list[float], float]:
    """Return the probabilities over the student's classes and the weight of a row."""
    inside = [math.exp(value / temperature) for value in log_p]
    other = math.exp(log_outside / temperature)
    total = math.fsum(inside)
    if outside == "uniform":
        return [(p + other / len(inside)) / (total + other) for p in inside], 1.0
    weight = total / (total + other) if outside == "weight" else 1.0
    return [p / total for p in inside], weight


def known(rows: int) -> Tensor:
    """Return images that show a class of the student: every second one."""
    return torch.arange(rows) % 2 == 0


def soft_by_loops(z: Tensor, teacher: DenseLogits, temperature: float, outside: str) -> list[float]:
    assert teacher.outside is not None
    values = []
    for row, log_p, other, shows_class in zip(
        z.tolist(),
        teacher.log_probs.tolist(),
        teacher.outside.tolist(),
        known(len(z)).tolist(),
        strict=True,
    ):
        kind = outside
        if outside == "auto":
            kind = "renorm" if shows_class else "weight"
        q, weight = distribution(log_p, other, temperature, kind)
        student = log_softmax([value / temperature for value in row])
        values.append(weight * temperature**2 * kl(q, student))
    return values


@pytest.mark.parametrize("outside", CHOICES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", [None, 3])
def test_soft_is_that_of_the_plain_loops(
    outside: Outside, temperature: float, classes: int | None
) -> None:
    """Also where the teacher lacks classes of the student."""
    z, teacher = random(5, 6, 0), teacher_of(5, 6, 1, classes)
    got = soft_divergence(z, teacher, temperature=temperature, outside=outside, known_B=known(5))
    assert got.tolist() == pytest.approx(soft_by_loops(z, teacher, temperature, outside), rel=1e-10)


@pytest.mark.parametrize("outside", CHOICES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", [None, 3])
def test_the_gradient_of_soft_is_that_of_the_plain_loops(
    outside: Outside, temperature: float, classes: int | None
) -> None:
    z, teacher = random(3, 5, 2).requires_grad_(), teacher_of(3, 5, 3, classes)
    loss_B = soft_divergence(z, teacher, temperature=temperature, outside=outside, known_B=known(3))
    (got,) = torch.autograd.grad(loss_B.sum(), z)
    step = 1e-5
    for row in range(3):
        for column in range(5):
            up, down = z.detach().clone(), z.detach().clone()
            up[row, column] += step
            down[row, column] -= step
            difference = soft_by_loops(up, teacher, temperature, outside)[row]
            difference -= soft_by_loops(down, teacher, temperature, outside)[row]
            assert float(got[row, column]) == pytest.approx(difference / (2 * step), abs=1e-8)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_weight_is_the_divergence_with_one_more_class_without_its_constant_part(
    temperature: float,
) -> None:
    """The chain rule: a student that has the teacher's mass outside leaves this divergence."""
    z, teacher = random(4, 6, 4), teacher_of(4, 6, 5)
    assert teacher.outside is not None
    joint = torch.cat([teacher.log_probs, teacher.outside[:, None]], 1)
    q = (joint / temperature).log_softmax(1)
    inside = torch.log1p(-q[:, -1].exp())
    student = (z / temperature).log_softmax(1) + inside[:, None]
    whole = torch.cat([student, q[:, -1:]], 1)
    expected = temperature**2 * (q.exp() * (q - whole)).sum(1)
    got = soft_divergence(z, teacher, temperature=temperature, outside="weight")
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("outside", CHOICES)
def test_a_mass_of_zero_outside_changes_nothing(outside: Outside) -> None:
    z, log_p = random(4, 6, 6), random(4, 6, 7).log_softmax(1)
    mapped = DenseLogits(log_p, torch.full((4,), -torch.inf, dtype=torch.float64))
    got = soft_divergence(z, mapped, temperature=2.0, outside=outside)
    plain = soft_divergence(z, DenseLogits(log_p), temperature=2.0)
    torch.testing.assert_close(got, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outside", CHOICES)
def test_an_image_of_something_else_gives_a_finite_loss(outside: Outside) -> None:
    nothing = torch.full((1, 4), -torch.inf)
    z = torch.zeros(1, 4).requires_grad_()
    loss = soft_divergence(z, DenseLogits(nothing, torch.zeros(1)), outside=outside).sum()
    (gradient,) = torch.autograd.grad(loss, z)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert gradient.isfinite().all()


def test_by_default_the_labels_say_which_images_show_a_class_of_the_student() -> None:
    """Without a label among the classes of the student, a row counts as the teacher sees it."""
    z, teacher = random(4, 6, 13), teacher_of(4, 6, 14)
    labels = torch.tensor([0, -1, 5, -1])
    loss = Soft()(z, TargetBatch(torch.arange(4), labels, {"t": teacher}))
    rows = {
        outside: soft_divergence(z, teacher, outside=outside)
        for outside in ("auto", "weight", "renorm")
    }
    expected = torch.where(labels >= 0, rows["renorm"], rows["weight"]).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rows["auto"], rows["weight"], rtol=0, atol=0)
    labeled = TargetBatch(torch.arange(4), labels.clamp(min=0), {"t": teacher})
    assert Soft()(z, labeled) == Soft(SoftConfig(outside="renorm"))(z, labeled)


def test_mixed_images_show_a_class_if_both_do_and_label_sets_if_they_have_one() -> None:
    rows, labels = torch.arange(4), torch.tensor([1, 1, -1, 1])
    partners, lam = torch.tensor([0, -1, 0, -1]), torch.tensor([0.5, 0.5, 0.5, 1.0])
    mixed = TargetBatch(rows, labels, {}, partner_labels=partners, lam=lam)
    assert show_a_class(mixed).tolist() == [True, False, False, True]
    sets = torch.tensor([[0.0, 1.0], [0.0, 0.0], [torch.nan, torch.nan], [0.5, 0.0]])
    several = TargetBatch(rows, torch.full((4,), -1), {}, label_sets=sets)
    assert show_a_class(several).tolist() == [True, False, False, True]


def split_by_loops(
    z: Tensor, labels: list[int], teacher: DenseLogits, config: SplitConfig
) -> list[float]:
    assert teacher.outside is not None
    temperature, values = config.chosen_temperature, []
    for row, y, log_p, other in zip(
        z.tolist(), labels, teacher.log_probs.tolist(), teacher.outside.tolist(), strict=True
    ):
        # split has rows with a label alone
        kind = "renorm" if config.outside == "auto" else config.outside
        q, weight = distribution(log_p, other, temperature, kind)
        q_one, weight_one = distribution(log_p, other, 1.0, kind)
        s = [math.exp(v) for v in log_softmax([value / temperature for value in row])]
        rest_q, rest_s = 1 - q[y], math.fsum(p for c, p in enumerate(s) if c != y)
        others = [(q[c] / rest_q, math.log(s[c] / rest_s)) for c in range(len(row)) if c != y]
        cross = -math.fsum(a * b for a, b in others)
        if config.form == "nkd":
            target = -weight_one * q_one[y] * log_softmax(row)[y]
            rest = weight * cross
        else:
            binary = kl([q[y], rest_q], [math.log(s[y]), math.log(rest_s)])
            target = weight * temperature**2 * binary
            rest = weight * kl([a for a, _ in others], [b for _, b in others])
        values.append(config.target * target + config.others_weight * temperature**2 * rest)
    return values


@pytest.mark.parametrize("outside", CHOICES)
@pytest.mark.parametrize("form", ["nkd", "dkd"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_split_is_that_of_the_plain_loops(
    outside: Outside, form: Literal["nkd", "dkd"], temperature: float
) -> None:
    z, teacher, labels = random(4, 5, 8), teacher_of(4, 5, 9), [0, 3, 4, 1]
    config = SplitConfig(form=form, temperature=temperature, outside=outside)
    batch = TargetBatch(torch.arange(4), torch.tensor(labels), {"t": teacher})
    expected = split_by_loops(z, labels, teacher, config)
    assert float(Split(config)(z, batch)) == pytest.approx(math.fsum(expected) / 4, rel=1e-9)
    assert gradcheck(lambda x: Split(config)(x, batch), z.requires_grad_())


def test_teachers_of_different_class_spaces_are_terms_of_one_objective() -> None:
    z, mapped = random(3, 4, 10), teacher_of(3, 4, 11)
    plain = DenseLogits(random(3, 4, 12).log_softmax(1))
    batch = TargetBatch(
        torch.arange(3), torch.zeros(3, dtype=torch.long), {"a": mapped, "b": plain}
    )
    got = Soft(SoftConfig(outside="uniform"))(z, batch)
    each = [soft_divergence(z, t, outside="uniform").mean() for t in (mapped, plain)]
    torch.testing.assert_close(got.double(), (each[0] + each[1]) / 2, rtol=1e-6, atol=1e-6)
