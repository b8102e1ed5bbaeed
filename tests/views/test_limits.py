"""Within its limits every recipe can be rendered, and outside of them none can be expressed."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

from logitcache.draws import Purpose, words
from logitcache.errors import CacheError, UnreadableImage, UsageError
from logitcache.views import erase, geometry
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.operations import (
    CROPS,
    MAX_SIDE,
    OPERATIONS,
    BorderCrop,
    CentralCrop,
    Mixing,
    Operation,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    SquashCrop,
    operation_from_json,
    operation_to_json,
)
from logitcache.views.randaugment import LEVELS
from logitcache.views.render import finish, picture
from logitcache.views.resample import resized_window
from logitcache.views.spec import View, ViewsConfig, parse_view
from tests.views.limits_table import PAGE, page, properties

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from logitcache.views.spec import Interpolation

IMAGES = [(1, 1), (1, 500), (37, 23)]
SIZE = 13
CROP = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))
ENDS = ("low", "high")


def end_of(schema: dict[str, Any], end: str) -> Any:
    """Return a value at the lower or the upper end of what a JSON schema allows."""
    if "anyOf" in schema:
        return end_of(schema["anyOf"][0], end)
    if "enum" in schema:
        return schema["enum"][0 if end == "low" else -1]
    if schema["type"] == "array":
        if "prefixItems" in schema:
            return [end_of(item, end) for item in schema["prefixItems"]]
        return [end_of(schema["items"], end)] * schema["minItems" if end == "low" else "maxItems"]
    bound, toward = ("inimum", math.inf) if end == "low" else ("aximum", -math.inf)
    if f"m{bound}" in schema:
        value = schema[f"m{bound}"]
        return value if schema["type"] == "integer" else float(value)
    return math.nextafter(schema[f"exclusiveM{bound}"], toward)


def values_of(schema: dict[str, Any]) -> SearchStrategy[Any]:
    """Draw values that a JSON schema allows, its ends often."""
    if "anyOf" in schema:
        return st.one_of(*(values_of(option) for option in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "null":
        return st.none()
    if schema["type"] == "array":
        if "prefixItems" in schema:
            items = [values_of(item) for item in schema["prefixItems"]]
            drawn = st.tuples(*items).map(list)
            return drawn.map(sorted) if len(items) == 2 else drawn
        fewest, most = schema["minItems"], schema["maxItems"]
        return st.lists(values_of(schema["items"]), min_size=fewest, max_size=most)
    low, high = end_of(schema, "low"), end_of(schema, "high")
    whole = schema["type"] == "integer"
    between: SearchStrategy[Any] = st.integers(low, high) if whole else st.floats(low, high)
    return st.one_of(st.just(low), st.just(high), between)


def consistent(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return values of an operation whose fields go together."""
    if name == RandomErasing.name:
        return {**values, "size": SIZE if values["mode"] == "pixel" else None}
    if name == RandAugment.name and values["weights"] is not None:
        count = min(len(values["names"]), len(values["weights"]))
        cut = {"names": values["names"][:count], "weights": values["weights"][:count]}
        return {**values, **cut, "layers": min(values["layers"], count)}
    return values


def at_the(end: str, name: str) -> Operation:
    """Return an operation with every number at one end of its limits."""
    values = {field: end_of(s, end) for field, s in properties(OPERATIONS[name]).items()}
    return operation_from_json({"op": name, **consistent(name, values)})


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    name = draw(st.sampled_from(sorted(OPERATIONS)))
    schemas = properties(OPERATIONS[name])
    drawn = st.fixed_dictionaries({field: values_of(s) for field, s in schemas.items()})
    values = consistent(name, draw(drawn))
    mixes = ("mixup_alpha", "cutmix_alpha", "cutmix_minmax")
    assume(name != Mixing.name or any(values[field] for field in mixes))
    return operation_from_json({"op": name, **values})


def rendered(operation: Operation, shape: tuple[int, int], size: int, draw: int = 1) -> None:
    """Render a view with one operation, and the crop that comes before it."""
    before = () if isinstance(operation, CROPS) else (CROP,)
    view = View((*before, operation), draw=draw)
    assert parse_view(view.to_json(), "here") == view
    image = torch.arange(3 * math.prod(shape), dtype=torch.int64).to(torch.uint8)
    floats = view_floats(view, np.array([7], dtype=np.uint64))
    how = parameters(view, [row[0].tolist() for row in floats], *shape)
    try:
        own = picture(image.reshape(3, *shape), how, size, view.interpolation)
    except UnreadableImage:
        return  # a very long image has a name for it
    square = finish(own, how, view.interpolation, own.flip(-1))
    assert (square.dtype, square.shape) == (torch.uint8, (3, size, size))


@pytest.mark.requirement("V6.3")
def test_the_table_says_what_the_code_checks() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.views.limits_table"


@pytest.mark.requirement("V6.1", "V7.2")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_renders_at_the_ends_of_its_limits(name: str, end: str) -> None:
    if (name, end) == (Mixing.name, "low"):
        assert at_the(end, name).cutmix_minmax is not None  # type: ignore[union-attr]  # a Mixing
    started = time.monotonic()
    for shape in IMAGES:
        rendered(at_the(end, name), shape, SIZE)
    assert time.monotonic() - started < 10, "a tenth of a second where nothing else is running"


@pytest.mark.requirement("V6.1", "V7.2")
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=150)
@given(operations(), st.sampled_from(IMAGES), st.integers(0, 2**32 - 1))
def test_every_recipe_within_the_limits_renders(
    operation: Operation, shape: tuple[int, int], draw: int
) -> None:
    rendered(operation, shape, SIZE, draw)


@pytest.mark.requirement("V6.2", "V6.3")
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_nothing_beyond_the_limits_can_be_expressed(name: str, end: str) -> None:
    """Every number of every operation, one by one."""
    base = operation_to_json(at_the("high", name))
    outward = -math.inf if end == "low" else math.inf
    for field, schema in properties(OPERATIONS[name]).items():
        for schema_of in schema.get("anyOf", [schema]):
            if schema_of.get("type") not in ("number", "integer"):
                continue
            edge = end_of(schema_of, end)
            beyond = edge - 1 if end == "low" else edge + 1
            if schema_of["type"] == "number":
                beyond = math.nextafter(edge, outward)
            for value in (beyond, math.nan, math.inf, -math.inf, True, str(edge), None, [edge]):
                if value is None and "anyOf" in schema:
                    continue
                with pytest.raises(ValueError, match=r"\w"):
                    operation_from_json({**base, field: value})


@pytest.mark.requirement("V6.3", "V6.4")
@pytest.mark.parametrize(
    "values",
    [
        {"op": "blur", "radius": [1e12, 1e12], "p": 1.0},  # a segmentation fault of Pillow
        {"op": "blur", "radius": [1e308, 1e308], "p": 1.0},
        {"op": "squash_crop", "crop_pct": 1e-300},
        {"op": "random_resized_crop", "scale": [0.1, 1.0], "ratio": [5e-324, 1.0]},
        {"op": "random_resized_crop", "scale": [1.0, 0.1], "ratio": [0.5, 2.0]},
        {
            "op": "mix",
            "mixup_alpha": 0.0,
            "cutmix_alpha": 0.0,
            "cutmix_minmax": None,
            "p": 1.0,
            "switch": 0.5,
        },
        {**operation_to_json(RandomErasing(1.0)), "mode": "pixel"},
        {**operation_to_json(RandomErasing(1.0)), "size": 32},
        {**operation_to_json(RandomErasing(1.0)), "deviation": [1e308, 1.0, 1.0]},
        {
            **operation_to_json(RandAugment(("Rotate",), (1.0,), 1, 9.0, 0.5, 10.0, 1.0)),
            "names": ["Twist"],
        },
        {
            **operation_to_json(RandAugment(("Rotate",), (1.0,), 1, 9.0, 0.5, 10.0, 1.0)),
            "layers": 2,
        },
        {
            **operation_to_json(RandAugment(("Rotate",), (1.0,), 1, 9.0, 0.5, 10.0, 1.0)),
            "weights": [1.0, 1.0],
        },
        {
            **operation_to_json(RandAugment(("Rotate",), (1.0,), 1, 9.0, 0.5, 10.0, 1.0)),
            "weights": [5e-324],
        },
    ],
)
def test_recipes_that_no_library_survives_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        operation_from_json(values)


@pytest.mark.requirement("V6.6")
@pytest.mark.parametrize(
    "settings_of_0_1",
    [
        {"seed": 2**64 - 1, "scale": [5e-324, 5e-324], "ratio": [1e-290, 1e290]},
        {"auto_augment": "rand-m30-n16-p1.0-mstd100-mmax30"},
        {"auto_augment": "rand-m0-n1-p0.0-mstdinf"},
        {"auto_augment": "rand-m9-n15-tweights", "color_jitter": 1e38},
        {"color_jitter": [0.0, 0.0, 0.0, 0.5], "color_jitter_prob": 5e-324},
        {"re_prob": 1, "re_count": 64, "re_mode": "pixel", "re_size": MAX_SIDE},
        {"mixup_alpha": 16, "cutmix_alpha": 5e-324, "mix_prob": 1},
        {"cutmix_minmax": [5e-324, 1.0], "switch_prob": 0},
        {"derive": ["rot90(3)", "lowres(64)", "mask(0.999, 64)", "rot90(1.0)", "mask(1e-3,2)"]},
        {"count": 0, "eval": True, "crop_pct": 1e-6, "crop_mode": "border"},
    ],
)
def test_what_the_settings_of_version_0_1_express_is_within_the_limits(
    settings_of_0_1: dict[str, Any],
) -> None:
    for view in ViewsConfig.parse(settings_of_0_1, "views").views():
        assert parse_view(view.to_json(), "here") == view


def test_the_names_of_a_policy_are_those_that_can_be_drawn() -> None:
    assert set(properties(RandAugment)["names"]["items"]["enum"]) == set(LEVELS)


@pytest.mark.parametrize("name", sorted(LEVELS))
def test_a_policy_at_full_strength_renders(name: str) -> None:
    """Posterize at more than 20 stands for more than eight bits: it keeps all of them."""
    strongest = {**operation_to_json(at_the("high", "rand_augment")), "names": [name] * 2}
    operation = operation_from_json({**strongest, "weights": None, "layers": 4, "p": 1.0})
    for std in (0.0, 100.0):
        rendered(operation_from_json({**operation_to_json(operation), "std": std}), (37, 23), SIZE)


@pytest.mark.requirement("V6.3")
def test_no_view_is_rendered_at_another_size() -> None:
    view = ViewsConfig().random_view(1)
    view.check_sizes([1, MAX_SIDE])
    for size in (0, MAX_SIDE + 1):
        with pytest.raises(UsageError, match="cannot be rendered at this size"):
            view.check_sizes([size])


@pytest.mark.requirement("V6.5")
def test_more_views_than_a_cache_holds_are_refused_before_they_are_made() -> None:
    with pytest.raises(UsageError, match="more views are configured"):
        ViewsConfig(count=2**32 - 1).views()


@pytest.mark.requirement("V4.27", "V4.28", "V7.4")
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (37, 23), (64, 64)])
@pytest.mark.parametrize("share", [0.03, 0.31, 1.0])
def test_large_crops_are_those_of_the_whole_resized_image(
    shape: tuple[int, int], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    image = torch.from_numpy(levels)
    found: dict[int, list[torch.Tensor]] = {}
    for most in (1 << 60, 0):
        monkeypatch.setattr(geometry, "_MOST_PIXELS", most)
        found[most] = [
            geometry.crop_squash(image, share, 24, "bicubic"),
            geometry.crop_border(image, BorderCrop(share), 24, "bicubic"),
            geometry.crop_border(image, BorderCrop(share), 25, "bilinear"),
        ]
    assert all(torch.equal(a, b) for a, b in zip(*found.values(), strict=True))


@pytest.mark.requirement("V6.1")
@pytest.mark.parametrize("operation", [CentralCrop(1e-5), SquashCrop(1e-6), BorderCrop(1e-6)])
def test_the_smallest_crop_takes_bounded_memory(operation: Operation) -> None:
    """The resized image has 25 600 000 x 25 600 000 pixels and more."""
    tracemalloc.start()
    try:
        rendered(operation, (37, 23), 256)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200e6


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(13, 1), (1, 13), (37, 23), (2, 2)])
def test_a_square_of_one_pixel_is_that_of_the_window(
    shape: tuple[int, int], interpolation: Interpolation
) -> None:
    """Torch itself fails with an internal error here, unless channels come last in memory."""
    levels = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    image = torch.from_numpy(levels)
    whole = geometry.crop_squash(image, 1.0, 1, interpolation)
    assert torch.equal(whole, resized_window(image, (1, 1), (0, 0), (1, 1), interpolation))
    assert geometry.low_resolution(image[:, :1, :1], 2, interpolation=interpolation).shape[1:] == (
        1,
        1,
    )


@pytest.mark.requirement("V4.16")
def test_noise_is_the_same_whatever_is_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"mean": (1.0, 100.0, 200.0), "deviation": (9.0, 99.0, 0.5)}
    whole = erase._noise_levels(2**53 - 1, (3, 13, 7), **how)
    monkeypatch.setattr(erase, "_NOISE_AT_ONCE", 8)
    assert (erase._noise_levels(2**53 - 1, (3, 13, 7), **how) == whole).all()
    assert erase._noise_levels(5, (3, 0, 7), **how).shape == (3, 0, 7)
    drawn = words(1, [2], draw=3, purpose=Purpose.NOISE, count=20)
    later = words(1, [2], draw=3, purpose=Purpose.NOISE, count=8, first_block=3)
    assert (later == drawn[:, 12:]).all()


_RECIPE = ViewsConfig(derive=["rot90(1)"]).views()


@pytest.mark.requirement("V1.3", "V2.1", "V2.3", "V6.2")
@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        3,
        {},
        {"algorithm": True},
        {"algorithm": 1},
        {"more": 1},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": True},
        {"seed": 1.0},
        {"seed": "1"},
        {"draw": 2**32},
        {"draw": None},
        {"base": 3},
        {"base": "../x"},
        {"base": _RECIPE[0].id},
        {"size": {"rule": "square", "interpolation": "nearest"}},
        {"size": {"rule": "round", "interpolation": "bicubic"}},
        {"size": {"rule": "square", "interpolation": "bicubic", "more": 1}},
        {"size": "square"},
        {"operations": None},
        {"operations": {}},
        {"operations": [3]},
        {"operations": [[["op"]]]},
        {"operations": [{"op": ["grey"]}]},
        {"operations": [{"op": {}}]},
        {"operations": [{"op": "central_crop"}]},
        {"operations": [{"op": "central_crop", "crop_pct": 1}]},  # written otherwise: another id
        {"operations": [{"op": "central_crop", "crop_pct": 1.0, "name": "central_crop"}]},
        {"operations": [{"op": "border_crop", "crop_pct": 1.0}]},  # the fill is missing
        {"operations": [{"op": "central_crop", "crop_pct": 1.0}] * 100_000},
        {"operations": [{"op": "central_crop", "crop_pct": {"a": [{}] * 100_000}}]},
        {"operations": [{"op": "x" * 1_000_000}]},
    ],
)
def test_whatever_is_no_recipe_is_refused_in_no_time(values: Any) -> None:
    changed = isinstance(values, dict) and values and values.get("algorithm") is None
    started = time.monotonic()
    with pytest.raises(CacheError) as caught:
        parse_view({**_RECIPE[0].to_json(), **values} if changed else values, "here")
    assert time.monotonic() - started < 2
    assert caught.value.what.startswith(
        ("the recipe of a view is malformed", "a view has another version")
    )
    assert len(str(caught.value)) < 1000


@pytest.mark.requirement("V2.5")
def test_a_derived_view_names_the_view_it_is_derived_of() -> None:
    base, derived = _RECIPE
    assert derived.base == base.id
    twice = derived.derived(OPERATIONS["lowres"](2.0))  # type: ignore[call-arg, arg-type]
    for view in (base, derived, twice):
        assert parse_view(view.to_json(), "here") == view
    for values in (
        {"base": ViewsConfig().random_view(2).id},
        {"seed": 3},
        {"operations": base.to_json()["operations"]},
    ):
        with pytest.raises(CacheError, match="the recipe of a view is malformed"):
            parse_view({**derived.to_json(), **values}, "here")
