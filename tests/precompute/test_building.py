"""Stage 1 with real images, real networks, real threads."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.cache.format.names import Status
from logitcache.cache.read.reader import open_cache
from logitcache.data.decode import decode
from logitcache.data.identity import content_digest
from logitcache.data.readers import open_source
from logitcache.encoding.logits import log_softmax
from logitcache.errors import (
    CacheError,
    CacheUnsealed,
    DataMismatch,
    Interrupted,
    NetworkError,
    NonFiniteLogits,
    StorageError,
    UnreadableImage,
    UsageError,
)
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.render import render
from logitcache.views.spec import parse_view
from tests.conftest import jpeg, shape_image, write_images, write_teacher
from tests.reliability.kills import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.precompute.run.compute import Progress

ROOT = Path(__file__).parents[2]
Teachers = dict[str, dict[str, str]]


def config(cache: Path, data: Path, teachers: Teachers, **fields: object) -> PrecomputeConfig:
    values: dict[str, object] = {
        "cache": str(cache),
        "data": str(data),
        "teachers": teachers,
        "views": {"count": 2},
        "unit_rows": 16,
        "batch_size": 8,
        "threads": 2,
        **fields,
    }
    return PrecomputeConfig.parse(values, "precompute")


def commits(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in cache.glob("commits/**/*.json")}


@pytest.fixture(scope="module")
def built(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "cache"
    build_cache(config(path, images, teachers))
    return path


def test_it_holds_what_the_teachers_say_of_the_very_views(
    built: Path, images: Path, teachers: Teachers
) -> None:
    """Rendered, normalized and forwarded here by hand, image by image."""
    cache, source = open_cache(built), open_source(str(images))
    network: Any = build_network(NetworkConfig(**teachers["red"])).eval()
    mean = torch.tensor(network.pretrained_cfg["mean"]).view(3, 1, 1) * 255
    std = torch.tensor(network.pretrained_cfg["std"]).view(3, 1, 1) * 255
    position = {key: index for index, key in enumerate(source.keys)}
    samples = cache.samples
    for view_id in cache.views_of(["red"]):
        view = parse_view(cache.views[view_id], "")
        floats = view_floats(view, samples.hashes)
        stored = cache.teacher("red").encoding.decode(cache.read("red", view_id, 0, 64))
        for row in samples.readable[::7]:
            image = decode(source.read(position[samples.keys[row]]))
            how = parameters(view, [f[row].tolist() for f in floats], *image.shape[1:])
            pixels = render(image, how, 8, view.interpolation).float()
            with torch.no_grad():
                logits = network(((pixels - mean) / std)[None])
            exact = log_softmax(logits.numpy())[0][0]
            np.testing.assert_allclose(stored.log_probs[row], exact, atol=2e-3)


@pytest.mark.requirement("F3.3")
def test_it_knows_its_images(built: Path, images: Path) -> None:
    samples, source = open_cache(built).samples, open_source(str(images))
    position = {key: index for index, key in enumerate(source.keys)}
    assert set(samples.keys[samples.rows]) == set(source.keys)
    for row in samples.rows:
        index = position[samples.keys[row]]
        assert samples.digests[row].tobytes() == content_digest(source.read(index))
        assert samples.labels[row] == source.labels[index]
        assert samples.sizes[row] == source.sizes[index]


@pytest.mark.requirement("F11.11")
def test_the_same_work_gives_the_same_commits(
    built: Path, images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another number of decoding threads, another order of the folder: equal to the byte."""
    walk = os.walk

    def shuffled(*args: Any, **kwargs: Any) -> Any:
        found = [(r, random.sample(d, len(d)), random.sample(f, len(f))) for r, d, f in walk(*args)]
        return iter(random.sample(found, len(found)))

    expected = commits(built)
    assert len({name.rpartition("/")[2] for name in expected}) == 4, "at least three units"
    for threads in (1, 2, 4):
        path = tmp_path / str(threads)
        build_cache(config(path, images, teachers, threads=threads))
        assert commits(path) == expected
    monkeypatch.setattr(os, "walk", shuffled)
    build_cache(config(tmp_path / "shuffled", images, teachers))
    assert commits(tmp_path / "shuffled") == expected


@pytest.mark.requirement("F11.8")
def test_killed_in_a_process_of_its_own_it_resumes(
    built: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    """SIGKILL right after the fifth commit, with real teachers, then the same command again."""
    values = config(tmp_path / "c", images, teachers).model_dump(mode="json")
    script = (
        "import json, os, signal, sys, torch\n"
        "from logitcache.cache.write import unit_commit as units\n"
        "from logitcache.precompute.config import PrecomputeConfig\n"
        "from logitcache.precompute.build import build_cache\n"
        "torch.set_num_threads(1)\n"
        "write, count = units.write_commit, 0\n"
        "def counting(*args):\n"
        "    global count\n"
        "    write(*args)\n"
        "    count += 1\n"
        "    if count == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "units.write_commit = counting\n"
        "build_cache(PrecomputeConfig.parse(json.loads(sys.argv[1]), ''))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, json.dumps(values)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(commits(tmp_path / "c")) == 5
    build_cache(config(tmp_path / "c", images, teachers))
    assert commits(tmp_path / "c") == commits(built)


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def shown(run: Callable[..., Any]) -> int:
    """Return how many images a run showed to its teachers."""
    return int(run().computed)


def test_a_finished_cache_is_not_computed_again(
    copy: Path, images: Path, teachers: Teachers
) -> None:
    assert shown(lambda: build_cache(config(copy, images, teachers))) == 0


def test_a_further_view_computes_that_view(copy: Path, images: Path, teachers: Teachers) -> None:
    before = commits(copy)
    summary = build_cache(config(copy, images, teachers, views={"count": 3}))
    assert summary.computed == 60
    assert summary.revision == 2
    assert before.items() <= commits(copy).items()
    assert len(open_cache(copy).views) == 3


def test_a_further_teacher_computes_that_teacher(
    copy: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    third = write_teacher(tmp_path / "third", classes=3, seed=9)
    before = commits(copy)
    only = {"third": {"model": f"local-dir:{third}"}}
    assert build_cache(config(copy, images, only)).computed == 120
    assert before.items() <= commits(copy).items()
    assert list(open_cache(copy).teachers) == ["cnn", "red", "third"]


@pytest.mark.requirement("F3.5", "F3.6")
def test_new_images_are_added_as_a_segment(
    copy: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(images, grown)
    for index in range(5):
        (grown / "cat" / f"new{index}.jpg").write_bytes(jpeg(shape_image(500 + index)))
    before = commits(copy)
    summary = build_cache(config(copy, grown, teachers))
    assert summary.computed == 2 * 5
    assert summary.images == 65
    assert before.items() <= commits(copy).items()
    samples = open_cache(copy).samples
    assert sorted(samples.keys[samples.rows[-5:]]) == [f"cat/new{i}.jpg" for i in range(5)]
    assert samples.rows[-5:].tolist() == [64, 65, 66, 67, 68]


def test_new_images_need_every_teacher(
    copy: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(images, grown)
    (grown / "cat" / "new.jpg").write_bytes(jpeg(shape_image(500)))
    with pytest.raises(
        CacheUnsealed, match=r"teachers/red[\s\S]*pass those teachers in the same command as well"
    ):
        build_cache(config(copy, grown, {"cnn": teachers["cnn"]}))
    build_cache(config(copy, grown, teachers))
    assert len(open_cache(copy).samples.rows) == 61


@pytest.mark.parametrize("change", ["missing", "size"])
def test_other_images_are_refused(
    copy: Path, images: Path, teachers: Teachers, tmp_path: Path, change: str
) -> None:
    other = tmp_path / "other"
    shutil.copytree(images, other)
    victim = other / "dog" / "003.jpg"
    victim.unlink()
    if change == "size":
        victim.write_bytes(jpeg(shape_image(1, (90, 90))))
    with pytest.raises(DataMismatch, match=r"dog/003\.jpg"):
        build_cache(config(copy, other, teachers, views={"count": 3}))


def test_an_image_of_the_same_size_but_other_content_is_refused(
    copy: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(images, other)
    victim = other / "dog" / "003.jpg"
    content = bytearray(victim.read_bytes())
    content[-10] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DataMismatch, match=r"has changed[\s\S]*dog/003\.jpg"):
        build_cache(config(copy, other, teachers, views={"count": 3}))


@pytest.mark.requirement("F12.5")
def test_another_teacher_under_the_same_name_is_refused(
    copy: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    other = write_teacher(tmp_path / "other", classes=3, seed=5)
    with pytest.raises(CacheError, match=r"another teacher named 'red'[\s\S]*weights_sha256"):
        build_cache(config(copy, images, {"red": {"model": f"local-dir:{other}"}}))


@pytest.mark.requirement("F3.7")
def test_another_encoding_or_unit_is_refused(copy: Path, images: Path, teachers: Teachers) -> None:
    with pytest.raises(UsageError, match="another encoding"):
        build_cache(config(copy, images, teachers, encoding={"top_k": 2}))
    with pytest.raises(UsageError, match="rows per unit of an existing cache cannot"):
        build_cache(config(copy, images, teachers, unit_rows=32))


@pytest.mark.requirement("F3.3", "F5.5")
def test_a_truncated_image_is_named_or_marked(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(images, damaged)
    victim = damaged / "cat" / "007.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(UnreadableImage, match=r"cat/007\.jpg[\s\S]*skip"):
        build_cache(config(tmp_path / "c", damaged, teachers))
    summary = build_cache(config(tmp_path / "c", damaged, teachers, on_bad_image="skip"))
    assert summary.unreadable == 1
    cache = open_cache(tmp_path / "c")
    (row,) = np.flatnonzero(cache.samples.status == Status.UNREADABLE)
    assert cache.samples.keys[row] == "cat/007.jpg"
    for view_id in cache.views_of(["cnn"]):
        assert np.isnan(cache.read("cnn", view_id, 0, 64)["logp"][row].astype(float)).all()
    again = build_cache(config(tmp_path / "c", damaged, teachers, views={"count": 3}))
    assert again.unreadable == 1


@pytest.mark.requirement("V4.9")
def test_teachers_of_other_sizes_see_the_same_crop(images: Path, tmp_path: Path) -> None:
    red = write_teacher(tmp_path / "red", classes=3)
    sizes: Teachers = {
        "small": {"model": f"local-dir:{red}"},
        "large": {"model": f"local-dir:{red}", "size": 24},  # type: ignore[dict-item]  # a size is an int
    }
    build_cache(config(tmp_path / "c", images, sizes))
    cache = open_cache(tmp_path / "c")
    (first, *_) = cache.views_of(["small", "large"])
    small, large = (
        cache.read(name, first, 0, 64)["lse"].astype(np.float64) for name in ("small", "large")
    )
    assert not np.array_equal(small, large)
    assert np.corrcoef(small[:60], large[:60])[0, 1] > 0.5


def test_a_class_map_restricts_the_answer(images: Path, tmp_path: Path) -> None:
    wide = write_teacher(tmp_path / "wide", classes=7)
    teacher: dict[str, Any] = {"model": f"local-dir:{wide}"}
    with pytest.raises(UsageError, match=r"3 classes[\s\S]*7 classes[\s\S]*class_map"):
        build_cache(config(tmp_path / "c", images, {"wide": teacher}))
    bad = {"wide": {**teacher, "class_map": [0, 1, 7]}}
    with pytest.raises(UsageError, match="has outputs that the network lacks"):
        build_cache(config(tmp_path / "c", images, bad))
    mapped = {"wide": {**teacher, "class_map": [6, 0, 2]}}
    build_cache(config(tmp_path / "c", images, mapped))
    assert open_cache(tmp_path / "c").num_classes == 3


def test_all_classes_are_stored_dense_and_said_so(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    summary = build_cache(config(tmp_path / "c", images, teachers, encoding={"top_k": 3}))
    assert len([note for note in summary.notes if "stored dense" in note]) == 2
    sparse = build_cache(config(tmp_path / "d", images, teachers, encoding={"top_k": 2}))
    assert not [note for note in sparse.notes if "stored dense" in note]
    assert open_cache(tmp_path / "d").teacher("red").encoding.to_json()["top_k"] == 2


def test_a_teacher_without_weights_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"trained weights[\s\S]*--teacher a=resnet10t@WEIGHTS"):
        build_cache(config(tmp_path / "c", images, {"a": {"model": "resnet10t"}}))


@pytest.mark.requirement("F6.1")
def test_nan_is_named_and_earlier_units_are_kept(
    images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitcache.teachers.member import Member

    start, calls = Member.start, 0

    def poisoned(self: Member, pixels: Any, taps: Any, shown: Any) -> Any:
        nonlocal calls
        calls += 1
        logits, kept = start(self, pixels, taps, shown)
        return ((lambda: logits() * np.nan) if calls > 8 else logits), kept

    monkeypatch.setattr(Member, "start", poisoned)
    with pytest.raises(NonFiniteLogits, match="NaN or infinity"):
        build_cache(config(tmp_path / "c", images, teachers))
    monkeypatch.undo()
    kept = commits(tmp_path / "c")
    assert len(kept) >= 3
    build_cache(config(tmp_path / "c", images, teachers))
    assert kept.items() <= commits(tmp_path / "c").items()


def test_a_full_disk_keeps_what_was_committed(
    images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    sync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 140:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"no space left[\s\S]*free some space"):
        build_cache(config(tmp_path / "c", images, teachers))
    monkeypatch.undo()
    kept = commits(tmp_path / "c")
    assert kept
    build_cache(config(tmp_path / "c", images, teachers))
    assert kept.items() <= commits(tmp_path / "c").items()


def test_stopping_and_progress(images: Path, teachers: Teachers, tmp_path: Path) -> None:
    seen: list[Progress] = []
    with pytest.raises(Interrupted) as caught:
        build_cache(
            config(tmp_path / "c", images, teachers),
            on_progress=seen.append,
            should_stop=lambda: len(seen) >= 6,
        )
    assert caught.value.exit_code == 3
    assert [p.images for p in seen] == [0, 8, 16, 24, 32, 40]
    assert seen[0].total == 120
    assert seen[0].work == "120 images to run the teachers on, in 2 views"
    with pytest.raises(Interrupted) as early:
        build_cache(config(tmp_path / "d", images, teachers), should_stop=lambda: True)
    assert early.value.exit_code == 130, "nothing was worth keeping"


def test_a_listing_that_changed_in_the_middle_is_refused(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    seen: list[object] = []
    with pytest.raises(Interrupted):
        build_cache(
            config(tmp_path / "c", images, teachers),
            on_progress=seen.append,
            should_stop=lambda: len(seen) >= 3,
        )
    grown = tmp_path / "grown"
    shutil.copytree(images, grown)
    write_images(grown, 21)
    with pytest.raises(DataMismatch, match="since this cache was started"):
        build_cache(config(tmp_path / "c", grown, teachers))
    build_cache(config(tmp_path / "c", images, teachers))


@pytest.mark.requirement("F3.10", "F3.11")
def test_every_forward_has_one_shape_and_padding_is_zeros(
    images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitcache.teachers.member import Member

    start, empty, sizes = Member.start, [], set()

    def watched(self: Member, pixels: Any, taps: Any, shown: Any) -> Any:
        sizes.add(len(pixels))
        given = np.asarray(pixels).reshape(len(pixels), -1)
        empty.append(int((given == 0).all(axis=1).sum()))
        return start(self, pixels, taps, shown)

    monkeypatch.setattr(Member, "start", watched)
    victim = tmp_path / "images" / "cat" / "007.jpg"
    shutil.copytree(images, tmp_path / "images")
    victim.write_bytes(victim.read_bytes()[:300])
    only = {"red": teachers["red"]}
    settings = {"views": {"count": 1}, "on_bad_image": "skip", "min_accuracy": 0}
    build_cache(config(tmp_path / "c", tmp_path / "images", only, **settings))
    assert sizes == {8}
    assert empty.pop(0) == 8, "a forward before the first image, to see whether it fits"
    assert sum(empty) == 64 - 60 + 1, "padding and the image that cannot be read"


@pytest.mark.requirement("F5.9")
def test_partners_are_committed_before_teachers_of_their_view(
    images: Path, teachers: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitcache.cache.store.local import LocalLocation

    order: list[str] = []
    for name in ("write", "write_new"):
        original = getattr(LocalLocation, name)

        def noting(self: Any, key: str, *args: Any, original: Any = original) -> Any:
            order.append(key)
            return original(self, key, *args)

        monkeypatch.setattr(LocalLocation, name, noting)
    views = {"count": 2, "mixup_alpha": 1.0}
    build_cache(config(tmp_path / "c", images, teachers, views=views))
    answers = [key for key in order if key.startswith("commits/teachers/")]
    assert len(set(answers)) == 2 * 2 * 4
    for key in answers:
        *_, view, unit = key.split("/")
        assert order.index(f"commits/views/{view}/{unit}") < order.index(key)


@pytest.mark.requirement("F4.9")
def test_a_new_class_is_an_error_and_the_list_of_a_cache_stays(
    copy: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    grown = tmp_path / "grown"
    shutil.copytree(images, grown)
    (grown / "ant").mkdir()
    (grown / "ant" / "new.jpg").write_bytes(jpeg(shape_image(501)))
    before = open_cache(copy).manifest.data.class_names
    with pytest.raises(DataMismatch, match="ant"):
        build_cache(config(copy, grown, teachers))
    (grown / "ant" / "new.jpg").unlink()
    (grown / "dog" / "new.jpg").write_bytes(jpeg(shape_image(501)))
    build_cache(config(copy, grown, teachers))
    cache = open_cache(copy)
    assert cache.manifest.data.class_names == before == ("bird", "cat", "dog")
    assert cache.samples.labels[list(cache.samples.keys).index("dog/new.jpg")] == 2


@pytest.mark.requirement("F2.3")
def test_a_new_cache_decodes_by_table_2(images: Path, teachers: Teachers, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(images, damaged)
    victim = damaged / "cat" / "007.jpg"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) * 3 // 4] + b"\xff\xd9")  # grey by table 1
    with pytest.raises(UnreadableImage, match=r"cat/007\.jpg"):
        build_cache(config(tmp_path / "c", damaged, teachers))


@pytest.mark.requirement("F12.4")
def test_weights_are_digested_by_name_type_shape_and_bytes(built: Path, teachers: Teachers) -> None:
    network: Any = build_network(NetworkConfig(**teachers["red"]))
    expected = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        expected.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        expected.update(tensor.numpy().tobytes())
    lock = open_cache(built).manifest.teachers["red"].lock
    fields = {"architecture", "kwargs", "weights_sha256", "outputs", "input", "precision"}
    assert fields | {"class_map"} <= lock.keys()
    assert {"size", "mean", "std"} <= lock["input"].keys()
    assert lock["weights_sha256"] == expected.hexdigest()


def test_a_new_teacher_has_5_bits_and_a_known_one_keeps_its_own(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    red, cnn = ({name: teachers[name]} for name in ("red", "cnn"))
    sparse: dict[str, Any] = {"encoding": {"top_k": 2}, "min_accuracy": 0}
    eight: dict[str, Any] = {**sparse, "encoding": {"top_k": 2, "bits": 8}}
    build_cache(config(tmp_path, images, red, **eight))
    build_cache(config(tmp_path, images, red | cnn, views={"count": 3}, **sparse))
    bits = {n: open_cache(tmp_path).teacher(n).encoding.to_json()["bits"] for n in ("red", "cnn")}
    assert bits == {"red": 8, "cnn": 5}
    with pytest.raises(UsageError, match=r"another encoding[\s\S]*'bits': 8[\s\S]*'bits': 6"):
        build_cache(config(tmp_path, images, red, encoding={"top_k": 2, "bits": 6}))


TEN_IMAGES = 10 * 40 * 32 * 3


@pytest.mark.parametrize(
    ("views", "without"),
    [({"count": 3}, 3 * 60), ({"count": 2, "cutmix_alpha": 1.0}, 3 * 60 + 1)],
    ids=["plain", "mixed"],
)
def test_an_image_is_decoded_once_for_all_its_views(
    images: Path,
    teachers: Teachers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    views: dict[str, Any],
    without: int,
) -> None:
    """Where views mix, all images are read first, and pairs are decoded in some batches."""
    decoded: list[int] = []

    def counting(image: bytes, *arguments: Any) -> Any:
        decoded.append(len(image))
        return decode(image, *arguments)

    monkeypatch.setattr("logitcache.views.render.decode", counting)
    found = {}
    for memory in (2**30, TEN_IMAGES, 0):
        decoded.clear()
        path = tmp_path / str(memory)
        fields = {"views": views, "threads": 1, "image_memory": memory, "min_accuracy": 0}
        build_cache(config(path, images, {"red": teachers["red"]}, **fields))
        found[memory] = len(decoded)
        assert snapshot(path) == snapshot(tmp_path / str(2**30))
    assert found[2**30] == 60
    assert found[0] >= without
    assert found[TEN_IMAGES] <= found[0] - 4 * 10 * 2, "of each of 4 blocks, for 2 more views"
