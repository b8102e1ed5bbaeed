"""A discriminator of student and teacher, against plain loops over floats."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.errors import UsageError
from logitcache.objectives.adversarial import Adversarial, AdversarialConfig
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.term import Weight
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens
from tests.objectives.test_match import first

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features

POSITIONS = torch.tensor([[0, 3], [1, 2]])


def fitted(student: Features, teacher: Features, **config: Any) -> Adversarial:
    """Return the loss with its projector and discriminator, in float64."""
    torch.manual_seed(0)
    values = {"teacher": "t", "tap": "x", "hidden": 6, **config}
    loss = Adversarial(AdversarialConfig.parse(values, "adversarial"))
    loss.fit(outputs_of(x=first(student)), targets_of(x=first(teacher)))
    return loss.double()


def gradients(loss: Adversarial, s: Tensor, t: Features) -> tuple[float, dict[str, Tensor]]:
    """Return the value, and the gradients of the student and of all parameters."""
    s = s.clone().requires_grad_()
    value = loss(outputs_of(x=tokens(s)), targets_of(x=t))
    names = ["student", *(name for name, _ in loss.named_parameters())]
    found = torch.autograd.grad(value, [s, *loss.parameters()])
    return value.item(), dict(zip(names, found, strict=True))


def losses_by_loops(
    state: dict[str, Tensor], s: Tensor, t: Tensor, kept: list[list[int]] | None
) -> tuple[float, float]:
    """Return the loss of the discriminator, and the mean of log(1 - D(P(s)))."""
    values = {name: value.tolist() for name, value in state.items()}

    def linear(row: reference.Row, name: str) -> reference.Row:
        return reference.linear(row, values[f"{name}.weight"], values[f"{name}.bias"])

    def real(row: reference.Row) -> list[float]:
        hidden = reference.relu(linear(row, "discriminator.0"))
        hidden = reference.relu(linear(hidden, "discriminator.2"))
        return [1 / (1 + math.exp(-a[0])) for a in linear(hidden, "discriminator.4")]

    known: list[float] = []
    unknown: list[float] = []
    for index, (row, wanted) in enumerate(zip(s.tolist(), t.tolist(), strict=True)):
        chosen = row if kept is None else [row[i] for i in kept[index]]
        known += [math.log(d) for d in real(wanted)]
        unknown += [math.log(1 - d) for d in real(linear(chosen, "projector.network"))]
    theirs, ours = math.fsum(known) / len(known), math.fsum(unknown) / len(unknown)
    return -theirs - ours, ours


@pytest.mark.parametrize("positions", [None, POSITIONS])
def test_the_discriminator_descends_and_the_student_has_the_gradient_of_log_one_minus_d(
    positions: Tensor | None,
) -> None:
    """One backward pass has both gradients, that of the projector as that of the student."""
    s, t = noise(2, 4, 3, seed=0), noise(2, 4 if positions is None else 2, 5, seed=1)
    teacher = tokens(t, grid=2, positions=positions)
    loss = fitted(tokens(s), teacher)
    state = {name: value.detach().clone() for name, value in loss.state_dict().items()}
    kept = None if positions is None else positions.tolist()
    value, got = gradients(loss, s, teacher)
    assert value == pytest.approx(losses_by_loops(state, s, t, kept)[0], rel=1e-9)
    for name, gradient in got.items():
        number = 0 if name.startswith("discriminator.") else 1

        def loop(at: Tensor, name: str = name, number: int = number) -> float:
            if name == "student":
                return losses_by_loops(state, at, t, kept)[number]
            return losses_by_loops({**state, name: at}, s, t, kept)[number]

        expected = reference.gradient(loop, s if name == "student" else state[name])
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8, msg=name)


def test_the_loss_is_two_log_two_where_nothing_can_be_distinguished() -> None:
    """D is 1/2 everywhere if its last layer is zero."""
    s, t = noise(2, 4, 5, seed=2), noise(2, 4, 5, seed=3)
    loss = fitted(tokens(s), tokens(t))
    assert loss.discriminator is not None
    torch.nn.init.zeros_(loss.discriminator[-1].weight)  # type: ignore[index]  # a Sequential
    torch.nn.init.zeros_(loss.discriminator[-1].bias)  # type: ignore[index]  # a Sequential
    assert gradients(loss, s, tokens(t))[0] == pytest.approx(2 * math.log(2), rel=1e-12)


def test_features_of_any_size_have_a_finite_loss() -> None:
    """The logarithms are taken of logits, not of probabilities that round to 0 or 1."""
    s, t = 1e6 * noise(2, 4, 5, seed=4), 1e6 * noise(2, 4, 5, seed=5)
    value, got = gradients(fitted(tokens(s), tokens(t)), s, tokens(t))
    assert math.isfinite(value)
    assert all(torch.isfinite(gradient).all() for gradient in got.values())


def test_a_student_learns_what_a_discriminator_cannot_distinguish() -> None:
    """Features that are parameters move from a mean of 0 toward the teacher's of 2."""
    t = noise(64, 1, 2, seed=6) + 2.0
    s = noise(64, 1, 2, seed=7).requires_grad_()
    loss = fitted(tokens(s.detach()), tokens(t), projector="none", hidden=16)
    optimizer = torch.optim.Adam([s, *loss.parameters()], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward(loss(outputs_of(x=tokens(s)), targets_of(x=tokens(t))))
        optimizer.step()
    assert (s.detach().mean((0, 1)) > 1.0).all()


MATCH_PAIR = {"teacher": "t", "tap": "x", "student": "x"}
MATCH: dict[str, Any] = {"teacher": "t", "tap": "x", "projector": {"kind": "linear", "shared": "p"}}


def test_a_projector_with_a_name_has_the_same_weights_in_all_terms() -> None:
    """They are trained by both losses, and are saved once."""
    s, t = tokens(noise(2, 4, 3, seed=12).float()), tokens(noise(2, 4, 5, seed=13).float())
    total = build_objective(
        [ObjectiveConfig.model_validate({n: MATCH}) for n in ("match", "adversarial")]
    )
    total.fit(outputs_of(x=first(s)), targets_of(x=first(t)))
    owned = [name for name in total.state_dict() if "projector" in name]
    assert owned == ["match.projector.network.weight", "match.projector.network.bias"]
    twin = copy.deepcopy(total)
    for made in (total, twin):
        weight = dict(made.named_parameters())["match.projector.network.weight"]
        for loss in made.parts(outputs_of(x=s), targets_of(x=t)).values():
            (gradient,) = torch.autograd.grad(loss, weight)
            assert gradient.any()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"projector": {"kind": "mlp", "shared": "p"}}, "cannot have the same weights"),
        ({"tap": "y"}, "cannot have the same weights"),
        ({"pairs": [MATCH_PAIR, {**MATCH_PAIR, "tap": "y"}]}, "that of several projectors"),
    ],
)
def test_projectors_that_differ_cannot_have_the_same_weights(
    other: dict[str, Any], message: str
) -> None:
    s, x, y = (tokens(noise(1, 4, width, seed=14).float()) for width in (3, 5, 6))
    second = {**MATCH, "student": "x", **other}
    if "pairs" in other:
        second = {key: second[key] for key in ("projector", "pairs")}
    total = build_objective([ObjectiveConfig.model_validate({"match": c}) for c in (MATCH, second)])
    with pytest.raises(UsageError, match=message):
        total.fit(outputs_of(x=s), targets_of(x=x, y=y))


def test_a_name_that_no_other_term_has_is_refused() -> None:
    s, t = tokens(noise(1, 4, 3, seed=14).float()), tokens(noise(1, 4, 5, seed=13).float())
    other = {**MATCH, "projector": {"kind": "linear", "shared": "q"}}
    total = build_objective([ObjectiveConfig.model_validate({"match": c}) for c in (MATCH, other)])
    with pytest.raises(UsageError, match="no other term has a projector of the name 'p'"):
        total.fit(outputs_of(x=s), targets_of(x=t))


def test_maps_and_tokens_of_another_grid() -> None:
    s, t = maps(noise(2, 3, 4, 4, seed=8)), tokens(noise(2, 5, 6, seed=9), prefix=1)
    loss = fitted(s, t)
    assert torch.isfinite(loss(outputs_of(x=s), targets_of(x=t)))


def test_the_weight_that_is_published_is_a_ramp_of_the_run() -> None:
    """min(max(epoch - 25, 0) / 50, 0.2) of 120 epochs: from 25, over 10."""
    weight = Weight(value=0.2, start=25 / 120, length=10 / 120)
    for epoch in range(121):
        expected = min(max(epoch - 25, 0) / 50, 0.2)
        assert weight.at(epoch / 120) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"standardized": True}, "would not be"), ({"principal": True}, "set projector: linear")],
)
def test_features_that_differ_by_their_coding_are_refused(
    fields: dict[str, bool], message: str
) -> None:
    t = maps(noise(2, 3, 2, 2, seed=10))
    with pytest.raises(UsageError, match=message):
        fitted(t, replace(t, **fields))  # type: ignore[arg-type]  # both are flags


def test_without_fit_the_error_describes_what_is_missing() -> None:
    t = tokens(noise(2, 4, 3, seed=11))
    with pytest.raises(UsageError, match="call fit"):
        Adversarial(AdversarialConfig(teacher="t", tap="x"))(outputs_of(x=t), targets_of(x=t))
