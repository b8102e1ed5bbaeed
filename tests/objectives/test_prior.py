"""DPK's projector: the teacher's features at some positions, as prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.errors import UsageError
from logitcache.objectives import prior
from logitcache.objectives.prior import Prior
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens, vector
from tests.objectives.test_match import assert_is, fitted, loss_of

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.objectives.feature_match import Match

GIVEN = torch.tensor([[True, False, False, True], [False, False, True, True]])


def with_prior(s: Tensor, t: Tensor, **projector: Any) -> tuple[Match, Prior]:
    match = fitted(tokens(s), tokens(t), projector={"kind": "prior", **projector})
    assert isinstance(match.projector, Prior)
    return match, match.projector


@pytest.mark.parametrize("blocks", [1, 2])
def test_value_and_gradient_are_those_of_the_plain_loops(
    blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixture, embedding, blocks, norm and output, written out; D = 3, E = 4, four heads."""
    s, t = noise(2, 4, 3, seed=0), noise(2, 4, 4, seed=1)
    match, projector = with_prior(s, t, ratio=0.5, blocks=blocks)
    monkeypatch.setattr(prior, "drawn_positions", lambda *_: GIVEN)
    state = {name: value.tolist() for name, value in projector.state_dict().items()}

    def loop(s: Tensor) -> float:
        filled = []
        for row, wanted, given in zip(s.tolist(), t.tolist(), GIVEN.tolist(), strict=True):
            own = reference.linear(row, state["align.weight"], state["align.bias"])
            mixed = [b if use else a for a, b, use in zip(own, wanted, given, strict=True)]
            mixed = [
                [x + e for x, e in zip(a, b, strict=True)]
                for a, b in zip(mixed, state["embedding"], strict=True)
            ]
            for index in range(blocks):
                start = f"blocks.{index}."
                part = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                mixed = reference.block(mixed, part, 4)
            mixed = reference.layer_norm(mixed, state["norm.weight"], state["norm.bias"])
            filled.append(reference.linear(mixed, state["out.weight"], state["out.bias"]))
        return reference.match(filled, t.tolist(), "l2", "mean", [1.0] * 4)

    assert_is(match, s, tokens, tokens(t), loop)


def pair_of(match: Match, s: Tensor, t: Tensor) -> Any:
    (pair,) = match._pairs(outputs_of(x=tokens(s)), targets_of(x=tokens(t)))
    return pair


def test_the_ratio_is_one_minus_the_alignment_of_the_batch() -> None:
    s, t = noise(6, 4, 3, seed=2), noise(6, 4, 5, seed=3)
    match, projector = with_prior(s, t)
    got = projector.ratio(pair_of(match, s, t))
    expected = reference.cka(s.flatten(1).tolist(), t.flatten(1).tolist())
    assert float(got) == pytest.approx(expected, rel=1e-9)


def test_a_student_that_is_aligned_is_given_nothing() -> None:
    """The ratio is zero for a rotation, a scale and an offset of the teacher."""
    t = noise(6, 4, 5, seed=4)
    rotation = torch.linalg.qr(noise(20, 20, seed=5)).Q
    s = 3.0 * (t.flatten(1) @ rotation).view(6, 4, 5) + 2.0
    match, projector = with_prior(s, t)
    assert float(projector.ratio(pair_of(match, s, t))) == pytest.approx(0, abs=1e-12)
    torch.manual_seed(0)
    zero, given = match, fitted(tokens(s), tokens(t), projector={"kind": "prior", "ratio": 0.0})
    torch.testing.assert_close(
        loss_of(zero, tokens(s), tokens(t)), loss_of(given, tokens(s), tokens(t))
    )


def test_with_a_ratio_of_one_the_blocks_see_the_teacher_only() -> None:
    s, t = noise(3, 4, 3, seed=6).requires_grad_(), noise(3, 4, 5, seed=7)
    match, _ = with_prior(s.detach(), t, ratio=1.0)
    loss = loss_of(match, tokens(s), tokens(t))
    (grad,) = torch.autograd.grad(loss, s)
    assert not grad.any()
    other = loss_of(match, tokens(noise(3, 4, 3, seed=8)), tokens(t))
    torch.testing.assert_close(other, loss)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_as_many_positions_are_given_as_the_ratio_says(ratio: float) -> None:
    """In every row, others in each step; rounded to whole positions."""
    s = noise(50, 9, 3, seed=9).requires_grad_()
    t = noise(50, 9, 5, seed=10)
    match, projector = with_prior(s.detach(), t, ratio=ratio)
    inputs: list[Tensor] = []
    projector.blocks.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for _ in range(2):
        loss_of(match, tokens(s), tokens(t))
    given = [(x - projector.embedding - t).abs().amax(2) < 1e-9 for x in inputs]
    assert all((rows.sum(1) == round(9 * ratio)).all() for rows in given)
    if 0 < ratio < 1:
        assert not torch.equal(*given)


def test_the_ratio_falls_while_a_student_learns() -> None:
    """Features that are parameters themselves, trained by the loss alone."""
    t = noise(16, 4, 4, seed=11)
    s = noise(16, 4, 4, seed=12).requires_grad_()
    match, projector = with_prior(s.detach(), t)
    optimizer = torch.optim.Adam([s, *match.parameters()], lr=0.02)
    before = float(projector.ratio(pair_of(match, s, t)))
    for _ in range(150):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(match, tokens(s), tokens(t)))
        optimizer.step()
    assert float(projector.ratio(pair_of(match, s, t))) < 0.9 * before


@pytest.mark.parametrize("rows", [1, 3])
def test_an_input_that_is_not_finite_makes_a_loss_that_is_not(rows: int) -> None:
    """The trainer stops at such a loss; the draw of positions must not fail before."""
    s, t = noise(rows, 4, 3, seed=13), noise(rows, 4, 5, seed=14)
    match, _ = with_prior(s, t)
    assert torch.isfinite(loss_of(match, tokens(s), tokens(t)))
    s[0] = torch.nan
    assert not torch.isfinite(loss_of(match, tokens(s), tokens(t)))


def test_maps_and_class_tokens() -> None:
    s, t = noise(2, 3, 4, 4, seed=15), noise(2, 5, 5, seed=16)
    match = fitted(maps(s), tokens(t, prefix=1), projector="prior")
    assert isinstance(match.projector, Prior)
    assert match.projector.embedding.shape == (4, 5)
    assert torch.isfinite(match(outputs_of(x=maps(s)), targets_of(x=tokens(t, prefix=1))))


@pytest.mark.parametrize(
    "teacher",
    [
        vector(noise(2, 3, seed=17)),
        maps(noise(2, 1, 2, 2, seed=18), reduction="energy"),
        tokens(noise(2, 2, 3, seed=19), grid=2, positions=torch.tensor([[0, 1], [2, 3]])),
    ],
)
def test_what_has_no_positions_to_give_is_refused(teacher: Any) -> None:
    with pytest.raises(UsageError, match="several positions and channels"):
        fitted(maps(noise(2, 3, 2, 2, seed=20)), teacher, projector="prior")
