from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.format.ledger import committed_units
from logitcache.cache.format.manifest import Segment, read_manifest
from logitcache.cache.format.names import NO_VIEW, SAMPLES
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import (
    CacheDamaged,
    CacheError,
    CacheUnsealed,
    UnsupportedFormat,
    UsageError,
)
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.describe import describe
from tests.cache.building import (
    MORE_VIEWS,
    UNIT,
    VIEW,
    declare,
    encode,
    make_cache,
    samples_of,
    start_cache,
    write_samples,
    write_teacher,
)

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 40
SECOND = next(iter(MORE_VIEWS))
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 30)).astype(np.float32)
SPARSE, DENSE = SparseEncoding(30, 5), DenseEncoding(30)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.requirement("F5.6")
def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    samples = make_cache(tmp_path, {"a": (SPARSE, LOGITS), "b": (DENSE, LOGITS)}, ROWS, (3,))
    cache = open_cache(tmp_path)
    assert list(cache.teachers) == ["a", "b"]
    assert list(cache.views) == [VIEW]
    for name, encoding in (("a", SPARSE), ("b", DENSE)):
        assert cache.teacher(name).encoding == encoding
        expected = encode(cache.teacher(name), LOGITS, samples)
        got = cache.read(name, VIEW, 0, 48)
        assert got.keys() == expected.keys()
        for array in expected:
            np.testing.assert_array_equal(got[array], expected[array])
    assert cache.samples.keys.tolist()[:ROWS] == list(samples["key"][:ROWS])
    assert len(cache.samples.rows) == ROWS
    assert 3 not in cache.samples.readable
    assert (cache.samples.labels[:ROWS] == samples["label"][:ROWS]).all()


@pytest.mark.requirement("F11.11")
def test_equal_work_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_cache(tmp_path / name, {"a": (SPARSE, LOGITS)}, ROWS)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


@pytest.mark.requirement("F11.10")
def test_every_object_of_a_unit_is_in_its_commit(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (SPARSE, LOGITS)}, ROWS)
    named = {
        array["key"]
        for path in (tmp_path / "commits").rglob("*.json")
        for array in json.loads(path.read_bytes())["arrays"].values()
    }
    objects = {
        str(path.relative_to(tmp_path))
        for group in ("samples", "teachers")
        for path in (tmp_path / group).rglob("*")
        if path.is_file() and path.name != "zarr.json"
    }
    assert objects == named


@pytest.mark.requirement("F5.5", "F11.3")
def test_a_unit_of_fill_alone_has_its_objects(tmp_path: Path) -> None:
    """Otherwise it would look missing: Zarr writes no empty chunks by default."""
    make_cache(tmp_path, {"a": (SPARSE, LOGITS[:17])}, 17, tuple(range(16)))
    assert (tmp_path / "teachers/a/codes/c/0/0/0").exists()
    assert open_cache(tmp_path).read("a", VIEW, 0, 16)["codes"].max() == 0


@pytest.mark.requirement("F11.16")
def test_an_unsealed_cache_is_not_opened(tmp_path: Path) -> None:
    writer = start_cache(tmp_path, ROWS)
    write_samples(writer, samples_of(ROWS))
    with pytest.raises(CacheUnsealed, match="not finished"):
        open_cache(tmp_path)


@pytest.mark.requirement("F3.9")
def test_what_is_missing_is_counted_and_cannot_be_sealed(tmp_path: Path) -> None:
    writer, samples = start_cache(tmp_path, ROWS), samples_of(ROWS)
    group = declare(writer, "a", DENSE)
    arrays = encode(group, LOGITS, samples)
    unit = {name: array[UNIT : 2 * UNIT] for name, array in arrays.items()}
    writer.write_unit(group, VIEW, 1, unit, Conditions())
    assert writer.missing() == {"samples/-": 3, f"teachers/a/{VIEW}": 2}
    assert writer.missing_units(group.path, VIEW, UNIT) == {0, 2}
    with pytest.raises(CacheError, match="units are missing"):
        writer.seal("f", {})
    assert not describe(tmp_path).complete


def test_sealing_again_changes_nothing(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (SPARSE, LOGITS)}, ROWS)
    before = snapshot(tmp_path)
    pointer = CacheWriter.open(locate(tmp_path)).seal("fingerprint", {"a": {VIEW: 0.5}})
    assert pointer.number == 1
    assert snapshot(tmp_path) == before


@pytest.mark.requirement("F3.6", "F11.16")
def test_a_second_teacher_touches_nothing_of_the_first(tmp_path: Path) -> None:
    samples = make_cache(tmp_path, {"a": (SPARSE, LOGITS)}, ROWS)
    before = snapshot(tmp_path)
    writer = CacheWriter.open(locate(tmp_path))
    group = declare(writer, "b", DENSE)
    assert list(open_cache(tmp_path).teachers) == ["a"]
    write_teacher(writer, group, encode(group, LOGITS, samples))
    assert list(open_cache(tmp_path).teachers) == ["a"], "not sealed, so not there"
    assert writer.seal("fingerprint", {}).number == 2
    assert list(open_cache(tmp_path).teachers) == ["a", "b"]
    after = snapshot(tmp_path)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"zarr.json"}


@pytest.mark.requirement("F3.6", "F5.6", "F11.16")
def test_a_further_view_and_a_further_segment_leave_old_objects_alone(tmp_path: Path) -> None:
    samples = make_cache(tmp_path, {"a": (DENSE, LOGITS)}, ROWS)
    before = snapshot(tmp_path)
    writer = CacheWriter.open(locate(tmp_path))
    writer.add_views({SECOND: MORE_VIEWS[SECOND]})
    writer.extend_group("a", [SECOND])
    writer.add_segment(Segment(start=48, rows=10))
    assert writer.missing() == {"samples/-": 1, f"teachers/a/{VIEW}": 1, f"teachers/a/{SECOND}": 4}
    cache = open_cache(tmp_path)
    assert cache.views_of(["a"]) == [VIEW]
    assert len(cache.samples.rows) == ROWS
    np.testing.assert_array_equal(
        cache.read("a", VIEW, 0, 48)["logp"], encode(cache.teacher("a"), LOGITS, samples)["logp"]
    )
    after = snapshot(tmp_path)
    changed = {name for name in before if after[name] != before[name]}
    assert all(name.endswith("zarr.json") for name in changed)


def test_an_interrupted_start_is_taken_up(tmp_path: Path) -> None:
    """Any prefix of the objects that creating a cache writes can be opened and completed."""
    start_cache(tmp_path / "whole", ROWS)
    names = sorted(snapshot(tmp_path / "whole"), key=lambda n: (n != "zarr.json", n))
    for count in range(1, len(names)):
        partial = tmp_path / str(count)
        for name in names[:count]:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        writer = CacheWriter.open(locate(partial))
        write_samples(writer, samples_of(ROWS))
        assert writer.missing() == {}


@pytest.mark.requirement("F11.8")
def test_leftovers_of_an_interrupted_unit_are_replaced(tmp_path: Path) -> None:
    writer, samples = start_cache(tmp_path, ROWS), samples_of(ROWS)
    group = declare(writer, "a", DENSE)
    arrays = {name: array[:UNIT] for name, array in encode(group, LOGITS, samples).items()}
    shard = tmp_path / "teachers/a/logp/c/0/0/0"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"half a shard")
    writer.write_unit(group, VIEW, 0, arrays, Conditions())
    got = writer.read_rows(group, VIEW, 0, UNIT, ["logp"])["logp"]
    np.testing.assert_array_equal(got, arrays["logp"])


@pytest.mark.requirement("F11.28")
@pytest.mark.parametrize("damage", [b"", b"short"])
def test_a_damaged_object_is_named(tmp_path: Path, damage: bytes) -> None:
    make_cache(tmp_path, {"a": (DENSE, LOGITS)}, ROWS)
    shard = tmp_path / "teachers/a/logp/c/0/1/0"
    shard.write_bytes(damage)
    with pytest.raises(CacheDamaged, match=r"damaged: (empty|truncated)[\s\S]*logp/c/0/1/0"):
        open_cache(tmp_path).read("a", VIEW, 0, 48)
    shard.unlink()
    with pytest.raises(CacheDamaged, match="damaged: missing"):
        open_cache(tmp_path).read("a", VIEW, 0, 48)


@pytest.mark.requirement("F11.28")
def test_a_flipped_bit_is_found_before_it_is_decoded(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (DENSE, LOGITS)}, ROWS)
    shard = tmp_path / "teachers/a/logp/c/0/1/0"
    content = bytearray(shard.read_bytes())
    content[20] ^= 4
    shard.write_bytes(content)
    with pytest.raises(CacheDamaged, match=r"damaged inner chunk[\s\S]*unit 1, array logp"):
        open_cache(tmp_path).read("a", VIEW, 0, 48)


@pytest.mark.requirement("F5.6", "F11.19")
def test_an_edited_ledger_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (DENSE, LOGITS)}, ROWS)
    ledger = tmp_path / f"ledger/teachers/a/{VIEW}.1.json"
    ledger.write_bytes(ledger.read_bytes().replace(b'"unit":1', b'"unit":3'))
    with pytest.raises(CacheDamaged, match="has changed"):
        open_cache(tmp_path).read("a", VIEW, 0, 16)


def edit(tmp_path: Path, **fields: object) -> None:
    root = json.loads((tmp_path / "zarr.json").read_bytes())
    root["attributes"]["logitcache"] |= fields
    (tmp_path / "zarr.json").write_text(json.dumps(root))


@pytest.mark.requirement("F2.1", "F2.2")
def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (DENSE, LOGITS)}, ROWS)
    edit(tmp_path, format=3)
    with pytest.raises(UnsupportedFormat, match=r"format 1 or 2[\s\S]*format 3"):
        open_cache(tmp_path)


@pytest.mark.requirement("F2.2")
@pytest.mark.parametrize("required", [["sorcery-9"], ["decoding-2", "sorcery-9"], "sorcery-9", [7]])
def test_what_a_cache_requires_is_known_or_refused(tmp_path: Path, required: Any) -> None:
    make_cache(tmp_path, {"a": (DENSE, LOGITS)}, ROWS)
    edit(tmp_path, format=2, requires=required)
    with pytest.raises(UnsupportedFormat, match=r"requires features[\s\S]*(sorcery-9|7)"):
        open_cache(tmp_path)


@pytest.mark.requirement("F2.3", "F2.8", "V5.1")
def test_a_new_cache_has_the_lowest_format_that_holds_it(
    tmp_path: Path, images: Path, teachers: dict[str, dict[str, str]]
) -> None:
    make_cache(tmp_path / "plain", {"a": (DENSE, LOGITS)}, ROWS)
    assert read_manifest(locate(tmp_path / "plain")).to_json().keys().isdisjoint({"requires"})
    shared = {"cache": str(tmp_path / "new"), "data": str(images), "teachers": teachers}
    build_cache(PrecomputeConfig.parse(shared, ""))
    manifest = read_manifest(locate(tmp_path / "new"))
    assert (manifest.format, manifest.requires) == (2, ("decoding-2",))
    assert (manifest.data.decoding, manifest.data.listing) == (2, 2)


@pytest.mark.requirement("F3.5", "F5.3", "F11.29")
@pytest.mark.parametrize(
    "fields",
    [
        {"unit_rows": 10**9},
        {"segments": [{"start": 3, "rows": 5}]},
        {"segments": [{"start": 0, "rows": 10**15}]},
        {"teachers": {"../evil": {"lock": {}, "canonical_batch": 1, "source": ""}}},
        {"views": 3},
    ],
)
def test_a_manifest_that_cannot_be_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    make_cache(tmp_path, {"a": (DENSE, LOGITS)}, ROWS)
    edit(tmp_path, **fields)
    with pytest.raises(CacheError, match="manifest is damaged"):
        read_manifest(locate(tmp_path))


@pytest.mark.requirement("F2.6", "F12.9")
def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (DENSE, LOGITS)}, ROWS)
    edit(tmp_path, color="blue")
    assert read_manifest(locate(tmp_path)).rows == ROWS


def test_no_cache_and_something_else(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache here"):
        open_cache(tmp_path)
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(CacheError, match="not a logitcache cache"):
        open_cache(tmp_path)
    with pytest.raises(CacheError, match="neither a cache nor empty"):
        start_cache(tmp_path, ROWS)


def test_unknown_teachers_and_views_are_named(tmp_path: Path) -> None:
    make_cache(tmp_path, {"resnet": (DENSE, LOGITS)}, ROWS)
    cache = open_cache(tmp_path)
    with pytest.raises(UsageError, match="did you mean 'resnet'"):
        cache.teacher("resnett")
    with pytest.raises(CacheError, match="has no outputs for"):
        cache.teacher("resnet").slot("v2")
    assert "resnet" in repr(cache)


def test_commits_are_counted_by_name_alone(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (DENSE, LOGITS)}, ROWS)
    (tmp_path / f"commits/{SAMPLES}/{NO_VIEW}/notes.txt").write_text("not a commit")
    (tmp_path / f"commits/{SAMPLES}/{NO_VIEW}/9.json.abc.partial").write_text("half")
    assert committed_units(locate(tmp_path), SAMPLES, NO_VIEW) == {0, 1, 2}


@pytest.mark.requirement("F2.6")
def test_what_a_newer_version_adds_is_kept_and_sealed(tmp_path: Path) -> None:
    start_cache(tmp_path / "c", 16)
    root = tmp_path / "c" / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["logitcache"]["future"] = {"a": 1}
    document["attributes"]["logitcache"]["data"]["shade"] = "blue"
    root.write_text(json.dumps(document))
    writer = CacheWriter.open(locate(tmp_path / "c"))
    write_samples(writer, samples_of(16))
    writer.seal("f", {})
    kept = json.loads(root.read_text())["attributes"]["logitcache"]
    assert (kept["future"], kept["data"]["shade"]) == ({"a": 1}, "blue")
    assert verify(tmp_path / "c").ok
    kept["future"] = {"a": 2}
    document["attributes"]["logitcache"] = kept
    root.write_text(json.dumps(document))
    assert not verify(tmp_path / "c").ok, "it is part of what was sealed"


@pytest.mark.requirement("F11.4")
def test_arrays_have_names_of_their_axes(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """xarray opens a group whose axes have names, and takes axes of one name to be of one size."""
    features = {"layer1": {"values": "int8"}, "pre_logits": {}}
    values = {
        "cache": str(tmp_path / "cache"),
        "data": str(images),
        "teachers": {"cnn": teachers["cnn"], "red": {**teachers["red"], "features": features}},
        "views": {"count": 2, "cutmix_alpha": 1.0},
        "encoding": {"top_k": 2, "lse": True},
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    sizes: dict[str, dict[str, int]] = {}
    for document in (tmp_path / "cache").rglob("zarr.json"):
        array = json.loads(document.read_text())
        if array["node_type"] != "array":
            continue
        path, names = document.parent.relative_to(tmp_path / "cache"), array["dimension_names"]
        assert names[:2] == ["view", "row"] if path.parts[0] == "teachers" else names[0] == "row"
        group = sizes.setdefault(path.parent.as_posix(), {})
        for name, size in zip(names, array["shape"], strict=True):
            assert group.setdefault(name, size) == size, path
    assert {"samples", "teachers/cnn", "teachers/red/features/layer1"} <= sizes.keys()
