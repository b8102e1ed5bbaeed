"""The alarm rings for answers of other images, and for nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from logitcache.batch import DenseLogits, SparseLogits, TeacherLogits
from logitcache.cache.read.reader import open_cache
from logitcache.encoding.decoded import DecodedSparse
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import DataMismatch
from logitcache.targets.images.alignment import Alignment
from logitcache.targets.selection import Targets
from tests.cache.building import (
    UNIT,
    VIEW,
    declare,
    encode,
    samples_of,
    start_cache,
    write_samples,
    write_teacher,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache

ROWS, CLASSES, BLOCK = 1600, 10, 512
RIGHT = 0.8


def answers(labels: NDArray[np.int32], right: float, seed: int = 0) -> NDArray[np.float32]:
    """Return logits whose likeliest class is the label for that share of rows."""
    generator = np.random.default_rng(seed)
    best = np.where(
        generator.random(len(labels)) < right, labels, generator.integers(0, CLASSES, len(labels))
    )
    logits = generator.normal(size=(len(labels), CLASSES)).astype(np.float32)
    logits[np.arange(len(labels)), best] += 9
    return logits


def cache_of(path: Path, *, shift: int = 0, labeled: bool = True) -> Cache:
    writer, samples = start_cache(path, ROWS, BLOCK), samples_of(ROWS, unit=BLOCK)
    labels = np.random.default_rng(3).integers(0, CLASSES, ROWS).astype(np.int32)
    samples["label"][:ROWS] = labels if labeled else -1
    write_samples(writer, samples)
    accuracy = {}
    for name, encoding in (
        ("dense", DenseEncoding(CLASSES)),
        ("sparse", SparseEncoding(CLASSES, 3)),
    ):
        group = declare(writer, name, encoding, BLOCK)
        logits = np.roll(answers(labels, RIGHT), shift, axis=0)
        write_teacher(writer, group, encode(group, logits, samples))
        accuracy[name] = {VIEW: RIGHT + (1 - RIGHT) / CLASSES} if labeled else {}
    writer.seal("f", accuracy)
    return open_cache(path)


def batch_of(cache: Cache, rows: NDArray[np.int64]) -> dict[str, TeacherLogits]:
    found: dict[str, TeacherLogits] = {}
    for name in cache.teachers:
        encoding = cache.teacher(name).encoding
        start, stop = int(rows.min()), int(rows.max()) + 1
        encoded = {n: a[rows - start] for n, a in cache.read(name, VIEW, start, stop).items()}
        decoded = encoding.decode(encoded)
        if isinstance(decoded, DecodedSparse):
            ids = torch.from_numpy(decoded.class_ids)
            found[name] = SparseLogits(
                ids, torch.from_numpy(decoded.log_probs), torch.zeros(len(ids), 2), CLASSES
            )
        else:
            found[name] = DenseLogits(torch.from_numpy(decoded.log_probs))
    return found


def watch(
    cache: Cache, alarm: Alignment, *, labels: NDArray[np.int64] | None = None, batch: int = 32
) -> int:
    """Show batches until the alarm knows; return how many rows that took."""
    for start in range(0, ROWS - ROWS % batch, batch):
        rows = np.arange(start, start + batch)
        own = cache.samples.labels[rows].astype(np.int64)[:, None] if labels is None else labels
        alarm.see(rows, own[: len(rows)], batch_of(cache, rows))
        if alarm.is_settled:
            return start + batch
    return ROWS


def test_right_answers_pass_within_the_first_batches(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    assert watch(cache, Alignment.of(cache, ["dense", "sparse"])) <= 128


@pytest.mark.parametrize("teacher", ["dense", "sparse"])
@pytest.mark.parametrize("shift", [1, UNIT])
def test_shifted_rows_stop_within_the_first_batches(
    tmp_path: Path, shift: int, teacher: str
) -> None:
    cache = cache_of(tmp_path, shift=shift)
    with pytest.raises(DataMismatch, match=rf"'{teacher}' do not belong[\s\S]*82.0%") as e:
        watch(cache, Alignment.of(cache, [teacher]))
    seen = int(str(e.value.got).partition(" of ")[2].split()[0])  # "49 of 384 (12.8%)"
    assert seen <= 800


def test_hidden_labels_are_asked_of_the_cache(tmp_path: Path) -> None:
    hidden = np.full((32, 1), -1, dtype=np.int64)
    good = cache_of(tmp_path / "good")
    assert watch(good, Alignment.of(good, ["dense"]), labels=hidden) <= 128
    bad = cache_of(tmp_path / "bad", shift=1)
    with pytest.raises(DataMismatch):
        watch(bad, Alignment.of(bad, ["dense"]), labels=hidden)


def test_few_labels_mean_a_later_verdict_not_a_wrong_one(tmp_path: Path) -> None:
    cache = cache_of(tmp_path, shift=1)
    alarm = Alignment.of(cache, ["dense"])
    known = alarm.labels_of
    alarm.labels_of = lambda rows: np.where(rows % 40 == 0, known(rows), -1)
    none = np.full((32, 1), -1, dtype=np.int64)
    assert watch(cache, alarm, labels=none) == ROWS, "40 labels prove nothing"
    assert not alarm.is_settled


def test_either_image_of_a_mixed_pair_may_be_the_likeliest(tmp_path: Path) -> None:
    """Half of the answers are the partner's: one label a row would look like an alarm to come."""
    cache = cache_of(tmp_path)
    alarm, labels = Alignment.of(cache, ["dense"]), cache.samples.labels
    for start in range(0, 320, 32):
        rows = np.arange(start, start + 32)
        shown = np.where(np.arange(32) % 2, rows, rows + 1)
        pair = np.stack([labels[rows], labels[rows + 1]], axis=1).astype(np.int64)
        alarm.see(rows, pair, batch_of(cache, shown))
    assert alarm.is_settled


def test_what_knows_nothing_is_not_judged(tmp_path: Path) -> None:
    unlabeled = cache_of(tmp_path / "a", labeled=False)
    assert Alignment.of(unlabeled, ["dense", "sparse"]).is_settled
    assert Targets.of(unlabeled).alignment is not None


def test_shuffled_targets_are_other_ones_on_purpose(tmp_path: Path) -> None:
    cache = cache_of(tmp_path)
    assert Targets.of(cache, shuffled=True).alignment is None
    assert Targets.of(cache).alignment is not None
