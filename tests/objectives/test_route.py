"""Attention to layers of a teacher, of which the best are imitated."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.errors import UsageError
from logitcache.objectives.route import Route, RouteConfig
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens, vector
from tests.objectives.test_match import first

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features

TAPS = ["a", "b", "c"]


def teachers(rows: int = 2) -> dict[str, Features]:
    """Return maps of several widths and sides."""
    shapes = {"a": (3, 2, 2), "b": (5, 2, 2), "c": (4, 4, 4)}
    return {
        tap: maps(noise(rows, *shape, seed=seed))
        for seed, (tap, shape) in enumerate(shapes.items())
    }


def routed(student: dict[str, Features], teacher: dict[str, Features], **config: Any) -> Route:
    """Return the loss, its queries and keys made, in float64."""
    torch.manual_seed(0)
    values = {"teacher": "t", "taps": list(teacher), "students": list(student), "width": 3}
    route = Route(RouteConfig.parse({**values, **config}, "route"))
    one = [{tap: first(held) for tap, held in side.items()} for side in (student, teacher)]
    route.fit(outputs_of(**one[0]), targets_of(**one[1]))
    return route.double()


def as_row(values: Tensor) -> reference.Row:
    """Return the positions of one map (D, H, W), each with its channels."""
    found: reference.Row = values.flatten(1).T.tolist()
    return found


def unit_energy(row: reference.Row) -> reference.Vector:
    energy = [math.fsum(x * x for x in a) / len(a) for a in row]
    return [e / reference.length(energy) for e in energy]


def by_loops(
    route: Route, student: dict[str, Tensor], teacher: dict[str, Tensor], keep: int
) -> float:
    """The loss of maps whose sides are equal, or those of a teacher pooled by two."""
    state = {name: value.tolist() for name, value in route.state_dict().items()}
    rows = len(next(iter(student.values())))
    total = 0.0
    for n in range(rows):
        ours = {s: as_row(v[n]) for s, v in student.items()}
        theirs = {t: as_row(v[n]) for t, v in teacher.items()}

        def projected(side: str, layers: dict[str, reference.Row]) -> reference.Row:
            means = [
                [math.fsum(column) / len(row) for column in zip(*row, strict=True)]
                for row in layers.values()
            ]
            return [
                reference.linear([mean], state[f"{side}.{i}.weight"], state[f"{side}.{i}.bias"])[0]
                for i, mean in enumerate(means)
            ]

        for query, a in zip(projected("queries", ours), ours.values(), strict=True):
            keys = projected("keys", theirs)
            scores = [reference.dot(query, key) / math.sqrt(len(query)) for key in keys]
            best = sorted(range(len(scores)), key=lambda t: -scores[t])[:keep]
            norm = math.fsum(math.exp(scores[t]) for t in best)
            for t in best:
                b = list(theirs.values())[t]
                energy = [[math.fsum(x * x for x in p) / len(p)] for p in a]
                side = math.isqrt(len(b))
                pooled = energy if len(a) == len(b) else reference.pool(energy, side)
                flat = [e[0] for e in pooled]
                mine = [e / reference.length(flat) for e in flat]
                off = [x - y for x, y in zip(mine, unit_energy(b), strict=True)]
                total += math.exp(scores[t]) / norm * reference.dot(off, off)
    return total / rows


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_value_and_gradient_are_those_of_the_plain_loops(keep: int) -> None:
    """With all layers kept it is the softmax over all, as in AFD but for its axis."""
    teacher = teachers()
    x, y = noise(2, 4, 4, 4, seed=5), noise(2, 2, 4, 4, seed=6)
    given = {t: f.values for t, f in teacher.items()}
    route = routed({"x": maps(x), "y": maps(y)}, teacher, keep=keep)

    def loop(x: Tensor) -> float:
        return by_loops(route, {"x": x, "y": y}, given, keep)

    x.requires_grad_()
    loss = route(outputs_of(x=maps(x), y=maps(y)), targets_of(**teacher))
    assert loss.item() == pytest.approx(loop(x.detach()), rel=1e-9)
    (got,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(got, reference.gradient(loop, x.detach()), rtol=1e-6, atol=1e-8)


def test_all_layers_are_kept_by_default() -> None:
    student = {"x": maps(noise(2, 4, 4, 4, seed=7))}
    losses = [
        routed(student, teachers(), **options)(outputs_of(**student), targets_of(**teachers()))
        for options in ({}, {"keep": 3})
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kept_layer_has_a_share_and_all_others_have_none(keep: int) -> None:
    student = {"x": maps(noise(6, 4, 4, 4, seed=8)), "y": maps(noise(6, 2, 2, 2, seed=9))}
    teacher = teachers(6)
    route = routed(student, teacher, keep=keep)
    shares = route.attention(list(student.values()), list(teacher.values()))
    assert shares.shape == (6, 2, 3)
    assert ((shares > 0).sum(2) == keep).all()
    torch.testing.assert_close(shares.sum(2), torch.ones(6, 2, dtype=shares.dtype))


def test_a_planted_layer_is_found() -> None:
    """A student layer has the energy of one layer of the teacher; queries and keys learn it."""
    teacher = {tap: maps(noise(32, 4, 3, 3, seed=seed)) for seed, tap in enumerate(TAPS)}
    rotation = torch.linalg.qr(noise(4, 4, seed=9)).Q
    planted = torch.einsum("bdhw,de->behw", teacher["b"].values, rotation)
    student = {"x": maps(planted)}
    route = routed(student, teacher)
    optimizer = torch.optim.Adam(route.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(route(outputs_of(**student), targets_of(**teacher)))
        optimizer.step()
    best = Route(RouteConfig.parse({**route.config.model_dump(), "keep": 1}, "route"))
    best.queries, best.keys = route.queries, route.keys
    shares = best.attention(list(student.values()), list(teacher.values()))
    assert (shares.argmax(2) == TAPS.index("b")).all()
    assert best(outputs_of(**student), targets_of(**teacher)).item() == pytest.approx(0, abs=1e-12)


def test_it_does_not_change_with_the_scale_of_a_map_but_for_the_attention() -> None:
    student, teacher = {"x": maps(noise(2, 4, 4, 4, seed=10))}, {"a": teachers()["a"]}
    larger = {"x": replace(student["x"], values=7.0 * student["x"].values)}
    route = routed(student, teacher)
    targets = targets_of(**teacher)
    torch.testing.assert_close(
        route(outputs_of(**larger), targets), route(outputs_of(**student), targets)
    )


def test_tokens_are_maps_and_prefix_tokens_are_left_out() -> None:
    values = noise(2, 4, 2, 2, seed=11)
    patches = values.flatten(2).transpose(1, 2)
    longer = torch.cat([noise(2, 1, 4, seed=12), patches], 1)
    teacher = {"a": teachers()["a"]}
    route = routed({"x": maps(values)}, teacher)
    losses = [
        route(outputs_of(x=student), targets_of(**teacher))
        for student in (maps(values), tokens(longer, prefix=1))
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    "teacher",
    [
        vector(noise(2, 3, seed=13)),
        maps(noise(2, 1, 2, 2, seed=14), reduction="energy"),
        tokens(noise(2, 2, 3, seed=15), grid=2, positions=torch.tensor([[0, 1], [2, 3]])),
    ],
)
def test_what_is_no_whole_map_is_refused(teacher: Features) -> None:
    with pytest.raises(UsageError, match="do not fit the cached activations"):
        routed({"x": maps(noise(2, 3, 2, 2, seed=16))}, {"a": teacher})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"taps": ["a", "a"]}, "given twice"),
        ({"keep": 2}, "there are 1 layers"),
        ({"keep": 0}, "keep"),
    ],
)
def test_a_configuration_that_is_none_is_explained(values: object, message: str) -> None:
    known = {"teacher": "t", "taps": ["a"]}
    with pytest.raises(UsageError, match=message):
        RouteConfig.parse({**known, **values}, "route")  # type: ignore[dict-item]


def test_before_it_is_fitted_it_says_what_is_missing() -> None:
    with pytest.raises(UsageError, match="call fit"):
        Route(RouteConfig(teacher="t", taps=["a"]))(
            outputs_of(a=teachers()["a"]), targets_of(**teachers())
        )
