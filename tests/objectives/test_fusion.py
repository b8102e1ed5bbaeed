"""Maps of several depths, fused from the deepest to the shallowest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional as F

from logitcache.errors import UsageError
from logitcache.objectives.feature_match import Match, MatchConfig
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens, vector
from tests.objectives.test_match import first

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features

SHAPES = {"a": (3, 4), "b": (2, 2), "c": (4, 1)}
"""Channels and side of each layer of the student, from shallow to deep."""
WANTED = {"a": 2, "b": 5, "c": 3}
"""Channels of the teacher."""


def fused(student: dict[str, Features], teacher: dict[str, Features], **options: Any) -> Match:
    """Return the loss over all pairs, its projector made, in float64."""
    torch.manual_seed(0)
    pairs = [{"teacher": "t", "tap": tap} for tap in teacher]
    values = {"pairs": pairs, "projector": {"kind": "fusion", "hidden": 3}, **options}
    match = Match(MatchConfig.parse(values, "match"))
    one = [{tap: first(held) for tap, held in side.items()} for side in (student, teacher)]
    match.fit(outputs_of(**one[0]), targets_of(**one[1]))
    return match.double()


def students() -> dict[str, Tensor]:
    return {
        tap: noise(3, channels, side, side, seed=seed)
        for seed, (tap, (channels, side)) in enumerate(SHAPES.items())
    }


def teachers() -> dict[str, Features]:
    return {
        tap: maps(noise(3, WANTED[tap], side, side, seed=10 + seed))
        for seed, (tap, (_, side)) in enumerate(SHAPES.items())
    }


def up(row: reference.Row, side: int) -> reference.Row:
    grid = math.isqrt(len(row))
    return [
        row[y * grid // side * grid + x * grid // side] for y in range(side) for x in range(side)
    ]


def by_loops(match: Match, student: dict[str, Tensor], teacher: dict[str, Features]) -> float:
    state = {name: value.tolist() for name, value in match.state_dict().items()}

    def at(name: str) -> Any:
        return state[f"projector.{name}"]

    def pointwise(row: reference.Row, name: str, bias: Any = None) -> reference.Row:
        flat = [[channel[0][0] for channel in w] for w in at(name)]
        return reference.linear(row, flat, bias or [0.0] * len(flat))

    def normed(rows: list[reference.Row], name: str) -> list[reference.Row]:
        return reference.batch_norm(rows, at(f"{name}.weight"), at(f"{name}.bias"))

    def mixed(
        rows: list[reference.Row], below: list[reference.Row], name: str
    ) -> list[reference.Row]:
        deeper = [up(row, math.isqrt(len(rows[0]))) for row in below]
        sums = [reference.added(a, b) for a, b in zip(rows, deeper, strict=True)]
        squeezed = [pointwise([reference.mean_of(row)], f"{name}.squeeze.1.weight") for row in sums]
        out = []
        hidden = normed(squeezed, f"{name}.squeeze.2")
        for own, other, row in zip(rows, deeper, hidden, strict=True):
            (scores,) = pointwise(
                reference.relu(row), f"{name}.scores.weight", at(f"{name}.scores.bias")
            )
            exp = [math.exp(score) for score in scores]
            width = len(exp) // 2
            w = [exp[c] / (exp[c] + exp[width + c]) for c in range(width)]
            out.append(
                [
                    [w[c] * a[c] + (1 - w[c]) * b[c] for c in range(width)]
                    for a, b in zip(own, other, strict=True)
                ]
            )
        return out

    total, below = 0.0, None
    for index, tap in reversed(list(enumerate(student))):
        rows = [values.flatten(1).T.tolist() for values in student[tap]]
        rows = normed(
            [pointwise(row, f"entries.{index}.0.weight") for row in rows], f"entries.{index}.1"
        )
        below = rows if below is None else mixed(rows, below, f"shares.{index}")
        none = [0.0] * WANTED[tap]
        made = normed(
            [reference.convolve(row, at(f"exits.{index}.0.weight"), none) for row in below],
            f"exits.{index}.1",
        )
        wanted = [values.flatten(1).T.tolist() for values in teacher[tap].values]
        total += reference.match(made, wanted, "l2", "mean", [1.0] * len(made[0]))
    return total


def test_value_and_gradient_are_those_of_the_plain_loops() -> None:
    student, teacher = students(), teachers()
    match = fused({tap: maps(values) for tap, values in student.items()}, teacher)
    with torch.no_grad():  # all but the initial ones and zeros
        for index, parameter in enumerate(match.parameters()):
            parameter.add_(0.3 * noise(*parameter.shape, seed=100 + index))

    for tap in student:

        def loop(values: Tensor, tap: str = tap) -> float:
            return by_loops(match, {**student, tap: values}, teacher)

        values = student[tap].clone().requires_grad_()
        held = {name: maps(v) for name, v in {**student, tap: values}.items()}
        loss = match(outputs_of(**held), targets_of(**teacher))
        assert loss.item() == pytest.approx(loop(student[tap]), rel=1e-9)
        (got,) = torch.autograd.grad(loss, values)
        wanted = reference.gradient(loop, student[tap])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-8)


def test_a_shallow_pair_depends_on_deeper_layers_and_not_the_other_way_round() -> None:
    """The gradient of the deepest pair alone does not reach the layers above it."""
    student = {tap: values.requires_grad_() for tap, values in students().items()}
    match = fused({tap: maps(values.detach()) for tap, values in student.items()}, teachers())
    held = outputs_of(**{tap: maps(values) for tap, values in student.items()})
    pairs = match._pairs(held, targets_of(**teachers()))
    assert match.projector is not None
    shallow, *_, deep = (projected for projected, _ in match.projector(pairs))
    for loss, reached in ((shallow.square().sum(), set("abc")), (deep.square().sum(), {"c"})):
        grads = torch.autograd.grad(
            loss, list(student.values()), retain_graph=True, allow_unused=True
        )
        found = {tap for tap, grad in zip(student, grads, strict=True) if grad is not None}
        assert found == reached


def test_several_pairs_are_the_sum_of_single_ones() -> None:
    """With a projector for each pair, also for a cached vector and with coarser grids."""
    student = {"a": maps(noise(2, 3, 4, 4, seed=1)), "b": tokens(noise(2, 5, 4, seed=2), prefix=1)}
    teacher = {"a": maps(noise(2, 5, 4, 4, seed=3)), "b": tokens(noise(2, 4, 4, seed=4))}
    pairs = [{"teacher": "t", "tap": tap} for tap in teacher]
    together = fused(student, teacher, projector="auto", levels=[1])
    assert together.projector is not None
    total = torch.zeros(())
    for pair, projector in zip(pairs, together.projector.children(), strict=True):
        alone = Match(MatchConfig.parse({**pair, "levels": [1]}, "match"))
        alone.projector = projector
        total = total + alone(outputs_of(**student), targets_of(**teacher))
    torch.testing.assert_close(together(outputs_of(**student), targets_of(**teacher)), total)


def test_levels_are_compared_after_the_fusion_and_are_zero_for_equal_maps() -> None:
    student, teacher = students(), teachers()
    held = {tap: maps(values) for tap, values in student.items()}
    match = fused(held, teacher, levels=[2, 1])
    assert match.projector is not None
    made = match.projector(match._pairs(outputs_of(**held), targets_of(**teacher)))
    itself = {tap: tokens(values.detach()) for tap, (values, _) in zip(teacher, made, strict=True)}
    loss = match(outputs_of(**held), targets_of(**itself))
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert match(outputs_of(**held), targets_of(**teacher)).item() > 0.1


def test_of_coarse_maps_in_the_cache_the_finest_level_is_lost_and_no_other() -> None:
    """A cache of pooled maps is compared with the student averaged to the same sides."""
    s, t = noise(3, 2, 8, 8, seed=5), noise(3, 2, 8, 8, seed=6)
    student = {"a": maps(s), "b": maps(s + 1)}
    whole = {"a": maps(t), "b": maps(t)}
    pooled = {tap: maps(F.adaptive_avg_pool2d(held.values, 4)) for tap, held in whole.items()}
    match = fused(student, whole, projector="none", levels=[4, 2, 1])
    full = match(outputs_of(**student), targets_of(**whole))
    coarse = match(outputs_of(**student), targets_of(**pooled))
    finest = F.mse_loss(s, t) + F.mse_loss(s + 1, t)
    torch.testing.assert_close(full * 1.875 - finest, coarse * 1.75 / 2)


@pytest.mark.parametrize("teacher", [vector(noise(2, 3, seed=7)), tokens(noise(2, 3, 3, seed=8))])
def test_what_is_no_square_map_is_refused(teacher: Features) -> None:
    student = maps(noise(2, 3, 2, 2, seed=9)) if teacher.layout == "vector" else teacher
    with pytest.raises(UsageError, match="whole maps on square grids"):
        fused({"a": student}, {"a": teacher})
