"""Documents, arrays and digests of a cache, compared with docs/format.md field by field."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from logitcache.cache.format.manifest import parse_manifest, read_manifest
from logitcache.cache.format.partners import encode_partners, partner_rows
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.open import locate
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheError, UnsupportedFormat
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.cache.building import (
    CLASS_NAMES,
    LOCK,
    MORE_VIEWS,
    RECIPE,
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
from tests.cache.damage import edit_json
from tests.hostile.inputs import CLASSES, MIXED, ROWS, intact

if TYPE_CHECKING:
    from pathlib import Path

SHARD_ROWS, CAPACITY = UNIT, 48
# name of the array: shape after the leading axes, data type, fill
SAMPLES: dict[str, tuple[tuple[int, ...], str, Any]] = {
    "key": ((), "string", ""),
    "hash": ((), "uint64", 0),
    "digest": ((16,), "uint8", 0),
    "bytes": ((), "int64", 0),
    "label": ((), "int32", -1),
    "status": ((), "uint8", 0),
}
OPTIONAL: dict[str, tuple[tuple[int, ...], str, Any]] = {
    "lse": ((), "float32", "NaN"),
    "label_logp": ((), "float16", "NaN"),
}
ARRAYS: dict[str, tuple[int, dict[str, tuple[tuple[int, ...], str, Any]]]] = {
    "samples": (0, SAMPLES),
    f"views/{MIXED}": (0, {"partner": ((), "uint16", 65535)}),
    "teachers/a": (
        2,
        {
            "class_ids": ((5,), "uint16", 0),
            "codes": ((5,), "uint8", 0),
            "tail": ((2,), "float16", "NaN"),
            **OPTIONAL,
        },
    ),
    "teachers/b": (
        2,
        {
            "logp": ((CLASSES,), "uint8", 0),
            "logp_range": ((2,), "float16", "NaN"),
            **OPTIONAL,
        },
    ),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of two teachers with a mixed view, probes and a withdrawal."""
    path = tmp_path_factory.mktemp("page") / "cache"
    intact(path)
    return path


def document(cache: Path, key: str) -> Any:
    return json.loads((cache / key).read_bytes())


def attributes(cache: Path, group: str = "") -> Any:
    key = f"{group}/zarr.json" if group else "zarr.json"
    return document(cache, key)["attributes"]["logitcache"]


def canonical(value: object) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.requirement("F5.1")
def test_arrays_have_the_shapes_types_and_fills_of_the_tree(cache: Path) -> None:
    paths = {path.parent.relative_to(cache).as_posix() for path in cache.rglob("*/zarr.json")}
    arrays = {
        path for path in paths if document(cache, f"{path}/zarr.json")["node_type"] != "group"
    }
    assert arrays == {f"{group}/{name}" for group, (_, names) in ARRAYS.items() for name in names}
    for group, (views, names) in ARRAYS.items():
        leading = [views, CAPACITY] if views else [CAPACITY]
        for name, (shape, kind, fill) in names.items():
            about = document(cache, f"{group}/{name}/zarr.json")
            assert about["shape"] == [*leading, *shape], name
            assert (about["data_type"], about["fill_value"]) == (kind, fill), name


@pytest.mark.requirement("F5.1", "F6.4")
def test_an_encoding_decides_the_arrays_of_a_teacher() -> None:
    def kinds(encoding: SparseEncoding | DenseEncoding) -> dict[str, tuple[Any, ...]]:
        specs = encoding.specs()
        return {name: (s.shape, s.dtype, str(np.float64(s.fill))) for name, s in specs.items()}

    tail = ((2,), "float16", "nan")
    assert kinds(SparseEncoding(70_000, 4, "float16")) == {
        "class_ids": ((4,), "uint32", "0.0"),
        "logp_k": ((4,), "float16", "nan"),
        "tail": tail,
    }
    assert kinds(DenseEncoding(9)) == {"logp": ((9,), "float16", "nan")}


@pytest.mark.requirement("F11.1", "F11.2", "F11.36")
def test_chunks_shards_and_codecs_are_those_of_the_page(cache: Path) -> None:
    for group, (views, names) in ARRAYS.items():
        for name, (shape, kind, _) in names.items():
            about = document(cache, f"{group}/{name}/zarr.json")
            leading = [1] if views else []
            chunk = [*leading, SHARD_ROWS, *shape]
            assert about["chunk_grid"]["configuration"]["chunk_shape"] == chunk
            (sharding,) = about["codecs"]
            inside = sharding["configuration"]
            assert inside["chunk_shape"] == chunk, "of 16 rows, up to 4096"
            assert [codec["name"] for codec in inside["index_codecs"]] == ["bytes", "crc32c"]
            assert inside["index_location"] == "end"
            codecs = [codec["name"] for codec in inside["codecs"]]
            first = "vlen-utf8" if kind == "string" else "bytes"
            middle = [] if name == "digest" else ["blosc"]
            assert codecs == [first, *middle, "crc32c"]
            if middle:
                blosc = inside["codecs"][1]["configuration"]
                assert (blosc["cname"], blosc["clevel"], blosc["shuffle"]) == ("zstd", 1, "shuffle")


@pytest.mark.requirement("F11.1")
def test_an_inner_chunk_has_at_most_4096_rows(tmp_path: Path) -> None:
    writer = start_cache(tmp_path, 5000, unit=8192)
    declare(writer, "a", DenseEncoding(10), unit_rows=8192)
    for path in ("samples/key", "samples/status", "teachers/a/lse"):
        about = document(tmp_path, f"{path}/zarr.json")
        assert about["chunk_grid"]["configuration"]["chunk_shape"][-1] == 8192
        assert about["codecs"][0]["configuration"]["chunk_shape"][-1] == 4096


@pytest.mark.requirement("F2.1", "F2.8", "F5.1")
def test_every_document_but_the_root_has_format_1(cache: Path) -> None:
    keys = [path.relative_to(cache).as_posix() for path in cache.rglob("*.json")]
    documents = [key for key in keys if not key.endswith("zarr.json")]
    assert {key.partition("/")[0] for key in documents} == {
        "commits",
        "ledger",
        "probes",
        "revisions",
        "withdrawn",
    }
    assert {document(cache, key)["format"] for key in documents} == {1}
    assert {attributes(cache, f"teachers/{name}")["format"] for name in "ab"} == {1}
    assert attributes(cache)["format"] == 1
    assert (
        attributes(cache, "samples") == attributes(cache, f"views/{MIXED}") == {"unit_rows": UNIT}
    )


@pytest.mark.requirement("F5.1")
def test_documents_have_their_keys(cache: Path) -> None:
    units = range(CAPACITY // UNIT)
    commits = {f"samples/-/{unit}" for unit in units} | {f"views/{MIXED}/{unit}" for unit in units}
    for name in "ab":
        commits |= {f"teachers/{name}/{v}/{unit}" for v in (VIEW, MIXED) for unit in units}
    found = {
        path.relative_to(cache / "commits").with_suffix("").as_posix()
        for path in (cache / "commits").rglob("*.json")
    }
    assert found == commits
    ledgers = {path.relative_to(cache).as_posix() for path in (cache / "ledger").rglob("*.json")}
    assert ledgers == {f"ledger/{name.rpartition('/')[0]}.1.json" for name in commits}
    assert sorted(path.name for path in (cache / "revisions").iterdir()) == [
        "1.copies.json",
        "1.json",
        "2.copies.json",
        "2.json",
    ]


@pytest.mark.requirement("F4.1", "F12.1", "V5.1")
def test_the_root_has_the_fields_of_the_page(cache: Path) -> None:
    root = attributes(cache)
    assert root.keys() == {
        "format",
        "unit_rows",
        "segments",
        "data",
        "views",
        "teachers",
        "versions",
        "revision",
    }
    assert root["unit_rows"] == UNIT
    assert [(s["start"], s["rows"]) for s in root["segments"]] == [(0, ROWS)]
    assert root["views"][VIEW] == RECIPE
    assert root["teachers"]["a"]["lock"] == LOCK
    assert {"lock", "canonical_batch", "source", "accuracy"} <= root["teachers"]["a"].keys()
    assert root["data"]["class_names"] == list(CLASS_NAMES)
    assert root["data"]["fingerprint"] == "f" * 64
    assert root["revision"].keys() == {"number", "sha256"}
    manifest = read_manifest(locate(cache))
    assert (manifest.data.listing, manifest.data.decoding) == (1, 1), "where they are absent"


@pytest.mark.requirement("F12.1", "F12.3")
def test_nothing_is_sealed_in_a_new_root(tmp_path: Path) -> None:
    start_cache(tmp_path, ROWS)
    root = attributes(tmp_path)
    assert root.get("revision") is None
    assert root["data"].get("fingerprint") is None
    assert "requires" not in root


@pytest.mark.requirement("F10.1", "F10.2", "F10.3")
def test_a_group_has_the_attributes_of_the_page(cache: Path) -> None:
    common = {
        "format": 1,
        "head": "softmax",
        "optional": ["lse", "label_logp"],
        "unit_rows": UNIT,
        "view_ids": [VIEW, MIXED],
        "num_classes": CLASSES,
        "lock_sha256": sha256(canonical(LOCK)),
        "class_names_sha256": sha256(canonical(list(CLASS_NAMES))),
    }
    sparse = {"kind": "sparse", "top_k": 5, "values": "codes", "bits": 5}
    assert attributes(cache, "teachers/a") == {**common, "encoding": sparse}
    dense = {"kind": "dense", "values": "uint8"}
    assert attributes(cache, "teachers/b") == {**common, "encoding": dense}
    mass = SparseEncoding(9, 3, "float16", mass=0.5).to_json()
    assert mass == {"kind": "sparse", "top_k": 3, "values": "float16", "mass": 0.5}


@pytest.mark.requirement("F11.10", "F11.12")
def test_a_commit_describes_its_objects_and_their_rows(cache: Path) -> None:
    commit = document(cache, f"commits/teachers/a/{VIEW}/2.json")
    assert commit.keys() == {
        "format",
        "group",
        "view",
        "unit",
        "rows",
        "arrays",
        "canonical_batch",
        "precision",
        "threads",
        "versions",
    }
    assert (commit["group"], commit["view"], commit["unit"]) == ("teachers/a", VIEW, 2)
    assert commit["rows"] == [32, 48]
    assert commit["arrays"].keys() == {f"teachers/a/{name}" for name in ARRAYS["teachers/a"][1]}
    for path, stored in commit["arrays"].items():
        assert stored.keys() == {"key", "bytes", "sha256", "content_sha256"}
        content = (cache / stored["key"]).read_bytes()
        assert (stored["bytes"], stored["sha256"]) == (len(content), sha256(content))
        rows: Any = zarr.open_array(cache, path=path, mode="r")[0, 32:48]
        little = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
        assert stored["content_sha256"] == sha256(little.tobytes()), "padding included"
    names = document(cache, "commits/samples/-/2.json")["arrays"]["samples/key"]
    keys = [f"img/{row:06d}.jpg" for row in range(32, ROWS)] + [""] * (CAPACITY - ROWS)
    assert names["content_sha256"] == sha256("\0".join(keys).encode())


@pytest.mark.requirement("F11.33")
def test_a_shard_has_the_key_that_zarr_gives_it(cache: Path) -> None:
    commit = document(cache, f"commits/teachers/a/{MIXED}/1.json")
    keys = {path: stored["key"] for path, stored in commit["arrays"].items()}
    assert keys["teachers/a/codes"] == "teachers/a/codes/c/1/1/0"
    assert keys["teachers/a/lse"] == "teachers/a/lse/c/1/1"
    commit = document(cache, "commits/samples/-/1.json")
    assert commit["arrays"]["samples/digest"]["key"] == "samples/digest/c/1/0"


@pytest.mark.requirement("F11.9", "F11.13")
def test_a_ledger_has_the_commits_of_a_view_by_unit(cache: Path) -> None:
    for group, view in (("teachers/b", MIXED), ("samples", "-"), ("views", MIXED)):
        commits = [document(cache, f"commits/{group}/{view}/{unit}.json") for unit in range(3)]
        expected = {"format": 1, "group": group, "view": view, "commits": commits}
        assert (cache / f"ledger/{group}/{view}.1.json").read_bytes() == canonical(expected)


@pytest.mark.requirement("F11.14", "F11.19")
def test_a_revision_names_all_documents_by_their_digests(cache: Path) -> None:
    root = attributes(cache)
    content = (cache / "revisions/2.json").read_bytes()
    assert root["revision"] == {"number": 2, "sha256": sha256(content)}
    revision = json.loads(content)
    assert content == canonical(revision)
    assert revision.keys() == {
        "format",
        "number",
        "segments",
        "ledgers",
        "metadata",
        "manifest_sha256",
        "copies_sha256",
        "parents",
    }
    assert revision["parents"] == [sha256((cache / "revisions/1.json").read_bytes())]
    assert (revision["number"], revision["segments"]) == (2, [[0, ROWS]])
    for name, pointer in revision["ledgers"].items():
        assert pointer["key"] == f"ledger/{name}.1.json"
        assert pointer["sha256"] == sha256((cache / pointer["key"]).read_bytes())
        assert pointer["units"] == 3
    assert len(revision["ledgers"]) == 2 + 2 * 2
    below = {path.relative_to(cache).as_posix() for path in cache.rglob("zarr.json")}
    named = below - {"zarr.json"} | {"probes/1.json", "withdrawn/1.json"}
    metadata = {key: sha256((cache / key).read_bytes()) for key in named}
    assert revision["metadata"] == metadata
    assert revision["manifest_sha256"] == sha256(canonical({**root, "revision": None}))
    copies = (cache / "revisions/2.copies.json").read_bytes()
    assert revision["copies_sha256"] == sha256(copies)


@pytest.mark.requirement("F11.23")
def test_copies_hold_the_manifest_and_the_metadata(cache: Path) -> None:
    metadata = document(cache, "revisions/2.json")["metadata"]
    expected = {
        "format": 1,
        "manifest": {**attributes(cache), "revision": None},
        "documents": {key: (cache / key).read_text() for key in metadata},
    }
    assert (cache / "revisions/2.copies.json").read_bytes() == canonical(expected)


@pytest.mark.requirement("F5.2", "F11.24", "F11.25")
def test_a_withdrawal_is_digested_in_itself_and_named_by_the_next_revision(cache: Path) -> None:
    found = document(cache, "withdrawn/1.json")
    rest = {"format": 1, "keys": ["img/000007.jpg"], "reason": "a test"}
    assert found == {**rest, "sha256": sha256(canonical(rest))}
    assert "withdrawn/1.json" not in document(cache, "revisions/1.json")["metadata"]
    assert "withdrawn/1.json" in document(cache, "revisions/2.json")["metadata"]
    samples = open_cache(cache).samples
    assert 7 in samples.rows
    assert 7 not in samples.readable


@pytest.mark.requirement("F2.2")
@pytest.mark.parametrize("fields", [{"format": 3}, {"format": 2, "requires": ["sorcery-9"]}])
def test_a_writer_refuses_what_a_reader_refuses(tmp_path: Path, fields: dict[str, Any]) -> None:
    start_cache(tmp_path, ROWS)
    edit_json(tmp_path / "zarr.json", lambda v: v["attributes"]["logitcache"].update(fields))
    with pytest.raises(UnsupportedFormat, match=r"format 3|sorcery-9") as caught:
        CacheWriter.open(locate(tmp_path))
    assert caught.value.exit_code == 1


@pytest.mark.requirement("F3.8", "F3.9")
def test_arrays_end_with_a_block_and_units_of_padding_are_committed(tmp_path: Path) -> None:
    """A group has units of 16 rows in blocks of 64: three of the last four are padding alone."""
    writer = start_cache(tmp_path, 70, unit=64)
    group = declare(writer, "a", DenseEncoding(10))
    assert document(tmp_path, "teachers/a/lse/zarr.json")["shape"] == [1, 128]
    assert document(tmp_path, "samples/key/zarr.json")["shape"] == [128]
    assert writer.missing() == {"samples/-": 2, f"teachers/a/{VIEW}": 8}
    samples = samples_of(70, unit=64)
    write_samples(writer, samples)
    logits = np.random.default_rng(0).normal(size=(70, 10)).astype(np.float32)
    arrays = encode(group, logits, samples)
    write_teacher(writer, group, arrays)
    (tmp_path / f"commits/teachers/a/{VIEW}/7.json").unlink()
    writer = CacheWriter.open(locate(tmp_path))
    with pytest.raises(CacheError, match="units are missing"):
        writer.seal("f", {})
    write_teacher(writer, group, arrays)
    writer.seal("f", {})
    assert open_cache(tmp_path).read("a", VIEW, 0, 128)["lse"].shape == (128,)


@pytest.mark.requirement("F11.7", "F11.8")
def test_writing_a_unit_again_changes_nothing(tmp_path: Path) -> None:
    writer = start_cache(tmp_path, ROWS)
    samples = samples_of(ROWS)
    group = declare(writer, "a", DenseEncoding(10))
    arrays = encode(group, np.ones((ROWS, 10), np.float32), samples)
    unit = {name: array[:UNIT] for name, array in arrays.items()}
    writer.write_unit(group, VIEW, 0, unit, Conditions())
    commit = tmp_path / f"commits/teachers/a/{VIEW}/0.json"
    files = [path for path in (tmp_path / "teachers").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in [commit, *files]}
    writer.write_unit(group, VIEW, 0, unit, Conditions())
    commit.unlink()  # as by a run that was killed before it
    writer.write_unit(group, VIEW, 0, unit, Conditions())
    assert {path: path.read_bytes() for path in before} == before


def written_keys(patch: pytest.MonkeyPatch) -> list[str]:
    """Record the keys of objects in the order in which they are written."""
    order: list[str] = []
    for name in ("write", "write_new"):
        original = getattr(LocalLocation, name)

        def noting(self: Any, key: str, *args: Any, original: Any = original) -> Any:
            order.append(key)
            return original(self, key, *args)

        patch.setattr(LocalLocation, name, noting)
    return order


@pytest.mark.requirement("F11.6", "F11.15")
def test_a_commit_is_written_last_and_the_root_after_its_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = written_keys(monkeypatch)
    logits = np.random.default_rng(0).normal(size=(ROWS, 30)).astype(np.float32)
    make_cache(tmp_path, {"a": (SparseEncoding(30, 5), logits)}, ROWS)
    for path in (tmp_path / "commits").rglob("*.json"):
        commit = order.index(path.relative_to(tmp_path).as_posix())
        for stored in json.loads(path.read_bytes())["arrays"].values():
            assert order.index(stored["key"]) < commit
    sealing = order.index("revisions/1.json")
    before = [order.index(key) for key in order if key.startswith("ledger/")]
    assert max(*before, order.index("revisions/1.copies.json")) < sealing
    assert order[sealing + 1 :] == ["zarr.json"], "nothing but the root"


@pytest.mark.requirement("F5.8")
def test_offset_65535_is_a_partner_where_the_status_says_so() -> None:
    offsets = np.full(65536, -1, dtype=np.int64)
    offsets[[0, 65535]] = [65535, 0]
    readable = np.zeros(65536, dtype=np.bool_)
    readable[[0, 65535]] = True
    stored = encode_partners(offsets)
    assert (stored[1], stored[0]) == (65535, 65535)
    rows = partner_rows("v", 2, stored, readable)
    assert rows[[0, 65535]].tolist() == [2 * 65536 + 65535, 2 * 65536]
    assert (np.delete(rows, [0, 65535]) == -1).all()


@pytest.mark.requirement("F3.14")
@pytest.mark.parametrize("count", [1, 64, 65])
def test_recipes_of_every_version_have_the_same_outline(tmp_path: Path, count: int) -> None:
    recipe = {"algorithm": 2, "draw": 0, "seed": 0, "operations": [{"op": "x", "y": 1}] * count}
    start_cache(tmp_path, ROWS)
    view = "v" + sha256(canonical(recipe))[:16]
    views = {VIEW: RECIPE, view: recipe}
    edit_json(tmp_path / "zarr.json", lambda v: v["attributes"]["logitcache"].update(views=views))
    if count > 64:
        with pytest.raises(CacheError, match="manifest is damaged"):
            read_manifest(locate(tmp_path))
        return
    assert read_manifest(locate(tmp_path)).views[view] == recipe
    for lacking in recipe:
        views[view] = {name: value for name, value in recipe.items() if name != lacking}
        edit_json(
            tmp_path / "zarr.json", lambda v: v["attributes"]["logitcache"].update(views=views)
        )
        with pytest.raises(CacheError, match="manifest is damaged"):
            read_manifest(locate(tmp_path))


@pytest.mark.requirement("F3.14", "F3.16")
def test_the_slot_of_a_view_is_its_place_on_the_first_axis(tmp_path: Path) -> None:
    writer = start_cache(tmp_path, ROWS)
    declare(writer, "a", DenseEncoding(10))
    second, third = MORE_VIEWS
    writer.add_views(MORE_VIEWS)
    writer.extend_group("a", [second])
    edit_json(
        tmp_path / "teachers/a/zarr.json",
        lambda v: v["attributes"]["logitcache"].update(view_ids=[VIEW, ""]),
    )
    writer = CacheWriter.open(locate(tmp_path))
    writer.extend_group("a", [third])
    assert attributes(tmp_path, "teachers/a")["view_ids"] == [VIEW, "", third]
    assert document(tmp_path, "teachers/a/lse/zarr.json")["shape"] == [3, CAPACITY]
    assert writer.groups()["a"].placement(third).shard_key("lse", 1) == "teachers/a/lse/c/2/1"


@pytest.mark.requirement("F11.30")
def test_a_root_has_a_largest_size() -> None:
    teacher = {"lock": {}, "canonical_batch": 1, "source": ""}
    root = {
        "format": 1,
        "unit_rows": UNIT,
        "segments": [{"start": 0, "rows": 5}],
        "data": {"description": "", "class_names": []},
        "views": {},
        "teachers": {},
        "versions": {},
    }

    def fits(**fields: object) -> bool:
        try:
            parse_manifest({**root, **fields}, "here")
        except CacheError as error:
            return "at most" not in str(error.got)
        return True

    for extra in (0, 1):
        names = [""] * (1_000_000 + extra)
        assert fits(data={"description": "", "class_names": names}) == (not extra)
        assert fits(segments=[{"start": 0, "rows": 0}] * (65536 + extra)) == (not extra)
        assert fits(teachers={f"t{n}": teacher for n in range(4096 + extra)}) == (not extra)
        taps = [f"t{n}" for n in range(1024 + extra)]
        assert fits(teachers={"t": {**teacher, "features": taps}}) == (not extra)
        assert fits(teachers={"t": {**teacher, "tables": taps[: 64 + extra]}}) == (not extra)
    assert not fits(views={f"v{n}": RECIPE for n in range(65537)})


@pytest.mark.requirement("F10.1")
@pytest.mark.parametrize("head", ["ranking", "none"])
def test_a_group_with_an_unknown_head_is_refused(tmp_path: Path, head: str) -> None:
    start_cache(tmp_path, ROWS)
    declare(CacheWriter.open(locate(tmp_path)), "a", DenseEncoding(10))
    key = "teachers/a/zarr.json"
    edit_json(tmp_path / key, lambda v: v["attributes"]["logitcache"].update(head=head))
    with pytest.raises(CacheError, match="attributes of a group are damaged"):
        CacheWriter.open(locate(tmp_path)).groups()


@pytest.mark.requirement("F3.1", "F3.3", "F10.3", "F11.9", "F12.2", "F12.3")
def test_names_of_any_alphabet_are_digested_as_utf8(
    tmp_path: Path, images: Path, teachers: dict[str, dict[str, str]]
) -> None:
    # decomposed on disk, as macOS writes names
    places = ("Gro\u0308\u00dfe", "\u72d7", "a \U0001f600")
    for image, place in zip(sorted(images.rglob("*.jpg")), places, strict=False):
        copied = tmp_path / "photos" / place / "e\u0301 1.jpg"
        copied.parent.mkdir(parents=True)
        copied.write_bytes(image.read_bytes())
    cache = tmp_path / "cache"
    given = {"cache": str(cache), "data": str(tmp_path / "photos")}
    build_cache(PrecomputeConfig.parse({**given, "teachers": {"cnn": teachers["cnn"]}}, ""))
    names = ["a \U0001f600", "Gr\u00f6\u00dfe", "\u72d7"]
    rows = []
    for label, name in enumerate(names):
        key = f"{name}/\u00e9 1.jpg".encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        rows.append((int.from_bytes(digest, "big"), key, label))
    rows.sort()
    assert column(cache, "hash")[:3].tolist() == [row[0] for row in rows]
    manifest = attributes(cache)
    assert manifest["data"]["class_names"] == names
    listed = b"".join(key + b"\0" + str(label).encode() + b"\0" for _, key, label in rows)
    assert manifest["segments"][0]["listing_sha256"] == sha256(listed)
    digests = column(cache, "digest")[:3]
    named = b"".join(row[1] + b"\0" + d.tobytes() for row, d in zip(rows, digests, strict=True))
    assert manifest["data"]["fingerprint"] == sha256(named)
    classes = '["a \U0001f600","Gr\u00f6\u00dfe","\u72d7"]'.encode()
    assert attributes(cache, "teachers/cnn")["class_names_sha256"] == sha256(classes)


def column(cache: Path, name: str) -> Any:
    return zarr.open_array(cache, path=f"samples/{name}", mode="r")[:]
