"""Projectors of maps: a layer for each neighborhood, and products of pairs of positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from logitcache.errors import UsageError
from logitcache.objectives.attention import PositionProducts
from logitcache.objectives.group_linear import GroupLinear, neighborhoods
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens, vector
from tests.objectives.test_match import assert_is, fitted, loss_of

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features
    from logitcache.objectives.feature_match import Match

PRODUCTS = ["attention-scores", "value-products"]


def projected(match: Match, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
    """Return what the projector of a loss makes of the student, and the weights of positions."""
    assert match.projector is not None
    (pair,) = match._pairs(outputs_of(x=student), targets_of(x=teacher))
    values, counts = match.projector(pair)
    return values, counts


def test_each_of_196_cells_belongs_to_one_of_16_neighborhoods() -> None:
    groups = neighborhoods(14, 4)
    counts = groups.bincount().tolist()
    assert counts == [16, 16, 16, 8] * 3 + [8, 8, 8, 4]
    assert sum(counts) == len(groups) == 196
    expected = [(y // 4) * 4 + x // 4 for y in range(14) for x in range(14)]
    assert groups.tolist() == expected


@pytest.mark.parametrize(("grid", "side"), [(1, 4), (4, 4), (5, 2), (7, 3)])
def test_a_layer_is_applied_to_the_cells_of_its_neighborhood_alone(grid: int, side: int) -> None:
    """The layer of group g adds g + 1 to an identity, so the output has the group of each cell."""
    s = noise(2, grid**2, 3, seed=0)
    match = fitted(tokens(s), tokens(s), projector={"kind": "group-linear", "side": side})
    assert isinstance(match.projector, GroupLinear)
    for number, layer in enumerate(match.projector.layers):
        nn.init.eye_(layer.weight)  # type: ignore[arg-type]  # a linear layer
        nn.init.constant_(layer.bias, number + 1.0)  # type: ignore[arg-type]  # a linear layer
    values, counts = projected(match, tokens(s), tokens(s))
    added = values - s
    expected = (neighborhoods(grid, side) + 1.0).to(s.dtype)[:, None].expand(2, -1, 3)
    torch.testing.assert_close(added, expected)
    assert counts.tolist() == [[1.0] * grid**2]


@pytest.mark.parametrize("positions", [None, torch.tensor([[0, 4, 8], [1, 2, 3]])])
def test_group_linear_is_that_of_the_plain_loops(positions: Tensor | None) -> None:
    """3 x 3 positions in neighborhoods of 2 x 2: four, of 4, 2, 2 and 1 positions."""
    kept = [list(range(9))] * 2 if positions is None else positions.tolist()
    s, t = noise(2, 9, 3, seed=1), noise(2, len(kept[0]), 4, seed=2)
    teacher = tokens(t, grid=3, positions=positions)
    match = fitted(tokens(s), teacher, projector={"kind": "group-linear", "side": 2})
    state = {name: value.tolist() for name, value in match.state_dict().items()}

    def loop(s: Tensor) -> float:
        rows = []
        for row, chosen in zip(s.tolist(), kept, strict=True):
            layers = [f"projector.layers.{(i // 6) * 2 + i % 3 // 2}" for i in chosen]
            rows.append(
                [
                    reference.linear([row[i]], state[f"{n}.weight"], state[f"{n}.bias"])[0]
                    for n, i in zip(layers, chosen, strict=True)
                ]
            )
        return reference.match(rows, t.tolist(), "l2", "mean", [1.0] * len(kept[0]))

    assert_is(match, s, tokens, teacher, loop)


def test_dropout_is_a_part_of_training_alone() -> None:
    s = noise(2, 4, 3, seed=3)
    match = fitted(tokens(s), tokens(s), projector={"kind": "group-linear", "dropout": 0.5})
    losses = [loss_of(match, tokens(s), tokens(s)).item() for _ in range(2)]
    assert losses[0] != losses[1]
    match.eval()
    losses = [loss_of(match, tokens(s), tokens(s)).item() for _ in range(2)]
    assert losses[0] == losses[1]


def with_products(s: Tensor, t: Tensor, **projector: Any) -> Any:
    match = fitted(tokens(s), tokens(t, grid=2), projector=projector)
    assert isinstance(match.projector, PositionProducts)
    return match


@pytest.mark.parametrize("kind", PRODUCTS)
def test_products_are_those_of_the_plain_loops(kind: str) -> None:
    s, t = noise(2, 4, 3, seed=4), noise(2, 4, 4, seed=5)
    match = with_products(s, t, kind=kind, hidden=5)
    state = {name: value.tolist() for name, value in match.projector.state_dict().items()}
    second = "keys" if kind == "attention-scores" else "queries"
    assert ("keys.weight" in state) == (kind == "attention-scores")

    def loop(s: Tensor) -> float:
        rows = []
        for row in s.tolist():
            queries, keys = (
                reference.convolve(row, state[f"{name}.weight"], state[f"{name}.bias"])
                for name in ("queries", second)
            )
            rows.append([[reference.dot(q, k) / math.sqrt(5) for k in keys] for q in queries])
        return reference.match(rows, t.tolist(), "l2", "mean", [1.0] * 4)

    assert_is(match, s, tokens, tokens(t, grid=2), loop)


@pytest.mark.parametrize("kind", PRODUCTS)
def test_with_a_ratio_of_one_the_loss_and_its_gradient_are_zero(kind: str) -> None:
    s, t = noise(2, 4, 3, seed=6).requires_grad_(), noise(2, 4, 4, seed=7)
    match = with_products(s.detach(), t, kind=kind, ratio=1.0)
    loss = loss_of(match, tokens(s), tokens(t, grid=2))
    (gradient,) = torch.autograd.grad(loss, s)
    assert loss.item() == 0
    assert not gradient.any()


def test_the_drawn_pairs_are_the_teachers_and_others_in_each_step() -> None:
    s, t = noise(40, 9, 3, seed=8), noise(40, 9, 9, seed=9)
    match = fitted(tokens(s), tokens(t), projector={"kind": "attention-scores", "ratio": 0.25})
    drawn = [projected(match, tokens(s), tokens(t))[0] == t for _ in range(2)]
    for crossed in drawn:
        assert float(crossed.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(*drawn)


def test_kept_positions_are_rows_of_the_products() -> None:
    s, t = noise(2, 4, 3, seed=10), noise(2, 4, 4, seed=11)
    positions = torch.tensor([[0, 3], [1, 2]])
    kept = torch.stack([row[chosen] for row, chosen in zip(t, positions, strict=True)])
    torch.manual_seed(0)
    whole = with_products(s, t, kind="attention-scores")
    teacher = tokens(kept, grid=2, positions=positions)
    some = fitted(tokens(s), teacher, projector="attention-scores")
    a, _ = projected(whole, tokens(s), tokens(t, grid=2))
    b, counts = projected(some, tokens(s), teacher)
    expected = torch.stack([row[chosen] for row, chosen in zip(a, positions, strict=True)])
    torch.testing.assert_close(b, expected)
    assert counts.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("kind", [*PRODUCTS, "group-linear"])
def test_what_has_no_square_grid_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match=f"the projector {kind} needs features on a square grid"):
        fitted(maps(noise(2, 3, 2, 2, seed=12)), vector(noise(2, 4, seed=13)), projector=kind)


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_tap_that_is_not_a_relation_is_refused(kind: str) -> None:
    s, t = noise(2, 4, 3, seed=14), noise(2, 4, 5, seed=15)
    with pytest.raises(UsageError, match="between all pairs of positions"):
        fitted(tokens(s), tokens(t), projector=kind)
