"""Shards decoded without zarr: the same rows, and no damage passes as an answer."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec

from logitcache.cache.format.arrays import create_array, open_array
from logitcache.cache.format.shards import BadShardError, ShardLayout, decode_shard, parse_array
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.open import locate
from logitcache.cache.store.zarr_store import RecordingStore
from logitcache.encoding.arrays import ArraySpec
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheDamaged
from tests.cache.building import VIEW, make_cache
from tests.cache.damage import DAMAGES, shard

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.cache.store.base import Location

ROWS = 40
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 30)).astype(np.float32)
CODES = ArraySpec((5,), "uint8", 0)
SPECS = [
    CODES,
    ArraySpec((7,), "uint16", 0),
    ArraySpec((), "float32", float("nan")),
    ArraySpec((2, 3), "float16", 0.0),
    ArraySpec((16,), "uint8", 0, "raw"),
    ArraySpec((3,), "float16", 0.0, "raw"),
]


def content_of(spec: ArraySpec, rows: int) -> NDArray[Any]:
    generator = np.random.default_rng(rows)
    drawn = generator.integers(0, 256, (rows, spec.row_bytes), dtype=np.uint8)
    drawn[rows // 2 :] = 0  # half of it compresses
    return drawn.view(spec.dtype).reshape(rows, *spec.shape)


def written(root: Path, spec: ArraySpec, unit: int) -> tuple[Location, NDArray[Any]]:
    """Write an array of two views and two units, and return what is in its last unit."""
    location = locate(root)
    create_array(RecordingStore(location), "a", spec, (2, 2 * unit), unit)
    content = content_of(spec, unit)
    open_array(RecordingStore(location), "a")[1, unit:] = content
    return location, content


@pytest.mark.requirement("F11.1", "F11.36")
@pytest.mark.parametrize("unit", [16, 8192])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.dtype}-{s.shape}-{s.codec}")
def test_rows_are_those_that_zarr_reads(tmp_path: Path, spec: ArraySpec, unit: int) -> None:
    location, content = written(tmp_path, spec, unit)
    layout = parse_array((tmp_path / "a/zarr.json").read_bytes(), "a").layout(spec, 2)
    chain = "plain" if spec.codec == "raw" else "blosc"
    assert layout == ShardLayout(unit, min(unit, spec.inner), chain)
    key = "/".join(["a/c/1/1", *("0" for _ in spec.shape)])
    window = np.full((3 * unit, *spec.shape), 1, spec.dtype)
    decode_shard(location.read(key) or b"", layout, window[unit : 2 * unit])
    by_zarr: Any = zarr.open_array(tmp_path / "a", mode="r")
    by_zarr = by_zarr[1, unit : 2 * unit]
    assert window[unit : 2 * unit].tobytes() == by_zarr.tobytes() == content.tobytes()
    assert (window[:unit] == 1).all()
    assert (window[2 * unit :] == 1).all()


@pytest.mark.requirement("F11.36")
@pytest.mark.parametrize(
    "change",
    [
        {"compressors": [GzipCodec(), Crc32cCodec()]},
        {"compressors": [BloscCodec(cname="zstd", clevel=1, typesize=2)]},
        {"compressors": None},
        {"serializer": BytesCodec(endian="big")},
        {"shards": None},
        {"dtype": "uint8"},
        {"chunks": (1, 4, 2)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_no_logitcache_has_written_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    spec = ArraySpec((4,), "uint16", 0)
    options: dict[str, Any] = {
        "shape": (2, 16, 4),
        "shards": (1, 16, 4),
        "chunks": (1, 4, 4),
        "dtype": "uint16",
        "compressors": [BloscCodec(cname="zstd", clevel=1, typesize=2), Crc32cCodec()],
        "serializer": BytesCodec(endian="little"),
    }
    zarr.create_array(tmp_path / "ours", **options)
    parse_array((tmp_path / "ours/zarr.json").read_bytes(), "ours").layout(spec, 2)
    zarr.create_array(tmp_path / "other", **{**options, **change})
    with pytest.raises((BadShardError, CacheDamaged)):
        parse_array((tmp_path / "other/zarr.json").read_bytes(), "other").layout(spec, 2)


@given(st.binary(max_size=80) | st.text().map(str.encode))
def test_junk_is_no_layout(document: bytes) -> None:
    with pytest.raises(CacheDamaged):
        parse_array(document, "a")


@pytest.mark.requirement("F11.1")
def test_every_flipped_bit_and_every_length_is_noticed(tmp_path: Path) -> None:
    location, content = written(tmp_path, CODES, 16)
    stored = location.read("a/c/1/1/0") or b""
    layout = ShardLayout(16, 16, "blosc")
    out = np.zeros_like(content)
    for position in range(len(stored)):
        damaged = bytearray(stored)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(BadShardError):
            decode_shard(bytes(damaged), layout, out)
        with pytest.raises(BadShardError):
            decode_shard(stored[:position], layout, out)
        with pytest.raises(BadShardError):
            decode_shard(stored[position + 1 :], layout, out)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((2**64 - 1, 2**64 - 1), "inner chunk 0 of 1: it is missing"),
        ((2**63, 2**63), "inner chunk 0 of 1: it is missing"),
        ((10**6, 40), "inner chunk 0 of 1: it is missing"),
        ((0, 3), "inner chunk 0 of 1: it is missing"),
    ],
)
def test_an_index_that_holds_but_points_nowhere_is_refused(
    tmp_path: Path, entry: tuple[int, int], message: str
) -> None:
    location, content = written(tmp_path, CODES, 16)
    stored = location.read("a/c/1/1/0") or b""
    index = np.array(entry, "<u8").tobytes()
    forged = stored[:-20] + index + google_crc32c.value(index).to_bytes(4, "little")
    with pytest.raises(BadShardError, match=message):
        decode_shard(forged, ShardLayout(16, 16, "blosc"), np.zeros_like(content))


@pytest.mark.requirement("F11.37")
def test_a_chunk_of_another_size_is_refused(tmp_path: Path) -> None:
    location, content = written(tmp_path, CODES, 16)
    stored = location.read("a/c/1/1/0") or b""
    with pytest.raises(BadShardError, match="80 bytes instead of 160"):
        decode_shard(stored, ShardLayout(32, 32, "blosc"), np.tile(content, (2, 1)))


@pytest.mark.requirement("F11.1")
def test_checksums_stand_behind_the_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes between two looks at a file, its stamp left alone, is still no answer."""
    make_cache(tmp_path, {"a": (SparseEncoding(30, 5), LOGITS)}, ROWS)
    opened = open_cache(tmp_path)
    opened.read("a", VIEW, 0, 48)
    path = shard(tmp_path, "teachers/a/codes")
    then = path.stat()
    DAMAGES["one bit of the payload"].inject(tmp_path, "teachers/a/codes")
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert path.stat().st_ino == then.st_ino
    with pytest.raises(CacheDamaged, match=r"cannot be decoded[\s\S]*codes/c/0/1/0[\s\S]*checksum"):
        opened.read("a", VIEW, 0, 48)


def test_each_object_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_cache(tmp_path, {"a": (SparseEncoding(30, 5), LOGITS)}, ROWS)
    opened, seen = open_cache(tmp_path), []
    read = LocalLocation.read

    def noting(self: LocalLocation, key: str, **options: Any) -> bytes | None:
        seen.append(key)
        return read(self, key, **options)

    monkeypatch.setattr(LocalLocation, "read", noting)
    opened.read("a", VIEW, 16, 48, ["codes", "tail"])
    assert opened.samples.rows.size
    shards = sorted(key for key in seen if "/c/" in key)
    names = ("bytes", "digest", "hash", "key", "label", "status")
    expected = [f"teachers/a/{name}/c/0/{unit}/0" for name in ("codes", "tail") for unit in (1, 2)]
    for name in names:
        inner = "/0" if name == "digest" else ""
        expected += [f"samples/{name}/c/{unit}{inner}" for unit in range(3)]
    assert shards == sorted(expected)


def test_units_come_in_the_order_wanted(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (DenseEncoding(30), LOGITS)}, ROWS)
    opened = open_cache(tmp_path)
    whole = opened.read("a", VIEW, 0, 48)
    units = opened.read_units("a", VIEW, [2, 0], ["logp", "lse"])
    assert units.keys() == {"logp", "lse"}
    for name, array in units.items():
        expected = np.concatenate([whole[name][32:48], whole[name][:16]])
        np.testing.assert_array_equal(array, expected)


@pytest.mark.requirement("F11.36")
def test_other_codecs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array that another tool wrote, committed all the same: nothing bounds what gzip makes."""
    monkeypatch.setattr("logitcache.cache.format.arrays._compressors", lambda _: [GzipCodec()])
    monkeypatch.setattr("logitcache.cache.format.placement.Placement.layout", lambda *_: None)
    make_cache(tmp_path, {"a": (DenseEncoding(30), LOGITS)}, ROWS)
    monkeypatch.undo()
    codecs = json.loads((tmp_path / "teachers/a/logp/zarr.json").read_bytes())["codecs"]
    assert "gzip" in str(codecs)
    opened = open_cache(tmp_path)
    with pytest.raises(CacheDamaged, match="codecs bytes, gzip"):
        opened.read("a", VIEW, 0, ROWS)
    with pytest.raises(CacheDamaged, match=r"samples/\w+/zarr.json[\s\S]*gzip"):
        opened.samples_of(0)
