"""Stored views: golden vectors, and which part of a recipe is stored."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from logitcache.views.operations import LowRes, Mixing, RandomResizedCrop, Rot90
from logitcache.views.render import BatchRequest
from logitcache.views.spec import View, ViewsConfig, parse_view
from logitcache.views.stored import SquareNumbers, finishing, stored_part, stored_under
from tests.golden.stored_views import PATH, finished, squares, versions

CROP = RandomResizedCrop((0.08, 1.0), (0.75, 4 / 3))


def golden() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(PATH.read_text())
    return found


@pytest.mark.requirement("V9.7", "V9.10")
def test_stored_squares_are_finished_to_the_stated_pixels() -> None:
    """Whatever libraries encoded them."""
    for entry in golden():
        for stated in entry["vectors"]:
            view = parse_view(stated["view"], "")
            encoded = [base64.b64decode(one) for one in stated["jpeg"]]
            assert finished(view, stated["size"], encoded) == stated["sha256"]


@pytest.mark.requirement("V9.5", "V9.6", "V9.10")
def test_stated_libraries_encode_the_stated_squares() -> None:
    listed = [entry for entry in golden() if entry["versions"] == versions()]
    if not listed:
        pytest.skip(f"no squares are listed for {versions()}")
    for stated in listed[0]["vectors"]:
        view = parse_view(stated["view"], "")
        assert stored_under(view) == stated["stored_under"]
        encoded = [base64.b64encode(one).decode() for one in squares(view, stated["size"])]
        assert encoded == stated["jpeg"]


@pytest.mark.requirement("V9.5", "V9.6")
def test_derived_views_share_the_squares_of_what_they_are_derived_from() -> None:
    base = View((CROP, Mixing(0.5, 0.0, None, 1.0, 0.0)), seed=1, draw=4)
    derived = base.derived(Rot90(1))
    twice = derived.derived(LowRes(2.0))
    assert {stored_under(view) for view in (base, derived, twice)} == {base.id}
    assert {stored_part(view).operations for view in (base, derived, twice)} == {(CROP,)}
    assert [o.name for o in finishing(twice).operations] == ["mix", "rot90", "lowres"]
    assert finishing(twice).seed == 1
    assert finishing(twice).draw == 4
    assert finishing(stored_part(base)).operations == ()


def test_views_of_all_settings_are_stored_under_a_declared_id() -> None:
    values = {"eval": True, "count": 3, "mixup_alpha": 0.2, "derive": ["rot90(1)", "mask(0.5, 4)"]}
    views = ViewsConfig.parse(values, "views").views()
    ids = {view.id for view in views}
    assert {stored_under(view) for view in views} <= ids
    assert len({stored_under(view) for view in views}) == 4


def test_numbers_name_a_view_and_an_image() -> None:
    plain = View((CROP,), draw=1)
    numbers = SquareNumbers(("other", plain.id), 10)
    hashes = np.array([3, 4, 5], dtype=np.uint64)
    found = numbers.request(BatchRequest(plain, np.array([0, -1, 9]), hashes, tag=7))
    assert found.indices.tolist() == [10, -1, 19]
    assert found.tag == 7
    assert [numbers.split(int(number)) for number in found.indices[[0, 2]]] == [
        (plain.id, 0),
        (plain.id, 9),
    ]
