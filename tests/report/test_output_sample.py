"""Samples of outputs against plain loops over rows, and the images that are chosen from them."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.cache.format.names import Status
from logitcache.cache.read.reader import open_cache
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheDamaged
from logitcache.report.output_sample import OutputSample, sample_outputs
from logitcache.report.page.review import REVIEWS
from tests.cache.building import UNIT, VIEW, make_cache

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.encoding.kinds import Encoding

ROWS, UNREADABLE, CLASSES = 70, (3, 40), 5
ENCODINGS: dict[str, Encoding] = {
    "dense": DenseEncoding(CLASSES, "float16"),
    "sparse": SparseEncoding(CLASSES, 2),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "c"
    generator = np.random.default_rng(0)
    logits = {n: 3 * generator.normal(size=(80, CLASSES)).astype(np.float32) for n in ENCODINGS}
    make_cache(path, {n: (e, logits[n]) for n, e in ENCODINGS.items()}, ROWS, UNREADABLE)
    return path


def probabilities(path: Path, teacher: str, row: int) -> list[float]:
    """Return the stored probabilities of a row, normalized in plain Python."""
    cache = open_cache(path)
    decoded = cache.teachers[teacher].encoding.decode(cache.read(teacher, VIEW, row, row + 1))
    found = [math.exp(value) for value in decoded.dense_log_probs()[0].tolist()]
    assert sum(found) == pytest.approx(1)
    return found


def entropy(probs: list[float]) -> float:
    return -sum(p * math.log(p) for p in probs if p > 0)


def test_a_complete_sample_is_what_plain_loops_find(path: Path) -> None:
    cache = open_cache(path)
    sample = sample_outputs(cache)
    assert sample is not None
    readable = [r for r, s in enumerate(cache.samples.status.tolist()) if s == Status.OK]
    assert sample.rows.tolist() == readable
    assert sample.is_complete
    for index, row in enumerate(readable):
        label = int(cache.samples.labels[row])
        assert sample.labels[index] == label
        all_probs = {name: probabilities(path, name, row) for name in ENCODINGS}
        for name, probs in all_probs.items():
            rows = sample.teachers[name]
            assert rows.confidence[index] == pytest.approx(max(probs), rel=1e-5)
            assert probs[rows.predicted[index]] == max(probs)
        stored = float(cache.read("sparse", VIEW, row, row + 1)["label_logp"][0])
        assert sample.teachers["sparse"].label[index] == pytest.approx(math.exp(stored), rel=1e-5)
        assert sample.teachers["dense"].tail[index] == 0
        mean = [(a + b) / 2 for a, b in zip(*all_probs.values(), strict=True)]
        assert sample.mean_label[index] == pytest.approx(mean[label], rel=1e-5)
        others = {c: p for c, p in enumerate(mean) if c != label}
        assert sample.mean_other[index] == pytest.approx(max(others.values()), rel=1e-5)
        assert others[int(sample.other[index])] == max(others.values())
        divergence = entropy(mean) - sum(map(entropy, all_probs.values())) / 2
        assert sample.divergence[index] == pytest.approx(divergence, abs=1e-5)


def test_a_smaller_sample_has_the_rows_with_the_lowest_hashes_of_each_unit(path: Path) -> None:
    cache = open_cache(path)
    found, again = (sample_outputs(cache, most=10) for _ in range(2))
    assert found is not None
    assert again is not None
    assert found.rows.tolist() == again.rows.tolist()
    assert not found.is_complete
    assert found.population == ROWS - len(UNREADABLE)
    units = [found.rows[found.rows // UNIT == unit] for unit in range(5)]
    hashes = cache.samples.hashes
    for unit, chosen in enumerate(units):
        readable = cache.samples.readable
        here = readable[readable // UNIT == unit]
        lowest = sorted(here.tolist(), key=lambda row: int(hashes[row]))[:2]
        assert sorted(chosen.tolist()) == sorted(lowest)


def test_a_damaged_unit_gives_no_sample(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "c")
    shard = tmp_path / "c/teachers/sparse/tail/c/0/1/0"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(CacheDamaged):
        sample_outputs(open_cache(tmp_path / "c"))


def planted(flipped: dict[int, int]) -> OutputSample:
    """Return a sample of 60 images in two views whose teachers are right, but for some labels."""
    rows = np.repeat(np.arange(60), 2)
    truth = rows % 3
    labels = np.array([flipped.get(row, row % 3) for row in rows.tolist()])
    wrong = labels != truth
    # a little noise, so that half of the images are less probable than usual
    noise = 0.02 * ((rows * 7) % 5) / 5
    label = np.where(wrong, 0.05, 0.9 - noise).astype(np.float32)
    path_like = np.where(wrong, truth, (labels + 1) % 3)
    return OutputSample(
        class_names=("a", "b", "c"),
        rows=rows,
        views=("v0", "v1"),
        view=np.tile([0, 1], 60),
        labels=labels,
        teachers={},
        mean_label=label,
        other=path_like,
        mean_other=np.where(wrong, 0.92, 0.08 + noise).astype(np.float32),
        divergence=np.where(rows == 8, 0.5, 0.01).astype(np.float32),
        population=120,
        read_seconds=0.0,
    )


def test_planted_wrong_labels_are_found_and_nothing_else() -> None:
    flipped = {7: 2, 31: 0}  # their classes are 1
    sample = planted(flipped)
    found = REVIEWS["mislabeled"].find(sample, 10)
    assert {image.row for image in found} == set(flipped)
    assert {image.suggested for image in found} == {1}
    assert found[0].value == pytest.approx(0.87, abs=1e-6)
    assert REVIEWS["mislabeled"].find(planted({}), 10) == []
    hardest = REVIEWS["hardest"].find(sample, 2)
    assert {image.row for image in hardest} == set(flipped)
    assert hardest[0].value == pytest.approx(-math.log(0.05), rel=1e-6)


def test_disputes_need_two_teachers(path: Path) -> None:
    sample = sample_outputs(open_cache(path))
    assert sample is not None
    most = REVIEWS["disputed"].find(sample, 3)
    order = np.argsort(-sample.divergence)[:3]
    assert [image.row for image in most] == sample.rows[order].tolist()
    alone = replace(sample, teachers={"dense": sample.teachers["dense"]})
    assert REVIEWS["disputed"].find(alone, 3) == []


def test_views_of_an_image_are_averaged() -> None:
    sample = planted({})
    sample.mean_label[2:4] = 0.1, 0.4  # row 1
    (image,) = REVIEWS["hardest"].find(sample, 1)
    assert (image.row, image.view) == (1, "v0")
    assert image.value == pytest.approx(-(math.log(0.1) + math.log(0.4)) / 2, rel=1e-6)
