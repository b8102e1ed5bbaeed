"""Hostile caches: what a stranger may put into a folder, each built by a few lines.

Every input starts from one intact cache (:func:`intact`). Most are sealed again, so that all their
digests agree; only what they hold is not what a cache can hold.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numcodecs import blosc

from logitcache.cache.format.fingerprints import write_fingerprints
from logitcache.cache.format.groups import TeacherGroup
from logitcache.cache.format.manifest import TeacherRecord
from logitcache.cache.format.names import canonical_json, sha256
from logitcache.cache.write.exclude import withdraw_images
from logitcache.cache.write.unit_commit import Conditions
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.views.mix import match_partners
from logitcache.views.spec import ViewsConfig
from tests.cache.building import (
    CLASS_NAMES,
    LOCK,
    UNIT,
    VIEW,
    encode,
    samples_of,
    start_cache,
    write_samples,
)
from tests.hostile.forge import Forgery, canonical, chunk_of, shard_of, sparse_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitcache.encoding.kinds import Encoding

__all__ = ["CANARY", "INPUTS", "MIXED", "Hostile", "intact", "payload"]

CANARY = "LOGITCACHE_TEST_CANARY"
"""Environment variable with the path of a file that hostile code would write."""
ROWS, CLASSES = 40, 30
_MIXED = ViewsConfig(count=1, mixup_alpha=0.8).random_view(1)
MIXED = _MIXED.id
HUGE = 30 * 2**30
BLOCKS = range(-(-ROWS // UNIT))


@dataclass(frozen=True)
class Hostile:
    """One hostile cache.

    Attributes:
        name: What it is, as a phrase.
        kind: ``code``, ``crash``, ``memory``, ``metadata``, ``documents``, ``recipes`` or ``text``.
        build: ClaimQueue an intact cache into it.
        says: A pattern that the output of ``logitcache verify`` has.
        code: Exit code of that command.
        files: Whether it can be served: links and devices cannot.
    """

    name: str
    kind: str
    build: Callable[[Forgery], object]
    says: str
    code: int = 4
    files: bool = True


INPUTS: list[Hostile] = []


def hostile(
    kind: str, says: str, code: int = 4, *, files: bool = True, name: str = ""
) -> Callable[[Callable[[Forgery], object]], Callable[[Forgery], object]]:
    """Add an input that is named after its function."""

    def add(build: Callable[[Forgery], object]) -> Callable[[Forgery], object]:
        text = name or build.__name__.strip("_").replace("_", " ")
        INPUTS.append(Hostile(text, kind, build, says, code, files))
        return build

    return add


def intact(root: Path) -> None:
    """Write a sealed cache: two teachers, a view that mixes, probes, an excluded image."""
    writer = start_cache(root, ROWS)
    writer.add_views({MIXED: _MIXED.to_json()})
    samples: Any = samples_of(ROWS)
    write_samples(writer, samples)
    logits = np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32)
    encodings: dict[str, Encoding] = {
        "a": SparseEncoding(CLASSES, 5, bits=5),
        "b": DenseEncoding(CLASSES, "uint8"),
    }
    for block in BLOCKS:
        rows = slice(block * UNIT, (block + 1) * UNIT)
        ok = np.flatnonzero(samples["status"][rows] == 1)
        offsets = np.full(UNIT, -1, dtype=np.int64)
        offsets[ok] = ok[match_partners(0, 1, samples["hash"][rows][ok])]
        writer.write_partners(MIXED, block, offsets)
    for name, encoding in encodings.items():
        group = TeacherGroup(
            teacher=name,
            num_classes=CLASSES,
            encoding=encoding,
            optional=("lse", "label_logp"),
            unit_rows=UNIT,
            slots=(VIEW, MIXED),
            lock_sha256=sha256(canonical_json(LOCK)),
            class_names_sha256=sha256(canonical_json(list(CLASS_NAMES))),
        )
        writer.add_teacher(TeacherRecord(lock=LOCK, canonical_batch=4, source="thin air"), group)
        arrays: dict[str, Any] = encode(group, logits, samples)
        for view in group.view_ids:
            for block in BLOCKS:
                rows = slice(block * UNIT, (block + 1) * UNIT)
                content = {key: array[rows] for key, array in arrays.items()}
                writer.write_unit(group, view, block, content, Conditions(canonical_batch=4))
    write_fingerprints(
        writer.location, {"views": [VIEW], "segments": [0], "versions": {}, "probes": []}
    )
    writer.seal("f" * 64, {name: {VIEW: 0.5} for name in encodings})
    withdraw_images(root, ["img/000007.jpg"], "a test")


class _Payload:
    """Writes the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f'touch "${CANARY}"',))


def payload() -> bytes:
    """Return a pickle that writes the canary."""
    return pickle.dumps(_Payload())


def _array(key: str, change: Callable[[Any], object]) -> Callable[[Forgery], None]:
    def build(cache: Forgery) -> None:
        cache.edit(f"{key}/zarr.json", change)
        cache.seal()

    return build


def _codecs(document: Any) -> Any:
    return document["codecs"][0]["configuration"]["codecs"]


def _set_first_codec(name: str, document: Any) -> None:
    _codecs(document)[0] = {"name": name}


def _add(
    kind: str, says: str, build: Callable[[Forgery], object], name: str, code: int = 4
) -> None:
    INPUTS.append(Hostile(name, kind, build, says, code))


# -- code ------------------------------------------------------------------------------------------


@hostile("code", "metadata")
def a_folder_next_to_an_array_of_zarr_2_with_a_pickle(cache: Forgery) -> None:
    folder = cache.path("samples/key")
    (folder / "zarr.json").unlink()
    (folder / "zarr.json").mkdir()
    zarray = {
        "zarr_format": 2,
        "shape": [48],
        "chunks": [48],
        "dtype": "|O",
        "compressor": None,
        "fill_value": None,
        "order": "C",
        "filters": [{"id": "pickle", "protocol": 5}],
    }
    (folder / ".zarray").write_text(json.dumps(zarray))
    (folder / "0").write_bytes(payload())
    cache.seal()


@hostile("code", "not a group of Zarr format 3|metadata")
def a_group_of_zarr_2(cache: Forgery) -> None:
    cache.path("teachers/a/zarr.json").unlink()
    cache.path("teachers/a/.zgroup").write_text('{"zarr_format": 2}')
    cache.seal()


for _codec in ("numcodecs.pickle", "pickle", "numcodecs.json2", "os.system", "numcodecs.msgpack2"):
    _add(
        "code",
        "codecs",
        _array(
            "samples/key",
            partial(_set_first_codec, _codec),
        ),
        f"codec {_codec} in front of the keys",
    )


@hostile("code", "index of its shards has other codecs")
def a_pickle_codec_in_the_index(cache: Forgery) -> None:
    def change(document: Any) -> None:
        settings = document["codecs"][0]["configuration"]
        settings["index_codecs"] = [{"name": "numcodecs.pickle"}]

    _array("teachers/a/codes", change)(cache)


@hostile("code", "storage_transformers")
def a_storage_transformer(cache: Forgery) -> None:
    _array("samples/key", lambda d: d.update(storage_transformers=[{"name": "os.system"}]))(cache)


@hostile("code", "data_type")
def a_data_type_of_python_objects(cache: Forgery) -> None:
    _array("samples/key", lambda d: d.update(data_type="numpy.object"))(cache)


@hostile("code", "ok", 0)
def consolidated_metadata_with_a_pickle(cache: Forgery) -> None:
    """Nothing reads them."""
    array = cache.read("samples/key/zarr.json")
    _codecs(array)[0] = {"name": "numcodecs.pickle"}
    extra = {"kind": "inline", "must_understand": False, "metadata": {"samples/key": array}}
    cache.edit("zarr.json", lambda document: document.update(consolidated_metadata=extra))
    cache.seal()


# -- crash -----------------------------------------------------------------------------------------

KEYS = "samples/key/c/0"


def _keys_shard(cache: Forgery, raw: bytes, compressed: bytes | None = None) -> None:
    frame = blosc.compress(raw, b"zstd", 1, 1, 0, 1) if compressed is None else compressed
    cache.shard(KEYS, shard_of(chunk_of(frame)))
    cache.seal()


def _bad_frame(**fields: int) -> bytes:
    """Return a blosc frame with other numbers in its header than belong to it."""
    raw = b"\x10\0\0\0" + b"\1\0\0\0x" * 16
    frame = bytearray(blosc.compress(raw, b"zstd", 1, 1, 0, 1))
    for at, value in fields.items():
        struct.pack_into("<i", frame, int(at[1:]), value)
    return bytes(frame)


@hostile("crash", "names instead of")
def more_names_in_the_header_than_there_are(cache: Forgery) -> None:
    _keys_shard(cache, struct.pack("<I", 2**32 - 1) + b"\0" * 4096)


@hostile("crash", "decoded as text")
def a_name_longer_than_its_chunk(cache: Forgery) -> None:
    _keys_shard(cache, struct.pack("<I", 16) + struct.pack("<I", 2**31) * 16)


@hostile("crash", "decoded as text")
def names_that_are_no_utf_8(cache: Forgery) -> None:
    _keys_shard(cache, struct.pack("<I", 16) + (struct.pack("<I", 2) + b"\xff\xfe") * 16)


for _fields, _says in (
    ({"n4": 2**31 - 1}, "bytes of text"),
    ({"n4": -5}, "bytes of text"),
    ({"n8": 0}, "decoded as text"),
    ({"n8": 2**31 - 1}, "decoded as text|digest"),
    ({"n12": 2**31 - 1}, "decoded as text"),
    ({"n12": 17}, "decoded as text"),
):
    _add(
        "crash",
        _says,
        partial(_keys_shard, raw=b"", compressed=_bad_frame(**_fields)),
        f"a blosc header with {next(iter(_fields.values()))} at byte {next(iter(_fields))[1:]}",
    )

CODES = "teachers/a/codes/c/0/0/0"


def _seal_shard(cache: Forgery, shard: bytes) -> None:
    cache.shard(CODES, shard)
    cache.seal()


for _entries, _what in (
    ([(2**64 - 1, 2**64 - 1)], "absent"),
    ([(2**63, 2**63)], "far beyond its end"),
    ([(0, 2)], "shorter than its checksum"),
    ([(10**6, 50)], "beyond its end"),
):
    _add(
        "crash",
        "missing|cannot be decoded",
        partial(_seal_shard, shard=shard_of(chunk_of(b"\0" * 40), entries=_entries)),
        f"an index with an inner chunk {_what}",
    )


def _rewrite(cache: Forgery, key: str, array: np.ndarray[Any, Any]) -> None:
    """Write a shard of one inner chunk with other numbers."""
    frame = blosc.compress(np.ascontiguousarray(array), b"zstd", 1, 1, 0, array.itemsize)
    cache.shard(key, shard_of(chunk_of(frame)))
    digest = sha256(np.ascontiguousarray(array).tobytes())

    def change(commit: Any) -> None:
        for stored in commit["arrays"].values():
            if stored["key"] == key:
                stored["content_sha256"] = digest

    cache.seal(commit=change)


@hostile("crash", "class id .* out of range")
def class_ids_beyond_the_classes(cache: Forgery) -> None:
    _rewrite(cache, "teachers/a/class_ids/c/0/0/0", np.full((UNIT, 5), 9000, dtype="<u2"))


@hostile("crash", "code .* out of range")
def codes_beyond_their_bits(cache: Forgery) -> None:
    _rewrite(cache, CODES, np.full((UNIT, 5), 255, dtype="u1"))


@hostile("crash", "status of 99")
def a_status_that_does_not_exist(cache: Forgery) -> None:
    _rewrite(cache, "samples/status/c/0", np.full(UNIT, 99, dtype="u1"))


@hostile("crash", "labels from")
def labels_beyond_the_classes(cache: Forgery) -> None:
    _rewrite(cache, "samples/label/c/0", np.full(UNIT, 2**31 - 1, dtype="<i4"))


@hostile("crash", "labels from")
def negative_labels(cache: Forgery) -> None:
    _rewrite(cache, "samples/label/c/0", np.full(UNIT, -77, dtype="<i4"))


@hostile("crash", "not pairs")
def partners_outside_of_their_block(cache: Forgery) -> None:
    _rewrite(cache, f"views/{MIXED}/partner/c/0", np.full(UNIT, 60_000, dtype="<u2"))


@hostile("crash", "not pairs")
def partners_that_are_no_pairs(cache: Forgery) -> None:
    _rewrite(cache, f"views/{MIXED}/partner/c/0", np.zeros(UNIT, dtype="<u2"))


# -- memory and time -------------------------------------------------------------------------------


def _huge_file(cache: Forgery, key: str) -> None:
    sparse_file(cache.path(key), HUGE)


def _link(key: str, target: str) -> Callable[[Forgery], None]:
    def build(cache: Forgery) -> None:
        cache.path(key).unlink()
        cache.path(key).symlink_to(target)

    return build


INPUTS += [
    Hostile(
        f"{_key} is a link to {_what}",
        "memory",
        _link(_key, _target),
        "regular files and folders only",
        files=False,
    )
    for _key, _what, _target in (
        ("zarr.json", "an endless device", "/dev/zero"),
        (CODES, "an endless device", "/dev/zero"),
        ("teachers/a/zarr.json", "an endless device", "/dev/zero"),
        ("samples/key/zarr.json", "an endless device", "/dev/zero"),
        ("teachers/b/logp/c/0/0/0", "a file of the user", "/etc/passwd"),
    )
]


@hostile("memory", "regular files and folders only", files=False)
def a_folder_that_is_a_link(cache: Forgery) -> None:
    cache.path("teachers/a").rename(cache.root.parent / "elsewhere")
    cache.path("teachers/a").symlink_to(cache.root.parent / "elsewhere")


@hostile("memory", "regular files and folders only", files=False)
def a_pipe_that_nobody_writes_to(cache: Forgery) -> None:
    cache.path(CODES).unlink()
    os.mkfifo(cache.path(CODES))


for _key, _says in (
    (CODES, "larger than the format allows"),
    ("revisions/2.json", "larger than the format allows"),
    (f"ledger/teachers/a/{VIEW}.1.json", "larger than the format allows"),
    (f"commits/teachers/a/{VIEW}/0.json", "larger than the format allows"),
    ("withdrawn/1.json", "larger than the format allows"),
    ("probes/1.json", "larger than the format allows"),
    ("teachers/a/zarr.json", "larger than the format allows"),
    ("samples/key/zarr.json", "larger than the format allows"),
):
    INPUTS.append(
        Hostile(
            f"30 GB of zeros as {_key}",
            "memory",
            partial(_huge_file, key=_key),
            _says,
            files=False,
        )
    )


@hostile("memory", "larger than the format allows", files=False)
def thirty_gigabytes_of_zeros_as_manifest(cache: Forgery) -> None:
    sparse_file(cache.path("zarr.json"), HUGE)


@hostile("memory", "describes another unit|has 32212254720 bytes", files=False)
def thirty_gigabytes_of_zeros_as_committed_shard(cache: Forgery) -> None:
    sparse_file(cache.path(CODES), HUGE)

    def change(commit: Any) -> None:
        for stored in commit["arrays"].values():
            if stored["key"] == CODES:
                stored |= {"bytes": HUGE, "sha256": "0" * 64}

    cache.seal(commit=change)


@hostile("memory", "bytes of text")
def a_blosc_bomb_as_names(cache: Forgery) -> None:
    raw = struct.pack("<I", UNIT) + struct.pack("<I", 2**30) + bytes(2**30)
    _keys_shard(cache, b"", blosc.compress(raw, b"zstd", 9, 1, 0, 1))


@hostile("memory", "its shard of codes has")
def a_blosc_bomb_as_codes(cache: Forgery) -> None:
    frame = blosc.compress(bytes(2**30), b"zstd", 9, 1, 0, 1)
    cache.shard(CODES, shard_of(chunk_of(frame)))
    cache.seal()


@hostile("memory", "more values than the format allows|no rows of the cache|units")
def a_ledger_of_300_000_surplus_units(cache: Forgery) -> None:
    def change(ledger: Any) -> None:
        if ledger["group"] == "teachers/a" and ledger["view"] == VIEW:
            first = ledger["commits"][0]
            ledger["commits"] += [{**first, "unit": 3 + unit} for unit in range(300_000)]

    cache.seal(ledger=change)


@hostile("memory", "more values than the format allows")
def a_manifest_of_three_million_values(cache: Forgery) -> None:
    cache.manifest(lambda manifest: manifest.update(extra=[0] * 3_000_000))


@hostile("memory", "more values than the format allows")
def a_manifest_of_a_million_empty_lists(cache: Forgery) -> None:
    cache.manifest(lambda manifest: manifest.update(extra=[[] for _ in range(1_200_000)]))


@hostile("memory", "are over 32768 units|segment")
def rows_without_end(cache: Forgery) -> None:
    cache.manifest(lambda m: m.update(segments=[{"start": 0, "rows": 2**39}], unit_rows=16))
    cache.seal()


@hostile("memory", "units")
def as_many_rows_as_units_permit(cache: Forgery) -> None:
    rows = 2**15 * UNIT
    cache.manifest(lambda m: m["segments"][0].update(rows=rows))
    cache.seal(revision=lambda r: r.update(segments=[[0, rows]]))


@hostile("memory", "views that the manifest does not list")
def views_of_65_536_ids_without_ledgers(cache: Forgery) -> None:
    cache.group("a", lambda g: g.update(view_ids=[VIEW, MIXED, *(f"v{n}" for n in range(65_534))]))
    cache.seal()


# -- metadata that agree with themselves and are wrong ---------------------------------------------


def _revision(change: Callable[[Any], object]) -> Callable[[Forgery], None]:
    return lambda cache: cache.seal(revision=change)


def _group(change: Callable[[Any], object], name: str = "a") -> Callable[[Forgery], None]:
    def build(cache: Forgery) -> None:
        cache.group(name, change)
        cache.seal()

    return build


def _first_commit(change: Callable[[Any], object]) -> Callable[[Forgery], None]:
    def wanted(commit: Any) -> None:
        if (commit["group"], commit["view"], commit["unit"]) == ("teachers/a", VIEW, 0):
            change(commit)

    return lambda cache: cache.seal(commit=wanted)


def _in_ledger(change: Callable[[Any], object]) -> Callable[[Forgery], None]:
    def wanted(ledger: Any) -> None:
        if (ledger["group"], ledger["view"]) == ("teachers/a", VIEW):
            change(ledger)

    return lambda cache: cache.seal(ledger=wanted)


def _swap(cache: Forgery) -> None:
    """Exchange the shards of two views."""
    for array in ("codes", "class_ids", "tail"):
        first, second = (cache.path(f"teachers/a/{array}/c/{slot}/0/0") for slot in (0, 1))
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other + b"")
        second.write_bytes(one)


for _name, _build, _says in (
    (
        "a revision without segments",
        _revision(lambda r: r.update(segments=[])),
        "rows|units|segments",
    ),
    (
        "a revision of 2^62 rows",
        _revision(lambda r: r.update(segments=[[0, 2**62]])),
        "rows|units|segments",
    ),
    (
        "a revision without a ledger of the samples",
        _revision(lambda r: r["ledgers"].pop("samples/-")),
        "no ledger of the samples",
    ),
    (
        "a revision with a ledger of a group that does not exist",
        _revision(
            lambda r: r["ledgers"].update({f"teachers/zz/{VIEW}": r["ledgers"]["samples/-"]})
        ),
        "zz|not a view of any group|metadata",
    ),
    ("a ledger of one unit less", _in_ledger(lambda v: v["commits"].pop()), "unit"),
    (
        "a ledger with the same unit twice",
        _in_ledger(lambda v: v["commits"].__setitem__(1, v["commits"][0])),
        "unit",
    ),
    (
        "a ledger of another group",
        _in_ledger(lambda v: v.update(group="teachers/b")),
        "ledger|group",
    ),
    (
        "a commit with other rows",
        _first_commit(lambda c: c.update(rows=[0, 10**9])),
        "its rows are",
    ),
    (
        "a commit that names the shard of another unit",
        _first_commit(
            lambda c: c["arrays"]["teachers/a/codes"].update(key="teachers/a/codes/c/0/1/0")
        ),
        "its shard of codes is",
    ),
    (
        "a commit that lacks an array",
        _first_commit(lambda c: c["arrays"].pop("teachers/a/codes")),
        "its arrays are",
    ),
    (
        "a commit with another digest of its decoded rows",
        _first_commit(lambda c: c["arrays"]["teachers/a/codes"].update(content_sha256="0" * 64)),
        "another digest",
    ),
    ("more classes than the arrays have", _group(lambda g: g.update(num_classes=99), "b"), "shape"),
    ("another K than the arrays have", _group(lambda g: g["encoding"].update(top_k=6)), "shape"),
    ("fewer bits than the codes have", _group(lambda g: g["encoding"].update(bits=4)), "range"),
    ("units of another size", _group(lambda g: g.update(unit_rows=8)), "shards of 16 rows|units"),
    ("the lock of another teacher", _group(lambda g: g.update(lock_sha256="1" * 64)), "teacher"),
    (
        "a group for other classes",
        _group(lambda g: g.update(class_names_sha256="1" * 64)),
        "other classes",
    ),
    (
        "arrays of other axes",
        _array("teachers/a/codes", lambda d: d.update(shape=[2, 48, 7])),
        "shape",
    ),
    (
        "arrays with too few rows",
        _array("teachers/a/codes", lambda d: d.update(shape=[2, 16, 5])),
        "rows",
    ),
    (
        "arrays of big-endian numbers",
        _array(
            "teachers/a/class_ids",
            lambda d: _codecs(d)[0].update(configuration={"endian": "big"}),
        ),
        "byte order",
    ),
    (
        "shards with their index in front",
        _array(
            "teachers/a/codes",
            lambda d: d["codecs"][0]["configuration"].update(index_location="start"),
        ),
        "index_location",
    ),
    (
        "an exchanged lock of a teacher",
        lambda cache: (
            cache.manifest(lambda m: m["teachers"]["a"].update(lock={"a": 2})),
            cache.seal(),
        ),
        "another teacher",
    ),
):
    _add("metadata", _says, _build, _name)


@hostile("metadata", "metadata")
def garbage_in_front_of_all_teachers(cache: Forgery) -> None:
    cache.path("teachers/zarr.json").write_bytes(b'{"zarr_format": 3, "node_type": "array"}')


@hostile("metadata", "rolled back")
def an_older_manifest_put_back(cache: Forgery) -> None:
    older = cache.read("revisions/1.copies.json")["manifest"]
    cache.manifest(lambda m: (m.clear(), m.update(older)))
    cache.point(cache.path("revisions/1.json").read_bytes(), 1)
    cache.path("withdrawn/1.json").unlink()


@hostile("metadata", "no such object")
def an_exclusion_that_was_deleted(cache: Forgery) -> None:
    cache.path("withdrawn/1.json").unlink()


@hostile("metadata", "bytes of view")
def shards_of_two_views_exchanged(cache: Forgery) -> None:
    _rewrite(cache, CODES, np.full((UNIT, 5), 3, dtype="u1"))
    _swap(cache)


# -- documents -------------------------------------------------------------------------------------

DOCUMENTS = {
    "that is empty": b"",
    "of binary junk": bytes(range(256)),
    "that is a list": b"[]",
    "that is a number": b"7",
    "in UTF-16": '{"a": 1}'.encode("utf-16"),
    "with NaN": b'{"a": NaN}',
    "with a number beyond float64": b'{"attributes": 1e999}',
    "with a number of 100 000 digits": b'{"a": ' + b"9" * 100_000 + b"}",
    "with a lone surrogate": b'{"a": "\\ud800"}',
    "of 100 000 levels": b"[" * 100_000,
    "of 100 000 levels of objects": b'{"a":' * 100_000,
    "that is cut": b'{"attributes": {"logitcache": {"for',
}


def _replace_manifest(cache: Forgery, content: bytes) -> None:
    cache.path("zarr.json").write_bytes(content)


for _what, _content in DOCUMENTS.items():
    INPUTS.append(
        Hostile(
            f"a manifest {_what}",
            "documents",
            partial(_replace_manifest, content=_content),
            "manifest|not a logitcache cache",
        )
    )
for _key in (
    "teachers/a/zarr.json",
    "samples/key/zarr.json",
    "revisions/2.json",
    f"ledger/teachers/a/{VIEW}.1.json",
    f"commits/teachers/a/{VIEW}/0.json",
    "withdrawn/1.json",
    "probes/1.json",
    "claims/x.json",
):

    def _deep(cache: Forgery, key: str = _key) -> None:
        cache.path(key).parent.mkdir(exist_ok=True)
        cache.path(key).write_bytes(b'{"host":' * 100_000)

    INPUTS.append(
        Hostile(
            f"100 000 levels of objects in {_key}",
            "documents",
            _deep,
            "faults|ok",
            0 if _key.startswith("claims") else 4,
        )
    )


def _set_key(key: str, commit: Any) -> None:
    commit["arrays"]["teachers/a/codes"]["key"] = key


for _key, _what in (
    ("../../../etc/passwd", "leads out of the cache"),
    ("/etc/passwd", "is absolute"),
    ("C:\\Windows\\x", "is one of Windows"),
    ("a\0b", "has a NUL"),
):
    _add(
        "documents",
        "its shard of codes is|leads out",
        _first_commit(partial(_set_key, _key)),
        f"a commit with a key that {_what}",
    )
_add(
    "documents",
    "leads out|ledger",
    _revision(lambda r: r["ledgers"]["samples/-"].update(key="../../secret.json")),
    "a ledger outside of the cache",
)
_add(
    "documents",
    "manifest is damaged",
    lambda cache: cache.manifest(lambda m: m["revision"].update(number=-1)),
    "a negative revision",
)
_add(
    "documents",
    "manifest is damaged|teacher",
    lambda cache: cache.manifest(lambda m: m["teachers"].update({"../x": m["teachers"]["a"]})),
    "a teacher whose name leads out of the cache",
)

# -- recipes ---------------------------------------------------------------------------------------


def _recipe(change: Callable[[Any], object], *, own_id: bool = True) -> Callable[[Forgery], None]:
    """Change a recipe; by default as a view of its own, under the id that belongs to it."""

    def build(cache: Forgery) -> None:
        recipe = cache.read("zarr.json")["attributes"]["logitcache"]["views"][VIEW]
        change(recipe)
        view = "v" + sha256(canonical(recipe))[:16] if own_id else VIEW
        cache.manifest(lambda manifest: manifest["views"].update({view: recipe}))
        cache.seal()

    return build


def _operations(*operations: object) -> Callable[[Forgery], None]:
    return _recipe(lambda recipe: recipe.update(operations=list(operations)))


_CROP = {"op": "central_crop", "crop_pct": 0.875}
for _what, _build in {
    "a blur that crashes the image library": _operations(
        _CROP, {"op": "blur", "radius": [1e308, 1e308], "p": 1.0}
    ),
    "100 000 operations": _operations(*[_CROP] * 100_000),
    "a crop that allocates terabytes": _operations({"op": "squash_crop", "crop_pct": 1e-300}),
    "an operation that does not exist": _operations(_CROP, {"op": "os.system"}),
    "an operation that is a list": _operations(_CROP, ["blur"]),
    "operations that are a number": _recipe(lambda r: r.update(operations=7)),
    "unknown operation": _operations(),
    "a seed of 400 bits": _recipe(lambda r: r.update(seed=2**400)),
    "a draw below zero": _recipe(lambda r: r.update(draw=-1)),
    "another recipe than its id says": _recipe(lambda r: r.update(seed=1), own_id=False),
    "an unknown version of the algorithm": _recipe(lambda r: r.update(algorithm=10**9)),
    "an unknown interpolation": _recipe(lambda r: r["size"].update(interpolation="../x")),
}.items():
    _add("recipes", "view|recipe|manifest is damaged", _build, f"a view with {_what}")

# -- text ------------------------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2K\rbytes: ok \u202egnp.exe \u2028 [red]x[/red] :smile:"


def _text(change: Callable[[Any], object]) -> Callable[[Forgery], None]:
    def build(cache: Forgery) -> None:
        cache.manifest(change)
        cache.seal()

    return build


for _what, _build, _says, _code in (
    ("the description", _text(lambda m: m["data"].update(description=EVIL)), "ok", 0),
    ("the source of a teacher", _text(lambda m: m["teachers"]["a"].update(source=EVIL)), "ok", 0),
    ("the versions", _text(lambda m: m.update(versions={EVIL: EVIL})), "ok", 0),
    (
        "the class names",
        _text(lambda m: m["data"].update(class_names=[EVIL, "b", "c"])),
        "other classes",
        4,
    ),
    (
        "the architecture of a teacher",
        _text(lambda m: m["teachers"]["a"].update(lock={"architecture": EVIL})),
        "another teacher",
        4,
    ),
    ("a name of a field", _text(lambda m: m.update({EVIL: 1})), "ok", 0),
    (
        "the key of a shard",
        _first_commit(lambda c: c["arrays"]["teachers/a/codes"].update(key=EVIL)),
        "its shard of codes is",
        4,
    ),
    (
        "the id of a view",
        _text(lambda m: m["views"].update({EVIL: m["views"][VIEW]})),
        "manifest is damaged",
        4,
    ),
    (
        "the name of a teacher",
        _text(lambda m: m["teachers"].update({EVIL: m["teachers"]["a"]})),
        "teacher|manifest",
        4,
    ),
    ("the required features", _text(lambda m: m.update(format=2, requires=[EVIL])), "requires", 1),
):
    _add("text", _says, _build, f"control characters in {_what}", _code)
