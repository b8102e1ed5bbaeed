from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.config import Config
from logitcache.encoding.arrays import filled
from logitcache.encoding.feature_choice import FeatureConfig, feature_encoding
from logitcache.encoding.features import FeatureEncoding, Values, parse_features
from logitcache.encoding.principal_components import Principal
from logitcache.errors import CacheError, FeatureOverflow, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPES: dict[str, tuple[int, ...]] = {"NCHW": (5, 3, 3), "NLC": (7, 4), "vector": (6,)}


@st.composite
def features(draw: st.DrawFn) -> tuple[FeatureEncoding, NDArray[np.float32]]:
    layout: Any = draw(st.sampled_from(["NCHW", "NLC", "vector"]))
    values: Any = draw(st.sampled_from(["float16", "bfloat16", "int8"]))
    axes: Any = draw(st.sampled_from(["channels", "positions"]))
    if layout == "vector":
        axes = "channels"
    encoding = FeatureEncoding(layout, SHAPES[layout], values, axes)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = generator.normal(size=(draw(st.integers(1, 4)), *encoding.shape))
    rows *= draw(st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 900.0]))
    if draw(st.booleans()):
        rows = np.maximum(rows, 0)
    return encoding, rows.astype(np.float32)


@pytest.mark.requirement("F8.9", "F8.10")
@given(features())
def test_coding_is_off_by_no_more_than_its_step(
    case: tuple[FeatureEncoding, NDArray[np.float32]],
) -> None:
    encoding, rows = case
    stored = encoding.encode(rows)
    specs = encoding.specs()
    assert set(stored) == set(specs)
    for name, array in stored.items():
        assert array.dtype == specs[name].dtype
        assert array.shape == (len(rows), *specs[name].shape)
    error = np.abs(encoding.decode(stored) - rows)
    if encoding.values == "int8":
        of_channels = encoding.scale_axes == "positions"
        shared: tuple[int, ...] = {
            "NCHW": (2, 3) if of_channels else (1,),
            "NLC": (1,) if of_channels else (2,),
            "vector": (1,),
        }[encoding.layout]
        peak = np.abs(rows).max(axis=shared, keepdims=True)
        # half a step; it is peak / 127 rounded up to float16, which has 11 bits, or 2^-24 if small
        bound = (peak / 127 * (1 + 2**-10) + 2.0**-24) / 2
    else:
        bound = np.abs(rows) * (2.0**-11 if encoding.values == "float16" else 2.0**-8)
        bound = bound + (2.0**-24 if encoding.values == "float16" else 0)
    assert (error <= bound * (1 + 1e-6)).all()


@given(features())
def test_coding_twice_changes_nothing(case: tuple[FeatureEncoding, NDArray[np.float32]]) -> None:
    encoding, rows = case
    if encoding.values == "int8":
        return  # a smaller peak may get a smaller scale
    once = encoding.decode(encoding.encode(rows))
    np.testing.assert_array_equal(encoding.decode(encoding.encode(once)), once)


@pytest.mark.requirement("F8.9")
def test_bfloat16_rounds_half_to_even_like_torch() -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 1e30
    values[:2] = [1.00390625, 1.01171875]  # halfway between two
    encoding = FeatureEncoding("vector", (1000,), "bfloat16")
    ours = encoding.decode(encoding.encode(values[None]))[0]
    np.testing.assert_array_equal(ours, torch.from_numpy(values).bfloat16().float().numpy())


@pytest.mark.requirement("F8.9")
@pytest.mark.parametrize("values", ["float16", "int8"])
def test_what_does_not_fit_says_what_to_use(values: Any) -> None:
    encoding = FeatureEncoding("vector", (2,), values)
    with pytest.raises(FeatureOverflow, match="bfloat16"):
        encoding.encode(np.array([[1.0, 1e9]], dtype=np.float32))


@pytest.mark.requirement("F5.1")
def test_rows_that_are_not_there_are_not_numbers() -> None:
    kinds: tuple[Values, ...] = ("float16", "bfloat16", "int8")
    for values in kinds:
        encoding = FeatureEncoding("NLC", (3, 2), values)
        assert np.isnan(encoding.decode(filled(encoding.specs(), 2))).all()


def _asked(layout: Any, **options: Any) -> FeatureEncoding:
    shape, grid, prefix = {
        "NCHW": ((8, 6, 6), 6, 0),
        "NLC": ((38, 8), 6, 2),
        "vector": ((8,), None, 0),
    }[layout]
    config = FeatureConfig(**options)
    return feature_encoding(config, layout, shape, grid=grid, prefix_tokens=prefix, where="tap")


@pytest.mark.parametrize(
    ("layout", "options", "expected"),
    [
        ("NCHW", {}, ("NCHW", (8, 6, 6), 6, 0, None)),
        ("NCHW", {"pool": 2}, ("NCHW", (8, 2, 2), 2, 0, None)),
        ("NCHW", {"reduce": "mean"}, ("vector", (8,), None, 0, None)),
        ("NCHW", {"reduce": "energy", "pool": 3}, ("NCHW", (1, 3, 3), 3, 0, None)),
        ("NCHW", {"tokens": 10}, ("NLC", (10, 8), 6, 0, 10)),
        ("NCHW", {"tokens": 36}, ("NLC", (36, 8), 6, 0, None)),
        ("NCHW", {"principal": 3}, ("NCHW", (3, 6, 6), 6, 0, None)),
        ("NLC", {}, ("NLC", (38, 8), 6, 2, None)),
        ("NLC", {"prefix": False}, ("NLC", (36, 8), 6, 0, None)),
        ("NLC", {"tokens": 10}, ("NLC", (12, 8), 6, 2, 10)),
        ("NLC", {"tokens": 10, "prefix": False}, ("NLC", (10, 8), 6, 0, 10)),
        ("NLC", {"pool": 3, "tokens": 4}, ("NLC", (6, 8), 3, 2, 4)),
        ("NLC", {"reduce": "mean", "principal": 2}, ("vector", (2,), None, 0, None)),
        ("NLC", {"reduce": "energy"}, ("NCHW", (1, 6, 6), 6, 0, None)),
        ("vector", {}, ("vector", (8,), None, 0, None)),
        ("vector", {"principal": 4}, ("vector", (4,), None, 0, None)),
    ],
)
def test_what_is_asked_for_decides_the_shape(
    layout: str, options: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    encoding = _asked(layout, **options)
    found = (
        encoding.layout,
        encoding.shape,
        encoding.grid,
        encoding.prefix_tokens,
        encoding.kept,
    )
    assert found == expected


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("vector", {"pool": 2}, "does not support pool"),
        ("vector", {"values": "int8", "scale": "channel"}, "does not support scale channel"),
        ("NCHW", {"pool": 7}, "at most 6"),
        ("NCHW", {"tokens": 37}, "at most 36"),
        ("NCHW", {"principal": 8}, "fewer than 8"),
        ("NLC", {"standardize": True}, "standardize requires a feature map"),
    ],
)
def test_what_a_tap_has_not_is_an_error(layout: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _asked(layout, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"reduce": "mean", "pool": 2},
        {"reduce": "energy", "tokens": 2},
        {"principal": 2, "standardize": True},
    ],
)
def test_contradictions_are_errors(options: dict[str, Any]) -> None:
    assert issubclass(FeatureConfig, Config)
    with pytest.raises(UsageError, match=": set "):
        FeatureConfig.parse(options, "features.tap")


def _principal(channels: int = 8, directions: int = 3) -> Principal:
    rows = np.random.default_rng(0).normal(size=(200, channels)) * np.arange(1, channels + 1)
    return Principal.fit(rows + 5, directions)


def test_principal_directions_lose_least_and_are_orthonormal() -> None:
    generator = np.random.default_rng(1)
    rows = generator.normal(size=(500, 2)) @ generator.normal(size=(2, 8)) + 3
    fitted = Principal.fit(rows, 2)
    basis = fitted.basis.astype(np.float64)
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-6)
    again = (rows - fitted.mean) @ basis @ basis.T + fitted.mean
    np.testing.assert_allclose(again, rows, atol=1e-5)
    assert Principal.fit(rows, 2) == fitted


@pytest.mark.requirement("F8.11")
@pytest.mark.parametrize("layout", ["NCHW", "NLC", "vector"])
def test_an_encoding_reads_back_from_json(layout: Any) -> None:
    for options in ({}, {"values": "int8"}, {"principal": 3}, {"values": "bfloat16"}):
        encoding = _asked(layout, **options)
        if encoding.shape[0 if layout == "NCHW" else -1] == 3:
            encoding = replace(encoding, principal=_principal())
        document = json.loads(json.dumps(encoding.to_json()))
        assert parse_features(document, "here") == encoding


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "NHWC"},
        {"shape": [2**15, 2**15]},
        {"shape": []},
        {"values": "float8"},
        {"kept_tokens": 50},
        {"grid": -1},
        {"principal": {"directions": 8, "mean": "AAAA", "basis": "AAAA"}},
        {"principal": {"directions": 8, "mean": "?", "basis": []}},
    ],
)
def test_a_damaged_encoding_is_an_error_of_ours(change: dict[str, Any]) -> None:
    document = _asked("NLC").to_json() | change
    with pytest.raises(CacheError, match="is invalid"):
        parse_features(document, "here")


def test_large_rows_get_small_chunks() -> None:
    assert _asked("vector").specs()["values"].inner == 4096
    large = FeatureEncoding("NLC", (197, 768)).specs()["values"]
    assert large.inner == 4


@pytest.mark.requirement("F8.10")
def test_int8_is_scaled_by_the_largest_number_rounded_up() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5, 2, 2)).astype(np.float32)
    rows[1, :, 0, 0] = 0
    stored = FeatureEncoding("NCHW", (5, 2, 2), "int8").encode(rows)
    for index in np.ndindex(3, 2, 2):
        values = rows[index[0], :, index[1], index[2]]
        exact, scale = abs(values).max() / np.float32(127), stored["scale"][index]
        if not exact:
            assert scale == 1
            continue
        assert np.float32(scale) >= exact > np.float32(np.nextafter(scale, np.float16(0)))
        levels = np.clip(np.rint(values / np.float32(scale)), -127, 127)
        assert (stored["values"][index[0], :, index[1], index[2]] == levels).all()


@pytest.mark.requirement("F8.9")
def test_float16_rounds_half_to_even_and_bfloat16_has_no_largest_number() -> None:
    values = np.array([[2049.0, 2051.0, 1e30]], dtype=np.float32)
    stored = FeatureEncoding("vector", (2,)).encode(values[:, :2])["values"]
    assert stored.tolist() == [[2048.0, 2052.0]]
    wide = FeatureEncoding("vector", (3,), "bfloat16").encode(values)["values"]
    assert wide.dtype == np.uint16
    assert (wide == [[0x4500, 0x4500, 0x714A]]).all()
