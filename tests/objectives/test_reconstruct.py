"""Reconstruction of dropped patches against plain loops over float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from logitcache.batch import PIXELS, Features, Outputs, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, WeightedSum, build_objective
from logitcache.objectives.reconstruct import Reconstruct, ReconstructConfig, patch_values
from tests.objectives.feature_reference import gradient
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens

GRID, SIDE, CHANNELS = 2, 4, 6
VISIBLE = torch.tensor([[2], [0]])
PIXEL_VALUES = noise(2, 3, SIDE, SIDE, seed=1)


def targets(pixels: torch.Tensor = PIXEL_VALUES) -> TargetBatch:
    rows = len(pixels)
    held = {PIXELS: Features(pixels, "NCHW", grid=SIDE)}
    return TargetBatch(torch.arange(rows), torch.zeros(rows, dtype=torch.long), {}, features=held)


def student(values: torch.Tensor, positions: torch.Tensor | None = VISIBLE) -> Outputs:
    """Return tokens of the class and of one visible patch for each row."""
    return outputs_of(norm=tokens(values, prefix=1, grid=GRID, positions=positions))


def fitted(**options: Any) -> Reconstruct:
    torch.manual_seed(0)
    term = Reconstruct(ReconstructConfig(width=8, depth=1, heads=2, **options))
    whole = tokens(torch.zeros(1, 1 + GRID**2, CHANNELS), prefix=1)
    term.fit(outputs_of(norm=whole), targets(torch.zeros(1, 3, SIDE, SIDE)))
    return term.double()


def patches_of(image: list[Any]) -> list[list[float]]:
    """Return the values of every patch: rows, columns, channels."""
    edge = SIDE // GRID
    return [
        [
            image[c][gy * edge + y][gx * edge + x]
            for y in range(edge)
            for x in range(edge)
            for c in range(3)
        ]
        for gy in range(GRID)
        for gx in range(GRID)
    ]


def by_loops(term: Reconstruct, values: torch.Tensor, *, normalize: bool) -> float:
    """The loss with the decoder's linear layers as loops; its blocks are torch's own."""
    decoder: Any = term.decoder
    align, out = decoder["align"], decoder["out"]
    mask, embedding = term.mask_token.tolist(), term.embedding.tolist()
    total, count = 0.0, 0
    for row in range(len(values)):
        own = [
            [
                sum(w * x for w, x in zip(ws, token, strict=True)) + b
                for ws, b in zip(align.weight.tolist(), align.bias.tolist(), strict=True)
            ]
            for token in values[row].tolist()
        ]
        place = int(VISIBLE[row, 0])
        sequence = [own[0], *(own[1] if p == place else mask for p in range(GRID**2))]
        placed = [
            [x + e for x, e in zip(token, place, strict=True)]
            for token, place in zip(sequence, embedding, strict=True)
        ]
        sequence_1LW = torch.tensor([placed], dtype=torch.float64)
        normed = decoder["norm"](decoder["blocks"](sequence_1LW))[0]
        wanted = patches_of(PIXEL_VALUES[row].tolist())
        for patch in range(GRID**2):
            if patch == place:
                continue
            predicted = [
                sum(w * x for w, x in zip(ws, normed[1 + patch].tolist(), strict=True)) + b
                for ws, b in zip(out.weight.tolist(), out.bias.tolist(), strict=True)
            ]
            x = wanted[patch]
            if normalize:
                mean = math.fsum(x) / len(x)
                variance = math.fsum((v - mean) ** 2 for v in x) / (len(x) - 1)
                x = [(v - mean) / math.sqrt(variance + 1e-6) for v in x]
            total += math.fsum((p - v) ** 2 for p, v in zip(predicted, x, strict=True)) / len(x)
            count += 1
    return total / count


@pytest.mark.parametrize("normalize", [True, False])
def test_the_value_and_the_gradient_are_those_of_the_loops(normalize: bool) -> None:
    term = fitted(normalize=normalize)
    values = noise(2, 2, CHANNELS, seed=2).requires_grad_()
    loss = term(student(values), targets())
    assert loss.item() == pytest.approx(
        by_loops(term, values.detach(), normalize=normalize), rel=1e-9
    )
    torch.autograd.backward(loss)
    assert values.grad is not None
    expected = gradient(lambda v: by_loops(term, v, normalize=normalize), values.detach())
    torch.testing.assert_close(values.grad, expected, atol=1e-7, rtol=1e-6)


def test_the_pixels_of_visible_patches_are_no_target() -> None:
    term, values = fitted(), noise(2, 2, CHANNELS, seed=2)
    other = PIXEL_VALUES.clone()
    other[0, :, 2:, :2] += noise(3, 2, 2, seed=3)  # patch 2, the visible one of row 0
    assert term(student(values), targets(other)) == term(student(values), targets())
    other[0, :, :2, :2] += noise(3, 2, 2, seed=3)
    assert term(student(values), targets(other)) != term(student(values), targets())


def test_a_flat_patch_is_normalized_to_zeros() -> None:
    term = fitted()
    loss = term(student(noise(2, 2, CHANNELS, seed=2)), targets(torch.ones_like(PIXEL_VALUES)))
    assert torch.isfinite(loss)


def test_the_values_of_patches_cover_every_pixel_once() -> None:
    image = torch.arange(3 * 8 * 8).reshape(1, 3, 8, 8)
    cut = patch_values(image, 4)
    assert cut.shape == (1, 16, 12)
    assert sorted(cut.flatten().tolist()) == list(range(3 * 8 * 8))
    assert cut[0, 5].tolist() == image[0, :, 2:4, 2:4].permute(1, 2, 0).flatten().tolist()


def test_an_image_without_dropped_patches_is_refused() -> None:
    whole = outputs_of(norm=tokens(noise(2, 5, CHANNELS, seed=2), prefix=1))
    with pytest.raises(UsageError, match="no dropped patches"):
        fitted()(whole, targets())


def test_a_layer_of_maps_is_refused() -> None:
    term = Reconstruct(ReconstructConfig(width=8, depth=1, heads=2))
    with pytest.raises(UsageError, match="does not have tokens"):
        term.fit(outputs_of(norm=maps(torch.zeros(1, 4, 2, 2))), targets())


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 4 and of heads"):
        ReconstructConfig(width=12, heads=8)


# The distance of unit vectors of DMAE, on the patches that both networks were run on.


def distance() -> WeightedSum:
    term = {"teacher": "t", "tap": "b", "student": "norm", "metric": "l1", "normalize": "l2"}
    options = {"match": {**term, "projector": "linear"}}
    built = build_objective([ObjectiveConfig.model_validate(options)])
    whole = tokens(torch.zeros(1, 1 + GRID**2, CHANNELS), prefix=1)
    example = tokens(torch.zeros(1, 2, 5), prefix=1, grid=GRID, positions=torch.zeros(1, 1).long())
    built.fit(outputs_of(norm=whole), targets_of(b=example))
    return built.double()


def test_the_distance_is_zero_where_the_projection_is_a_multiple_of_the_teacher() -> None:
    loss = distance()
    weight, bias = loss.state_dict().values()
    values = noise(2, 2, CHANNELS, seed=4)
    planted = 3.5 * (values @ weight.T + bias)
    teacher = tokens(planted, prefix=1, grid=GRID, positions=VISIBLE)
    assert loss(student(values), targets_of(b=teacher)).item() == pytest.approx(0.0, abs=1e-12)
    turned = tokens(-planted, prefix=1, grid=GRID, positions=VISIBLE)
    assert loss(student(values), targets_of(b=turned)).item() > 0.1


def test_the_distance_is_that_of_the_loops_and_so_is_its_gradient() -> None:
    loss = distance()
    weight, bias = (each.tolist() for each in loss.state_dict().values())
    wanted = noise(2, 2, 5, seed=5)

    def unit(a: list[float]) -> list[float]:
        size = math.sqrt(math.fsum(x * x for x in a))
        return [x / size for x in a]

    def loops(values: torch.Tensor) -> float:
        parts = []
        for own, other in zip(values.tolist(), wanted.tolist(), strict=True):
            for token, target in zip(own, other, strict=True):
                projected = [
                    math.fsum(w * x for w, x in zip(ws, token, strict=True)) + b
                    for ws, b in zip(weight, bias, strict=True)
                ]
                pairs = zip(unit(projected), unit(target), strict=True)
                parts += [abs(p - t) for p, t in pairs]
        return math.fsum(parts) / len(parts)

    values = noise(2, 2, CHANNELS, seed=6).requires_grad_()
    teacher = targets_of(b=tokens(wanted, prefix=1, grid=GRID, positions=VISIBLE))
    found = loss(student(values), teacher)
    assert found.item() == pytest.approx(loops(values.detach()), rel=1e-9)
    torch.autograd.backward(found)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, gradient(loops, values.detach()), atol=1e-7, rtol=1e-6)


def test_a_student_on_some_patches_is_not_compared_with_a_teacher_of_all() -> None:
    whole = targets_of(b=tokens(noise(2, 5, 5, seed=5), prefix=1))
    with pytest.raises(UsageError, match="do not fit") as caught:
        distance()(student(noise(2, 2, CHANNELS, seed=6)), whole)
    assert "patch_drop_rate" in str(caught.value)
