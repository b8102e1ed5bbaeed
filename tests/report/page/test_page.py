"""Pages as they are parsed: references, ids, alternative texts, values, escaping."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.encoding.dense import DenseEncoding
from logitcache.errors import CacheDamaged, CacheError, UsageError
from logitcache.report.describe import describe
from logitcache.report.gallery import open_gallery
from logitcache.report.page.cache_outputs import ReportSettings
from logitcache.report.page.report import make_report
from logitcache.report.page.sections import SECTIONS
from logitcache.report.quantities import bytes_text, number_text
from logitcache.report.survey import survey
from logitcache.training.evaluation.prediction_counts import PredictionCounts, write_predictions
from tests.cache.building import make_cache
from tests.cli.conftest import logitcache
from tests.report.page.conftest import HOSTILE, NO_BREAK, SCORES, Page, write_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome
    from tests.report.page.conftest import Element

__all__ = ["logitcache"]

TAGS = {
    *("html", "head", "meta", "title", "link", "style", "body", "a", "header", "h1", "h2", "h3"),
    *("p", "nav", "ul", "li", "main", "section", "footer", "strong", "div", "table", "caption"),
    *("thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary", "pre"),
    *(
        "ol",
        "span",
        "code",
        "svg",
        "desc",
        "line",
        "text",
        "polyline",
        "circle",
        "rect",
        "g",
        "img",
    ),
}


@pytest.fixture(scope="module")
def text(pipeline: Path) -> str:
    return make_report([str(pipeline)]).text


@pytest.fixture(scope="module")
def page(text: str) -> Element:
    return Page(text).root


def test_a_page_refers_to_nothing_outside_of_itself(text: str, page: Element) -> None:
    for element in page.all():
        assert element.tag in TAGS
        for name in ("href", "src"):
            assert element.attributes.get(name, "#").startswith(("#", "data:"))
        assert not [name for name in element.attributes if name.startswith("on")]
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text


def test_all_ids_are_unique_and_all_references_lead_to_one(page: Element) -> None:
    ids = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids)) > 20
    for element in page.all():
        for name in ("aria-labelledby", "href"):
            for reference in element.attributes.get(name, "").split():
                if name != "href" or reference.startswith("#"):
                    assert reference.lstrip("#") in ids


def test_everything_that_is_drawn_has_a_text(page: Element) -> None:
    assert len(page.all("h1")) == 1
    plots = [svg for svg in page.all("svg") if "aria-hidden" not in svg.attributes]
    assert len(plots) >= 6
    for svg in plots:
        assert svg.attributes["role"] == "img"
        assert [child.tag for child in svg.children][:2] == ["title", "desc"]
        assert all(child.text.strip() for child in svg.children[:2])
    assert all(image.attributes.get("alt") for image in page.all("img"))
    for table in page.all("table"):
        assert table.children[0].tag == "caption"
        assert table.children[0].text
    for heading in page.all("th"):
        assert heading.attributes["scope"] in {"row", "col"}


def test_values_are_those_that_the_library_computes(page: Element, pipeline: Path) -> None:
    cells = {row.children[0].text: row.text for row in page.all("tr") if len(row.children) > 5}
    for name, scores in SCORES.items():
        assert f"{100 * mean(scores):.1f} ± {100 * stdev(scores):.1f} %" in cells[name]
    found = describe(pipeline / "seed-0" / "cache")
    for teacher in found.teachers:
        assert bytes_text(teacher.stored_bytes) in cells[f"cache/{teacher.name}"]
    summary = next(s for s in page.all("section") if s.attributes["aria-labelledby"] == "summary")
    gain = 100 * (mean(SCORES["student"]) - mean(SCORES["labels"]))
    assert f"{gain:.1f} percentage points above" in summary.text
    assert "2 caches and 6 training runs of 3 networks" in summary.text


def test_no_line_ends_between_a_number_and_its_percent_sign(text: str) -> None:
    assert f"The line is the 95{NO_BREAK}% confidence" in text
    assert not re.search(r">[^<]*\d %", text)


def test_single_runs_have_one_column_and_no_deviation(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0.5)
    text = make_report([str(tmp_path / "run")]).text
    assert ">top-1</th>" in text
    assert "mean ± sd" not in text
    assert "standard deviation" not in text


def test_curves_have_the_points_of_the_log(page: Element) -> None:
    figure = next(f for f in page.all("figure") if "trained on cache" in f.text)
    lines = [line for line in figure.all("polyline") if "points" in line.attributes]
    assert len(lines) == 2, "one for each seed"
    points = [tuple(map(float, p.split(","))) for p in lines[0].attributes["points"].split()]
    assert len(points) == 3
    heights = [y for _, y in points]
    # losses 2, 1 and 2/3: the second step is a third of the first one
    assert (heights[2] - heights[1]) / (heights[1] - heights[0]) == pytest.approx(1 / 3, abs=0.02)


def test_names_from_data_are_text_in_html_and_markdown(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE
    write_run(folder, 0.5)
    for form, expected in (("html", "&lt;img src=x"), ("md", r"\<img src=x")):
        text = make_report([str(folder), str(pipeline)], form=form).text
        assert expected in text
    page = Page(make_report([str(folder)]).text).root
    assert not page.all("img")
    assert any(HOSTILE in cell.text for cell in page.all("th"))
    control = tmp_path / "a\x1b[31mb"
    write_run(control, 0.5)
    assert "\x1b" not in make_report([str(control)]).text


def test_markdown_has_the_tables_and_no_html(pipeline: Path) -> None:
    text = make_report([str(pipeline)], form="md").text
    assert "| network | architecture |" in text
    assert f"{100 * mean(SCORES['student']):.1f} ±" in text
    assert not re.search(r"^<", text, re.MULTILINE)
    for line in text.splitlines():
        if line.startswith("| ---"):
            columns = line.count("|")
    assert columns > 2


def test_a_page_is_made_of_what_can_be_read(
    pipeline: Path, tmp_path: Path, logitcache: Callable[..., Outcome]
) -> None:
    damaged, unfinished = tmp_path / "damaged", write_run(tmp_path / "unfinished", None)
    shutil.copytree(pipeline / "seed-0" / "cache", damaged)
    (damaged / "zarr.json").write_text("{")
    out = tmp_path / "page.html"
    paths = (damaged, unfinished, tmp_path / "nothing", pipeline)
    outcome = logitcache("report", *paths, "--out", out)
    assert outcome.code == make_report([str(path) for path in paths]).problems[0][1].exit_code != 0
    assert "2 caches, 7 training runs" in outcome.out
    page = Page(out.read_text()).root
    notes = [p.text for p in page.all("p") if p.attributes.get("class") == "note"]
    assert any(str(damaged) in note for note in notes)
    assert any("nothing to report on here" in note and "nothing" in note for note in notes)
    assert any("ends at step 3" in note or "end at step 3" in note for note in notes)
    assert "--resume" in "".join(notes)


def test_a_section_that_fails_is_a_note(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise CacheDamaged("a unit is damaged", where="c", got="unit 3")

    monkeypatch.setitem(SECTIONS, "time", fails)
    made = make_report([str(pipeline)])
    assert "This section could not be made: a unit is damaged: unit 3" in made.text
    assert [where for where, _ in made.problems] == ["section Time"]
    assert "percentage points above" in made.text


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="no cache and no training run in this folder"):
        make_report([str(tmp_path / "folder")])
    with pytest.raises(UsageError, match="nothing to report on here"):
        make_report([str(tmp_path / "missing")])
    with pytest.raises(CacheError):
        make_report(["memory://nothing-here"])


def test_settings_of_another_version_cost_only_themselves(tmp_path: Path) -> None:
    newer, broken = write_run(tmp_path / "newer", 0.5), write_run(tmp_path / "broken", 0.25)
    with (newer / "config.yaml").open("a") as file:
        file.write("new_field: 1\n")
    made = make_report([str(newer)])
    assert "new_field (1 runs)" in made.text
    assert "resnet10t" in made.text, "the other settings are read"
    assert made.problems == []
    (broken / "config.yaml").write_text("out: x\nsteps: many\n")
    made = make_report([str(broken)])
    assert f"25.0{NO_BREAK}%" in made.text
    assert "not recorded" in made.text
    assert len(made.problems) == 1


def test_notes_of_the_runs_are_listed_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, 0.5) for name in ("one", "two", "three")]
    for run, notes in zip(runs, (["much is <outside>"], ["much is <outside>"], []), strict=True):
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps({**result, "notes": notes}))
    made = make_report([str(run) for run in runs])
    assert "Notes of the runs" in made.text
    (line,) = re.findall(r"much is &lt;outside&gt;.*", made.text)
    assert "one" in line
    assert "two" in line
    assert "three" not in line
    assert "Notes of the runs" not in make_report([str(runs[2])]).text


def test_commands_end_with_the_one_that_makes_the_report(
    pipeline: Path, logitcache: Callable[..., Outcome], tmp_path: Path
) -> None:
    cache = pipeline / "seed-0" / "cache"
    for command in ("inspect", "status"):
        last = logitcache(command, cache).out.splitlines()[-1]
        assert last == f"report: logitcache report {cache}"
    out = tmp_path / "r.html"
    outcome = logitcache("report", cache, "--out", out, "--json")
    assert outcome.json["caches"] == 1
    assert out.exists()
    assert logitcache("report", cache, "--format", "md").out.startswith("# logitcache report")


def test_images_are_the_very_views_of_the_cache(pipeline: Path, hostile_images: Path) -> None:
    cache = pipeline / "seed-0" / "cache"
    settings = ReportSettings(images=2, data=str(hostile_images))
    page = Page(make_report([str(cache)], settings=settings).text).root
    cards = [li for li in page.all("li") if li.attributes.get("class") == "card"]
    assert len(cards) >= 4
    opened = open_cache(cache)
    for card in cards:
        (picture,) = card.all("img")
        key = card.all("p")[0].text
        number = int(card.all("p")[1].text.rpartition("view ")[2])
        gallery = open_gallery(
            str(hostile_images), str(cache), {}, keys=[key], rows=[], wanted=[str(number)], images=1
        )
        content = base64.b64decode(picture.attributes["src"].partition("base64,")[2])
        shown = np.asarray(Image.open(io.BytesIO(content))).transpose(2, 0, 1)
        assert (shown == gallery.squares(gallery.views[0], 8)[0]).all()
        row = int(gallery.rows.numbers.take(gallery.positions)[0])
        for teacher, entries in zip(opened.teachers, card.all("ol"), strict=True):
            stored = opened.read(teacher, gallery.views[0].id, row, row + 1)
            group = opened.teachers[teacher]
            decoded = group.encoding.decode({n: stored[n] for n in group.encoding.specs()})
            assert f"{100 * np.exp(decoded.log_probs).max():.1f} %" in entries.children[0].text


def test_without_images_they_are_named(pipeline: Path) -> None:
    text = make_report([str(pipeline / "seed-0" / "cache")]).text
    assert "logitcache report --data FOLDER" in text
    assert "/000.jpg" in text or "/001.jpg" in text
    assert "<img" not in text


def test_measurements_of_teachers_and_students_are_those_of_the_library(
    pipeline: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(pipeline, folder)
    counts = PredictionCounts(["a", "b"])
    counts.add(np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6]))
    write_predictions(folder / "seed-0" / "student", counts)
    page = Page(make_report([str(folder)]).text).root
    cells = {r.children[0].text: [c.text for c in r.children] for r in page.all("tr") if r.children}
    assert cells["student"][2:] != []
    calibration = next(
        [c.text for c in row.children]
        for row in page.all("tr")
        if row.children[0].text == "student" and "validation images" in row.text
    )
    assert calibration[2:5] == ["4", "75.0 %", "75.0 %"]
    assert calibration[5] == f"{100 * counts.calibration_error:.1f} %"
    found = survey(str(folder / "seed-0" / "cache"))
    pair = cells["cnn and red"]
    assert pair[1] == f"{100 * found.agreement['cnn red']:.1f} %"
    for teacher in found.teachers:
        mean_tail = mean(view.tail_mass or 0.0 for view in teacher.views)
        assert cells[f"cache/{teacher.teacher}, top 2"][1] == f"{100 * mean_tail:.1f} %"
        by_class = cells[HOSTILE][2 + ["cnn", "red"].index(teacher.teacher)]
        share = teacher.class_accuracy[found.class_names.index(HOSTILE)]
        assert by_class == f"{100 * (share or 0.0):.1f} %"
    fidelity = describe(folder / "seed-0" / "cache").teachers[0].fidelity
    assert fidelity is not None
    loss = fidelity["temperatures"]["1"]
    kl = number_text(loss["kl_truncation"] + loss["kl_coding"])
    assert any(r.children[0].text == "cache/cnn" and kl in r.text for r in page.all("tr"))


def test_a_damaged_unit_is_named_once_and_the_rest_is_made(pipeline: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(pipeline / "seed-0" / "cache", folder)
    shard = next((folder / "teachers" / "red").rglob("c/0/0/0"))
    shard.write_bytes(b"\0" * shard.stat().st_size)
    made = make_report([str(folder)])
    assert len(made.problems) == 1
    assert "Provenance" in made.text
    assert "Reliability" not in made.text


def test_a_cache_without_samples_is_described_from_its_metadata(pipeline: Path) -> None:
    made = make_report([str(pipeline)], settings=ReportSettings(rows=0))
    assert "Reliability" not in made.text
    assert "Loss of the encodings" in made.text


def test_a_remote_cache_is_reported_and_passwords_are_not_shown(tmp_path: Path) -> None:
    url = "memory://page/c"
    logits = 3 * np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
    make_cache(locate(url, write=True), {"t": (DenseEncoding(3, "float16"), logits)}, 40)
    made = make_report([url, "s3://user:secret@bucket/missing?token=hidden"])
    assert made.caches == 1
    assert "Calibration" in made.text
    assert "s3://***@bucket" in made.text
    assert "secret" not in made.text
    assert "hidden" not in made.text
    assert len(made.problems) == 1


def reported(pipeline: Path, folder: Path, result: dict[str, Any]) -> Element:
    """Return the report of a pipeline whose cache was computed with a result."""
    shutil.copytree(pipeline, folder)
    marker = folder / "seed-0" / "cache.done.json"
    marker.write_text(json.dumps({"digest": "", "result": {"sizes": {}, **result}}))
    return Page(make_report([str(folder)]).text).root


def test_break_even_has_the_time_of_the_forward_passes(pipeline: Path, tmp_path: Path) -> None:
    """Two teachers of 0.01 and 0.03 s an image, of a stage of 0.1 s for an image and view."""
    forward = {"red": {"seconds": 1.2e6, "images": 40}, "blue": {"seconds": 8e5, "images": 80}}
    result = {"computed": 72, "seconds": 7.2e6, "forward": forward}
    page = reported(pipeline, tmp_path / "runs", result)
    row = next(r for r in page.all("tr") if "100000000.00 ms" in r.text)
    assert row.children[3].text == "40000000.00 ms"
    assert [cell.text for cell in row.children[5:]] == ["6", "6"]  # 2 * 100 / 40, and a little
    assert "were not measured" not in page.text


@pytest.mark.parametrize(
    "forward", [None, [], {}, {"red": 3.0}, {"red": {"seconds": 1.0, "images": 0}}]
)
def test_forward_times_that_cannot_be_used_are_none(
    forward: object, pipeline: Path, tmp_path: Path
) -> None:
    result = {"computed": 72, "seconds": 7.2e6, "forward": forward}
    assert "were not measured" in reported(pipeline, tmp_path / "runs", result).text


def test_break_even_is_that_of_the_plan(pipeline: Path, tmp_path: Path) -> None:
    """A cache of two views costs two forward passes, and reading it a little more than nothing."""
    page = reported(pipeline, tmp_path / "runs", {"computed": 72, "seconds": 7.2e6})
    row = next(r for r in page.all("tr") if "100000000.00 ms" in r.text)
    epochs = [cell.text for cell in row.children[4:]]
    expected = [math.floor(2 / share) + 1 for share in (1, 0.75, 0.5, 0.25)]
    # two runs from this cache were shown 180 images of 60
    assert epochs == [*map(str, expected), "6"]
