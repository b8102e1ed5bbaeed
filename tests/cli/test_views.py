from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from logitcache.cli.app import app
from logitcache.errors import PixelDrift, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.views import color

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


def views(*arguments: object, fails: type[BaseException] | None = None) -> Any:
    result = CliRunner().invoke(app, ["views", *map(str, arguments)])
    if fails is None:
        assert result.exception is None or isinstance(result.exception, SystemExit)
    else:
        assert isinstance(result.exception, fails)
    return result


@pytest.fixture(scope="module")
def cache(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("views") / "cache"
    values = {
        "cache": str(path),
        "data": str(images),
        "teachers": {"cnn": teachers["cnn"]},
        "views": {"auto_augment": "rand-m9-p1.0", "mixup_alpha": 1.0, "derive": ["rot90(1)"]},
        "unit_rows": 16,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return path


def test_show_prints_what_is_drawn(images: Path, cache: Path) -> None:
    text = views("show", "--data", images, "--cache", cache, "--row", 3).stdout
    assert "row 3, 32 x 40" in text
    assert text.count("own share") == 2
    assert "then:    rot90(1)" in text
    shown = views("show", "--data", images, "--cache", cache, "--row", 3, "--json").stdout
    (image,) = json.loads(shown)["images"]
    base, turned = image["views"]
    assert turned["parameters"]["after"] == [["rot90", 1]]
    assert {**turned["parameters"], "after": []} == base["parameters"]
    assert len(base["parameters"]["steps"]) >= 2
    assert base["partner"] is not None


def test_show_without_a_cache_takes_settings(images: Path) -> None:
    arguments = ["--set", "count=2", "--set", "auto_augment=rand-m9", "--key", "cat/003.jpg"]
    shown = json.loads(views("show", "--data", images, *arguments, "--json").stdout)
    (image,) = shown["images"]
    assert image["key"] == "cat/003.jpg"
    assert [view["draw"] for view in image["views"]] == [1, 2]


def test_a_sheet_has_a_cell_per_image_and_view(images: Path, cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    arguments = ["--data", images, "--images", 3, "--size", 40]
    assert "3 images x 2 views" in views("sheet", *arguments, "--cache", cache, "--out", out).stdout
    with_answers = Image.open(out)
    with_answers.load()
    assert views("sheet", *arguments, "--set", "count=2", "--out", out).exit_code == 0
    alone = Image.open(out)
    alone.load()
    assert with_answers.width == alone.width > 80
    assert with_answers.height > alone.height > 120
    assert len(set(with_answers.convert("L").tobytes())) > 50


def test_a_sheet_names_operations_partners_and_marks_predictions(
    images: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        "logitcache.report.contact_sheet.write_sheet",
        lambda path, columns, rows: drawn.update(columns=columns, rows=rows),
    )
    arguments = ["--data", images, "--cache", cache, "--images", 12]
    views("sheet", *arguments, "--out", tmp_path / "x.png", "--size", 8)
    assert [column[0] for column in drawn["columns"]] == ["view 0, draw 1", "view 1, draw 1"]
    assert "rand_augment" in drawn["columns"][0][1]
    assert drawn["columns"][1][1].endswith("rot90")
    shown = views("show", *arguments[:4], "--row", 3, "--json").stdout
    (image,) = json.loads(shown)["images"]
    (row,) = [row for row in drawn["rows"] if row.title.startswith(image["key"])]
    steps = [step[0] for step in image["views"][0]["parameters"]["steps"]]
    texts = [line.text for line in row.cells[0].lines if line.is_faint]
    assert [text.split()[0] for text in texts[: len(steps)]] == steps
    partner = image["views"][0]["partner"]
    assert texts[-1] == partner
    inset = Image.fromarray(row.cells[0].inset.transpose(1, 2, 0))
    with Image.open(images / partner) as original:
        assert inset.size == original.size
    marks = {"right": 0, "wrong": 0}
    for row in drawn["rows"]:
        label = row.title.partition("[")[2].rstrip("]")
        for cell in row.cells:
            lines = [line for line in cell.lines if not line.is_faint]
            names = [line.text.split()[-1] for line in lines]
            expected = ["right" if name == label else "" for name in names]
            expected[0] = "right" if names[0] == label else "wrong"
            assert [line.mark for line in lines] == expected
            marks[expected[0]] += 1
    assert min(marks.values()) > 0


def test_what_does_not_exist_is_refused(images: Path, cache: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        return str(views(*arguments, fails=UsageError).exception)

    shown = ("show", "--data", images, "--cache", cache)
    assert "'cat/003.jpg'" in refused(*shown, "--key", "cat/03.jpg")
    assert "row 999" in refused(*shown, "--row", 999)
    assert "'0'" in refused(*shown, "--view", "x")
    assert "views of a cache cannot be configured" in refused(*shown, "--set", "count=2")
    sheet = ("sheet", "--data", images, "--out", tmp_path / "x.png")
    assert "for the views of a cache only" in refused(*sheet, "--teacher", "cnn")
    assert "did you mean 'cnn'" in refused(*sheet, "--cache", cache, "--teacher", "cn")
    assert "does not contain its images" in refused("check", "--cache", cache)


@pytest.mark.requirement("V1.2", "V8.2")
def test_check_says_whether_this_machine_is_sound(
    images: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = views("check", "--cache", cache, "--data", images)
    assert found.exit_code == 0
    assert "all reproduced" in found.stdout
    assert "0 with different pixels" in found.stdout
    monkeypatch.setitem(color.COLOR_STEPS, "invert", lambda picture: picture)
    broken = views("check", "--json")
    assert broken.exit_code == 4
    document = json.loads(broken.stdout)
    assert document["golden"]["pixels"]
    assert not document["golden"]["words"]
    views("check", "--cache", cache, "--data", images, fails=PixelDrift)
