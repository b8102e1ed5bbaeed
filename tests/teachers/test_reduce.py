from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.encoding.feature_choice import FeatureConfig, feature_encoding
from logitcache.encoding.principal_components import Principal
from logitcache.networks.taps import TapShape
from logitcache.teachers.reduce import reduced

if TYPE_CHECKING:
    from logitcache.encoding.features import FeatureEncoding

MAP = TapShape("NCHW", (4, 6, 6), 6)
TOKENS = TapShape("NLC", (38, 4), 6, 2)


def _encoding(tap: TapShape, **options: Any) -> FeatureEncoding:
    config = FeatureConfig(**options)
    return feature_encoding(
        config, tap.layout, tap.shape, grid=tap.grid, prefix_tokens=tap.prefix_tokens, where="tap"
    )


def _rows(tap: TapShape) -> torch.Tensor:
    return torch.randn(3, *tap.shape, generator=torch.Generator().manual_seed(0))


def _patch(rows: torch.Tensor, tap: TapShape, row: int, position: int) -> torch.Tensor:
    if tap.layout == "NLC":
        return rows[row, tap.prefix_tokens + position]
    return rows[row, :, position // 6, position % 6]


@pytest.mark.requirement("F8.7")
@pytest.mark.parametrize("tap", [MAP, TOKENS], ids=["map", "tokens"])
def test_kept_tokens_are_the_patches_that_were_drawn(tap: TapShape) -> None:
    encoding = _encoding(tap, tokens=3)
    positions = torch.tensor([[0, 7, 35], [1, 2, 3], [5, 10, 20]])
    rows = _rows(tap)
    found = reduced(rows, tap, encoding, positions)
    assert tuple(found.shape[1:]) == encoding.shape
    for row in range(3):
        if encoding.prefix_tokens:
            torch.testing.assert_close(found[row, :2], rows[row, :2])
        for index, position in enumerate(positions[row].tolist()):
            expected = _patch(rows, tap, row, position)
            torch.testing.assert_close(found[row, encoding.prefix_tokens + index], expected)


@pytest.mark.requirement("F8.6")
@pytest.mark.parametrize("tap", [MAP, TOKENS], ids=["map", "tokens"])
def test_pooling_averages_neighbors(tap: TapShape) -> None:
    encoding = _encoding(tap, pool=2)
    rows = _rows(tap)
    found = reduced(rows, tap, encoding, None)
    assert tuple(found.shape[1:]) == encoding.shape
    corner = [y * 6 + x for y in range(3) for x in range(3, 6)]  # upper right of 2 x 2
    expected = torch.stack([_patch(rows, tap, 1, position) for position in corner]).mean(0)
    got = found[1, :, 0, 1] if tap.layout == "NCHW" else found[1, tap.prefix_tokens + 1]
    torch.testing.assert_close(got, expected)


@pytest.mark.requirement("F8.5")
@pytest.mark.parametrize("tap", [MAP, TOKENS], ids=["map", "tokens"])
def test_mean_and_energy_leave_class_tokens_out(tap: TapShape) -> None:
    rows = _rows(tap)
    patches = [_patch(rows, tap, 2, position) for position in range(36)]
    mean = reduced(rows, tap, _encoding(tap, reduce="mean"), None)
    torch.testing.assert_close(mean[2], torch.stack(patches).mean(0))
    energy = reduced(rows, tap, _encoding(tap, reduce="energy"), None)
    assert energy.shape == (3, 1, 6, 6)
    torch.testing.assert_close(energy[2, 0, 1, 4], patches[10].square().mean())


@pytest.mark.requirement("F8.4")
def test_standardizing_takes_away_every_channels_own_mean_and_scale() -> None:
    rows = _rows(MAP)
    encoding = _encoding(MAP, standardize=True)
    found = reduced(rows, MAP, encoding, None)
    torch.testing.assert_close(found.mean(dim=(2, 3)), torch.zeros(3, 4), atol=1e-5, rtol=0)
    moved = rows * torch.tensor([1.0, 3.0, 0.5, 9.0]).view(1, 4, 1, 1) + 7
    torch.testing.assert_close(reduced(moved, MAP, encoding, None), found, atol=1e-4, rtol=1e-4)


@pytest.mark.requirement("F8.8")
@pytest.mark.parametrize("tap", [MAP, TOKENS, TapShape("vector", (4,))])
def test_principal_coordinates_are_of_channels(tap: TapShape) -> None:
    generator = np.random.default_rng(0)
    principal = Principal.fit(generator.normal(size=(99, 4)) * [1, 2, 3, 4] + 1, 2)
    encoding = replace(_encoding(tap, principal=2), principal=principal)
    rows = _rows(tap)
    found = reduced(rows, tap, encoding, None)
    assert tuple(found.shape[1:]) == encoding.shape
    last = rows.movedim(1, -1) if tap.layout == "NCHW" else rows
    expected = (last.numpy() - principal.mean) @ principal.basis
    got = found.movedim(1, -1) if tap.layout == "NCHW" else found
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.requirement("F8.6")
def test_cells_of_a_pool_overlap_where_the_side_does_not_divide() -> None:
    """Output cell i covers the input from floor(i H / pool) to ceil((i + 1) H / pool)."""
    tap = TapShape("NCHW", (2, 7, 7), 7)
    encoding = _encoding(tap, pool=3)
    rows = _rows(tap)
    found = reduced(rows, tap, encoding, None)
    for i, j in np.ndindex(3, 3):
        (top, bottom), (left, right) = ((7 * k // 3, -(-7 * (k + 1) // 3)) for k in (i, j))
        expected = rows[:, :, top:bottom, left:right].mean(dim=(2, 3))
        torch.testing.assert_close(found[:, :, i, j], expected)


@pytest.mark.requirement("F8.4")
def test_a_standardized_channel_is_divided_by_a_little_more_than_its_deviation() -> None:
    rows = _rows(MAP) * 1e-6
    found = reduced(rows, MAP, _encoding(MAP, standardize=True), None).numpy()
    exact = rows.numpy().astype(np.float64)
    mean, deviation = (of(exact, axis=(2, 3), keepdims=True) for of in (np.mean, np.std))
    np.testing.assert_allclose(found, (exact - mean) / (deviation + 1e-6), rtol=1e-3, atol=1e-5)
