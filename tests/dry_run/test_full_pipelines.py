"""Full-scale pipelines: all resolve without images and weights, and two run on a few images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from logitcache.cache.format.groups import row_groups
from logitcache.cache.read.reader import open_cache
from logitcache.cli.interrupt import StopRequest
from logitcache.cli.layout import bytes_text
from logitcache.cli.run import load_pipelines
from logitcache.cli.stages import stage_runner
from logitcache.dry_run.stages import outline_pipeline
from logitcache.pipeline import settings
from logitcache.pipeline.settings import find_pipeline, shipped_pipelines
from logitcache.training.run.journal import read_journal
from tests.full_pipelines import FULL, few_images
from tests.full_scale_page import PAGE, section

if TYPE_CHECKING:
    from pathlib import Path

RUN = {"full/nkd": 2, "full/vitkd": 1}
"""Pipelines that are run here, and images of each class; ``.ci/matrix full`` runs all."""
STAGES = ["cache", "student"]


@pytest.mark.parametrize("name", FULL)
def test_a_full_pipeline_resolves_without_images_and_weights(name: str, tmp_path: Path) -> None:
    (pipeline,) = load_pipelines(name, out=str(tmp_path / "out"), seeds=1, sets=[])
    stages = outline_pipeline(pipeline)
    assert not (tmp_path / "out").exists()
    assert pipeline.config.name == name
    assert pipeline.config.paper is not None
    assert pipeline.config.paper.differs
    small = shipped_pipelines()[name.removeprefix("full/")]
    assert small.exists(), "a system has a pipeline of each size"
    assert section(pipeline.config, stages) in PAGE.read_text(), "python -m tests.full_scale_page"
    head = find_pipeline(name).read_text().partition("name:")[0]
    for stage in stages:
        assert stage.bytes is None or f"= {bytes_text(stage.bytes)}." in head, "storage arithmetic"
        hours = None if stage.flops is None else f"{stage.name} {stage.flops / 50e12 / 3600:.3g}"
        assert hours is None or hours in head
    trained = [stage for stage in stages if stage.kind == "train"]
    assert all((stage.steps or 0) > 100 for stage in trained)
    # of a block that is repeated, each round has a student
    assert any(stage.name.partition("-")[0] == "student" for stage in trained)


@pytest.mark.parametrize("name", RUN)
def test_a_full_pipeline_runs_as_its_dry_run_describes(name: str, tmp_path: Path) -> None:
    pipeline = few_images(name, tmp_path, RUN[name])
    outlines = {outline.name: outline for outline in outline_pipeline(pipeline)}
    with StopRequest() as stop:
        results = {r.stage.name: r.values for r in pipeline.run(stage_runner(stop), STAGES)}
    for name, result in results.items():
        outline = outlines[name]
        if outline.kind == "train":
            assert result["steps"] == outline.steps
            assert result["set_images"] == outline.images
            assert all(event["loss"] > 0 for event in read_journal(pipeline.out / name))
    groups = row_groups(open_cache(str(pipeline.out / "cache")).groups)
    rows = {
        name: group.compressed_share * sum(spec.row_bytes for spec in group.specs().values())
        for name, group in groups.items()
    }
    assert rows == pytest.approx(outlines["cache"].row_bytes)
    assert outlines["cache"].views == results["cache"]["views"]


def test_a_wheel_has_the_same_pipelines_by_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = shipped_pipelines()
    for name, path in known.items():
        copied = tmp_path / "logitcache/pipelines" / f"{name}.yaml"
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes())
    monkeypatch.setattr(settings, "__file__", str(tmp_path / "logitcache/pipeline/settings.py"))
    assert shipped_pipelines().keys() == known.keys()
    assert find_pipeline("full/nkd") == tmp_path / "logitcache/pipelines/full/nkd.yaml"
    assert find_pipeline("pipelines/nkd.yaml").parent.name == "pipelines"


def test_the_page_has_a_section_for_each_full_pipeline() -> None:
    sections = [line[3:] for line in PAGE.read_text().splitlines() if line.startswith("## ")]
    assert [f"full/{name}" for name in sections] == FULL
