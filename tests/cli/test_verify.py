"""``logitcache verify`` and ``repair`` with images, teachers and assignments."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.read.reader import open_cache
from tests.check.test_audit import change_row, of_another_image
from tests.conftest import jpeg, shape_image
from tests.precompute.test_trust import rotate_labels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

Teachers = dict[str, dict[str, str]]


@pytest.fixture
def red(teachers: Teachers) -> str:
    return f"red={teachers['red']['model']}"


@pytest.fixture
def made(logitcache: Callable[..., Outcome], images: Path, red: str, tmp_path: Path) -> Path:
    """Return a folder with a cache, of 60 images in two views, and its images."""
    shutil.copytree(images, tmp_path / "images")
    done = precomputed(logitcache, tmp_path, red)
    assert done.code == 0, done.err
    return tmp_path


def precomputed(
    logitcache: Callable[..., Outcome], root: Path, teacher: str, *more: object
) -> Outcome:
    where = ["--cache", root / "cache", "--data", root / "images", "--teacher", teacher]
    sizes = ["--views", 1, "--set", "views.eval=true", "--unit-rows", 16, "--batch-size", 8]
    return logitcache("precompute", *where, *sizes, *more)


def test_bytes_are_verified_without_pytorch() -> None:
    script = "import sys; sys.modules['torch'] = None; from logitcache.cli.app import main; main()"
    subprocess.run([sys.executable, "-c", script, "verify", "demo:digits"], check=True)


def test_a_sample_says_what_it_would_find(
    logitcache: Callable[..., Outcome], made: Path, red: str
) -> None:
    verify = ["verify", made / "cache", "--data", made / "images", "--teachers", red]
    some = logitcache(*verify, "--samples", 16, "--threads", 1)
    assert some.code == 0, some.err
    assert (
        "red: 16 of 120 rows compared: if one row in 2000 were changed, this sample would find it "
        "with a probability of 0.8 %; --full compares all rows" in some.out
    )
    every = logitcache(*verify, "--full")
    assert (every.code, "red: 120 of 120 rows compared: every row" in every.out) == (0, True)
    view = logitcache(*verify, "--full", "--views", "1", "--json").json["audits"][0]
    assert (view["samples"], view["pairs"], view["views"], view["all_views"]) == (60, 60, 1, 2)
    assert (view["detection"], view["mismatched"], view["ok"]) == (1.0, 0, True)
    both = logitcache(*verify, "--views", "0-1", "--samples", 20).out
    assert "red: 20 of 120 rows compared: if one row" in both
    first = open_cache(made / "cache").views_of(["red"])[0]
    assert "20 of 60 rows compared in 1 of 2 views" in (
        logitcache(*verify, "--views", first[:8], "--samples", 20).out
    )


def test_a_row_of_another_image_is_named(
    logitcache: Callable[..., Outcome], made: Path, red: str
) -> None:
    cache = open_cache(made / "cache")
    view_id, row = cache.views_of(["red"])[1], int(cache.samples.readable[20])
    change_row(made, "red", view_id, row, of_another_image)
    verify = ["verify", made / "cache", "--data", made / "images", "--teachers", red, "--full"]
    found = logitcache(*verify)
    assert found.code == 4
    assert f"red: {cache.samples.keys[row]} in view {view_id}: targets" in found.out
    assert "1 rows do not match" in found.out
    document = logitcache(*verify, "--json").json
    assert document["ok"] is False
    (mismatch,) = document["audits"][0]["mismatches"]
    assert (mismatch["key"], mismatch["view"]) == (cache.samples.keys[row], view_id)


def test_a_cache_of_some_images_is_verified_against_the_same_ones(
    logitcache: Callable[..., Outcome], images: Path, red: str, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "images")
    limited = precomputed(logitcache, tmp_path, red, "--set", "data.limit=9", "--json")
    assert limited.json["images"] == 9, limited.err
    where = [tmp_path / "cache", "--data", tmp_path / "images", "--set", "data.limit=9"]
    audited = ["--teachers", red, "--set", "teachers.red.size=8"]
    found = logitcache("verify", *where, *audited, "--json")
    assert found.code == 0, found.err
    assert (found.json["images"]["added"], found.json["audits"][0]["samples"]) == ([], 18)
    whole = logitcache("verify", *where[:-2], "--json").json["images"]
    assert len(whole["added"]) == 51
    (tmp_path / "cache/teachers/red/logp/c/0/0/0").write_bytes(b"")
    mended = logitcache("repair", *where, "--teacher", red, "--json")
    assert (mended.code, mended.json["recomputed"]) == (0, 1), mended.err
    other = logitcache("verify", *where, *audited, "--set", "teachers.red.size=16")
    assert (other.code, "input.size 16" in other.err) == (1, True)


@pytest.mark.requirement("F4.10")
def test_classes_are_compared_by_name(
    logitcache: Callable[..., Outcome], red: str, tmp_path: Path
) -> None:
    for number in range(9):
        path = tmp_path / "images" / ("p/x", "q/y", "r/z")[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(shape_image(number)))
    first = "data.class_folder=first"
    done = precomputed(logitcache, tmp_path, red, "--set", first)
    assert done.code == 0, done.err
    verify = ["verify", tmp_path / "cache", "--data", tmp_path / "images", "--set"]
    assert logitcache(*verify, first).code == 0
    other = logitcache(*verify, "data.class_folder=last", "--teachers", red)
    assert other.code == 4, other.err
    assert "images: 9 with a different class: " in other.out
    assert "teachers: not compared" in other.out
    document = logitcache(*verify, "data.class_folder=last", "--json").json
    assert "q/y/1.jpg" in document["images"]["relabeled"]


def test_labels_that_were_rotated_in_a_sealed_cache_are_found(
    logitcache: Callable[..., Outcome], made: Path
) -> None:
    rotate_labels(made / "cache")
    assert logitcache("verify", made / "cache").code == 0, "the bytes are as they were sealed"
    found = logitcache("verify", made / "cache", "--data", made / "images", "--quick")
    assert found.code == 4
    assert "names or labels of the rows from 0 on were changed" in found.out
    assert "images: 60 with a different class" in found.out


def test_files_that_are_not_listed_are_counted(
    logitcache: Callable[..., Outcome], made: Path
) -> None:
    (made / "images" / "bird" / "notes.txt").write_text("none")
    (made / "images" / "bird" / "[1].jpg").write_bytes(jpeg(shape_image(7)))
    verify = ["verify", made / "cache", "--data", made / "images"]
    shown = logitcache(*verify)
    assert shown.code == 0, shown.err
    assert "data: files that are not among the images: 1 " in shown.out
    assert "images: 1 added since, without cached outputs: bird/[1].jpg" in shown.out
    document: dict[str, Any] = logitcache(*verify, "--json").json
    assert list(document["images"]["left_out"].values()) == [1]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--full"], 2, "--full and --views choose rows to compare with a teacher"),
        (["--views", "0"], 2, "--full and --views choose rows to compare with a teacher"),
        (["--set", "data.limt=9"], 2, "did you mean 'limit'"),
        (["--set", "date.limit=9"], 2, "did you mean 'data'"),
        (["--teachers", "RED", "--views", "7"], 2, "no view '7'"),
        (["--teachers", "RED", "--views", "vv"], 2, "no view 'vv'"),
        (["--threads", "0"], 2, "greater than or equal to 1"),
        (["--set", "teachers.redd.size=8"], 2, "did you mean 'red'"),
    ],
)
def test_options_that_cannot_be(
    logitcache: Callable[..., Outcome],
    made: Path,
    red: str,
    more: list[str],
    code: int,
    message: str,
) -> None:
    given = [red if text == "RED" else text for text in more]
    outcome = logitcache("verify", made / "cache", "--data", made / "images", *given)
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err


def test_images_of_every_view_are_chosen_by_number_range_and_id() -> None:
    from logitcache.cache.read.view_selection import choose_views
    from logitcache.errors import UsageError

    ids = [f"v{number:03x}{'0' * 12}" for number in np.arange(12) * 7] + ["v0001", "v0002", "3"]
    assert choose_views(ids, []) == ids
    assert choose_views(ids, ["1", "0"]) == [ids[1], ids[0]]
    assert choose_views(ids, ["2-4", " 3 "]) == [*ids[2:5], "3"], "an id comes before a number"
    assert choose_views(ids, ["v01c", "4"]) == [ids[4]], "each once"
    assert choose_views(ids, ["v0001", "v0000"]) == ["v0001", ids[0]]
    for wanted, message in (
        ("15", "numbers up to 14"),
        ("4-2", "no view '4-2'"),
        ("2-15", "no view '2-15'"),
        ("v01", "at least 4 characters"),
        ("v000", "3 views begin with 'v000'"),
        ("v0003", "'v0002'"),
        ("", "no view ''"),
    ):
        with pytest.raises(UsageError, match=message):
            choose_views(ids, [wanted])
