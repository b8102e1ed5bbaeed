"""The verbs of the top level: verify, repair, estimate and describe from Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import logitcache
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]
NAMESPACES = ("configs", "errors", "objectives", "testing", "views")


@pytest.fixture(scope="module")
def values(
    images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Return the configuration of a cache that is written."""
    path = tmp_path_factory.mktemp("verbs") / "cache"
    values = {"cache": str(path), "data": str(images), "teachers": teachers, "unit_rows": 16}
    logitcache.build_cache(logitcache.PrecomputeConfig.parse(values, ""))
    return values


def test_a_cache_is_verified_with_its_images_teachers_and_views(values: dict[str, Any]) -> None:
    phases: list[str] = []
    report = logitcache.verify(
        values["cache"],
        data=values["data"],
        teachers=values["teachers"],
        samples=16,
        on_progress=lambda phase, done, total: phases.append(phase) if done <= total else None,
    )
    assert report.ok
    assert report.images is not None
    assert [audit.ok for audit in report.audits] == [True, True]
    assert report.fingerprints is not None
    assert report.drift is None
    assert set(phases) == {"verify", "images", "audit", "view fingerprints"}
    document = report.to_json()
    assert document["ok"] is True
    assert document["probes"]["checked"] > 0


def test_without_images_only_bytes_are_verified(values: dict[str, Any]) -> None:
    report = logitcache.verify(values["cache"], quick=True)
    assert report.ok
    assert (report.images, report.audits, report.fingerprints) == (None, (), None)
    with pytest.raises(UsageError, match="without the images"):
        logitcache.verify(values["cache"], teachers=values["teachers"])


def test_a_damaged_cache_is_reported_and_repaired(values: dict[str, Any], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(values["cache"], cache)
    shard = next(p for p in (cache / "teachers/cnn/logp/c").rglob("*") if p.is_file())
    shard.write_bytes(b"")
    report = logitcache.verify(cache, data=values["data"])
    assert not report.ok
    assert report.images is None, "a damaged cache is not compared any further"
    named = {"cache": str(cache), "data": values["data"], "teachers": values["teachers"]}
    assert not logitcache.repair(logitcache.configs.RepairConfig.parse(named, "")).remaining
    assert logitcache.verify(cache, data=values["data"]).ok


def test_a_cache_is_described_and_estimated(values: dict[str, Any]) -> None:
    described = logitcache.describe(values["cache"])
    assert {teacher.name for teacher in described.teachers} == {"cnn", "red"}
    found = logitcache.estimate(logitcache.PrecomputeConfig.parse(values, ""))
    assert found.teachers.keys() == {"cnn", "red"}


@pytest.mark.parametrize("name", [*logitcache.__all__, *NAMESPACES])
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(logitcache, name) is not None


def test_an_import_is_cheap() -> None:
    """Neither torch nor zarr is imported before a name is used."""
    code = (
        "import sys, logitcache; print(*sorted({'torch', 'zarr', 'pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
