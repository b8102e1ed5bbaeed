"""What an existing cache lacks of a configuration is what precompute then computes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.store.open import locate
from logitcache.errors import CacheError, DataMismatch, Interrupted, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.estimate.estimate import estimate_cache
from tests.conftest import jpeg, shape_image

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.precompute.plan.pending import Lacking


@pytest.fixture
def values(images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path) -> dict[str, Any]:
    """A configuration whose cache has one teacher and two views of 60 images."""
    shutil.copytree(images, tmp_path / "images")
    values = {
        "cache": str(tmp_path / "cache"),
        "data": str(tmp_path / "images"),
        "teachers": {"red": teachers["red"]},
        "views": {"count": 2},
        "unit_rows": 16,
        "batch_size": 8,
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return values


def lacking(values: dict[str, Any]) -> Lacking:
    config = PrecomputeConfig.parse(values, "")
    found = estimate_cache(config, locate(config.cache)).lacking
    assert found is not None
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_complete_cache_lacks_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    before = snapshot(tmp_path / "cache")
    found = lacking(values)
    assert (found.images, found.new_images, found.views, found.new_views) == (60, 0, 2, 0)
    assert {name: group.rows for name, group in found.groups.items()} == {"red": 0}
    assert snapshot(tmp_path / "cache") == before


def test_what_is_lacking_is_what_is_computed(
    values: dict[str, Any], teachers: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    folder = next(path for path in (tmp_path / "images").iterdir() if path.is_dir())
    for number in range(3):
        (folder / f"new{number}.jpg").write_bytes(jpeg(shape_image(number)))
    features = {"pre_logits": {"views": 1}}
    wanted = {
        **values,
        "views": {"count": 3},
        "teachers": {"red": {**teachers["red"], "features": features}, "cnn": teachers["cnn"]},
    }
    found = lacking(wanted)
    assert (found.images, found.new_images, found.views, found.new_views) == (60, 3, 2, 1)
    rows = {name: (g.is_new, g.rows, g.total) for name, g in found.groups.items()}
    assert rows == {
        "red": (False, 60 + 3 * 3, 63 * 3),
        "cnn": (True, 63 * 3, 63 * 3),
        "red/features/pre_logits": (True, 63, 63),
    }
    computed = build_cache(PrecomputeConfig.parse(wanted, ""))
    assert computed.computed == 63 * 3  # the new teacher sees every image in every view
    assert {name: group.rows for name, group in lacking(wanted).groups.items()} == dict.fromkeys(
        rows, 0
    )


def test_units_that_a_killed_run_left_out_are_lacking(
    values: dict[str, Any], tmp_path: Path
) -> None:
    config = PrecomputeConfig.parse(
        {**values, "cache": str(tmp_path / "other"), "views": {"count": 3}}, ""
    )
    batches = iter(range(4))
    with pytest.raises(Interrupted):
        build_cache(config, should_stop=lambda: next(batches, None) is None)
    found = lacking({**values, "cache": str(tmp_path / "other"), "views": {"count": 3}})
    assert 0 < found.groups["red"].rows < found.groups["red"].total
    rest = build_cache(config)
    assert rest.computed == found.groups["red"].rows


def test_what_precompute_would_refuse_is_refused(
    values: dict[str, Any], teachers: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="another recipe"):
        lacking({**values, "views": {"count": 2, "hflip": 0.0}})
    with pytest.raises(CacheError, match="another teacher named 'red'"):
        lacking({**values, "teachers": {"red": teachers["cnn"]}})
    with pytest.raises(UsageError, match="another encoding"):
        lacking({**values, "encoding": {"top_k": 2}})
    next((tmp_path / "images").rglob("*.jpg")).unlink()
    with pytest.raises(DataMismatch):
        lacking(values)


def test_without_a_cache_nothing_is_compared(values: dict[str, Any], tmp_path: Path) -> None:
    config = PrecomputeConfig.parse({**values, "cache": str(tmp_path / "none")}, "")
    assert estimate_cache(config, locate(config.cache)).lacking is None
    assert not (tmp_path / "none").exists()
