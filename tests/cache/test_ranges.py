"""Numbers, names and lists in the documents of a cache have the ranges of docs/format.md."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.format.fingerprints import probed
from logitcache.cache.format.groups import read_group
from logitcache.cache.format.ledger import parse_commit
from logitcache.cache.format.manifest import parse_manifest
from logitcache.cache.store.open import locate
from logitcache.errors import CacheError
from logitcache.views.fingerprints import Fingerprint
from logitcache.views.recipe import recipe_id
from tests.cache.building import RECIPE, UNIT, VIEW

if TYPE_CHECKING:
    from pathlib import Path

TEACHER = {"lock": {}, "canonical_batch": 1, "source": ""}
ROOT = {
    "format": 1,
    "unit_rows": UNIT,
    "segments": [{"start": 0, "rows": 5}],
    "data": {"description": "", "class_names": []},
    "views": {},
    "teachers": {},
    "versions": {},
}
SHA = "0" * 64
REVISION = {"number": 1, "sha256": SHA}
FIDELITY: dict[str, Any] = {"rows": 1, "top1": 1.0, "temperatures": {}}
LOSS = {"kl_truncation": 0.0, "kl_coding": 0.0, "gradient_error": 0.0}


def is_root(**fields: object) -> bool:
    try:
        parse_manifest({**ROOT, **fields}, "here")
    except CacheError:
        return False
    return True


def is_teacher(**fields: object) -> bool:
    return is_root(teachers={"t": {**TEACHER, **fields}})


def is_recipe(**fields: object) -> bool:
    recipe = {**RECIPE, **fields}
    try:
        own = recipe_id(recipe)
    except ValueError:
        return False
    return is_root(views={own: recipe})


def is_group(path: Path, name: str, values: dict[str, Any]) -> bool:
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"logitcache": values}}
    try:
        read_group(locate(path), name, json.dumps(document).encode())
    except CacheError:
        return False
    return True


@pytest.mark.requirement("F3.5.1")
def test_segments_ascend_without_an_overlap() -> None:
    def fits(*segments: tuple[int, int]) -> bool:
        return is_root(segments=[{"start": start, "rows": rows} for start, rows in segments])

    assert fits((0, UNIT), (UNIT, 1), (4 * UNIT, 3))
    assert not fits((0, UNIT + 1), (UNIT, 1))
    assert not fits((UNIT, 1), (0, 1))
    assert not fits((-UNIT, 1))


@pytest.mark.requirement("F3.14.1")
def test_the_outline_of_a_recipe_has_ranges() -> None:
    assert [is_recipe(algorithm=n) for n in (0, 1, 65535, 65536)] == [False, True, True, False]
    assert [is_recipe(draw=n) for n in (-1, 0, 2**32 - 1, 2**32)] == [False, True, True, False]
    assert [is_recipe(seed=n) for n in (-1, 0, 2**64 - 1, 2**64)] == [False, True, True, False]
    for name, fits in (("", False), ("a_0", True), ("a" * 64, True), ("a" * 65, False)):
        assert is_recipe(operations=[{"op": name}]) == fits, name
    assert not any(is_recipe(operations=[{"op": name}]) for name in ("A", "a-b", "ä", "a\n"))
    assert is_recipe(operations=[{"op": "a"}] * 64)
    assert not is_recipe(operations=[{"op": "a"}] * 65)
    longest = 65536 - len(json.dumps({**RECIPE, "note": ""}, separators=(",", ":")))
    assert is_recipe(note="x" * longest)
    assert not is_recipe(note="x" * (longest + 1))
    # counted as it is digested: six characters for each that is not ASCII
    assert is_recipe(note="ä" * (longest // 6))
    assert not is_recipe(note="ä" * (longest // 6 + 1))


@pytest.mark.requirement("F5.3")
@pytest.mark.parametrize("kind", ["features", "tables"])
def test_names_below_a_teacher_are_path_segments(kind: str) -> None:
    assert is_teacher(**{kind: ["blocks.11", "a" * 64]})
    for name in ("", ".a", "a/b", "..", "a" * 65, "ä"):
        assert not is_teacher(**{kind: [name]}), name


@pytest.mark.requirement("F5.12")
def test_documents_of_probes_have_ranges(tmp_path: Path) -> None:
    document = {"format": 1, "views": [], "segments": [], "versions": {}, "probes": []}
    (tmp_path / "probes").mkdir()

    def fits(**fields: object) -> bool:
        (tmp_path / "probes/1.json").write_text(json.dumps({**document, **fields}))
        try:
            probed(locate(tmp_path))
        except CacheError:
            return False
        return True

    for extra in (0, 1):
        assert fits(views=[VIEW] * (65536 + extra)) == (not extra)
        assert fits(segments=[0] * (65536 + extra)) == (not extra)
        assert fits(versions={f"v{n}": "" for n in range(64 + extra)}) == (not extra)
        assert fits(versions={"v" * (256 + extra): ""}) == (not extra)
        assert fits(versions={"v": "1" * (256 + extra)}) == (not extra)
        assert fits(segments=[2**40 + extra]) == (not extra)
    assert not fits(segments=[-1])
    probe = {
        "view": VIEW,
        "row": 2**40,
        "partner": 0,
        "size": 4096,
        "at": [4048, 4048],
        "parameters": SHA,
        "pixels": SHA,
        "patch": "A" * (4 * 48 * 48),
    }
    assert Fingerprint.from_json(probe).top == 4048
    for change in (
        {"row": 2**40 + 1},
        {"partner": 2**40 + 1},
        {"partner": -1},
        {"size": 4097},
        {"at": [4049, 0]},
        {"at": [0, 4049]},
    ):
        with pytest.raises(ValueError, match=r"less than or equal|greater than|outside"):
            Fingerprint.from_json({**probe, **change})


GROUP = {"unit_rows": UNIT, "view_ids": [VIEW], "lock_sha256": SHA}
DENSE = {"kind": "dense", "values": "float16"}
TEACHER_GROUP = {
    **GROUP,
    "head": "softmax",
    "num_classes": 10,
    "encoding": DENSE,
    "optional": [],
    "class_names_sha256": SHA,
}


@pytest.mark.requirement("F10.1.1", "F10.1.2", "F10.1.3", "F10.1.4")
def test_attributes_of_a_teacher_have_ranges(tmp_path: Path) -> None:
    def fits(**fields: object) -> bool:
        return is_group(tmp_path, "t", {**TEACHER_GROUP, **fields})

    few = {"kind": "sparse", "top_k": 1, "values": "codes"}
    assert [fits(num_classes=n, encoding=DENSE) for n in (1, 2)] == [False, True]
    assert [fits(num_classes=n, encoding=few) for n in (2**26, 2**26 + 1)] == [True, False]
    assert [fits(unit_rows=n) for n in (0, 1, 65536, 65537)] == [False, True, True, False]
    for extra in (0, 1):
        assert fits(view_ids=[""] * (65536 + extra)) == (not extra)
        assert fits(optional=["lse"] * (16 + extra)) == (not extra)
    assert fits(optional=["lse", "of a newer version"])


@pytest.mark.requirement("F10.3.1")
def test_class_names_of_a_teacher_are_one_for_each_output(tmp_path: Path) -> None:
    def fits(names: object) -> bool:
        return is_group(tmp_path, "t", {**TEACHER_GROUP, "class_names": names})

    ten = [str(number) for number in range(10)]
    assert [fits(names) for names in (None, ten, ten[:9], [*ten, "10"])] == [True, True] + [
        False
    ] * 2
    assert not any(fits(names) for names in ([*ten[:9], "0"], [*ten[:9], ""], [*ten[:9], 9]))
    for extra in (0, 1):
        assert fits([*ten[:9], "x" * (1024 + extra)]) == (not extra)
    stored = {"attributes": {"logitcache": {**TEACHER_GROUP, "class_names": ten}}}
    text = json.dumps({"zarr_format": 3, "node_type": "group", **stored}).encode()
    assert read_group(locate(tmp_path), "t", text).to_json()["class_names"] == ten


@pytest.mark.requirement("F6.10")
def test_a_sparse_encoding_has_ranges(tmp_path: Path) -> None:
    def fits(**fields: object) -> bool:
        encoding = {"kind": "sparse", "top_k": 3, "values": "codes", "bits": 8, **fields}
        return is_group(tmp_path, "t", {**TEACHER_GROUP, "encoding": encoding})

    assert [fits(top_k=k) for k in (0, 1, 9, 10)] == [False, True, True, False]
    assert [fits(bits=n) for n in (3, 4, 8, 9)] == [False, True, True, False]
    assert [fits(mass=m) for m in (0.0, 5e-324, 1 - 2**-53, 1.0)] == [False, True, True, False]
    assert not any([fits(top_k=3.0), fits(bits=8.0), fits(top_k=True), fits(mass="0.5")])
    absent = {"kind": "sparse", "top_k": 3, "values": "codes"}
    document = {"attributes": {"logitcache": {**TEACHER_GROUP, "encoding": absent}}}
    text = json.dumps({"zarr_format": 3, "node_type": "group", **document}).encode()
    assert read_group(locate(tmp_path), "t", text).to_json()["encoding"] == {**absent, "bits": 8}


FEATURES = {
    "layout": "NLC",
    "shape": [5, 6],
    "values": "float16",
    "grid": 2,
    "prefix_tokens": 1,
    "kept_tokens": 4,
    "reduction": "none",
    "standardised": False,
    "pool": None,
    "sparse": False,
}


def is_feature(path: Path, **fields: object) -> bool:
    values = {**GROUP, "unit_rows": 1, "encoding": {**FEATURES, **fields}}
    return is_group(path, "t/features/tap", values)


@pytest.mark.requirement("F8.13")
def test_numbers_of_features_have_ranges(tmp_path: Path) -> None:
    def fits(**fields: object) -> bool:
        vector = {"layout": "vector", "shape": [1], "grid": None, "kept_tokens": None}
        return is_feature(tmp_path, **{**vector, "prefix_tokens": 0, **fields})

    assert [fits(shape=[n]) for n in (0, 1, 2**20, 2**20 + 1)] == [False, True, True, False]
    image = {"layout": "NCHW"}
    assert fits(**image, shape=[2**20, 2**8, 1])
    assert not fits(**image, shape=[2**20, 2**8 + 1, 1])
    for name in ("grid", "pool"):
        found = [fits(**{name: n}) for n in (0, 1, 2**14, 2**14 + 1)]
        assert found == [False, True, True, False], name
    found = [fits(prefix_tokens=n) for n in (-1, 0, 2**14, 2**14 + 1)]
    assert found == [False, True, True, False]
    tokens = {"layout": "NLC", "grid": 2**10}
    kept = [fits(**tokens, shape=[n, 1], kept_tokens=n) for n in (1, 2**20)]
    assert kept == [True, True]
    assert not fits(**tokens, shape=[1, 1], kept_tokens=0, prefix_tokens=1)


@pytest.mark.requirement("F8.14")
@pytest.mark.parametrize(
    "change",
    [
        {"shape": [5]},
        {"shape": [5, 6, 1]},
        {"shape": []},
        {"layout": "NCHW", "shape": [5, 6, 1]},  # with kept tokens
        {"grid": None},
        {"grid": 1},
        {"prefix_tokens": 0},
        {"kept_tokens": 3},
        {"principal": {"directions": 5, "mean": "AAAAAA==", "basis": "AAAA" * 8}},
        {"principal": {"directions": 6, "mean": "AAAAAA==", "basis": "AAAA" * 4}},
    ],
)
def test_parameters_of_features_fit_together(tmp_path: Path, change: dict[str, Any]) -> None:
    # one channel before, six directions: 24 bytes
    fitting = {"directions": 6, "mean": "AAAAAA==", "basis": "AAAA" * 8}
    assert is_feature(tmp_path)
    assert is_feature(tmp_path, principal=fitting)
    assert not is_feature(tmp_path, **change)


@pytest.mark.requirement("F9.4", "F9.4.1")
def test_attributes_of_a_table_have_ranges(tmp_path: Path) -> None:
    def fits(**fields: object) -> bool:
        shape = {"num_classes": 2, "width": 1}
        digests = {"lock_sha256": SHA, "class_names_sha256": SHA}
        return is_group(tmp_path, "t/tables/class_embeddings", {**shape, **digests, **fields})

    assert [fits(num_classes=n) for n in (1, 2)] == [False, True]
    assert [fits(num_classes=n) for n in (2**26, 2**26 + 1)] == [True, False]
    assert [fits(width=n) for n in (0, 1, 2**20, 2**20 + 1)] == [False, True, True, False]


@pytest.mark.requirement("F11.10.1")
def test_numbers_and_texts_of_a_commit_have_ranges() -> None:
    stored = {"key": "k", "bytes": 1, "sha256": SHA, "content_sha256": SHA}
    commit: dict[str, Any] = {"group": "g", "view": VIEW, "unit": 0, "rows": [0, 16], "arrays": {}}

    def fits(**fields: object) -> bool:
        try:
            parse_commit({**commit, **fields}, "here")
        except CacheError:
            return False
        return True

    assert fits()
    for extra in (0, 1):
        count, text = 2**63 - 1 + extra, "x" * (4096 + extra)
        assert fits(unit=count) == (not extra)
        assert fits(rows=[0, count]) == (not extra)
        assert fits(canonical_batch=count) == (not extra)
        assert fits(threads=count) == (not extra)
        assert fits(group=text) == (not extra)
        assert fits(arrays={"a": {**stored, "bytes": count}}) == (not extra)
        assert fits(arrays={"a": {**stored, "key": text}}) == (not extra)
        assert fits(measured={f"m{n}": 0.5 for n in range(64 + extra)}) == (not extra)
    assert not any([fits(unit=-1), fits(rows=[-1, 16]), fits(measured={"m": float("inf")})])


@pytest.mark.requirement("F11.30.1")
def test_lists_of_the_root_have_a_largest_length() -> None:
    for extra in (0, 1):
        assert is_root(requires=["tables"] * (64 + extra)) == (not extra)
        assert is_root(dropping=["t"] * (4096 + extra)) == (not extra)
        losses = {f"{n}": LOSS for n in range(64 + extra)}
        assert is_teacher(fidelity={**FIDELITY, "temperatures": losses}) == (not extra)


@pytest.mark.requirement("F12.7.1")
def test_a_lock_has_ranges() -> None:
    def fits(**lock: object) -> bool:
        return is_teacher(lock=lock)

    for extra in (0, 1):
        assert fits(kwargs={f"k{n}": 0 for n in range(1024 + extra)}) == (not extra)
        assert fits(architecture="x" * (1024 + extra)) == (not extra)
        assert fits(weights_sha256="x" * (1024 + extra)) == (not extra)
        assert fits(class_map=[0] * (2**20 + extra)) == (not extra)
        assert fits(class_map=[2**26 - 1 + extra]) == (not extra)
        # the lists themselves are values as well
        assert fits(more=[[0] * (2**20 - 1)] * 3, again=[0] * (2**20 - 2 + extra)) == (not extra)


@pytest.mark.requirement("F12.10")
def test_numbers_of_the_root_have_ranges() -> None:
    assert [is_teacher(canonical_batch=n) for n in (0, 1)] == [False, True]
    for number, fits in ((0, False), (1, True), (2**53, True), (2**53 + 1, False)):
        assert is_root(revision={**REVISION, "number": number}) == fits, number
    for digest in ("0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"):
        assert not is_root(revision={**REVISION, "sha256": digest}), digest
    for name in ("listing", "decoding"):
        found = [is_root(data={**ROOT["data"], name: n}) for n in (0, 1, 2, 3)]  # type: ignore[dict-item]
        assert found == [False, True, True, False], name
    for rows, fits in ((-1, False), (0, True), (2**40, True), (2**40 + 1, False)):
        assert is_teacher(fidelity={**FIDELITY, "rows": rows}) == fits, rows


@pytest.mark.requirement("F3.12", "F11.9.1", "V2.2")
def test_an_id_is_a_digest_of_ascii() -> None:
    recipe = {
        "seed": 0,
        "draw": 1,
        "algorithm": 2,
        "é": '\x7f\x00\n\\" ü狗😀/',
        "operations": [{"op": "crop", "a": [1.0, 1e-5, 0.0001, 1e16, 1e15, 0.1, -0.0, 5, None]}],
    }
    # written out from docs/views.md, without a library for JSON
    canonical = (
        rb'{"algorithm":2,"draw":1,"operations":[{"a":[1.0,1e-05,0.0001,1e+16,1000000000000000.0,'
        rb'0.1,-0.0,5,null],"op":"crop"}],"seed":0,'
        rb'"\u00e9":"\u007f\u0000\n\\\" \u00fc\u72d7\ud83d\ude00/"}'
    )
    assert recipe_id(recipe) == "v" + hashlib.sha256(canonical).hexdigest()[:16]
    assert is_root(views={recipe_id(recipe): recipe})
