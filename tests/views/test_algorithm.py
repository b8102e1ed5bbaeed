from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.arithmetic import exp2, log2
from logitcache.views.operations import CentralCrop, HorizontalFlip, RandomResizedCrop
from logitcache.views.parameters import Box
from logitcache.views.spec import View, ViewsConfig
from tests.golden import views as golden


@pytest.mark.requirement("V1.2")
def test_golden_vectors() -> None:
    assert golden.vectors() == json.loads(golden.PATH.read_text())


@given(st.floats(-60, 60))
def test_exp2_is_right_to_the_last_bits(x: float) -> None:
    assert exp2(x) == pytest.approx(2.0**x, rel=4e-16)


@given(st.floats(1e-6, 1e6))
def test_log2_is_right_to_the_last_bits(x: float) -> None:
    assert log2(x) == pytest.approx(math.log2(x), rel=4e-16, abs=4e-16)


def drawn_boxes(view: View, height: int, width: int, count: int) -> list[Box]:
    hashes = np.random.default_rng(0).integers(0, 2**64, count, dtype=np.uint64)
    floats = view_floats(view, hashes)
    found = []
    for i in range(count):
        crop = parameters(view, [row[i].tolist() for row in floats], height, width).crop
        assert isinstance(crop, Box)
        found.append(crop)
    return found


@given(
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
)
def test_boxes_lie_inside_the_image(
    height: int, width: int, scale: list[float], ratio: list[float]
) -> None:
    view = View((RandomResizedCrop((scale[0], scale[1]), (ratio[0], ratio[1])),), draw=1)
    for box in drawn_boxes(view, height, width, 5):
        assert box.height >= 1
        assert box.width >= 1
        assert 0 <= box.top <= height - box.height
        assert 0 <= box.left <= width - box.width


def test_areas_and_aspects_have_the_distribution_of_timm() -> None:
    view = View((RandomResizedCrop((0.2, 0.6), (3 / 4, 4 / 3)),), draw=1)
    boxes = drawn_boxes(view, 1000, 1000, 4000)
    areas = np.sort([box.height * box.width / 1e6 for box in boxes])
    logs = np.sort([math.log(box.width / box.height) for box in boxes])
    uniform = np.linspace(0, 1, len(boxes))
    assert abs((areas - 0.2) / 0.4 - uniform).max() < 0.03
    assert abs((logs / math.log(4 / 3) + 1) / 2 - uniform).max() < 0.03


@pytest.mark.requirement("V4.8")
def test_a_ratio_that_never_fits_falls_back_to_the_center() -> None:
    view = View((RandomResizedCrop((1.0, 1.0), (2.0, 3.0)),), draw=1)
    assert drawn_boxes(view, 40, 40, 3) == [Box(10, 0, 20, 40)] * 3
    tall = View((RandomResizedCrop((1.0, 1.0), (0.3, 0.5)),), draw=1)
    assert drawn_boxes(tall, 40, 40, 3) == [Box(0, 10, 40, 20)] * 3


def test_flips_come_with_their_probability() -> None:
    view = View((RandomResizedCrop((1, 1), (1, 1)), HorizontalFlip(0.3)), draw=1)
    hashes = np.random.default_rng(0).integers(0, 2**64, 4000, dtype=np.uint64)
    floats = view_floats(view, hashes)
    flips = [parameters(view, [f[i].tolist() for f in floats], 9, 9).flip for i in range(4000)]
    assert 0.27 < np.mean(flips) < 0.33


@pytest.mark.requirement("F3.12", "V2.2")
def test_a_view_is_known_by_its_recipe() -> None:
    config = ViewsConfig(count=2, eval=True)
    ids = [view.id for view in config.views()]
    assert len(set(ids)) == 3
    assert ids == [view.id for view in ViewsConfig(count=2, eval=True).views()]
    assert ViewsConfig(hflip=0.4).random_view(1).id != ViewsConfig().random_view(1).id
    assert ViewsConfig(seed=1).random_view(1).id != ViewsConfig().random_view(1).id
    # the eval view draws nothing, so it is the same view whatever the seed
    assert ViewsConfig(seed=1).eval_view().id == ViewsConfig().eval_view().id


def test_eval_draws_no_words() -> None:
    view = View((CentralCrop(0.9),))
    (floats,) = view_floats(view, np.arange(3, dtype=np.uint64))
    assert floats.shape == (3, 0)
    assert parameters(view, [[]], 5, 5).crop == CentralCrop(0.9)
