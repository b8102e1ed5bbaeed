from __future__ import annotations

import json

import pytest

from logitcache.errors import CacheError
from logitcache.views.operations import Mixing, operation_to_json
from logitcache.views.spec import ViewsConfig, parse_view

EVERYTHING = ViewsConfig(
    vflip=0.1,
    auto_augment="rand-m9-mstd0.5-tweights",
    color_jitter=(0.4, 0.4, 0.4, 0.1),
    grayscale_prob=0.1,
    gaussian_blur_prob=0.1,
    re_prob=0.2,
    re_mode="pixel",
    re_size=32,
    mixup_alpha=0.2,
    cutmix_minmax=(0.2, 0.8),
    derive=["rot90(1)", "lowres(2)", "mask(0.5)"],
)


@pytest.mark.parametrize(
    "view",
    [
        *ViewsConfig(count=2, eval=True, hflip=0.0).views(),
        *EVERYTHING.views(),
        ViewsConfig(crop_mode="border").eval_view(),
        ViewsConfig(crop_mode="squash").eval_view(),
    ],
)
def test_a_recipe_survives_json(view: object) -> None:
    values = json.loads(json.dumps(view.to_json()))  # type: ignore[attr-defined]  # a View
    assert parse_view(values, "here") == view


@pytest.mark.requirement("V1.3")
def test_another_algorithm_is_refused_by_name() -> None:
    values = {**ViewsConfig().random_view(1).to_json(), "algorithm": 2}
    with pytest.raises(CacheError, match="another version of the view algorithm"):
        parse_view(values, "here")


_CROP = {"op": "central_crop", "crop_pct": 1.0}
_MIX = operation_to_json(Mixing(1.0, 0.0, None, 1.0, 0.5))


@pytest.mark.requirement("V2.1")
@pytest.mark.parametrize(
    "damage",
    [
        {"operations": [{"op": "twist"}]},
        {"operations": [{}]},
        {"operations": []},
        {"operations": [_CROP, _CROP]},
        {"operations": [{"op": "grey", "p": 0.5}, _CROP]},
        {"operations": [{**_CROP, "crop_pct": "wide"}]},
        {"operations": [{**_CROP, "crop_pct": -1.0}]},
        {"operations": [{**_CROP, "mood": 1}]},
        {"operations": [_CROP, _MIX, {"op": "grey", "p": 0.5}]},
        {"operations": [_CROP, {"op": "grey", "p": 0.5}, {"op": "grey", "p": 0.5}]},
        {"size": {}},
    ],
)
def test_a_malformed_recipe_is_refused(damage: dict[str, object]) -> None:
    with pytest.raises(CacheError, match="recipe of a view is malformed"):
        parse_view({**ViewsConfig().random_view(1).to_json(), **damage}, "here")
