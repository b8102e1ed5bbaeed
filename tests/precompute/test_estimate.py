"""Estimates of a cache before it is computed, compared with the computed cache."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from logitcache.cache.format.arrays import packed_bytes
from logitcache.cache.format.samples import label_set_arrays, label_specs, label_width
from logitcache.encoding.kinds import parse_encoding
from logitcache.errors import DataError, UsageError
from logitcache.label_sets import LabelSets
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.estimate.break_even import break_even_epochs
from logitcache.precompute.estimate.estimate import Estimate, estimate_cache
from logitcache.precompute.estimate.footprint import cache_footprint
from logitcache.report.describe import describe
from tests.conftest import jpeg, shape_image, write_teacher

IMAGES = 300


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a configuration: two teachers of 60 classes, one with taps, images of no class."""
    root = tmp_path_factory.mktemp("estimate")
    for number in range(IMAGES):
        path = root / "photos" / f"{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(shape_image(number)))
    teachers: dict[str, dict[str, Any]] = {
        name: {"model": f"local-dir:{write_teacher(root / name, classes=60, seed=seed)}"}
        for seed, name in enumerate(("one", "two"))
    }
    teachers["two"]["features"] = {"layer1": {"values": "int8", "views": 1}, "pre_logits": {}}
    return {
        "cache": "nowhere",
        "data": str(root / "photos"),
        "teachers": teachers,
        "views": {"count": 3},
        "encoding": {"top_k": 10},
        "unit_rows": 128,
        "batch_size": 32,
    }


@pytest.fixture(scope="module")
def found(values: dict[str, Any]) -> Estimate:
    return estimate_cache(config(values))


def config(values: dict[str, Any], **fields: object) -> PrecomputeConfig:
    return PrecomputeConfig.parse({**values, **fields}, "")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"encoding": {"kind": "dense", "dense_values": "uint8", "lse": False}, "unit_rows": 64},
        {"views": {"count": 2, "mixup_alpha": 0.8, "cutmix_alpha": 1.0}},
        {"data": "label sets"},
    ],
    ids=["sparse", "dense", "mixed", "label sets"],
)
def test_bytes_and_files_are_those_of_the_cache(
    values: dict[str, Any], tmp_path: Path, fields: dict[str, Any]
) -> None:
    if fields.get("data") == "label sets":
        fields = {**fields, "data": write_sets(Path(values["data"]), tmp_path)}
    found = estimate_cache(config(values, **fields))
    requested = next(row for row in found.by_views if row.views == found.views)
    build_cache(config(values, **fields, cache=str(tmp_path / "c")))
    made = [path for path in (tmp_path / "c").rglob("*") if path.is_file()]
    assert requested.files == len(made)
    assert requested.bytes == pytest.approx(sum(p.stat().st_size for p in made), rel=0.03)
    for teacher in describe(tmp_path / "c").teachers:
        estimate = found.teachers[teacher.name].chosen
        assert estimate is not None
        assert estimate.encoding == teacher.encoding
        assert estimate.bytes == pytest.approx(
            _with_bookkeeping(tmp_path / "c", teacher.name, teacher.stored_bytes), rel=0.05
        )
        for tap in teacher.features:
            expected = found.teachers[teacher.name].taps[tap.tap]
            assert expected.views == tap.views
            assert expected.bytes == pytest.approx(
                _with_bookkeeping(tmp_path / "c", f"two/features/{tap.tap}", tap.stored_bytes),
                rel=0.05,
            )


def write_sets(images: Path, folder: Path) -> dict[str, Any]:
    """Return a set of the same images with up to eight of 60 classes each."""
    generator = np.random.default_rng(0)
    rows = []
    for path in sorted(images.iterdir()):
        ids = generator.choice(60, generator.integers(9), replace=False)
        rows.append(json.dumps({"path": path.name, "label": [f"c{n:02d}" for n in ids]}))
    (folder / "t.jsonl").write_text("\n".join(rows))
    (folder / "t.txt").write_text("\n".join(f"c{n:02d}" for n in range(60)))
    settings = {"root": str(images), "class_list": str(folder / "t.txt")}
    return {"name": str(folder / "t.jsonl"), **settings}


def _with_bookkeeping(cache: Path, group: str, stored: int) -> int:
    """Add the commits, which ledgers hold once more, and the second copies of the documents."""
    commits = (cache / "commits/teachers" / group).glob("v*/*.json")
    documents = (cache / "teachers" / group).glob("**/zarr.json")
    own = [path for path in documents if "features" in group or "features" not in path.parts]
    return (
        stored
        + 2 * sum(path.stat().st_size for path in commits)
        + sum(path.stat().st_size for path in own)
    )


def test_it_says_what_the_cache_will_say_of_itself(
    values: dict[str, Any], found: Estimate, tmp_path: Path
) -> None:
    """Other images and views are sampled, so not to the digit."""
    assert found.shown == 256
    build_cache(config(values, cache=str(tmp_path / "c")))
    for teacher in describe(tmp_path / "c").teachers:
        chosen, measured = found.teachers[teacher.name].chosen, teacher.fidelity
        assert chosen is not None
        assert measured is not None
        for temperature, loss in measured["temperatures"].items():
            estimate = chosen.fidelity["temperatures"][temperature]
            assert estimate["kl_truncation"] == pytest.approx(loss["kl_truncation"], rel=0.2)
        assert chosen.fidelity["top1"] == pytest.approx(measured["top1"], abs=0.15)


def test_larger_k_and_more_bits_lose_less(found: Estimate) -> None:
    rows = found.teachers["one"].encodings
    assert sum(row.chosen for row in rows) == 1
    kls = {
        parse_encoding(row.encoding, 60, ""): row.fidelity["temperatures"]["1"]["kl_truncation"]
        for row in rows
    }
    sparse = [kl for encoding, kl in kls.items() if getattr(encoding, "bits", 0) == 8]
    assert sparse == sorted(sparse, reverse=True)
    assert len(sparse) == 3, "10, 20 and 50 of 60 classes"
    assert [kl for encoding, kl in kls.items() if not hasattr(encoding, "top_k")] == [0, 0]


def test_time_is_that_of_one_decoding_and_of_every_view_of_all_images(found: Estimate) -> None:
    assert [row.views for row in found.by_views] == [1, 2, 3, 4]
    (device,) = found.devices.values()
    for row in found.by_views:
        seconds = device.decode + row.views * device.store
        assert row.minutes["cpu"] == pytest.approx(IMAGES * seconds / 60)
        gained = device.teach - found.fetch
        expected = math.ceil(seconds / gained) if gained > 0 else None
        assert row.break_even_epochs["cpu"] == expected
    forward = sum(teacher.seconds["cpu"] for teacher in found.teachers.values())
    assert device.teach == pytest.approx(forward)
    assert device.store > device.teach * 0.5, "it has the forwards in it"
    assert device.decode >= 0


def test_the_limit_chooses(values: dict[str, Any]) -> None:
    found = estimate_cache(config(values, encoding={"budget": "12B"}))
    for teacher in found.teachers.values():
        lse = 4.1  # kept besides
        assert teacher.chosen is not None
        assert teacher.chosen.row_bytes <= 12 + lse


@pytest.mark.parametrize(
    ("precompute", "teach", "fetch", "epochs"),
    [
        (16 * 0.011, 0.010, 0.0001, 18),  # 17.8
        (0.010, 0.010, 0.0, 1),
        (0.004 + 4 * 0.011, 0.010, 0.002, 6),
        (16 * 0.002, 0.001, 0.001, None),
        (16 * 0.002, 0.001, 0.002, None),
    ],
)
def test_the_break_even(precompute: float, teach: float, fetch: float, epochs: int | None) -> None:
    assert break_even_epochs(precompute, teach, fetch) == epochs
    if epochs is not None:
        assert precompute + epochs * fetch <= epochs * teach + 1e-12
        assert precompute + (epochs - 1) * fetch > (epochs - 1) * teach


def test_what_precompute_refuses_is_refused(values: dict[str, Any], images: Path) -> None:
    with pytest.raises(UsageError, match="different numbers of classes"):
        estimate_cache(config(values, data=str(images)))


@pytest.mark.parametrize("encoding", [{"top_k": 10}, {"max_kl": "0.1@T=1"}])
@pytest.mark.parametrize("features", [{}, {"pre_logits": {}}])
def test_a_sample_without_a_readable_image_is_an_error(
    values: dict[str, Any], tmp_path: Path, encoding: dict[str, Any], features: dict[str, Any]
) -> None:
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(b"not an image")
    teacher = {"model": values["teachers"]["one"]["model"], "features": features}
    given = {"data": str(tmp_path), "teachers": {"one": teacher}, "encoding": encoding}
    with pytest.raises(DataError, match="none of the sampled images can be read") as caught:
        estimate_cache(config(values, **given))
    assert caught.value.expected == "at least one of 9 images, spread evenly over the image set"
    assert caught.value.hint is not None


def test_bytes_of_label_sets_are_those_of_all_sets_compressed() -> None:
    generator = np.random.default_rng(0)
    rows = 20_000
    sets = LabelSets.of(generator.choice(80, generator.integers(7)) for _ in range(rows))
    keys = [f"{row:06d}.jpg" for row in range(rows)]
    given: Any = {"keys": keys, "class_names": [f"c{n}" for n in range(80)], "description": ""}
    sizes: Any = {"capacity": 20_480, "unit_rows": 4096, "mixed_views": 0, "fingerprint_side": 8}
    with_sets, without = (
        cache_footprint([], SimpleNamespace(**given, label_sets=each), **sizes)
        for each in (sets, None)
    )
    width = label_width(sets, 80, "")
    stored = packed_bytes(label_specs(width), {**label_set_arrays(sets, width)})
    assert stored > 50_000
    assert with_sets.bytes - without.bytes == pytest.approx(stored, rel=0.2)
    assert with_sets.files - without.files == 2 * (5 + 1)
