"""``logitcache evaluate`` and ``logitcache drop``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

    Command = Callable[..., Outcome]


@pytest.fixture
def export(images: Path, tmp_path: Path, logitcache: Command) -> Path:
    """A student that was trained for a step, with the names of its classes."""
    out = tmp_path / "run"
    done = logitcache(
        *("train", "--data", images, "--out", out, "--steps", 1, "--batch-size", 8),
        *("--student", "resnet10t", "--set", "student.size=32"),
        *("--set", "student.kwargs={stem_width: 16, channels: [16, 16, 16, 16]}"),
    )
    assert done.code == 0, done.err
    return out / "export"


def test_an_exported_folder_is_evaluated(export: Path, images: Path, logitcache: Command) -> None:
    as_json = logitcache("evaluate", export, "--data", images, "--batch-size", 16, "--json").json
    assert as_json["evaluation"]["images"] == 60
    assert as_json["classes"] == as_json["classes_with_images"]
    named = logitcache("evaluate", f"local-dir:{export}", "--data", images, "--json").json
    assert named["evaluation"]["top1"] == as_json["evaluation"]["top1"]
    table = logitcache("evaluate", export, "--data", images)
    assert table.code == 0
    assert f"{100 * as_json['evaluation']['top1']:.1f} %" in table.out


def test_what_an_evaluation_leaves_out_is_printed(
    export: Path, images: Path, tmp_path: Path, logitcache: Command
) -> None:
    few = tmp_path / "few [/old]"
    kept, *gone = sorted(path for path in images.iterdir() if path.is_dir())
    shutil.copytree(kept, few / kept.name)
    (few / kept.name / "notes.txt").write_text("not an image")
    (few / kept.name / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    refused = logitcache("evaluate", export, "--data", few)
    assert (refused.code, "cut.jpg" in refused.err) == (1, True)
    assert "Traceback" not in refused.err
    shown = logitcache("evaluate", export, "--data", few, "--on-bad-image", "skip")
    assert shown.code == 0, shown.err
    assert "1 images could not be decoded" in shown.out
    assert "1 .txt files" in shown.out
    absent = ", ".join(folder.name for folder in gone)
    assert f"{len(gone)} classes have no images here: {absent}" in shown.out


def test_mistakes_in_an_evaluation_are_usage_errors(
    export: Path, images: Path, tmp_path: Path, logitcache: Command
) -> None:
    for arguments, words in {
        ("resnet10t", "--data", str(images)): "no trained weights",
        (f"{export}x", "--data", str(images)): "",
        (str(export), "--data", str(tmp_path / "nowhere")): "does not exist",
        (str(export), "--data", str(images), "--set", "crop_pctt=1"): "crop_pct",
        (str(export), "--data", str(images), "--crop-pct", "2"): "crop_pct",
    }.items():
        refused = logitcache("evaluate", *arguments)
        assert refused.code in {1, 2}, (arguments, refused.err)
        assert words in refused.err
        assert "Traceback" not in refused.err


def test_teachers_and_views_are_dropped(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path, logitcache: Command
) -> None:
    cache = tmp_path / "cache"
    named = [f"--teacher={name}={value['model']}" for name, value in teachers.items()]
    flags = ["--cache", cache, "--data", images, *named, "--views", 4]
    assert logitcache("precompute", *flags).code == 0
    before = open_cache(str(cache))
    ids = list(before.views)
    done = logitcache("drop", cache, "--teacher", "red", "--view", "0,2", "--json")
    assert done.json["teachers"] == ["red"]
    assert done.json["views"] == [ids[0], ids[2]]
    after = open_cache(str(cache))
    assert list(after.manifest.teachers) == ["cnn"]
    assert list(after.views) == [ids[1], *ids[3:]]
    assert logitcache("verify", cache).code == 0
    refused = logitcache("drop", cache, "--teacher", "redd")
    assert (refused.code, "redd" in refused.err) == (2, True)
    assert logitcache("drop", cache).code == UsageError.exit_code
    assert "dropped view" in logitcache("drop", cache, "--view", ids[1][:6]).out
