"""Images as targets: a student's map is enlarged by pixel shuffle and compared with the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.batch import PIXELS, Features, Outputs, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.feature_match import Match, MatchConfig
from logitcache.objectives.term import Needs

if TYPE_CHECKING:
    from torch import Tensor

B, D, SIDE, FACTOR = 2, 5, 2, 3
GENERATOR = torch.Generator().manual_seed(0)
MAP = torch.randn(B, D, SIDE, SIDE, dtype=torch.float64, generator=GENERATOR)
IMAGE = torch.randn(B, 3, SIDE * FACTOR, SIDE * FACTOR, dtype=torch.float64, generator=GENERATOR)
TERM: dict[str, Any] = {
    "against": "pixels",
    "student": "layer1",
    "projector": "pixel-shuffle",
    "metric": "l1",
}


def outputs(values: Tensor = MAP) -> Outputs:
    layout = Features(values, "NCHW", grid=values.shape[-1])
    return Outputs(torch.zeros(len(values), 2), {"layer1": layout})


def targets(image: Tensor = IMAGE, features: dict[str, Features] | None = None) -> TargetBatch:
    pixels = Features(image, "NCHW", grid=image.shape[-1])
    rows = torch.arange(len(image))
    return TargetBatch(rows, -torch.ones_like(rows), {}, features=features or {PIXELS: pixels})


def built(**options: Any) -> Match:
    torch.manual_seed(1)
    loss = Match(MatchConfig.model_validate({**TERM, **options}))
    loss.fit(outputs(MAP[:1].float()), targets(IMAGE[:1].float()))
    return loss.double()


def enlarged(loss: Match, image: int, channel: int, row: int, column: int) -> tuple[float, float]:
    """Return the value of one pixel before and after the PReLU, by plain loops."""
    projector: Any = loss.projector
    convolution, _, activation = projector.network
    i, j = row % FACTOR, column % FACTOR
    output = channel * FACTOR**2 + i * FACTOR + j
    total = 0.0
    for d in range(D):
        weight = float(convolution.weight[output, d, 0, 0])
        total += weight * float(MAP[image, d, row // FACTOR, column // FACTOR])
    slope = float(activation.weight[channel])
    return total, total if total > 0 else slope * total


@torch.no_grad()
def by_loops(loss: Match) -> tuple[float, Tensor]:
    """Return the mean absolute difference from the pixels, and its gradient at the map."""
    projector: Any = loss.projector
    convolution, _, activation = projector.network
    side, total, gradient = SIDE * FACTOR, 0.0, torch.zeros_like(MAP)
    for b in range(B):
        for e in range(3):
            for row in range(side):
                for column in range(side):
                    before, value = enlarged(loss, b, e, row, column)
                    off = value - float(IMAGE[b, e, row, column])
                    total += abs(off)
                    slope = 1.0 if before > 0 else float(activation.weight[e])
                    output = e * FACTOR**2 + row % FACTOR * FACTOR + column % FACTOR
                    for d in range(D):
                        gradient[b, d, row // FACTOR, column // FACTOR] += (
                            (1 if off > 0 else -1) * slope * convolution.weight[output, d, 0, 0]
                        )
    count = IMAGE.numel()
    return total / count, gradient / count


def test_value_and_gradient_are_those_of_the_plain_loops() -> None:
    loss, values = built(), MAP.clone().requires_grad_()
    found = loss(outputs(values), targets())
    expected, gradient = by_loops(loss)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-12)
    torch.autograd.backward(found)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, gradient, rtol=1e-10, atol=1e-12)


def test_a_map_that_holds_the_image_has_no_loss() -> None:
    """The identity as the convolution: D = 3 s^2 channels are the pixels of a square."""
    image = IMAGE.abs()  # PReLU does not change what is positive
    held = torch.nn.functional.pixel_unshuffle(image, FACTOR)
    loss = Match(MatchConfig.model_validate(TERM))
    loss.fit(outputs(held[:1].float()), targets(image[:1].float()))
    projector: Any = loss.double().projector
    with torch.no_grad():
        projector.network[0].weight.copy_(torch.eye(27)[:, :, None, None])
    assert float(loss(outputs(held), targets(image)).detach()) == 0


def test_tokens_are_enlarged_as_maps_are() -> None:
    loss, patches = built(), MAP.flatten(2).transpose(1, 2)
    with_class_token = torch.cat([torch.full((B, 1, D), 9.0, dtype=torch.float64), patches], 1)
    tokens = Features(with_class_token, "NLC", grid=SIDE, prefix_tokens=1)
    found = loss(Outputs(torch.zeros(B, 2), {"layer1": tokens}), targets())
    torch.testing.assert_close(found, loss(outputs(), targets()))


def test_other_projectors_and_features_take_it_too() -> None:
    """Pixels are a target of any projector, and pixel shuffle one for any map."""
    loss = built(projector="linear")
    assert torch.isfinite(loss(outputs(), targets()))
    cached = {"t/layer0": Features(IMAGE.float(), "NCHW", grid=SIDE * FACTOR)}
    term = {"teacher": "t", "tap": "layer0", "student": "layer1", "projector": "pixel-shuffle"}
    of_teacher = Match(MatchConfig.model_validate(term))
    of_teacher.fit(outputs(MAP.float()), targets(features=cached))
    assert torch.isfinite(of_teacher(outputs(MAP.float()), targets(features=cached)))


def test_pixels_need_no_teacher() -> None:
    objective = build_objective([ObjectiveConfig.parse({"match": TERM}, "")])
    assert objective.needs == Needs(taps=("layer1",), pixels=True)
    assert not objective.needs.asks_teachers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "t"}, "no teacher and no tap"),
        ({"tap": "x"}, "no teacher and no tap"),
        ({"student": None}, "needs the student layer"),
        ({"against": "features"}, "give teacher and tap"),
        ({"against": "image"}, "'features' or 'pixels'"),
    ],
)
def test_a_pair_is_of_a_layer_or_of_pixels(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MatchConfig.parse({**TERM, **options}, "match")


def test_grids_that_are_no_multiple_are_refused() -> None:
    loss = Match(MatchConfig.model_validate(TERM))
    with pytest.raises(UsageError, match="a multiple of the student's"):
        loss.fit(outputs(torch.zeros(1, D, 4, 4)), targets(IMAGE[:1].float()))
    vector = Outputs(torch.zeros(1, 2), {"layer1": Features(torch.zeros(1, D), "vector")})
    with pytest.raises(UsageError, match="square grids"):
        loss.fit(vector, targets(IMAGE[:1].float()))
