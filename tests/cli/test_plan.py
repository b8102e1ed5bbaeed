"""``logitcache plan``: flags and files as for precompute, and nothing written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import yaml
from typer.testing import CliRunner

from logitcache.cli.app import app
from logitcache.cli.plan import print_estimate
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.estimate.estimate import DeviceEstimate, estimate_cache

if TYPE_CHECKING:
    from pathlib import Path


Teachers = dict[str, dict[str, str]]


def plan(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_a_file_flags_and_nothing_written(
    images: Path,
    teachers: Teachers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file, second = tmp_path / "plan.yaml", tmp_path / "more.yaml"
    both = {name: dict(teacher) for name, teacher in teachers.items()}
    file.write_text(yaml.safe_dump({"data": str(images), "teachers": both, "views": {"count": 2}}))
    second.write_text(yaml.safe_dump({"views": {"count": 4}, "unit_rows": 16}))
    before = sorted(tmp_path.rglob("*"))
    found = json.loads(plan(file, second, "--top-k", 2, "--set", "card.license=mit", "--json"))
    assert sorted(tmp_path.rglob("*")) == before
    assert (found["views"], found["unit_rows"], found["images"]) == (4, 16, 60)
    chosen = [row for row in found["teachers"]["cnn"]["encodings"] if row["chosen"]]
    assert chosen[0]["encoding"] == SparseEncoding.new(3, 2, bits=5).to_json()
    assert 0 <= found["teachers"]["cnn"]["accuracy"] <= 1
    assert found["missing_licenses"] == ["the images", "teacher cnn", "teacher red"]
    assert [row["views"] for row in found["by_views"]] == [1, 2, 4, 8]
    shown = plan(file, "--set", "teachers.red.features={pre_logits: {}}")
    assert "pre_logits" in shown
    assert "no cache is written" in shown
    assert "dense float16" in shown
    assert "no license is stated for the cache, the images, teacher cnn, teacher red" in shown
    with pytest.raises(UsageError, match="'teachers' is missing"):
        plan("--data", images)


def test_it_says_when_it_never_pays(
    images: Path, teachers: Teachers, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"cache": "-", "data": str(images), "teachers": teachers, "unit_rows": 16}
    found = estimate_cache(PrecomputeConfig.parse({**values, "views": {"count": 1}}, ""))
    (row, *rest) = found.by_views
    never = replace(
        found,
        fetch=0.001,
        devices={"cpu": DeviceEstimate(teach=0.001, decode=0.0, store=0.002)},
        by_views=[replace(row, break_even_epochs={"cpu": None}), *rest],
    )
    print_estimate(never)
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "never breaks even: a forward pass of the teachers takes 1 ms per image, and reading" in out
    )


def test_images_in_the_cache_are_estimated(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    """The bytes of the images are those of the cache that is computed."""
    values = {
        "cache": str(tmp_path / "c"),
        "data": str(images),
        "teachers": {"cnn": teachers["cnn"]},
        "unit_rows": 16,
        "batch_size": 8,
    }
    plain = estimate_cache(PrecomputeConfig.parse(values, ""))
    assert plain.images_in_cache is None
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump({name: values[name] for name in values if name != "cache"}))
    shown = plan(file, "--images", "packed:24")
    assert "images in the cache (packed:24, quality 92)" in shown
    assert "a student needs no other files" in shown
    found = json.loads(plan(file, "--images", "packed:24", "--json"))
    estimated = found["images_in_cache"]
    done = build_cache(PrecomputeConfig.parse({**values, "images": "packed:24"}, ""))
    assert done.image_bytes is not None
    contents = (tmp_path / "c" / "images" / "content" / "c").rglob("0")
    stored = sum(path.stat().st_size for path in contents if path.is_file())
    assert abs(estimated["bytes"] - stored) < 0.3 * stored
    sizes = [path.stat().st_size for path in images.rglob("*.jpg")]
    assert abs(estimated["original_bytes"] - sum(sizes) / len(sizes)) < 1
    assert min(estimated["show"], estimated["show_original"], estimated["pack"]) > 0
    assert found["by_views"][0]["bytes"] > estimated["bytes"]
    of_views = json.loads(plan(file, "--images", "views", "--json"))
    squares = of_views["images_in_cache"]
    assert squares["settings"] == "views:8, quality 92"
    done = build_cache(
        PrecomputeConfig.parse({**values, "cache": str(tmp_path / "v"), "images": "views"}, "")
    )
    assert done.image_bytes is not None
    contents = (tmp_path / "v" / "squares").rglob("content/c/*/0")
    stored = sum(path.stat().st_size for path in contents if path.is_file())
    assert abs(squares["bytes"] * done.views - stored) < 0.3 * stored
    with_views = {row["views"]: row["bytes"] for row in of_views["by_views"]}
    assert with_views[done.views] > squares["bytes"] * done.views
