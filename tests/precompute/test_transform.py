"""The transform encoding from precompute to training: fitted once, then kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache import repair, train_student, verify
from logitcache.cache.read.reader import open_cache
from logitcache.check.repair import RepairConfig
from logitcache.errors import Interrupted, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.estimate.estimate import estimate_cache
from logitcache.report.describe import describe
from logitcache.training.config import TrainConfig
from tests.conftest import jpeg, shape_image
from tests.conftest import write_teacher as export_teacher
from tests.precompute.test_building import config

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CLASSES, IMAGES = 60, 80
TRANSFORM = {"kind": "transform", "step": 0.5, "refined": 12}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return images without classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        (folder / f"{number}.jpg").write_bytes(jpeg(shape_image(number)))
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    folder = export_teacher(tmp_path_factory.mktemp("many") / "t", classes=CLASSES)
    return {"many": {"model": f"local-dir:{folder}"}}


def run(cache: Path, photos: Path, many: Any, **fields: Any) -> Any:
    return build_cache(config(cache, photos, many, **{"encoding": TRANSFORM, **fields}))


def stored(cache: Path, view: int = 0) -> NDArray[np.float32]:
    opened = open_cache(cache)
    group = opened.teacher("many")
    rows = opened.manifest.rows
    arrays = opened.read("many", group.view_ids[view], 0, rows)
    return group.encoding.decode(arrays).log_probs


def test_it_is_fitted_once_and_then_kept(
    photos: Path, many: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """By a run that was stopped, one that goes on, and one with more views."""
    left = [2]

    def stop(_: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise Interrupted("stopped", kept=True)

    with pytest.raises(Interrupted):
        build_cache(config(tmp_path / "c", photos, many, encoding=TRANSFORM), on_progress=stop)
    before = json.loads((tmp_path / "c/teachers/many/zarr.json").read_text())
    summary = run(tmp_path / "c", photos, many)
    assert summary.computed
    one = stored(tmp_path / "c")
    run(tmp_path / "c", photos, many, views={"count": 3})
    after = json.loads((tmp_path / "c/teachers/many/zarr.json").read_text())
    encodings = [d["attributes"]["logitcache"]["encoding"] for d in (before, after)]
    assert encodings[0] == encodings[1]
    np.testing.assert_array_equal(stored(tmp_path / "c"), one)
    assert stored(tmp_path / "c", view=2).shape == (IMAGES, CLASSES)
    assert verify(tmp_path / "c").ok
    (teacher,) = describe(tmp_path / "c").teachers
    assert teacher.encoding is not None
    assert teacher.encoding["kind"] == "transform"
    assert "basis" not in teacher.encoding
    assert teacher.fidelity is not None
    assert teacher.fidelity["temperatures"]["4"]["kl_coding"] < 0.05
    for other in ({**TRANSFORM, "step": 1.0}, {**TRANSFORM, "refined": 13}, {"kind": "dense"}):
        with pytest.raises(UsageError, match="stored in another encoding"):
            run(tmp_path / "c", photos, many, encoding=other)
    assert verify(tmp_path / "c").ok


def test_a_damaged_unit_is_computed_again(
    photos: Path, many: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    run(tmp_path / "c", photos, many)
    shard = next((tmp_path / "c/teachers/many/coefficients/c").rglob("0/0/0"))
    content = bytearray(shard.read_bytes())
    content[40] ^= 255
    shard.write_bytes(content)
    assert not verify(tmp_path / "c").ok
    wanted = {"cache": str(tmp_path / "c"), "data": str(photos), "teachers": many}
    assert not repair(RepairConfig.parse(wanted, "")).remaining
    content[40] ^= 255
    assert shard.read_bytes() == content


def test_a_student_trains_on_it(
    photos: Path, many: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    run(tmp_path / "c", photos, many)
    student = {"model": "resnet10t", "size": 32, "kwargs": {"num_classes": CLASSES}}
    fields: dict[str, Any] = {
        "out": str(tmp_path / "run"),
        "data": str(photos),
        "cache": str(tmp_path / "c"),
    }
    fields |= {"student": student, "epochs": 1, "batch_size": 16, "device": "cpu"}
    soft = [{"soft": {"temperature": 4.0}}]
    result = train_student(TrainConfig.parse({**fields, "objectives": soft}, "train"))
    assert result.steps == IMAGES // 16


def test_what_is_planned_is_what_it_takes(
    photos: Path, many: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    wanted = config(tmp_path / "c", photos, many, encoding=TRANSFORM)
    found = estimate_cache(wanted)
    build_cache(wanted)
    made = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*") if path.is_file())
    planned = next(row for row in found.by_views if row.views == found.views)
    assert planned.bytes == pytest.approx(made, rel=0.1)
    chosen = found.teachers["many"].chosen
    assert chosen is not None
    assert chosen.encoding["kind"] == "transform"


def test_settings_of_other_encodings_are_refused(
    photos: Path, many: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="stores all classes"):
        run(tmp_path / "c", photos, many, encoding={**TRANSFORM, "top_k": 5})
    with pytest.raises(UsageError, match="not both"):
        run(tmp_path / "c", photos, many, encoding={**TRANSFORM, "max_kl": "0.1"})
    assert not (tmp_path / "c").exists()
