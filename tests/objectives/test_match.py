from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from logitcache.errors import UsageError
from logitcache.objectives.feature_match import Match, MatchConfig
from logitcache.objectives.projector import Generator
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens, vector

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features

METRICS = ["l1", "l2", "huber", "cosine"]
REDUCTIONS = ["mean", "sum"]
PARTS = ["weight", "bias"]


def fitted(student: Features, teacher: Features, **config: Any) -> Match:
    """Return the loss, its projector made, in float64."""
    torch.manual_seed(0)
    match = Match(MatchConfig.parse({"teacher": "t", "tap": "x", **config}, "match"))
    match.fit(outputs_of(x=first(student, dtype=torch.float32)), targets_of(x=first(teacher)))
    return match.double()


def first(held: Features, dtype: torch.dtype | None = None) -> Features:
    positions = None if held.positions is None else held.positions[:1]
    return replace(held, values=held.values[:1].to(dtype or torch.float32), positions=positions)


def loss_of(match: Match, student: Features, teacher: Features) -> Tensor:
    loss: Tensor = match(outputs_of(x=student), targets_of(x=teacher))
    return loss


def assert_is(match: Match, s: Tensor, as_features: Any, teacher: Features, loop: Any) -> None:
    """The value and the gradient with respect to s are those of the loop."""
    s.requires_grad_()
    loss = loss_of(match, as_features(s), teacher)
    assert loss.item() == pytest.approx(loop(s.detach()), rel=1e-9)
    (got,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(got, reference.gradient(loop, s.detach()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_tokens(metric: str, reduction: str) -> None:
    s, t = 2 * noise(2, 5, 3, seed=0), 2 * noise(2, 5, 3, seed=1)
    teacher = tokens(t, prefix=1)
    match = fitted(tokens(s, prefix=1), teacher, metric=metric, reduction=reduction)
    assert not list(match.parameters())

    def loop(s: Tensor) -> float:
        return reference.match(s.tolist(), t.tolist(), metric, reduction, [1.0] * 5)

    assert_is(match, s, lambda s: tokens(s, prefix=1), teacher, loop)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_other_channels_are_projected(reduction: str) -> None:
    s, t = noise(2, 4, 3, seed=2), noise(2, 4, 5, seed=3)
    match = fitted(tokens(s), tokens(t), metric="l1", reduction=reduction)
    (weight, bias) = (p.tolist() for p in match.parameters())

    def loop(s: Tensor) -> float:
        projected = [reference.linear(row, weight, bias) for row in s.tolist()]
        return reference.match(projected, t.tolist(), "l1", reduction, [1.0] * 4)

    assert_is(match, s, tokens, tokens(t), loop)


def test_an_mlp_has_a_layer_in_between() -> None:
    s, t = noise(2, 4, 3, seed=2), noise(2, 4, 3, seed=3)
    match = fitted(tokens(s), tokens(t), projector={"kind": "mlp", "hidden": 6})
    w1, b1, w2, b2 = (p.tolist() for p in match.parameters())

    def loop(s: Tensor) -> float:
        hidden = [reference.relu(reference.linear(row, w1, b1)) for row in s.tolist()]
        projected = [reference.linear(row, w2, b2) for row in hidden]
        return reference.match(projected, t.tolist(), "l2", "mean", [1.0] * 4)

    assert_is(match, s, tokens, tokens(t), loop)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_kept_tokens_stand_for_all(reduction: str) -> None:
    s, t = noise(2, 5, 3, seed=4), noise(2, 3, 3, seed=5)
    positions = torch.tensor([[0, 3], [1, 2]])
    teacher = tokens(t, prefix=1, grid=2, positions=positions)
    match = fitted(tokens(s, prefix=1), teacher, reduction=reduction)

    def loop(s: Tensor) -> float:
        rows = [
            [row[0], *(row[1 + i] for i in kept)]
            for row, kept in zip(s.tolist(), positions.tolist(), strict=True)
        ]
        return reference.match(rows, t.tolist(), "l2", reduction, [1.0, 2.0, 2.0])

    assert_is(match, s, lambda s: tokens(s, prefix=1), teacher, loop)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_mean_over_draws_of_tokens_is_the_loss_of_all(reduction: str) -> None:
    s, t = noise(1, 5, 3, seed=6), noise(1, 5, 3, seed=7)
    student, whole = tokens(s, prefix=1), tokens(t, prefix=1)
    match = fitted(student, whole, reduction=reduction, metric="huber")
    drawn = []
    for i in range(4):
        for j in range(i + 1, 4):
            kept = t[:, [0, 1 + i, 1 + j]]
            positions = torch.tensor([[i, j]])
            teacher = tokens(kept, prefix=1, grid=2, positions=positions)
            drawn.append(loss_of(match, student, teacher))
    torch.testing.assert_close(torch.stack(drawn).mean(), loss_of(match, student, whole))


def test_maps_and_tokens_are_the_same_thing() -> None:
    s, t = noise(2, 9, 4, seed=8), noise(2, 9, 4, seed=9)
    as_map = (maps(v.transpose(1, 2).reshape(2, 4, 3, 3)) for v in (s, t))
    student, teacher = as_map
    match = fitted(student, teacher)
    expected = F.mse_loss(s, t)
    for a in (student, tokens(s)):
        for b in (teacher, tokens(t)):
            torch.testing.assert_close(loss_of(match, a, b), expected)


def test_prefix_tokens_are_dropped_where_they_differ_or_are_not_wanted() -> None:
    s, t = noise(2, 6, 4, seed=8), noise(2, 5, 4, seed=9)
    patches = F.mse_loss(s[:, 2:], t[:, 1:])
    student, teacher = tokens(s, prefix=2), tokens(t, prefix=1)
    torch.testing.assert_close(loss_of(fitted(student, teacher), student, teacher), patches)
    same = tokens(s[:, 1:], prefix=1)
    torch.testing.assert_close(loss_of(fitted(same, teacher, prefix=False), same, teacher), patches)


@pytest.mark.parametrize(("side", "to"), [(4, 2), (2, 4), (3, 2)])
def test_the_student_comes_to_the_teachers_grid(side: int, to: int) -> None:
    s, t = noise(2, 3, side, side, seed=10), noise(2, 3, to, to, seed=11)
    resized = (
        F.adaptive_avg_pool2d(s, to) if to < side else F.interpolate(s, (to, to), mode="bilinear")
    )
    match = fitted(maps(s), maps(t))
    torch.testing.assert_close(loss_of(match, maps(s), maps(t)), F.mse_loss(resized, t))


def test_a_teachers_mean_is_compared_with_the_students_mean() -> None:
    s, t = noise(2, 5, 4, seed=12), noise(2, 4, seed=13)
    teacher = replace(vector(t), reduction="mean")
    match = fitted(tokens(s, prefix=1), teacher)
    expected = F.mse_loss(s[:, 1:].mean(1), t)
    torch.testing.assert_close(loss_of(match, tokens(s, prefix=1), teacher), expected)


@pytest.mark.parametrize("layout", ["maps", "tokens"])
def test_energy_is_compared_with_energy(layout: str) -> None:
    """GHOST's and AFD's maps: of unit length as a whole."""
    s, t = noise(2, 5, 2, 2, seed=14), noise(2, 1, 2, 2, seed=15).abs()
    teacher = maps(t, reduction="energy")
    if layout == "maps":
        student = maps(s)
    else:
        student = tokens(
            torch.cat([noise(2, 1, 5, seed=16), s.flatten(2).transpose(1, 2)], 1), prefix=1
        )
    match = fitted(student, teacher, normalize="l2")
    energy = F.normalize(s.square().mean(1).flatten(1))
    expected = F.mse_loss(energy, F.normalize(t.flatten(1)))
    torch.testing.assert_close(loss_of(match, student, teacher), expected)


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_unit_vectors(metric: str) -> None:
    """DMAE's: zero where the student is the teacher times anything positive."""
    s, t = noise(2, 4, 3, seed=17), noise(2, 4, 3, seed=18)
    match = fitted(tokens(s), tokens(t), normalize="l2", metric=metric)

    def loop(s: Tensor) -> float:
        unit = [reference.unit(row) for row in s.tolist()], [reference.unit(r) for r in t.tolist()]
        return reference.match(*unit, metric, "mean", [1.0] * 4)

    assert_is(match, s, tokens, tokens(t), loop)
    assert loss_of(match, tokens(3.7 * t), tokens(t)).item() == pytest.approx(0, abs=1e-12)


def test_standardized_maps() -> None:
    """NFD's."""
    s, t = noise(2, 4, 3, seed=19), 3 + 2 * noise(2, 4, 3, seed=20)
    match = fitted(tokens(s), tokens(t), normalize="standardize")
    wanted = [reference.standardize(row) for row in t.tolist()]

    def loop(s: Tensor) -> float:
        rows = [reference.standardize(row) for row in s.tolist()]
        return reference.match(rows, wanted, "l2", "mean", [1.0] * 4)

    assert_is(match, s, tokens, tokens(t), loop)


def test_standardized_maps_do_not_change_with_the_channels_scale_and_shift() -> None:
    s, t = noise(2, 3, 4, 4, seed=21), noise(2, 3, 4, 4, seed=22)
    scale, shift = torch.tensor([2.0, 0.5, 7.0]), torch.tensor([-3.0, 0.0, 9.0])
    other = maps(t * scale[:, None, None] + shift[:, None, None])
    match = fitted(maps(s), maps(t), normalize="standardize")
    plain = fitted(maps(s), maps(t))
    torch.testing.assert_close(
        loss_of(match, maps(s), other), loss_of(match, maps(s), maps(t)), rtol=1e-5, atol=1e-6
    )
    assert not torch.allclose(loss_of(plain, maps(s), other), loss_of(plain, maps(s), maps(t)))


def test_a_map_that_is_cached_standardized_is_not_standardized_again() -> None:
    s, t = noise(2, 3, 4, 4, seed=23), noise(2, 3, 4, 4, seed=24)
    cached = (t - t.mean((2, 3), keepdim=True)) / (
        t.std((2, 3), keepdim=True, unbiased=False) + 1e-6
    )
    match = fitted(maps(s), maps(t), normalize="standardize")
    torch.testing.assert_close(
        loss_of(match, maps(s), maps(cached, standardized=True)), loss_of(match, maps(s), maps(t))
    )
    with pytest.raises(UsageError, match="set normalize: standardize"):
        fitted(maps(s), maps(cached, standardized=True))


@pytest.mark.parametrize(
    ("side", "weights"),
    [
        (8, {8: 1.0, 4: 0.5, 2: 0.25, 1: 0.125}),
        (4, {4: 1.0, 2: 0.5, 1: 0.25}),
        (2, {2: 1.0, 1: 0.5}),
    ],
)
def test_a_pyramid(side: int, weights: dict[int, float]) -> None:
    """A level that is not smaller than the map is left out, and halves nothing."""
    s, t = noise(1, side**2, 2, seed=25), noise(1, side**2, 2, seed=26)
    match = fitted(tokens(s), tokens(t), levels=[4, 2, 1])

    def loop(s: Tensor) -> float:
        total = 0.0
        for level, weight in weights.items():
            here, there = ([reference.pool(row, level) for row in v.tolist()] for v in (s, t))
            total += weight * reference.match(here, there, "l2", "mean", [1.0] * level**2)
        return total / sum(weights.values())

    assert_is(match, s, tokens, tokens(t), loop)


def test_of_a_pooled_map_a_pyramid_is_that_without_its_finest_level() -> None:
    s, t = noise(2, 3, 8, 8, seed=27), noise(2, 3, 8, 8, seed=28)
    full, pooled = maps(t), maps(F.adaptive_avg_pool2d(t, 4))
    whole = loss_of(fitted(maps(s), full, levels=[4, 2, 1]), maps(s), full)
    coarse = loss_of(fitted(maps(s), pooled, levels=[4, 2, 1]), maps(s), pooled)
    torch.testing.assert_close(whole * 1.875 - F.mse_loss(s, t), coarse * 1.75 / 2)


def test_generation() -> None:
    """ViTKD's: alignment, mask, convolutions, squares of hidden positions."""
    s, t = noise(2, 10, 3, seed=29), noise(2, 9, 4, seed=30)
    student = tokens(s, prefix=1)
    match = fitted(student, tokens(t), projector="generator", reduction="sum")
    projector = match.projector
    assert isinstance(projector, Generator)
    torch.nn.init.constant_(projector.mask_token, 0.25)
    named = {name: p.tolist() for name, p in projector.named_parameters()}
    kept = torch.rand(2, 9, generator=torch.Generator().manual_seed(5)).argsort(1)[:, :4].tolist()

    def loop(s: Tensor) -> float:
        total = 0.0
        for row, wanted, seen in zip(s[:, 1:].tolist(), t.tolist(), kept, strict=True):
            aligned = reference.linear(row, named["align.weight"], named["align.bias"])
            filled = [a if i in seen else named["mask_token"] for i, a in enumerate(aligned)]
            first, second = ([named[f"generation.{i}.{p}"] for p in PARTS] for i in (0, 2))
            made = reference.relu(reference.convolve(filled, *first))
            made = reference.convolve(made, *second)
            hidden = [float(i not in seen) for i in range(9)]
            total += reference.match([made], [wanted], "l2", "sum", hidden)
        return total / 2

    s.requires_grad_()
    torch.manual_seed(5)
    loss = loss_of(match, tokens(s, prefix=1), tokens(t))
    assert loss.item() == pytest.approx(loop(s.detach()), rel=1e-6)  # draws are float32
    (got,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(got, reference.gradient(loop, s.detach()), rtol=1e-5, atol=1e-7)
    assert torch.count_nonzero(got[:, 0]) == 0


def test_generation_of_the_positions_that_are_cached() -> None:
    """Where half of the tokens are kept, those are the hidden ones, and nothing is drawn."""
    s, t = noise(2, 9, 4, seed=31), noise(2, 9, 4, seed=32)
    positions = torch.tensor([[0, 2, 4, 8], [1, 3, 5, 7]])
    index = positions[:, :, None].expand(-1, -1, 4)
    cached = tokens(t.gather(1, index), grid=3, positions=positions)
    match = fitted(tokens(s), cached, projector="generator", reduction="sum")
    loss = loss_of(match, tokens(s), cached)
    torch.testing.assert_close(loss, loss_of(match, tokens(s), cached))
    hidden = torch.zeros(2, 9, dtype=torch.bool).scatter(1, positions, True)
    x = s.masked_fill(hidden[:, :, None], 0.0).transpose(1, 2).reshape(2, 4, 3, 3)
    assert isinstance(match.projector, Generator)
    made = match.projector.generation(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(loss, (made - t).square()[hidden].sum() / 2)


def test_what_is_seen_gets_no_target() -> None:
    """The gradient is zero in the teacher's unhidden cells, as reported."""
    s, t = noise(1, 9, 4, seed=33), noise(1, 9, 4, seed=34).requires_grad_()
    match = fitted(tokens(s), tokens(t.detach()), projector={"kind": "generator", "masked": 0.4})
    torch.manual_seed(3)
    (grad,) = torch.autograd.grad(loss_of(match, tokens(s), tokens(t)), t)
    torch.manual_seed(3)
    seen = torch.rand(1, 9).argsort(1)[:, :5]
    touched = grad.abs().sum(2) > 0
    assert touched.sum() == 4
    assert not touched.gather(1, seen).any()


@pytest.mark.parametrize("metric", METRICS)
def test_it_is_zero_for_the_teacher_itself(metric: str) -> None:
    t = noise(2, 5, 3, seed=35)
    held = tokens(t, prefix=1)
    match = fitted(held, held, metric=metric)
    assert loss_of(match, held, held).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_gradcheck(metric: str) -> None:
    s, t = noise(2, 5, 3, seed=36).requires_grad_(), noise(2, 5, 4, seed=37)
    match = fitted(tokens(s.detach(), prefix=1), tokens(t, prefix=1), metric=metric)
    assert gradcheck(lambda s: loss_of(match, tokens(s, prefix=1), tokens(t, prefix=1)), (s,))


def test_a_flat_map_has_a_gradient_that_is_finite() -> None:
    t = noise(2, 4, 3, seed=38)
    for normalize in ("l2", "standardize"):
        s = torch.zeros(2, 4, 3, dtype=torch.float64, requires_grad=True)
        match = fitted(tokens(s.detach()), tokens(t), normalize=normalize)
        (grad,) = torch.autograd.grad(loss_of(match, tokens(s), tokens(t)), s)
        assert torch.isfinite(grad).all(), normalize


def test_published_weights_are_for_sums() -> None:
    """ViTKD's 3e-5 of a sum over 196 x 384 numbers is 2.3 of a mean."""
    s, t = noise(2, 196, 6, seed=39), noise(2, 196, 6, seed=40)
    total = loss_of(fitted(tokens(s), tokens(t), reduction="sum"), tokens(s), tokens(t))
    mean = loss_of(fitted(tokens(s), tokens(t)), tokens(s), tokens(t))
    torch.testing.assert_close(total, mean * 196 * 6)


def kept(values: Tensor) -> Features:
    return tokens(values[:, :2], grid=2, positions=torch.tensor([[0, 3]] * len(values)))


def of(patches: int, channels: int = 3) -> Features:
    return tokens(noise(1, patches, channels, seed=1))


VECTOR = vector(noise(1, 3, seed=1))
PRINCIPAL = replace(VECTOR, principal=True)


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (VECTOR, of(4), {}, r"tokens \(L, D\) of \(4, 3\)"),
        (of(5), of(4), {}, "square grids"),
        (of(4), of(4, 5), {"projector": "none"}, "set projector: linear"),
        (of(4), kept(of(4).values), {"normalize": "standardize"}, "2 positions of each map"),
        (of(4), kept(of(4).values), {"levels": [1]}, "whole maps"),
        (of(5), of(5), {"levels": [1]}, "square map"),
        (of(5), of(5), {"projector": "generator"}, "square grid"),
        (VECTOR, PRINCIPAL, {}, "principal components"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    student: Features, teacher: Features, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        fitted(student, teacher, **options)
    assert caught.value.hint


def test_what_is_not_there_is_named() -> None:
    held = tokens(noise(2, 4, 3, seed=41))
    match = fitted(held, held)
    with pytest.raises(UsageError, match="did you mean 't/xx'"):
        match(outputs_of(x=held), targets_of(xx=held))
    with pytest.raises(UsageError, match=r"'x'\n.*did you mean 'xx'"):
        match(outputs_of(xx=held), targets_of(x=held))
    with pytest.raises(UsageError, match=r"call fit\(outputs, targets\)"):
        loss_of(Match(MatchConfig.parse({"teacher": "t", "tap": "x"}, "match")), held, held)
