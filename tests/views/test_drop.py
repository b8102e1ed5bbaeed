"""Views that drop patches: which ones, in which recipe, and what readers have to know."""

from __future__ import annotations

import hashlib
import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from logitcache.errors import UsageError
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.golden import check_vectors
from logitcache.views.operations import Drop, Mask, RandomResizedCrop
from logitcache.views.parameters import Step
from logitcache.views.render import render
from logitcache.views.spec import View, ViewsConfig, parse_view
from logitcache.views.tokens import kept_tokens, patches_shown, shown_patches
from tests.golden import drops

CROP = RandomResizedCrop((0.08, 1.0), (3 / 4, 4 / 3))
HASHES = np.array([0, 7, 2**63, 2**64 - 1], dtype=np.uint64)

ratios = st.floats(0.01, 0.99)
grids = st.integers(2, 16)


@pytest.mark.requirement("V4.25.1", "V3.3")
@given(ratio=ratios, grid=grids, seed=st.integers(0, 2**64 - 1), draw=st.integers(0, 2**32 - 1))
def test_the_dropped_patches_are_those_with_the_smallest_words(
    ratio: float, grid: int, seed: int, draw: int
) -> None:
    view = View((CROP, Drop(ratio, grid)), seed, draw)
    shown = shown_patches(view, HASHES)
    assert shown is not None
    assert shown.grid == grid
    count = min(max(1, round(ratio * grid**2)), grid**2 - 1)
    for row, indices in zip(HASHES, shown.indices, strict=True):
        generator = np.random.Philox(
            key=np.array([seed, row], dtype=np.uint64),
            counter=np.array([0, draw, 11, 0], dtype=np.uint64),
        )
        words = [int(word) >> 11 for word in generator.random_raw(grid**2)]
        dropped = sorted(range(grid**2), key=words.__getitem__)[:count]
        assert indices.tolist() == sorted(set(range(grid**2)) - set(dropped))


@given(ratio=st.floats(0.1, 0.9), grid=st.integers(3, 16), draw=st.integers(1, 9))
def test_a_mask_covers_the_patches_that_a_drop_drops(ratio: float, grid: int, draw: int) -> None:
    steps = {}
    for operation in (Mask(ratio, grid), Drop(ratio, grid)):
        view = View((CROP, operation), draw=draw)
        floats = [rows[1].tolist() for rows in view_floats(view, HASHES)]
        (steps[operation.name],) = parameters(view, floats, 40, 30).steps
    assert steps["mask"].values[0] == steps["drop"].values[0] == grid
    assert steps["mask"].values[4:] == steps["drop"].values[1:]


@pytest.mark.requirement("V7.13.1")
def test_a_drop_leaves_the_pixels_as_they_are() -> None:
    image = torch.arange(3 * 40 * 30).remainder(251).to(torch.uint8).reshape(3, 40, 30)
    view = View((CROP, Drop(0.75, 4)), draw=1)
    how = parameters(view, [f[0].tolist() for f in view_floats(view, HASHES)], 40, 30)
    assert [step.name for step in how.steps] == ["drop"]
    whole = parameters(
        View((CROP,), draw=1), [f[0].tolist() for f in view_floats(view, HASHES)][:1], 40, 30
    )
    assert torch.equal(render(image, how, 16, "bicubic"), render(image, whole, 16, "bicubic"))


@given(ratio=ratios, grid=grids)
def test_settings_and_recipe_lead_to_the_same_view(ratio: float, grid: int) -> None:
    config = ViewsConfig(count=2, patch_drop_rate=ratio, patch_drop_grid=grid, mixup_alpha=0.5)
    for view in config.views():
        assert view.operations[-1] == view.dropping == Drop(ratio, grid)
        assert parse_view(json.loads(json.dumps(view.to_json())), "here") == view
    other = ViewsConfig(count=2, patch_drop_rate=ratio, patch_drop_grid=grid + 1, mixup_alpha=0.5)
    assert not {view.id for view in config.views()} & {view.id for view in other.views()}


def test_nothing_is_dropped_by_default() -> None:
    view = ViewsConfig().random_view(1)
    assert view.dropping is None
    assert shown_patches(view, HASHES) is None


@pytest.mark.requirement("F8.7.1")
def test_stored_tokens_of_such_a_view_are_the_visible_ones() -> None:
    view = View((CROP, Drop(0.75, 4)), draw=3)
    shown = shown_patches(view, HASHES)
    assert shown is not None
    assert shown.indices.shape == (4, 4)
    assert np.array_equal(kept_tokens(view, HASHES, 16, 4), shown.indices)
    assert len({tuple(row) for row in shown.indices.tolist()}) > 1, "a draw of its own for each row"


@pytest.mark.requirement("F8.7.1")
def test_views_that_show_other_numbers_of_patches_are_refused() -> None:
    few, many = View((CROP, Drop(0.75, 4))), View((CROP, Drop(0.5, 4)))
    assert patches_shown([few, View((CROP, Drop(0.75, 4)), draw=2)]) == (4, 4)
    assert patches_shown([View((CROP,))]) is None
    for views in ([few, many], [few, View((CROP,))]):
        with pytest.raises(UsageError, match="different numbers of patches"):
            patches_shown(views)


def test_the_golden_vectors_hold() -> None:
    report = check_vectors([drops.PATH])
    assert report.vectors == len(drops.vectors()) > 2
    assert report.sound, report.to_json()


def test_the_golden_vectors_are_those_that_were_written_first() -> None:
    digest = hashlib.sha256(drops.PATH.read_bytes()).hexdigest()
    assert digest[:16] == drops.DIGEST, "golden vectors are written once"


def test_a_step_names_the_dropped_patches_in_the_parameters() -> None:
    entry = json.loads(drops.PATH.read_text())[0]
    (step,) = (step for step in entry["parameters"]["after"] if step[0] == "drop")
    assert Step(step[0], tuple(step[1:])).values[0] == entry["view"]["operations"][-1]["grid"]
