"""Class embeddings: written once, resumed, verified, repaired and dropped; old readers refuse."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.format import manifest as manifest_module
from logitcache.cache.format.groups import TableGroup, group_names
from logitcache.cache.format.names import FEATURES, NO_VIEW
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.drop import drop_from_cache
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.check.repair import RepairConfig, repair_cache
from logitcache.encoding.dense import DenseEncoding
from logitcache.errors import CacheError, UnsupportedFormat, UsageError
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.precompute.build import build_cache
from logitcache.precompute.plan.layers import write_class_embeddings
from logitcache.teachers.member import Member
from tests.cache.building import (
    CLASS_NAMES,
    VIEW,
    declare,
    encode,
    samples_of,
    start_cache,
    write_samples,
    write_teacher,
)
from tests.conftest import write_teacher as write_network
from tests.precompute.test_building import config

if TYPE_CHECKING:
    from pathlib import Path

SHARD = "teachers/red/tables/class_embeddings/values/c/0/0"


@pytest.fixture(scope="module")
def configured(teachers: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    return {"cnn": dict(teachers["cnn"]), "red": {**teachers["red"], "class_embeddings": True}}


@pytest.fixture(scope="module")
def built(
    images: Path, configured: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("tables") / "cache"
    build_cache(config(path, images, configured))
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "c")
    return tmp_path / "c"


def weights(teacher: dict[str, Any]) -> np.ndarray:
    network: Any = build_network(NetworkConfig(model=teacher["model"]))
    found: np.ndarray = network.get_classifier().weight.detach().numpy()
    return found


@pytest.mark.requirement("F2.5", "F9.5")
def test_the_table_is_the_weight_of_the_classifier(
    built: Path, configured: dict[str, dict[str, Any]]
) -> None:
    cache = open_cache(built)
    assert list(cache.tables) == ["red/class_embeddings"]
    found = cache.table("red/class_embeddings")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weights(configured["red"]))
    assert list(cache.teachers) == ["cnn", "red"]
    assert not cache.features
    with pytest.raises(UsageError, match="did you mean 'red/class_embeddings'"):
        cache.table("red/class_embedding")
    assert verify(str(built)).faults == ()


@pytest.mark.requirement("F9.1")
def test_a_further_run_changes_nothing(
    copy: Path, images: Path, configured: dict[str, dict[str, Any]]
) -> None:
    before = open_cache(copy).revision_sha256
    build_cache(config(copy, images, configured))
    assert open_cache(copy).revision_sha256 == before


@pytest.mark.requirement("F9.3")
def test_it_is_added_to_a_sealed_cache(
    images: Path,
    teachers: dict[str, dict[str, str]],
    configured: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    build_cache(config(tmp_path / "c", images, {"red": teachers["red"]}))
    assert "tables" not in open_cache(tmp_path / "c").manifest.requires
    build_cache(config(tmp_path / "c", images, {"red": configured["red"]}))
    cache = open_cache(tmp_path / "c")
    np.testing.assert_array_equal(cache.table("red/class_embeddings"), weights(configured["red"]))
    assert verify(str(tmp_path / "c")).faults == ()


@pytest.mark.requirement("F2.2", "F2.5", "F9.3")
def test_readers_that_do_not_know_tables_refuse(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = json.loads((built / "zarr.json").read_text())["attributes"]["logitcache"]
    assert root["format"] == 2
    assert "tables" in root["requires"]
    known = {name: text for name, text in FEATURES.items() if name != "tables"}
    monkeypatch.setattr(manifest_module, "FEATURES", known)
    with pytest.raises(UnsupportedFormat, match="tables"):
        open_cache(built)


@pytest.mark.parametrize("key", [SHARD, "commits/teachers/red/tables/class_embeddings/-/0.json"])
def test_damage_is_found_and_repaired_bit_for_bit(
    copy: Path, images: Path, teachers: dict[str, dict[str, str]], key: str
) -> None:
    before = open_cache(copy).revision_sha256
    content = (copy / key).read_bytes()
    (copy / key).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (fault,) = verify(str(copy)).faults
    assert fault.group == "teachers/red/tables/class_embeddings"
    values = {"cache": str(copy), "data": str(images), "teachers": teachers}
    assert repair_cache(RepairConfig.parse(values, "repair")).remaining == ()
    assert (copy / key).read_bytes() == content
    assert open_cache(copy).revision_sha256 == before
    assert verify(str(copy)).faults == ()


@pytest.mark.requirement("F2.8", "F9.3")
def test_it_goes_with_its_teacher(copy: Path) -> None:
    assert "red/tables/class_embeddings" in group_names(open_cache(copy).manifest)
    drop_from_cache(str(copy), teachers=["red"])
    cache = open_cache(copy)
    assert not cache.tables
    assert "tables" not in cache.manifest.requires
    assert verify(str(copy)).faults == ()
    assert not list((copy / "commits/teachers").glob("red/**/*.json"))


def test_views_are_dropped_without_it(copy: Path) -> None:
    drop_from_cache(str(copy), views=["0"])
    cache = open_cache(copy)
    assert cache.table("red/class_embeddings").shape[0] == 3
    assert verify(str(copy)).faults == ()


@pytest.mark.requirement("F9.1")
def test_more_images_leave_it_as_it_is(
    copy: Path, images: Path, configured: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "more")
    shutil.copy(next(images.rglob("*.jpg")), tmp_path / "more" / "cat" / "new.jpg")
    before = (copy / SHARD).read_bytes()
    build_cache(config(copy, tmp_path / "more", configured))
    assert (copy / SHARD).read_bytes() == before
    np.testing.assert_array_equal(
        open_cache(copy).table("red/class_embeddings"), weights(configured["red"])
    )
    assert verify(str(copy)).faults == ()


@pytest.mark.requirement("F9.1")
def test_another_shape_is_refused(copy: Path, teachers: dict[str, dict[str, str]]) -> None:
    writer = CacheWriter.open(locate(copy, write=True))
    group = writer.groups()["red/tables/class_embeddings"]
    assert isinstance(group, TableGroup)
    width = group.width + 1
    with pytest.raises(CacheError, match="another shape"):
        group.encode(np.zeros((3, width), np.float32))

    class Other(Member):
        def __init__(self) -> None:
            self.name = "red"

        def class_embeddings(self) -> Any:
            return np.zeros((3, width), np.float32)

    with pytest.raises(CacheError, match="stored with other settings"):
        write_class_embeddings(writer, Other())


@pytest.mark.requirement("F9.2")
def test_a_table_of_many_classes_is_one_chunk(tmp_path: Path) -> None:
    """More classes than an inner chunk of images has rows, and a prime number of them."""
    classes, width = 5003, 7
    writer = start_cache(tmp_path / "c", 40)
    samples = samples_of(40)
    write_samples(writer, samples)
    encoding = DenseEncoding(len(CLASS_NAMES))
    group = declare(writer, "t", encoding)
    logits = np.random.default_rng(0).normal(size=(len(samples["key"]), len(CLASS_NAMES)))
    write_teacher(writer, group, encode(group, logits.astype(np.float32), samples))
    table = TableGroup(
        teacher="t",
        table="class_embeddings",
        width=width,
        unit_rows=classes,
        lock_sha256=group.lock_sha256,
        class_names_sha256=group.class_names_sha256,
    )
    writer.add_group(table)
    with pytest.raises(CacheError, match="units are missing"):
        writer.seal("fingerprint", {"t": {VIEW: 0.5}})
    values = np.random.default_rng(1).normal(size=(classes, width)).astype(np.float32)
    writer.write_unit(table, NO_VIEW, 0, table.encode(values), Conditions())
    writer.seal("fingerprint", {"t": {VIEW: 0.5}})
    found = open_cache(tmp_path / "c").table("t/class_embeddings")
    np.testing.assert_array_equal(found, values)
    assert verify(str(tmp_path / "c")).faults == ()


@pytest.mark.requirement("F5.1", "F9.2", "F9.3", "F9.4")
def test_documents_and_chunks_of_a_table_are_those_of_the_page(built: Path) -> None:
    group = built / "teachers/red/tables/class_embeddings"
    found = json.loads((group / "zarr.json").read_text())["attributes"]["logitcache"]
    classes, width = open_cache(built).table("red/class_embeddings").shape
    teacher = json.loads((built / "teachers/red/zarr.json").read_text())["attributes"]["logitcache"]
    assert found == {
        "format": 1,
        "num_classes": classes,
        "width": width,
        "lock_sha256": teacher["lock_sha256"],
        "class_names_sha256": teacher["class_names_sha256"],
    }
    array = json.loads((group / "values/zarr.json").read_text())
    assert (array["shape"], array["data_type"]) == ([classes, width], "float32")
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [classes, width]
    assert array["codecs"][0]["configuration"]["chunk_shape"] == [classes, width]
    (path,) = (built / "commits/teachers/red/tables/class_embeddings").rglob("*.json")
    commit = json.loads(path.read_text())
    assert (commit["view"], commit["unit"], commit["rows"]) == (NO_VIEW, 0, [0, classes])
    root = json.loads((built / "zarr.json").read_text())["attributes"]["logitcache"]
    assert root["teachers"]["red"]["tables"] == ["class_embeddings"]
    assert "tables" not in root["teachers"]["cnn"]


@pytest.mark.requirement("F9.5")
def test_rows_of_the_table_are_those_of_the_class_map(images: Path, tmp_path: Path) -> None:
    wide = write_network(tmp_path / "wide", classes=7)
    teacher = {"model": f"local-dir:{wide}", "class_map": [6, 0, 2], "class_embeddings": True}
    build_cache(config(tmp_path / "c", images, {"wide": teacher}))  # type: ignore[dict-item]  # a list
    found = open_cache(tmp_path / "c").table("wide/class_embeddings")
    np.testing.assert_array_equal(found, weights({"model": teacher["model"]})[[6, 0, 2]])


@pytest.mark.requirement("F9.6")
def test_a_table_of_an_unknown_name_is_read_like_any_other(tmp_path: Path) -> None:
    writer = start_cache(tmp_path / "c", 40)
    samples = samples_of(40)
    write_samples(writer, samples)
    group = declare(writer, "t", DenseEncoding(len(CLASS_NAMES)))
    logits = np.zeros((len(samples["key"]), len(CLASS_NAMES)), np.float32)
    write_teacher(writer, group, encode(group, logits, samples))
    table = TableGroup(
        teacher="t",
        table="something_later",
        width=3,
        unit_rows=len(CLASS_NAMES),
        lock_sha256=group.lock_sha256,
        class_names_sha256=group.class_names_sha256,
    )
    writer.add_group(table)
    values = np.arange(3 * len(CLASS_NAMES), dtype=np.float32).reshape(-1, 3)
    writer.write_unit(table, NO_VIEW, 0, table.encode(values), Conditions())
    writer.seal("fingerprint", {"t": {VIEW: 0.5}})
    np.testing.assert_array_equal(open_cache(tmp_path / "c").table("t/something_later"), values)
