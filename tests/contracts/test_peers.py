"""Formats that ours is compared with give back what they were given, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from logitcache.encoding.logits import log_softmax
from tests.benchmarks.logits import CLASSES
from tests.benchmarks.peers.caches import NaiveZarr, Ours
from tests.benchmarks.peers.pickles import PerBatch, PerImage
from tests.benchmarks.peers.records import MemoryMap, TinyVit
from tests.benchmarks.peers.stored import BATCH, Peer, Stored
from tests.benchmarks.peers.tarred import Tarred
from tests.benchmarks.reading import ENCODING
from tests.cache.building import encode, group_of, samples_of

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 1024
BY_SAMPLE: tuple[Peer, ...] = (Ours(), MemoryMap(), TinyVit(), Tarred(), NaiveZarr())


@pytest.fixture(scope="module")
def stored() -> Stored:
    logits = np.random.default_rng(0).normal(0, 3, (ROWS, CLASSES)).astype(np.float32)
    samples = samples_of(ROWS, unit=ROWS)
    encoded = encode(group_of("t", ENCODING), logits, samples)
    dense = log_softmax(logits)[0].astype(np.float16)
    return Stored(samples, encoded, ENCODING.decode(encoded), dense)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Images that are their own row's number."""
    return torch.arange(ROWS)[:, None]


@pytest.mark.parametrize("peer", BY_SAMPLE, ids=lambda peer: type(peer).__name__)
def test_each_image_comes_with_its_own_answer(
    peer: Peer, tmp_path: Path, stored: Stored, images: torch.Tensor
) -> None:
    assert peer.write(tmp_path, stored) == ROWS
    seen = []
    for shown, ids, log_probs in peer.feed(tmp_path, images, stored, 0):
        rows = shown[:, 0].numpy()
        np.testing.assert_array_equal(ids.numpy(), stored.decoded.class_ids[rows])
        wanted = np.exp(stored.decoded.log_probs[rows])
        np.testing.assert_allclose(log_probs.exp().numpy(), wanted, rtol=5e-3, atol=1e-6)
        seen += rows.tolist()
    assert len(set(seen)) == len(seen) >= 2 * BATCH


def test_a_pickle_per_batch_keeps_every_class(
    tmp_path: Path, stored: Stored, images: torch.Tensor
) -> None:
    PerBatch().write(tmp_path, stored)
    seen = []
    for shown, ids, log_probs in PerBatch().feed(tmp_path, images, stored, 0):
        rows = shown[:, 0].numpy()
        assert ids.shape == (len(rows), 0)
        wanted = np.exp(stored.log_probs[rows].astype(np.float32))
        np.testing.assert_allclose(log_probs.exp().numpy(), wanted, rtol=2e-2, atol=1e-5)
        seen += rows.tolist()
    assert sorted(seen) == list(range(ROWS))


def test_a_pickle_per_image_gives_some_of_its_crops(
    tmp_path: Path, stored: Stored, images: torch.Tensor
) -> None:
    PerImage().write(tmp_path, stored)
    known = {tuple(ids) for ids in stored.decoded.class_ids.tolist()}
    shown = 0
    for _, ids, _ in PerImage().feed(tmp_path, images, stored, 0):
        assert all(tuple(row) in known for row in ids.tolist())
        shown += len(ids)
    assert shown == ROWS
