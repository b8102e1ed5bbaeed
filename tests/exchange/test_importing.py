"""Imported outputs are those of their files, and what is not known of them is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import logitcache
from logitcache.cache.format.card import CardConfig
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.check.repair import RepairConfig, repair_cache
from logitcache.data.packing import ImagesConfig
from logitcache.encoding.choice import EncodingConfig
from logitcache.errors import (
    CacheError,
    DataError,
    DataMismatch,
    Interrupted,
    LogitcacheError,
    UsageError,
)
from logitcache.exchange.config import ImportConfig
from logitcache.exchange.exporting import export_outputs
from logitcache.exchange.importing import ImportSummary, import_outputs
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.share.card import write_card
from logitcache.share.merging import merge_caches
from logitcache.share.slicing import slice_cache
from logitcache.share.transfer import pull
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.views.algorithm import view_floats
from logitcache.views.spec import View, ViewsConfig, parse_view
from tests.conftest import CLASSES, write_images
from tests.exchange.outputs import logits_of, probabilities_of, write_epoch
from tests.share.caches import files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

KEYS = [f"{name}/{index:03d}.jpg" for name in CLASSES for index in range(20)]
EXACT = EncodingConfig(kind="dense", dense_values="float16")


def run(
    outputs: Path,
    cache: Path,
    data: Path,
    teacher: str = "t",
    should_stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> ImportSummary:
    """Import outputs; settings are fields of the configuration."""
    places = {"outputs": str(outputs), "cache": str(cache), "data": str(data), "teacher": teacher}
    listed = {k: str(v) if k == "class_names" else v for k, v in settings.items()}
    return import_outputs(ImportConfig.parse({**places, **listed}, ""), should_stop=should_stop)


def stored_logs(cache: Path, teacher: str, view: int = 0) -> dict[str, NDArray[Any]]:
    """Return log-probabilities by key as students get them."""
    opened = open_cache(cache)
    group, samples = opened.teachers[teacher], opened.samples
    names = list(group.encoding.specs())
    view_id = opened.views_of([teacher])[view]
    decoded = group.encoding.decode(opened.read(teacher, view_id, 0, opened.rows_end, names))
    logs = decoded.dense_log_probs()
    return {str(samples.keys[row]): logs[row] for row in samples.readable}


def assert_stored(cache: Path, teacher: str, expected: NDArray[Any], view: int = 0) -> None:
    found = stored_logs(cache, teacher, view)
    assert set(found) == set(KEYS)
    probs = np.array([np.exp(found[key]) for key in KEYS])
    np.testing.assert_allclose(probs, expected, rtol=2e-3, atol=5e-4)


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two epochs of TinyViT's record files, of 10 classes of which 4 are stored."""
    root = tmp_path_factory.mktemp("records")
    for epoch in range(2):
        probs = probabilities_of(logits_of(KEYS, 10, epoch))
        write_epoch(root / f"logits_top4_epoch{epoch}", KEYS, probs, 4)
    return root


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a list of 10 classes, among them those of the images in another order."""
    path = tmp_path_factory.mktemp("names") / "classes.txt"
    path.write_text("\n".join(["eel", "dog", "cat", "bird", *(f"c{n}" for n in range(6))]))
    return path


@pytest.fixture(scope="module")
def imported(
    images: Path, records: Path, names: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("imported") / "cache"
    summary = run(records, path, images, teacher="big", class_names=names, unit_rows=16)
    assert (summary.images, summary.views, summary.classes) == (60, 2, 10)
    assert summary.format == "tinyvit"
    return path


def rest_spread(probs: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Return what TinyViT's loss makes of K probabilities: the others share the rest evenly."""
    kept = np.argsort(-probs, axis=1, kind="stable")[:, :top_k]
    values = np.take_along_axis(probs, kept, axis=1)
    rest = (1 - values.sum(axis=1, keepdims=True)) / (probs.shape[1] - top_k)
    found = np.repeat(rest, probs.shape[1], axis=1)
    np.put_along_axis(found, kept, values, axis=1)
    return found


def test_records_of_tinyvit_are_stored_as_their_probabilities(
    images: Path, records: Path, names: Path, tmp_path: Path
) -> None:
    run(records, tmp_path / "c", images, teacher="big", class_names=names, encoding=EXACT)
    for epoch in range(2):
        exact = probabilities_of(logits_of(KEYS, 10, epoch))
        assert_stored(tmp_path / "c", "big", rest_spread(exact, 4), epoch)


def test_the_default_encoding_stores_as_many_classes_as_the_file(imported: Path) -> None:
    group = open_cache(imported).teachers["big"]
    assert group.encoding.to_json()["top_k"] == 4
    assert (group.optional, len(group.class_names or ())) == ((), 10)
    exact = rest_spread(probabilities_of(logits_of(KEYS, 10)), 4)
    stored = stored_logs(imported, "big")
    for key, row in zip(KEYS, exact, strict=True):
        same = set(np.argsort(-stored[key])[:4]) == set(np.argsort(-row)[:4])
        assert same or np.sort(row)[-4] < 1e-3


def test_a_cache_of_imported_outputs_is_a_cache_like_any_other(
    imported: Path, images: Path, tmp_path: Path
) -> None:
    assert verify(imported).ok
    report = logitcache.verify(imported, data=str(images))
    assert report.ok
    assert report.fingerprints is None or report.fingerprints.checked == 0
    described = logitcache.describe(imported)
    assert [view.operations for view in described.views] == [["unknown"]] * 2
    shutil.copytree(imported, tmp_path / "own")
    write_card(tmp_path / "own", CardConfig())
    assert "not known" in (tmp_path / "own" / "README.md").read_text()
    pull(imported, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(imported)
    slice_cache(imported, tmp_path / "first", views=["0"])
    slice_cache(imported, tmp_path / "second", views=["1"])
    merge_caches([tmp_path / "first", tmp_path / "second"], tmp_path / "both")
    assert stored_logs(tmp_path / "both", "big", 1).keys() == set(KEYS)
    assert logitcache.compare_caches(imported, tmp_path / "both").values != ()


def test_damaged_samples_are_repaired_from_the_images(
    imported: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(imported, tmp_path / "c")
    before = files_of(tmp_path / "c")
    for shard in (tmp_path / "c/samples/bytes/c").iterdir():
        shard.write_bytes(b"")
    config = RepairConfig.parse({"cache": str(tmp_path / "c"), "data": str(images)}, "repair")
    assert repair_cache(config).remaining == ()
    assert files_of(tmp_path / "c") == before


def test_damaged_outputs_that_were_imported_have_no_teacher_to_repair_them(
    imported: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(imported, tmp_path / "c")
    shards = [path for path in (tmp_path / "c/teachers/big").rglob("c/*/*/*") if path.is_file()]
    for shard in shards:
        shard.write_bytes(b"")
    config = RepairConfig.parse({"cache": str(tmp_path / "c"), "data": str(images)}, "repair")
    with pytest.raises(UsageError, match=r"imported(.|\n)*another copy(.|\n)*--teacher big"):
        repair_cache(config)


@pytest.mark.requirement("F2.5.6", "F12.8.3", "V2.1.1")
def test_readers_have_to_know_views_without_pixels(imported: Path, tmp_path: Path) -> None:
    manifest = read_manifest(locate(imported))
    assert "unknown-views" in manifest.requires
    slice_cache(imported, tmp_path / "slice", views=["0"])
    assert "unknown-views" in read_manifest(locate(tmp_path / "slice")).requires
    (view, *_) = manifest.views.values()
    assert view["operations"] == [{"op": "unknown"}]
    assert parse_view(view, "x") == View.unknown(1)
    with pytest.raises(UsageError, match="not known"):
        view_floats(View.unknown(1), np.zeros(1, np.uint64))
    crop = ViewsConfig().eval_view().to_json()["operations"]
    mixed = {**view, "operations": [*view["operations"], *crop]}
    with pytest.raises(CacheError, match="malformed"):
        parse_view(mixed, "x")
    lock = manifest.teachers["big"].lock
    assert lock["imported"].keys() == {"format", "sha256", "values", "classes"}
    assert lock["imported"]["sha256"] == lock["imported"]["sha256"].lower()


def training(imported: Path, images: Path, **more: Any) -> TrainConfig:
    student = {
        "model": "resnet10t",
        "kwargs": {"stem_width": 16, "channels": [16, 16, 16, 16]},
        "size": 32,
    }
    values: dict[str, Any] = {
        "cache": str(imported),
        "data": str(images),
        "student": student,
        "steps": 3,
        "batch_size": 20,
        "threads": 1,
        "device": "cpu",
        **more,
    }
    return TrainConfig.parse(values, "")


def test_students_train_on_imported_outputs_in_views_of_their_own(
    imported: Path, images: Path, tmp_path: Path
) -> None:
    weights: list[bytes] = []
    for views in (None, {"count": 1}, {"count": 0, "eval": True}):
        out = tmp_path / str(len(weights))
        train_student(training(imported, images, out=str(out), views=views))
        weights.append((out / "export" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]  # random crops and flips are the default
    assert weights[0] != weights[2]


def test_views_derived_from_those_of_the_student_may_be_shown(imported: Path, images: Path) -> None:
    cache = logitcache.open_cache(imported)
    show: Sequence[str | Mapping[str, str]] = ["base", {"student": "rot90(1)", "targets": "base"}]
    own = ViewsConfig(count=0, eval=True)
    with logitcache.loader(
        cache, str(images), batch_size=20, size=16, threads=1, show=show, student_views=own
    ) as loader:
        pixels, targets = next(iter(loader))
    assert torch.equal(pixels[20:], torch.rot90(pixels[:20], 1, (2, 3)))
    logs = targets.teachers["big"].top_classes(1)[0]
    assert torch.equal(logs[:20], logs[20:])


def test_each_epoch_shows_another_view_of_the_student(imported: Path, images: Path) -> None:
    cache = logitcache.open_cache(imported)
    with logitcache.loader(cache, str(images), batch_size=60, size=16, threads=1) as loader:
        pixels, rows, logs = [], [], []
        for _ in range(4):
            for batch, targets in loader:
                order = torch.argsort(targets.rows)
                pixels.append(batch[order])
                rows.append(targets.rows[order])
                logs.append(targets.teachers["big"].top_classes(1)[0][order])
    assert all(torch.equal(rows[0], other) for other in rows[1:])
    assert not any(torch.equal(pixels[a], pixels[b]) for a in range(4) for b in range(a))
    # four epochs show the outputs of both epochs of the file twice
    assert len({tuple(log.flatten().tolist()) for log in logs}) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"views": {"mixup_alpha": 0.8}}, "single images only"),
        ({"show": ["base", "rot90(1)"]}, "derived views"),
        (
            {"objectives": [{"match": {"teacher": "big", "tap": "x", "student": "layer4"}}]},
            "features",
        ),
    ],
)
def test_what_needs_more_than_outputs_is_refused(
    imported: Path, images: Path, tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        train_student(training(imported, images, out=str(tmp_path / "out"), **more))


def test_views_that_are_known_are_not_replaced(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    values = {"cache": str(tmp_path / "c"), "data": str(images), "teachers": teachers}
    build_cache(PrecomputeConfig.parse(values, ""))
    config = training(tmp_path / "c", images, out=str(tmp_path / "o"), views={"count": 1})
    with pytest.raises(UsageError, match="its own views"):
        train_student(config)


def test_a_map_style_data_set_names_the_alternatives(imported: Path, images: Path) -> None:
    with pytest.raises(UsageError, match=r"Cache\.targets"):
        logitcache.CachedDataset(logitcache.open_cache(imported), str(images))


def test_own_code_gets_the_outputs_of_any_image(imported: Path) -> None:
    targets = logitcache.open_cache(imported).targets([KEYS[7], KEYS[0]], view=1)
    exact = probabilities_of(logits_of(KEYS, 10, 1))[[7, 0]]
    found = targets.teachers["big"].top_classes(1)[1].flatten()
    # classes are those of the images, by name: in the list of outputs, bird is after cat after dog
    assert found.tolist() == exact[:, [3, 2, 1]].argmax(axis=1).tolist()


def test_logits_keep_their_logsumexp(images: Path, tmp_path: Path) -> None:
    logits = logits_of(KEYS, 3)
    path = write_npz(tmp_path / "t.npz", keys=KEYS, logits=logits, class_names=list(CLASSES))
    summary = run(path, tmp_path / "c", images)
    assert not any("logsumexp" in text for text in summary.unknown)
    opened = open_cache(tmp_path / "c")
    assert opened.teachers["t"].optional == ("lse", "label_logp")
    (view,) = opened.views
    lse = opened.read("t", view, 0, opened.rows_end, ["lse"])["lse"]
    exact = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
    at = {str(key): number for number, key in enumerate(opened.samples.keys)}
    np.testing.assert_allclose([lse[at[key]] for key in KEYS], exact, rtol=1e-6)
    assert_stored(tmp_path / "c", "t", probabilities_of(logits))
    assert summary.accuracy == np.mean(
        [
            CLASSES[row] == key.partition("/")[0]
            for key, row in zip(KEYS, logits.argmax(1), strict=True)
        ]
    )


def test_classes_are_assigned_by_name(images: Path, tmp_path: Path) -> None:
    logits = logits_of(KEYS, 3)
    order = ("dog", "bird", "cat")
    path = write_npz(tmp_path / "t.npz", keys=KEYS, logits=logits, class_names=order)
    run(path, tmp_path / "c", images)
    columns = [order.index(name) for name in CLASSES]
    assert_stored(tmp_path / "c", "t", probabilities_of(logits)[:, columns])
    assert open_cache(tmp_path / "c").teachers["t"].class_names is None


@pytest.mark.parametrize("named", [True, False])
def test_positions_are_those_of_an_image_folder(images: Path, tmp_path: Path, named: bool) -> None:
    probs = probabilities_of(logits_of(KEYS, 3))
    if named:  # TinyViT's keys of an ImageFolder
        order = np.random.default_rng(0).permutation(len(KEYS))
        folder = tmp_path / "logits_top2_epoch0"
        write_epoch(folder, [str(n) for n in order], probs[order], 2)
        summary = run(folder, tmp_path / "c", images, encoding=EXACT)
        expected = rest_spread(probs, 2)
    else:
        np.save(tmp_path / "t.npy", probs)
        summary = run(tmp_path / "t.npy", tmp_path / "c", images, values="probabilities")
        expected = probs
    assert any("by position" in note for note in summary.notes)
    assert any("in the order of their names" in note for note in summary.notes)
    assert_stored(tmp_path / "c", "t", expected)


@pytest.mark.parametrize("format_", ["npz", "parquet", "tinyvit"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_what_was_exported_is_imported_with_equal_probabilities(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path, format_: str, top_k: int
) -> None:
    source = tmp_path / "source"
    values: dict[str, Any] = {"cache": str(source), "data": str(images), "views": {"count": 2}}
    values["teachers"] = {"cnn": teachers["cnn"]}
    build_cache(PrecomputeConfig.parse(values, ""))
    out = tmp_path / ("records" if format_ == "tinyvit" else f"outputs.{format_}")
    export_outputs(source, out, format=format_, top_k=top_k)
    run(out, tmp_path / "c", images, encoding=EXACT)
    for view in range(2):
        exact = np.exp(np.array([stored_logs(source, "cnn", view)[key] for key in KEYS]))
        assert_stored(tmp_path / "c", "t", rest_spread(exact, top_k) if top_k else exact, view)


def test_outputs_are_added_to_a_cache_that_was_computed(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    cache = tmp_path / "c"
    values: dict[str, Any] = {"cache": str(cache), "data": str(images), "views": {"count": 2}}
    config = PrecomputeConfig.parse({**values, "teachers": {"cnn": teachers["cnn"]}}, "")
    build_cache(config)
    before = stored_logs(cache, "cnn")
    logits = logits_of(KEYS, 3)
    path = write_npz(tmp_path / "t.npz", keys=KEYS, logits=logits)
    run(path, cache, images)
    assert verify(cache).ok
    assert_stored(cache, "t", probabilities_of(logits))
    after = stored_logs(cache, "cnn")
    assert all(np.array_equal(before[key], after[key]) for key in KEYS)
    # further views of the network are computed as before
    more = PrecomputeConfig.parse({**values, "teachers": {"cnn": teachers["cnn"]}}, "")
    assert build_cache(more).computed == 0
    with pytest.raises(UsageError, match="no view that all"):
        train_student(training(cache, images, out=str(tmp_path / "o")))


def test_an_interrupted_import_continues(images: Path, records: Path, tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    listed.write_text("\n".join([*CLASSES, *(f"c{n}" for n in range(7))]))

    settings: Any = {"teacher": "big", "class_names": listed, "unit_rows": 16}
    run(records, tmp_path / "whole", images, **settings)
    interrupted = 0
    for _ in range(40):
        try:
            run(records, tmp_path / "parts", images, should_stop=_after(3), **settings)
        except Interrupted:
            interrupted += 1
        else:
            break
    assert interrupted >= 3
    whole, parts = files_of(tmp_path / "whole"), files_of(tmp_path / "parts")
    assert whole == parts


def _after(calls: int) -> Callable[[], bool]:
    """Return a request to stop that comes after a number of calls."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


def test_images_without_outputs_are_left_out_on_request(images: Path, tmp_path: Path) -> None:
    some = [*KEYS[:50], "no/image.jpg"]
    path = write_npz(tmp_path / "t.npz", keys=some, logits=logits_of(some, 3))
    with pytest.raises(DataMismatch, match="10 of 60 images have no outputs"):
        run(path, tmp_path / "c", images)
    assert not (tmp_path / "c").exists()
    for _ in range(2):  # the second call finds everything done
        summary = run(path, tmp_path / "c", images, subset=True)
    assert (summary.images, summary.left_out, summary.unused) == (50, 10, 1)


def test_a_cache_with_images_needs_no_other_file(images: Path, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "t.npz", keys=KEYS[:40], logits=logits_of(KEYS[:40], 3))
    packed = ImagesConfig(side=24)
    run(path, tmp_path / "c", images, images=packed, subset=True)
    config = training(tmp_path / "c", images, out=str(tmp_path / "o"), data=None)
    assert train_student(config).set_images == 40


def test_an_import_that_is_killed_after_any_commit_is_continued(
    images: Path, tmp_path: Path
) -> None:
    """SIGKILL right after some commit, five times, then the same command: the same bytes."""
    path = write_npz(tmp_path / "t.npz", keys=KEYS, logits=logits_of(KEYS, 3))
    values = {
        "outputs": str(path),
        "cache": str(tmp_path / "c"),
        "data": str(images),
        "teacher": "own",
        "images": "packed:24",
        "unit_rows": 16,
    }
    import_outputs(ImportConfig.parse({**values, "cache": str(tmp_path / "whole")}, ""))
    script = (
        "import json, os, signal, sys\n"
        "from logitcache.cache.write import unit_commit as units\n"
        "from logitcache.exchange.config import ImportConfig\n"
        "from logitcache.exchange.importing import import_outputs\n"
        "write = units.write_commit\n"
        "def run(left):\n"
        "    def counting(*args):\n"
        "        nonlocal left\n"
        "        write(*args)\n"
        "        left -= 1\n"
        "        if not left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    units.write_commit = counting\n"
        "    import_outputs(ImportConfig.parse(json.loads(sys.argv[1]), ''))\n"
        "for left in (1, 1, 2, 2, 3):\n"
        "    child = os.fork()\n"
        "    if not child: run(left)\n"
        "    assert os.waitpid(child, 0)[1] == signal.SIGKILL\n"
    )
    subprocess.run([sys.executable, "-c", script, json.dumps(values)], check=True)
    assert read_manifest(locate(tmp_path / "c")).revision is None
    import_outputs(ImportConfig.parse(values, ""))
    assert files_of(tmp_path / "c") == files_of(tmp_path / "whole")
    assert verify(tmp_path / "c").ok


def test_views_of_imported_outputs_are_not_stored(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "t.npz", keys=KEYS, logits=logits_of(KEYS, 3))
    with pytest.raises(UsageError, match="views cannot be stored"):
        ImportConfig.parse(
            {"outputs": str(path), "cache": "c", "teacher": "t", "images": "views"}, ""
        )
    values = {"cache": str(tmp_path / "c"), "data": str(images), "teachers": teachers}
    build_cache(PrecomputeConfig.parse({**values, "images": "views", "unit_rows": 16}, ""))
    with pytest.raises(UsageError, match="contains rendered views"):
        run(path, tmp_path / "c", images)


def test_another_file_is_not_the_same_teacher(images: Path, tmp_path: Path) -> None:
    for seed in range(2):
        write_npz(tmp_path / f"{seed}.npz", keys=KEYS, logits=logits_of(KEYS, 3, seed))
    run(tmp_path / "0.npz", tmp_path / "c", images)
    before = files_of(tmp_path / "c")
    with pytest.raises(CacheError, match="another teacher named 't'"):
        run(tmp_path / "1.npz", tmp_path / "c", images)
    assert files_of(tmp_path / "c") == before


LOGITS = logits_of(KEYS, 3)
PROBS = probabilities_of(LOGITS)
CLASS_IDS = np.argsort(-PROBS, axis=1)[:, :2]
TOP = np.take_along_axis(PROBS, CLASS_IDS, axis=1)
BAD_ARRAYS: dict[str, tuple[dict[str, Any], type[LogitcacheError], str]] = {
    "no outputs": ({"keys": KEYS}, DataError, "no array of outputs"),
    "two kinds": ({"logits": LOGITS, "probabilities": PROBS}, DataError, "or several"),
    "one axis": ({"logits": LOGITS[0]}, DataError, "shape"),
    "integers": ({"logits": LOGITS.astype(int)}, DataError, "int64"),
    "too few keys": ({"keys": KEYS[1:], "logits": LOGITS}, DataError, "another number"),
    "repeated keys": ({"keys": [KEYS[1], *KEYS[1:]], "logits": LOGITS}, DataError, "same key"),
    "other names": ({"keys": [f"x{k}" for k in KEYS], "logits": LOGITS}, DataMismatch, "no image"),
    "other images": ({"logits": LOGITS[1:]}, DataMismatch, "59 rows"),
    "logits as probabilities": ({"keys": KEYS, "probabilities": LOGITS}, DataError, "not probab"),
    "no distributions": ({"keys": KEYS, "probabilities": PROBS / 3}, DataError, "sum"),
    "nan": ({"keys": KEYS, "logits": LOGITS * np.nan}, DataError, "finite"),
    "class out of range": (
        {"keys": KEYS, "probabilities": TOP, "class_ids": CLASS_IDS + 2},
        DataError,
        "a class of 3",
    ),
    "class twice": (
        {"keys": KEYS, "probabilities": TOP / 2, "class_ids": CLASS_IDS * 0},
        DataError,
        "twice",
    ),
    "some logits": ({"logits": TOP, "class_ids": CLASS_IDS}, DataError, "some classes alone"),
    "four classes": ({"logits": logits_of(KEYS, 4)}, UsageError, "which output belongs"),
    "repeated class": (
        {"logits": LOGITS, "class_names": ["cat", "cat", "dog"]},
        UsageError,
        "same name",
    ),
    "two names": ({"logits": LOGITS, "class_names": ["cat", "dog"]}, DataError, "2 class names"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_a_file_that_cannot_be_used_leaves_no_teacher(
    images: Path, tmp_path: Path, name: str
) -> None:
    arrays, error, words = BAD_ARRAYS[name]
    path = write_npz(tmp_path / "t.npz", **arrays)
    with pytest.raises(error, match=words):
        run(path, tmp_path / "c", images)
    with pytest.raises(LogitcacheError):
        open_cache(tmp_path / "c")


def test_damaged_files_are_refused(images: Path, records: Path, tmp_path: Path) -> None:
    bad = tmp_path / "records"
    shutil.copytree(records, bad)
    file = bad / "logits_top4_epoch1" / "rank0-values.bin"
    file.write_bytes(file.read_bytes()[:-1])
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    pq.write_table(
        pa.table({"key": ["a"], "logits": [[1.0]], "view": ["0"]}), tmp_path / "w.parquet"
    )
    ragged = pa.table({"key": ["a", "b"], "logits": [[1.0], [1.0, 2.0]]})
    pq.write_table(ragged, tmp_path / "ragged.parquet")
    twice = pa.table({"key": ["a", "a"], "logits": [[1.0], [1.0]]})
    pq.write_table(twice, tmp_path / "twice.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    cases = {
        "records": "size that its keys require",
        "text.npz": "cannot be read",
        "pickled.npy": "cannot be read",
        "ragged.parquet": "same length",
        "twice.parquet": "occurs twice",
        "text.parquet": "cannot be read",
    }
    for name, words in cases.items():
        values: Any = "logits" if name.endswith("npy") else None
        with pytest.raises(DataError, match=words):
            run(tmp_path / name, tmp_path / "c", images, values=values)
    with pytest.raises(UsageError, match="--values"):
        run(tmp_path / "pickled.npy", tmp_path / "c", images)
    assert not (tmp_path / "c").exists()


def test_natural_order_of_folders_is_not_assumed(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", 2, ("c1", "c2", "c10"))
    np.save(tmp_path / "t.npy", np.zeros((6, 3)))
    with pytest.raises(UsageError, match="--class-names"):
        run(tmp_path / "t.npy", tmp_path / "c", data, values="logits")
