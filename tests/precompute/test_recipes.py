"""Views of another recipe come into a cache only on request; more draws of the same one do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.errors import UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


def config(cache: Path, images: Path, teachers: Teachers, **fields: Any) -> PrecomputeConfig:
    values = {"cache": str(cache), "data": str(images), "unit_rows": 16, "teachers": teachers}
    return PrecomputeConfig.parse({**values, **fields}, "")


@pytest.fixture
def one(teachers: Teachers) -> Teachers:
    return {"cnn": teachers["cnn"]}


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ({"count": 1}, {"count": 1, "mixup_alpha": 0.8}, "with mix"),
        ({"count": 1, "mixup_alpha": 0.8}, {"count": 1}, "without mix"),
        ({"count": 1}, {"count": 1, "seed": 3}, "seed 3 instead of 0"),
        ({"count": 1}, {"count": 1, "hflip": 0.25}, "p 0.25 instead of 0.5"),
        ({"count": 1}, {"count": 1, "scale": [0.35, 1.0]}, "scale [0.35, 1.0] instead of"),
        ({"count": 1}, {"count": 1, "interpolation": "bilinear"}, "bilinear instead of bicubic"),
        ({"count": 1}, {"count": 0, "eval": True}, "without random_resized_crop"),
        (
            {"count": 0, "eval": True},
            {"count": 0, "eval": True, "crop_pct": 1.0},
            "crop_pct 1.0 instead of 0.875",
        ),
        ({"count": 1}, {"count": 1, "derive": ["rot90(1)"]}, "with rot90"),
    ],
)
def test_another_recipe_is_refused_before_anything_is_computed(
    images: Path,
    one: Teachers,
    tmp_path: Path,
    before: dict[str, Any],
    after: dict[str, Any],
    difference: str,
) -> None:
    cache = tmp_path / "c"
    build_cache(config(cache, images, one, views=before))
    stored = {path: path.read_bytes() for path in cache.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="--add-views") as found:
        build_cache(config(cache, images, one, views=after))
    assert difference in str(found.value.got)
    assert {p: p.read_bytes() for p in cache.rglob("*") if p.is_file()} == stored
    done = build_cache(config(cache, images, one, views=after, add_views=True))
    assert any(difference in note for note in done.notes)
    assert len(open_cache(cache).views) == 2
    again = build_cache(config(cache, images, one, views=after))
    assert again.computed == 0, "what is there is not another recipe any more"


def test_more_draws_and_more_teachers_need_no_request(
    images: Path, one: Teachers, teachers: Teachers, tmp_path: Path
) -> None:
    cache = tmp_path / "c"
    shape = {"mixup_alpha": 0.8, "derive": ["lowres(2)"], "eval": True}
    build_cache(config(cache, images, one, views={"count": 1, **shape}))
    build_cache(config(cache, images, one, views={"count": 2, **shape}))
    build_cache(config(cache, images, teachers, views={"count": 2, **shape}))
    assert len(open_cache(cache).views) == 5
