from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitcache.cache.format.names import Status
from logitcache.cache.read.reader import open_cache
from logitcache.encoding.logits import log_softmax
from logitcache.errors import Interrupted, NonFiniteLogits, UnreadableImage
from tests.precompute import null

ROOT = Path(__file__).parents[2]
FIRST, SECOND = null.VIEWS


@pytest.mark.requirement("F11.8", "F11.11")
def test_killed_at_any_moment_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability", "kills", str(tmp_path), "--count", "6"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["kills"] == 6
    assert report["units"] >= 16
    assert report["by_stage"].keys() == {"build", "top-up", "added teacher"}
    assert report["failures"] == []
    assert report["torch"] is False, "this part of stage 1 works without torch"


@pytest.mark.parametrize("unit_rows", [null.UNIT, null.UNIT // 4])
def test_a_row_holds_the_answer_to_its_own_image(tmp_path: Path, unit_rows: int) -> None:
    null.run(tmp_path, {"t": unit_rows})
    cache = open_cache(tmp_path)
    rows = np.arange(null.ROWS)
    for number, view in enumerate(null.VIEWS):
        encoded = cache.read("t", view, 0, 128)
        exact = log_softmax(null.logits_of(rows, np.full_like(rows, number), "t"))
        expected = cache.teacher("t").encoding.encode(exact[0])
        for name, array in expected.items():
            np.testing.assert_array_equal(encoded[name][: null.ROWS], array)
        np.testing.assert_array_equal(encoded["lse"][: null.ROWS], exact[1].astype(np.float32))
        assert np.isnan(encoded["lse"][null.ROWS :]).all()


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    first = null.NullTeachers()
    null.run(tmp_path, {"t": null.UNIT}, answers=first, views=null.VIEWS[:1])
    assert len(first.requested) == len(set(first.requested))
    again, wider, other = null.NullTeachers(), null.NullTeachers(), null.NullTeachers()
    null.run(tmp_path, {"t": null.UNIT}, answers=again, views=null.VIEWS[:1])
    assert again.requested == []
    null.run(tmp_path, {"t": null.UNIT}, answers=wider)
    assert {view for _, view, _ in wider.requested} == {1}
    null.run(tmp_path, {"t": null.UNIT, "u": 8}, answers=other)
    assert {name for _, _, name in other.requested} == {"u"}


def test_a_wish_to_stop_keeps_what_is_whole(tmp_path: Path) -> None:
    batches = 0

    def stop_in_the_third_unit(_: int) -> None:
        nonlocal batches
        batches += 1
        if batches == 10:
            raise Interrupted("stopped", kept=True)

    with pytest.raises(Interrupted):
        null.run(tmp_path, {"t": null.UNIT}, after_batch=stop_in_the_third_unit)
    writer = null.open_or_create(tmp_path)
    assert writer.missing() == {"samples/-": 3, f"teachers/t/{FIRST}": 3, f"teachers/t/{SECOND}": 3}
    null.run(tmp_path, {"t": null.UNIT})
    null.run(tmp_path.with_name("whole"), {"t": null.UNIT})
    whole = open_cache(tmp_path.with_name("whole"))
    for view in null.VIEWS:
        for name, array in open_cache(tmp_path).read("t", view, 0, 128).items():
            np.testing.assert_array_equal(array, whole.read("t", view, 0, 128)[name])


BAD = {40: UnreadableImage("the image cannot be decoded", got="junk")}


def test_an_unreadable_image_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=r"000040[\s\S]*junk[\s\S]*--on-bad-image skip"):
        null.run(tmp_path, {"t": null.UNIT}, renderer=null.NullRenderer(BAD))
    assert null.open_or_create(tmp_path).missing()["samples/-"] == 3


@pytest.mark.requirement("F5.5")
@pytest.mark.parametrize("unit_rows", [null.UNIT, null.UNIT // 4])
def test_a_skipped_image_is_marked_and_holds_the_fill(tmp_path: Path, unit_rows: int) -> None:
    renderer = null.NullRenderer(BAD)
    null.run(tmp_path, {"t": unit_rows}, renderer=renderer, skip_bad_images=True)
    cache = open_cache(tmp_path)
    assert cache.samples.status[40] == Status.UNREADABLE
    assert len(cache.samples.readable) == null.ROWS - 1
    for view in null.VIEWS:
        encoded = cache.read("t", view, 0, 128)
        assert np.isnan(encoded["lse"][40])
        assert encoded["codes"][40].max() == 0
        assert encoded["codes"][[39, 41]].min() > 0
    null.run(tmp_path, {"t": unit_rows, "u": unit_rows}, renderer=renderer)
    assert np.isnan(open_cache(tmp_path).read("u", SECOND, 0, 128)["lse"][40])


def test_an_image_that_becomes_unreadable_later_is_an_error(tmp_path: Path) -> None:
    null.run(tmp_path, {"t": null.UNIT}, views=null.VIEWS[:1])
    with pytest.raises(UnreadableImage):
        null.run(tmp_path, {"t": null.UNIT}, renderer=null.NullRenderer(BAD), skip_bad_images=True)


@pytest.mark.requirement("F6.1")
def test_nan_stops_the_unit_and_names_teacher_and_image(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLogits, match=rf"teacher 't'[\s\S]*view {FIRST}, 000070"):
        null.run(tmp_path, {"t": null.UNIT}, answers=null.NullTeachers(nan_row=70))
    assert null.open_or_create(tmp_path).missing()[f"teachers/t/{FIRST}"] == 2
    null.run(tmp_path, {"t": null.UNIT})
    assert open_cache(tmp_path).views_of(["t"]) == null.VIEWS


@pytest.mark.requirement("F3.10")
def test_batches_start_with_a_unit_and_end_inside_of_it(tmp_path: Path) -> None:
    class Renderer(null.NullRenderer):
        def batches(self, view_id: str, starts: Any, block: Any) -> Any:
            taken = list(starts)
            seen.update(start - block.start for start in taken)
            return super().batches(view_id, taken, block)

    seen: set[int] = set()
    null.run(tmp_path, {"t": null.UNIT, "u": null.UNIT // 2}, renderer=Renderer())
    assert null.UNIT // 2 % null.BATCH == 0
    assert seen == set(range(0, null.UNIT, null.BATCH))
