"""What policies draw and do, against timm and torchvision: the same operations, levels, ranges."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from timm.data import auto_augment as timm_aa
from timm.data import create_transform
from torchvision.transforms.v2 import functional as v2

from logitcache.errors import UsageError
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.arithmetic import cosine, normal_quantile, normal_quantiles, sine
from logitcache.views.color import COLOR_STEPS
from logitcache.views.geometry import AFFINE_STEPS, crop_border, crop_squash
from logitcache.views.notation import parse_derived, parse_rand_augment
from logitcache.views.operations import BorderCrop, Mask
from logitcache.views.parameters import Box, Parameters, Step
from logitcache.views.randaugment import LEVELS, SETS
from logitcache.views.render import render
from logitcache.views.spec import View, ViewsConfig
from tests.conftest import shape_image

if TYPE_CHECKING:
    from logitcache.views.spec import Interpolation

PICTURE = shape_image(5, (48, 48))
SQUARE = torch.from_numpy(np.array(PICTURE)).permute(2, 0, 1)


def drawn(view: View, count: int, height: int = 50, width: int = 40) -> list[Parameters]:
    hashes = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    rows = [array.tolist() for array in view_floats(view, hashes)]
    return [parameters(view, list(row), height, width) for row in zip(*rows, strict=True)]


def done(*steps: Step) -> torch.Tensor:
    """Do steps to the whole square, at its own size."""
    return render(SQUARE, Parameters(Box(0, 0, 48, 48), steps), 48, "bicubic")


@pytest.mark.requirement("V4.5")
def test_deviates_and_angles_are_right() -> None:
    from scipy.stats import norm

    u = np.random.default_rng(0).random(2000)
    np.testing.assert_allclose(normal_quantiles(u), norm.ppf(u), rtol=1e-9, atol=1e-12)
    assert normal_quantiles(u).tolist() == [normal_quantile(value) for value in u.tolist()]
    assert -8.3 < normal_quantile(0.0) < -8.1
    assert normal_quantile(1 - 2.0**-53) == -normal_quantile(0.0)
    for degrees in range(-180, 181):
        assert sine(degrees) == pytest.approx(np.sin(np.radians(degrees)), abs=1e-15)
        assert cosine(degrees) == pytest.approx(np.cos(np.radians(degrees)), abs=1e-15)


@pytest.mark.requirement("V4.12")
@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("magnitude", [0.0, 2.5, 7.3, 9.0, 10.0])
def test_levels_are_timms(name: str, magnitude: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for down in (False, True):
        monkeypatch.setattr(random, "random", lambda down=down: 0.9 if down else 0.1)
        level_of: Any = timm_aa.LEVEL_TO_ARG[name]
        expected: Any = () if level_of is None else level_of(magnitude, {})
        found: Any = LEVELS[name](magnitude / 10, down)
        if name == "Desaturate":
            expected = (min(1.0, max(0.0, 1.0 - expected[0])),)
        assert (() if isinstance(found, str) else found[1:]) == expected


@pytest.mark.requirement("V7.6", "V7.7", "V7.12")
@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_operations_are_timms(name: str, mode: Interpolation) -> None:
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[mode]
    for level in (0.25, 0.9):
        found = LEVELS[name](level, True)
        step, *value = (found,) if isinstance(found, str) else found
        operation: Any = timm_aa.NAME_TO_OP[name]
        theirs_value = [1.0 - value[0]] if name == "Desaturate" else value
        theirs = operation(PICTURE, *theirs_value, fillcolor=(9, 8, 7), resample=resample)
        if step in AFFINE_STEPS:
            ours = AFFINE_STEPS[step](PICTURE, *value, 9, 8, 7, interpolation=mode)
        elif step == "blur":
            ours = COLOR_STEPS[step](PICTURE, value[0] * 224 / 48)
        else:
            ours = COLOR_STEPS[step](PICTURE, *value)
        assert (np.asarray(ours) == np.asarray(theirs)).all()


def test_posterising_to_no_bit_is_black() -> None:
    assert done(Step("posterize", (0,))).max() == 0


@pytest.mark.requirement("V7.7", "V7.9", "V7.10")
def test_jitter_and_grey_are_torchvisions() -> None:
    view = ViewsConfig(scale=(1, 1), hflip=0, color_jitter=(0.4, 0.3, 0.2, 0.1)).random_view(1)
    adjust = {
        "brightness": v2.adjust_brightness,
        "contrast": v2.adjust_contrast,
        "color": v2.adjust_saturation,
    }
    orders = set()
    for how in drawn(view, 60, 48, 48):
        theirs = PICTURE
        for step in how.steps:
            if step.name == "hue":
                turned = (step.values[0] + 128) % 256 - 128
                theirs = v2.adjust_hue(theirs, turned / 255)
            else:
                theirs = adjust[step.name](theirs, step.values[0])
        ours = render(SQUARE, Parameters(Box(0, 0, 48, 48), how.steps), 48, "bicubic")
        if all(step.values[0] < 128 for step in how.steps if step.name == "hue"):
            assert (ours.permute(1, 2, 0).numpy() == np.asarray(theirs)).all()
        orders.add(tuple(step.name for step in how.steps))
    assert len(orders) > 15
    grey = np.asarray(v2.rgb_to_grayscale(PICTURE, 3))
    assert (done(Step("grey")).permute(1, 2, 0).numpy() == grey).all()


@pytest.mark.requirement("V2.6")
@pytest.mark.parametrize("inc", [0, 1])
def test_rand_augment_in_timms_notation(inc: int) -> None:
    operation = parse_rand_augment(f"rand-m9-n3-p0.7-mstd0.5-mmax12-inc{inc}")
    theirs = timm_aa.rand_augment_transform(f"rand-m9-n3-p0.7-mstd0.5-mmax12-inc{inc}")
    assert list(operation.names) == [op.name for op in theirs.ops]
    first: Any = theirs.ops[0]
    assert (operation.magnitude, operation.std) == (first.magnitude, first.magnitude_std)
    assert (operation.upper, operation.p) == (first.magnitude_max, first.prob)
    assert operation.layers == theirs.num_layers


@pytest.mark.requirement("V2.6", "V4.11")
@pytest.mark.parametrize("name", ["3a", "3aw", "weights"])
def test_the_named_sets_are_timms(name: str) -> None:
    theirs = timm_aa.rand_augment_choices(name)
    assert list(SETS[name]) == list(theirs)
    if isinstance(theirs, dict):
        assert SETS[name] == theirs
        operation = parse_rand_augment(f"rand-m5-n4-p1.0-t{name}")
        view = View((ViewsConfig().random_view(1).operations[0], operation), draw=1)
        for how in drawn(view, 30):
            assert len(how.steps) == 4, "drawn without replacement, all applied"


@pytest.mark.requirement("V2.6", "V4.11")
def test_strengths_follow_m_mstd_and_mmax() -> None:
    def degrees(text: str) -> np.ndarray[Any, Any]:
        operation = parse_rand_augment(text)
        rotating = type(operation)(**{**vars(operation), "names": ("Rotate",), "p": 1.0})
        view = View((ViewsConfig().random_view(1).operations[0], rotating), draw=1)
        return np.abs([step.values[0] for how in drawn(view, 2000) for step in how.steps])

    assert set(degrees("rand-m9").tolist()) == {27.0}
    normal = degrees("rand-m5-mstd1") / 3
    assert (normal.mean(), normal.std()) == (pytest.approx(5, abs=0.1), pytest.approx(1, abs=0.05))
    uniform = degrees("rand-m6-mstd101") / 3
    assert uniform.min() < 0.05
    assert (uniform.max(), uniform.mean()) == (
        pytest.approx(6, abs=0.05),
        pytest.approx(3, abs=0.1),
    )
    assert degrees("rand-m9-mstd5").max() == 30.0
    assert 30.0 < degrees("rand-m9-mstd5-mmax20").max() <= 60.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m3", "only RandAugment"),
        ("rand-x3", r"unknown part 'x3'; the known parts are m, n, p, mstd, mmax, inc, t"),
        ("rand-m1.5", "m has to be a whole number"),
        ("rand-m40", "magnitude"),
        ("rand-tweight", "did you mean 'weights'"),
        ("rand-n9-p2", "less than or equal to 1"),
        ("rand-n16-tweights", "n is 16, but the weighted set has 15"),
    ],
)
def test_notation_that_cannot_be_read_is_explained(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ViewsConfig.parse({"auto_augment": text}, "views")


@pytest.mark.parametrize("text", ["rot45(1)", "rot90", "rot90(5)", "mask(2)", "lowres(2, 3)"])
def test_derived_views_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="derive"):
        ViewsConfig.parse({"derive": [text]}, "views")


@pytest.mark.requirement("V4.15", "V7.13")
def test_erasing_paints_boxes_that_do_not_depend_on_the_size() -> None:
    view = ViewsConfig(re_prob=0.6, re_count=3, hflip=0, re_mode="rand").random_view(4)
    found = drawn(view, 300)
    assert 0.5 < np.mean([len(how.steps) > 0 for how in found]) < 0.7
    boxes = [step.values for how in found for step in how.steps]
    assert all(
        0 <= top < bottom <= 1 and 0 <= left < right <= 1 for top, left, bottom, right, *_ in boxes
    )
    assert {len(how.steps) for how in found} == {0, 1, 2, 3}
    top, left, bottom, right, *color = boxes[0]
    for size in (24, 48, 96):
        painted = render(
            SQUARE, Parameters(Box(0, 0, 48, 48), (Step("erase", boxes[0]),)), size, "bicubic"
        )
        inside = painted[
            :, round(top * size) : round(bottom * size), round(left * size) : round(right * size)
        ]
        assert (inside == torch.tensor(color, dtype=torch.uint8).view(3, 1, 1)).all()
    assert done(Step("erase", boxes[0])).ne(SQUARE).any()


@pytest.mark.requirement("V4.17")
def test_pixel_noise_is_normal_and_bound_to_one_size() -> None:
    config = ViewsConfig(re_prob=1, re_mode="pixel", re_size=48, hflip=0)
    view = config.random_view(1)
    first, second = drawn(view, 2)
    values = (0.0, 0.0, 1.0, 1.0, *first.steps[0].values[4:])
    noise = done(Step("noise", values)).float()
    assert noise.mean((1, 2)).tolist() == pytest.approx([124, 116, 104], abs=5)
    assert 50 < noise.std() < 60
    assert first.steps[0].values[4] != second.steps[0].values[4]
    view.check_sizes([48])
    with pytest.raises(UsageError, match=r"one size only[\s\S]*48 pixels[\s\S]*32 pixels"):
        view.check_sizes([48, 32])
    with pytest.raises(UsageError, match="re_size"):
        ViewsConfig.parse({"re_prob": 0.5, "re_mode": "pixel"}, "views")


@pytest.mark.requirement("V4.24")
def test_masks_cover_their_share_of_cells() -> None:
    view = ViewsConfig(hflip=0).random_view(1).derived(Mask(0.25, 4))
    for how in drawn(view, 5):
        (step,) = how.steps
        covered = done(step).eq(torch.tensor([124, 116, 104], dtype=torch.uint8).view(3, 1, 1))
        cells = covered.all(0).float().reshape(4, 12, 4, 12).mean((1, 3))
        assert int((cells == 1).sum()) == 4


@pytest.mark.requirement("V7.16", "V7.17")
def test_turns_and_low_resolution() -> None:
    turned = done(Step("rot90", (3,)))
    assert torch.equal(turned, torch.rot90(SQUARE, 3, (1, 2)))
    low = done(Step("lowres", (4,)))
    down = v2.resize(SQUARE, [12, 12], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    up = v2.resize(down, [48, 48], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(low, up)


@pytest.mark.requirement("V4.26", "V4.27", "V4.28")
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_eval_is_timms(crop_mode: str, crop_pct: float) -> None:
    """The same window: PIL's resize and torch's differ by a level or two, never by a pixel."""
    config = ViewsConfig.parse(
        {"count": 0, "eval": True, "crop_mode": crop_mode, "crop_pct": crop_pct}, "views"
    )
    for size in ((61, 83), (83, 61), (50, 50)):
        image = shape_image(2, size)
        transform: Any = create_transform(
            32,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            interpolation="bicubic",
            normalize=False,
        )
        view = config.eval_view()
        decoded = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        how = parameters(view, [[]], *decoded.shape[1:])
        ours = render(decoded, how, 32, view.interpolation)
        assert (ours.int() - transform(image).int()).abs().max() <= 2


@pytest.mark.requirement("V4.27", "V4.28")
def test_border_and_squash_keep_the_whole_image() -> None:
    wide = torch.full((3, 20, 40), 200, dtype=torch.uint8)
    bordered = crop_border(wide, BorderCrop(1.0), 16, "bicubic")
    assert (bordered[:, 4:12] == 200).all()
    assert bordered[:, 0, 0].tolist() == [124, 116, 104]
    assert (crop_squash(wide, 1.0, 16, "bicubic") == 200).all()


@pytest.mark.requirement("V2.5", "V2.7", "V4.23", "V4.25")
def test_derived_views_share_the_draws_of_their_base() -> None:
    config = ViewsConfig(
        count=2, eval=True, auto_augment="rand-m9-n2", re_prob=0.5, derive=["rot90(1)", "mask(0.5)"]
    )
    names = [[o.name for o in view.operations][-1] for view in config.views()]
    assert names == ["central_crop", *["random_erasing", "rot90", "mask"] * 2]
    _, base, turned, masked, *_ = config.views()
    assert turned.base == masked.base == base.id
    for own, rotated, covered in zip(
        drawn(base, 20), drawn(turned, 20), drawn(masked, 20), strict=True
    ):
        assert (own.crop, own.steps) == (rotated.crop, rotated.steps[:-1])
        assert own.steps == covered.steps[:-1]
        whole = render(SQUARE, own, 24, "bicubic")
        assert torch.equal(render(SQUARE, rotated, 24, "bicubic"), torch.rot90(whole, 1, (1, 2)))
        shown = render(SQUARE, covered, 24, "bicubic")
        assert int((shown == whole).all(0).sum()) >= 24 * 24 // 2 - 24


def test_derived_notation() -> None:
    assert parse_derived("mask(0.75)") == Mask(0.75)
    assert parse_derived(" mask( 0.75 , 7 )") == Mask(0.75, 7)


@pytest.mark.requirement("V7.11")
@pytest.mark.parametrize("size", [32, 112])
def test_a_blur_counts_in_pixels_of_224(size: int) -> None:
    how = Parameters(Box(0, 0, 48, 48), (Step("blur", (1.5,)),))
    shown = render(SQUARE, how, size, "bicubic")
    sharp = render(SQUARE, Parameters(Box(0, 0, 48, 48)), size, "bicubic")
    picture = Image.fromarray(sharp.permute(1, 2, 0).contiguous().numpy())
    blurred = picture.filter(ImageFilter.GaussianBlur(1.5 * size / 224))
    assert (shown.permute(1, 2, 0).numpy() == np.asarray(blurred)).all()
