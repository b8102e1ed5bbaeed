"""Formulas of docs/views.md, computed here from the text of the page, to the same bits."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache.draws import Purpose, chosen
from logitcache.views.algorithm import address_of, parameters, view_floats
from logitcache.views.arithmetic import cosine, exp2, log2, normal_quantile, sine
from logitcache.views.mix import match_partners, mix_squares
from logitcache.views.operations import (
    CentralCrop,
    ColorJitter,
    Grey,
    HorizontalFlip,
    LowRes,
    Mask,
    Mixing,
    RandAugment,
    RandomBlur,
    RandomErasing,
    RandomResizedCrop,
    Rot90,
    VerticalFlip,
)
from logitcache.views.parameters import Box, Mix, Parameters, Step
from logitcache.views.randaugment import LEVELS
from logitcache.views.render import render
from logitcache.views.spec import View, ViewsConfig, parse_view
from logitcache.views.tokens import kept_tokens
from tests.views.limits_table import PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.views.operations import Operation

COEFFICIENTS = dict(re.findall(r"\| (\d+) \| ([\d.e-]+) (?=\|)", PAGE.read_text()))
HASHES = [0, 7, 2**64 - 1, 0x0123456789ABCDEF, *range(100, 140)]
SEED, DRAW = 2**63 + 11, 5
CROP = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))


def drawn(purpose: int, hash_: int, count: int) -> list[float]:
    """Return unit floats of numpy's generator, as the page has them."""
    generator = np.random.Philox(
        key=np.array([SEED, hash_], dtype=np.uint64),
        counter=np.array([0, DRAW, purpose, 0], dtype=np.uint64),
    )
    return [(int(word) >> 11) * 2.0**-53 for word in generator.random_raw(count)]


def found(operation: Operation, hash_: int, height: int = 30, width: int = 47) -> Parameters:
    """Return the parameters that the package draws of one operation."""
    before = () if isinstance(operation, RandomResizedCrop) else (CROP,)
    view = View((*before, operation), SEED, DRAW)
    floats = view_floats(view, np.array([hash_], dtype=np.uint64))
    return parameters(view, [row[0].tolist() for row in floats], height, width)


def log2_of_the_page(x: float) -> float:
    m, e = math.frexp(x)
    if m < 0.7071067811865476:
        m, e = m * 2, e - 1
    s = (m - 1) / (m + 1)
    q, t = s * s, 0.0
    for odd in range(25, 0, -2):
        t = t * q + 1 / odd
    return e + 2.8853900817779268 * (s * t)


def exp2_of_the_page(x: float) -> float:
    n = round(x)
    f = x - n
    t = float(COEFFICIENTS["13"])
    for i in range(12, -1, -1):
        t = t * f + float(COEFFICIENTS[str(i)])
    return math.ldexp(t, n)


def wave_of_the_page(degrees: float, odd: int) -> float:
    x = degrees * 0.017453292519943295
    s, t = x * x, 1.0
    for i in range(15, 0, -1):
        b = 2 * i + odd
        t = 1 - t * s / (b * (b - 1))
    return x * t if odd else t


def power(a: float, b: float) -> float:
    return exp2_of_the_page(max(-1000.0, b * log2_of_the_page(a)))


def beta_of_the_page(alpha: float, floats: Sequence[float]) -> float:
    for pair in range(32):
        u, v = 1 - floats[2 * pair], 1 - floats[2 * pair + 1]
        if alpha <= 1:
            x, y = power(u, 1 / alpha), power(v, 1 / alpha)
            if 0 < x + y <= 1:
                return x / (x + y)
        elif u < 1 and v <= power(4 * u * (1 - u), alpha - 1):
            return u
    return 0.5


@pytest.mark.requirement("V4.1", "V4.2")
@given(st.floats(1e-300, 1e300))
def test_log2_is_the_series_of_the_page(x: float) -> None:
    assert log2(x) == log2_of_the_page(x)


@pytest.mark.requirement("V4.1", "V4.3")
@given(st.floats(-900, 900))
def test_exp2_is_the_polynomial_of_the_page(x: float) -> None:
    assert exp2(x) == exp2_of_the_page(x)


@pytest.mark.requirement("V4.1", "V4.4")
@given(st.floats(-180, 180))
def test_sine_and_cosine_are_the_series_of_the_page(degrees: float) -> None:
    assert sine(degrees) == wave_of_the_page(degrees, 1)
    assert cosine(degrees) == wave_of_the_page(degrees, 0)


@pytest.mark.requirement("V4.5")
@given(st.floats(0, 1, exclude_max=True))
def test_a_deviate_is_that_of_the_middle_of_its_interval(u: float) -> None:
    """AS 241 has 16 digits; intervals have 2^-52, and the flanks are mirrored."""
    from scipy.stats import norm

    p = (math.floor(u * 2**52) + 0.5) * 2.0**-52
    deviate = normal_quantile(u)
    assert deviate == pytest.approx(norm.ppf(p), rel=1e-11, abs=1e-15)
    mirrored = 1 - 2.0**-52 * (math.floor(u * 2**52) + 1)
    if p < 0.5:
        assert normal_quantile(mirrored) == -deviate


@pytest.mark.requirement("V4.7", "V4.8")
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.05, 20.0), (5.0, 6.0), (0.1, 0.11)])
def test_a_crop_is_the_first_attempt_that_fits_or_the_center(ratio: tuple[float, float]) -> None:
    operation = RandomResizedCrop((0.3, 1.0), ratio)
    height, width = 30, 47
    attempts = set()
    for hash_ in HASHES:
        u = drawn(1, hash_, 40)
        expected = None
        for a in range(10):
            area = height * width * (0.3 + u[4 * a] * (1.0 - 0.3))
            low = log2_of_the_page(ratio[0])
            aspect = exp2_of_the_page(low + u[4 * a + 1] * (log2_of_the_page(ratio[1]) - low))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                top, left = (
                    int(u[4 * a + 2] * (height - h + 1)),
                    int(u[4 * a + 3] * (width - w + 1)),
                )
                expected = Box(top, left, h, w)
                break
        attempts.add(None if expected is None else a)
        if expected is None:
            w, h = width, height
            if width / height < ratio[0]:
                h = max(1, round(width / ratio[0]))
            elif width / height > ratio[1]:
                w = max(1, round(height * ratio[1]))
            expected = Box((height - h) // 2, (width - w) // 2, h, w)
        assert found(operation, hash_, height, width).crop == expected
    assert len(attempts) > 1 or attempts == {None}, "later attempts are seen"


@pytest.mark.requirement("V4.10", "V4.14")
def test_flips_grey_and_blur_compare_their_first_float() -> None:
    for hash_ in HASHES:
        steps = found(HorizontalFlip(0.4), hash_).steps
        assert bool(steps) == (drawn(2, hash_, 1)[0] < 0.4)
        steps = found(VerticalFlip(0.4), hash_).steps
        assert bool(steps) == (drawn(12, hash_, 1)[0] < 0.4)
        assert bool(found(Grey(0.4), hash_).steps) == (drawn(5, hash_, 1)[0] < 0.4)
        u0, u1 = drawn(6, hash_, 2)
        expected = (Step("blur", (0.1 + u1 * (2.0 - 0.1),)),) if u0 < 0.4 else ()
        assert found(RandomBlur((0.1, 2.0), 0.4), hash_).steps == expected


@pytest.mark.requirement("V4.11")
@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 0.25, 2.0)])
@pytest.mark.parametrize("std", [0.0, 2.5, None])
def test_a_layer_draws_name_probability_strength_and_direction(
    weights: tuple[float, ...] | None, std: float | None
) -> None:
    names = ("Rotate", "Posterize", "ColorIncreasing", "ShearX")
    operation = RandAugment(names, weights, 3, 7.0, std, 9.0, 0.6)  # type: ignore[arg-type]  # names
    for hash_ in HASHES:
        u = drawn(3, hash_, 12)
        left = list(zip(names, weights or [1.0] * 4, strict=True))
        expected = []
        for layer in range(3):
            u0, u1, u2, u3 = u[4 * layer : 4 * layer + 4]
            cumulated = np.cumsum([weight for _, weight in left])
            index = int(np.argmax(cumulated > u0 * cumulated[-1]))
            name = left[index][0]
            if weights:
                del left[index]
            if u1 >= 0.6:
                continue
            strength = {None: u2 * 7.0, 0.0: 7.0}.get(std, 7.0 + 2.5 * normal_quantile(u2))
            drawn_step: Any = LEVELS[name](max(0.0, min(9.0, strength)) / 10, u3 >= 0.5)
            step, value = drawn_step
            fill = operation.fill if step in ("rotate", "shear_x") else ()
            expected.append(Step(step, (value, *fill)))
        assert found(operation, hash_).steps == tuple(expected)


@pytest.mark.requirement("V4.12")
def test_steps_have_the_strengths_of_the_table() -> None:
    for tenths in (0.0, 0.03, 0.25, 0.5, 0.73, 1.0, 2.4, 3.0):
        for down in (False, True):
            sign = -1 if down else 1
            growing = max(0.1, 1 + sign * (tenths * 0.9))
            solarize = min(256, int(256 * tenths))
            expected: dict[str, Any] = {
                "AutoContrast": "autocontrast",
                "Equalize": "equalize",
                "Invert": "invert",
                "Rotate": ("rotate", sign * (tenths * 30)),
                "ShearX": ("shear_x", sign * (tenths * 0.3)),
                "ShearY": ("shear_y", sign * (tenths * 0.3)),
                "TranslateXRel": ("translate_x", sign * (tenths * 0.45)),
                "TranslateYRel": ("translate_y", sign * (tenths * 0.45)),
                "Posterize": ("posterize", int(4 * tenths)),
                "PosterizeIncreasing": ("posterize", 4 - int(4 * tenths)),
                "Solarize": ("solarize", solarize),
                "SolarizeIncreasing": ("solarize", 256 - solarize),
                "SolarizeAdd": ("solarize_add", min(128, int(110 * tenths))),
                "Desaturate": ("color", 1 - min(1, max(0.5, 0.5 + 0.5 * tenths))),
                "GaussianBlur": ("blur", min(2, max(0.1, 0.1 + 1.9 * tenths))),
            }
            for name in ("Color", "Contrast", "Brightness", "Sharpness"):
                expected[name] = (name.lower(), tenths * 1.8 + 0.1)
                expected[f"{name}Increasing"] = (name.lower(), growing)
            assert expected.keys() == LEVELS.keys()
            assert {name: LEVELS[name](tenths, down) for name in LEVELS} == expected


@pytest.mark.requirement("V4.13")
def test_a_jitter_has_its_order_and_its_factors() -> None:
    operation = ColorJitter((0.6, 1.4), (1.0, 1.0), (0.5, 1.5), 0.1, 0.7)
    for hash_ in HASHES:
        u = drawn(4, hash_, 8)
        order = [0, 1, 2, 3]
        for i in range(3):
            j = i + math.floor(u[1 + i] * (4 - i))
            order[i], order[j] = order[j], order[i]
        steps = {
            0: Step("brightness", (0.6 + u[4] * (1.4 - 0.6),)),
            2: Step("color", (0.5 + u[6] * (1.5 - 0.5),)),
            3: Step("hue", (math.trunc((2 * u[7] - 1) * 0.1 * 255) % 256,)),
        }
        expected = tuple(steps[i] for i in order if i in steps) if u[0] < 0.7 else ()
        assert found(operation, hash_).steps == expected


@pytest.mark.requirement("V4.15", "V4.16")
@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_has_its_boxes_and_its_paint(mode: Any) -> None:
    operation = RandomErasing(0.8, count=3, mode=mode, size=16 if mode == "pixel" else None)
    (a0, a1), (r0, r1) = operation.area, operation.aspect
    low, high = log2_of_the_page(r0), log2_of_the_page(r1)
    for hash_ in HASHES:
        u = drawn(7, hash_, 2 + 44 * 3)
        n = 1 + math.floor(u[1] * 3)
        expected = []
        for box in range(n if u[0] < 0.8 else 0):
            v = u[2 + 44 * box : 46 + 44 * box]
            for i in range(0, 40, 4):
                share = (a0 + v[i] * (a1 - a0)) / n
                aspect = exp2_of_the_page(low + v[i + 1] * (high - low))
                height, width = math.sqrt(share * aspect), math.sqrt(share / aspect)
                if height < 1 and width < 1:
                    break
            else:
                continue
            top, left = v[i + 2] * (1 - height), v[i + 3] * (1 - width)
            place = (top, left, top + height, left + width)
            levels = [
                min(255, max(0, round(fill + deviation * normal_quantile(w))))
                for fill, deviation, w in zip(
                    operation.fill, operation.deviation, v[40:43], strict=True
                )
            ]
            noise = (int(v[43] * 2**53), *operation.fill, *operation.deviation)
            paint = {"const": operation.fill, "rand": levels, "pixel": noise}[mode]
            expected.append(Step("noise" if mode == "pixel" else "erase", (*place, *paint)))
        assert found(operation, hash_).steps == tuple(expected)


@pytest.mark.requirement("V3.3", "V4.16")
def test_noise_is_a_deviate_of_a_word_for_every_level() -> None:
    key, mean, deviation = 2**52 + 3, (120.0, 10.0, 250.0), (50.0, 60.0, 70.0)
    step = Step("noise", (0.25, 0.0, 0.75, 0.5, key, *mean, *deviation))
    square = torch.zeros(3, 8, 8, dtype=torch.uint8)
    painted = render(square, Parameters(Box(0, 0, 8, 8), (step,)), 8, "bicubic")
    generator = np.random.Philox(
        key=np.array([key, 0], dtype=np.uint64), counter=np.array([0, 0, 8, 0], dtype=np.uint64)
    )
    floats = [(int(word) >> 11) * 2.0**-53 for word in generator.random_raw(3 * 4 * 4)]
    levels = [
        min(255, max(0, round(mean[i // 16] + deviation[i // 16] * normal_quantile(u))))
        for i, u in enumerate(floats)
    ]
    assert painted[:, 2:6, 0:4].flatten().tolist() == levels
    assert int(painted.sum()) == sum(levels)


MIXES = [
    Mixing(0.2, 0.0, None, 0.8, 0.5),
    Mixing(3.0, 0.0, None, 1.0, 0.5),
    Mixing(0.001, 0.0, None, 1.0, 0.5),
    Mixing(0.0, 0.7, None, 0.8, 0.5),
    Mixing(0.4, 1.0, None, 1.0, 0.3),
    Mixing(0.4, 0.0, (0.2, 0.7), 1.0, 0.6),
]


@pytest.mark.requirement("V4.6", "V4.18", "V4.19")
@pytest.mark.parametrize("operation", MIXES, ids=str)
def test_shares_and_boxes_are_those_of_the_page(operation: Mixing) -> None:
    for hash_ in HASHES:
        u = drawn(9, hash_, 70)
        boxed = operation.cutmix_alpha > 0 or operation.cutmix_minmax is not None
        expected: Mix | None
        if u[0] >= operation.p:
            expected = None
        elif boxed and (operation.mixup_alpha == 0 or u[1] < operation.switch):
            if operation.cutmix_minmax is None:
                side = math.sqrt(1 - beta_of_the_page(operation.cutmix_alpha, u[6:]))
                top, bottom = max(0.0, u[2] - side / 2), min(1.0, u[2] + side / 2)
                left, right = max(0.0, u[3] - side / 2), min(1.0, u[3] + side / 2)
            else:
                m0, m1 = operation.cutmix_minmax
                height, width = m0 + u[4] * (m1 - m0), m0 + u[5] * (m1 - m0)
                top, left = u[2] * (1 - height), u[3] * (1 - width)
                bottom, right = top + height, left + width
            expected = Mix(1 - (bottom - top) * (right - left), (top, left, bottom, right))
        else:
            expected = Mix(beta_of_the_page(operation.mixup_alpha, u[6:]))
        assert found(operation, hash_).mix == expected


@pytest.mark.requirement("V7.14")
@given(lam=st.floats(0, 1), own=st.integers(0, 255), other=st.integers(0, 255))
def test_mixup_blends_by_65536ths(lam: float, own: int, other: int) -> None:
    one, two = (torch.full((3, 1, 1), level, dtype=torch.uint8) for level in (own, other))
    m = round(65536 * lam)
    expected = (m * own + (65536 - m) * other + 32768) // 65536
    assert mix_squares(one, two, Mix(lam)).flatten().tolist() == [expected] * 3


@pytest.mark.requirement("F5.7", "V4.20")
def test_partners_are_neighbors_in_the_order_of_their_words() -> None:
    hashes = np.array(HASHES[:-1], dtype=np.uint64)
    assert len(hashes) % 2
    generators = (
        np.random.Philox(
            key=np.array([SEED, hash_], dtype=np.uint64),
            counter=np.array([0, DRAW, 10, 0], dtype=np.uint64),
        )
        for hash_ in hashes
    )
    own = [int(generator.random_raw()) for generator in generators]
    order = sorted(range(len(own)), key=own.__getitem__)
    expected = list(range(len(own)))
    for first, second in zip(order[::2], order[1::2], strict=False):
        expected[first], expected[second] = second, first
    assert match_partners(SEED, DRAW, hashes).tolist() == expected


@pytest.mark.requirement("V4.24")
def test_a_mask_covers_the_cells_with_the_smallest_words() -> None:
    for hash_ in HASHES[:8]:
        u = drawn(11, hash_, 49)
        covered = sorted(sorted(range(49), key=u.__getitem__)[: round(0.6 * 49)])
        operation = Mask(0.6, 7)
        assert found(operation, hash_).steps == (Step("mask", (7, *operation.fill, *covered)),)


@pytest.mark.requirement("V7.3", "V7.13")
@pytest.mark.parametrize(("size", "grid"), [(11, 22), (13, 26), (24, 7), (32, 4)])
def test_edges_of_cells_are_rounded_from_the_quotient(size: int, grid: int) -> None:
    square = torch.zeros(3, size, size, dtype=torch.uint8)
    for cell in range(grid):
        diagonal = Step("mask", (grid, 9, 9, 9, cell * grid + cell))
        shown = render(square, Parameters(Box(0, 0, size, size), (diagonal,)), size, "bicubic")
        covered = shown[0].amax(0).nonzero().flatten().tolist()
        assert covered == list(range(round(cell * size / grid), round((cell + 1) * size / grid)))


@pytest.mark.requirement("V7.3", "V7.13")
def test_edges_of_boxes_are_rounded_fractions_of_the_side() -> None:
    square = torch.zeros(3, 24, 24, dtype=torch.uint8)
    place = (0.1, 0.3125, 0.77, 0.9)
    how = Parameters(Box(0, 0, 24, 24), (Step("erase", (*place, 9, 9, 9)),))
    rows, columns = (render(square, how, 24, "bicubic")[0].amax(axis).nonzero() for axis in (1, 0))
    top, left, bottom, right = (round(fraction * 24) for fraction in place)
    assert rows.flatten().tolist() == list(range(top, bottom))
    assert columns.flatten().tolist() == list(range(left, right))


@pytest.mark.requirement("V7.8")
def test_levels_of_tables_are_those_of_the_page() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(3, 1, 1)

    def after(name: str, *values: float) -> list[int]:
        how = Parameters(Box(0, 0, 16, 16), (Step(name, values),))
        shown: list[int] = render(levels, how, 16, "bicubic")[1].flatten().tolist()
        return shown

    assert after("invert") == [255 - v for v in range(256)]
    for bits in (0, 1, 3, 8, 12):
        kept = min(8, bits)
        assert after("posterize", bits) == [v >> (8 - kept) << (8 - kept) for v in range(256)]
    assert after("posterize", -4) == [0] * 256
    for threshold in (0, 100, 256):
        expected = [255 - v if v >= threshold else v for v in range(256)]
        assert after("solarize", threshold) == expected
    expected = [min(255, v + 90) if v < 128 else v for v in range(256)]
    assert after("solarize_add", 90) == expected


@pytest.mark.requirement("V7.17")
def test_a_low_resolution_has_at_least_one_pixel() -> None:
    square = torch.arange(3 * 9 * 9).remainder(251).to(torch.uint8).reshape(3, 9, 9)
    for factor in (2.0, 2.6, 64.0):
        how = Parameters(Box(0, 0, 9, 9), (Step("lowres", (factor,)),))
        shown = render(square, how, 9, "bicubic")
        side = max(1, round(9 / factor))
        small = render(square, Parameters(Box(0, 0, 9, 9)), side, "bicubic")
        assert torch.equal(shown, render(small, Parameters(Box(0, 0, side, side)), 9, "bicubic"))


@pytest.mark.requirement("F8.7", "V3.3")
def test_kept_tokens_are_those_with_the_smallest_words() -> None:
    view = View((CROP,), SEED, DRAW)
    hashes = np.array(HASHES[:6], dtype=np.uint64)
    for row, kept in zip(HASHES[:6], kept_tokens(view, hashes, 25, 9), strict=True):
        generator = np.random.Philox(
            key=np.array([SEED, row], dtype=np.uint64),
            counter=np.array([0, DRAW, 13, 0], dtype=np.uint64),
        )
        own = generator.random_raw(25).tolist()
        assert kept.tolist() == sorted(sorted(range(25), key=own.__getitem__)[:9])


PURPOSES = {
    "CROP": 1,
    "FLIP": 2,
    "RAND_AUGMENT": 3,
    "COLOR_JITTER": 4,
    "GREY": 5,
    "BLUR": 6,
    "ERASING": 7,
    "NOISE": 8,
    "MIX": 9,
    "PARTNER": 10,
    "MASK": 11,
    "VERTICAL_FLIP": 12,
    "TOKENS": 13,
    "VIEW_ORDER": 64,
    "UNIT_ORDER": 65,
    "ROW_ORDER": 66,
    "LABELLED_ROWS": 67,
    "SHUFFLED_TARGETS": 68,
    "RANK_STREAM": 69,
    "SYNTHETIC_IMAGE": 70,
    "VIEW_CHOICE": 71,
}


@pytest.mark.requirement("V3.3", "V3.5")
def test_purposes_have_the_numbers_of_the_page_and_keep_them() -> None:
    assert {purpose.name: purpose.value for purpose in Purpose} == PURPOSES
    section = PAGE.read_text().partition("## Words")[2].partition("## Parameters")[0]
    listed = re.findall(r"^\| [^|]+ \| ([\d, ]+) \|", section, re.M)
    assert [int(n) for row in listed for n in row.split(",")] == list(PURPOSES.values())


@pytest.mark.requirement("V3.3")
def test_operations_draw_as_many_words_as_the_page_lists() -> None:
    policy = RandAugment(("Rotate",), None, 5, 9.0, 0.5, 10.0, 0.5)
    expected: list[tuple[Operation, int, int]] = [
        (CROP, 1, 40),
        (HorizontalFlip(0.5), 2, 1),
        (VerticalFlip(0.5), 12, 1),
        (policy, 3, 4 * 5),
        (ColorJitter((0.5, 1.5), (0.5, 1.5), (0.5, 1.5), 0.0, 1.0), 4, 8),
        (Grey(0.5), 5, 1),
        (RandomBlur((0.1, 2.0), 0.5), 6, 2),
        (RandomErasing(0.5, count=4), 7, 2 + 44 * 4),
        (MIXES[0], 9, 70),
        (Mask(0.5, 9), 11, 81),
    ]
    for operation, purpose, count in expected:
        assert address_of(operation) == (purpose, count)
    for still in (CentralCrop(0.9), Rot90(1), LowRes(2.0)):
        assert address_of(still)[1] == 0


@pytest.mark.requirement("V3.3")
def test_rows_that_keep_their_label_have_the_smallest_of_one_word() -> None:
    hashes = np.array(HASHES, dtype=np.uint64)
    own = [
        int(
            np.random.Philox(
                key=np.array([SEED, hash_], dtype=np.uint64),
                counter=np.array([0, 0, 67, 0], dtype=np.uint64),
            ).random_raw()
        )
        for hash_ in HASHES
    ]
    expected = sorted(range(len(own)), key=own.__getitem__)[:9]
    assert chosen(SEED, hashes, 9, purpose=Purpose.LABELLED_ROWS).tolist() == expected


@pytest.mark.requirement("F3.12", "V2.1", "V2.2")
def test_an_id_is_the_digest_of_the_canonical_recipe() -> None:
    (recipe,) = re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)
    values = json.loads(recipe)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    expected = "v" + hashlib.sha256(text.encode()).hexdigest()[:16]
    view = parse_view(values, "the page")
    assert view.to_json() == values
    assert view.id == expected
    assert ViewsConfig().random_view(1).id == expected, "the default settings"


@pytest.mark.requirement("V2.1", "V2.6", "V2.7", "V2.8")
def test_settings_become_operations_in_the_order_of_the_page() -> None:
    config = ViewsConfig(
        vflip=0.1,
        auto_augment="rand-m9-n3",
        color_jitter=(0.4, 0.3, 1.5, 0.1),
        grayscale_prob=0.1,
        gaussian_blur_prob=0.2,
        re_prob=0.3,
        mixup_alpha=0.2,
        derive=["rot90(1)"],
        eval=True,
    )
    still, base, turned = config.views()
    names = [operation.name for operation in base.operations]
    assert names == [
        "random_resized_crop",
        "horizontal_flip",
        "vertical_flip",
        "rand_augment",
        "color_jitter",
        "grey",
        "blur",
        "random_erasing",
        "mix",
    ]
    assert [operation.name for operation in turned.operations] == [*names, "rot90"]
    jitter, blur = base.operations[4], base.operations[6]
    assert jitter == ColorJitter((0.6, 1.4), (0.7, 1.3), (0.0, 2.5), 0.1, 1.0)
    assert blur == RandomBlur((0.1, 2.0), 0.2)
    assert (still.seed, still.draw, base.draw) == (0, 0, 1)
    default = ViewsConfig().random_view(1).operations
    assert [operation.name for operation in default] == ["random_resized_crop", "horizontal_flip"]
