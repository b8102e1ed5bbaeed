"""Outputs in the classes of a student, against sums of probabilities in plain loops."""

from __future__ import annotations

import math
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache.batch import DenseLogits, EncodedLogits, SigmoidLogits, SparseLogits
from logitcache.data.class_map import ClassLens, map_classes
from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.transform import TransformEncoding
from logitcache.targets.classes.class_lens import LogitsLens
from logitcache.targets.decoding.transform_decoder import TransformDecoder

if TYPE_CHECKING:
    from torch import Tensor


def lens_of(targets: list[int], classes: int) -> LogitsLens:
    return LogitsLens(ClassLens(np.array(targets), classes))


def by_loops(row: list[float], targets: list[int], classes: int) -> list[float]:
    """Return log sum exp of the classes of each group, and -inf for a group without classes."""
    found = []
    for group in range(classes + 1):
        members = [value for value, target in zip(row, targets, strict=True) if target == group]
        peak = max(members, default=-math.inf)
        if peak == -math.inf:
            found.append(peak)
        else:
            found.append(peak + math.log(math.fsum(math.exp(m - peak) for m in members)))
    return found


def assert_close(logits: DenseLogits | EncodedLogits, expected: list[list[float]]) -> None:
    assert logits.outside is not None
    found = torch.cat([logits.log_probs, logits.outside[:, None]], 1).double()
    wide = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, wide, rtol=1e-6, atol=2e-6)


@given(
    targets=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    scale=st.sampled_from([1.0, 30.0, 1000.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_dense_outputs_are_summed_with_logarithms(
    targets: list[int], scale: float, seed: int
) -> None:
    """At a scale of 1000 the probabilities of most classes are below the smallest float64."""
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(3, len(targets), generator=generator)
    log_probs = z.log_softmax(1)
    found = lens_of(targets, 4)(DenseLogits(log_probs))
    assert isinstance(found, DenseLogits)
    assert_close(found, [by_loops(row, targets, 4) for row in log_probs.tolist()])


def sparse_rows(rows: int, classes: int, top_k: int, seed: int) -> SparseLogits:
    """Return sparse outputs whose last entry is unused and repeats a present class."""
    generator = torch.Generator().manual_seed(seed)
    log_p = (4 * torch.randn(rows, classes, generator=generator)).log_softmax(1)
    ids = log_p.topk(top_k, dim=1).indices.sort(dim=1).values
    kept = log_p.gather(1, ids)
    absent = log_p.scatter(1, ids, -torch.inf)
    return SparseLogits(
        torch.cat([ids, ids[:, -1:]], 1),
        torch.cat([kept, torch.full((rows, 1), -torch.inf)], 1),
        torch.stack([absent.logsumexp(1), (absent / 4).logsumexp(1)], 1),
        classes,
    )


@given(
    targets=st.lists(st.integers(0, 3), min_size=6, max_size=20),
    top_k=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_absent_classes_of_sparse_outputs_share_the_tail_equally(
    targets: list[int], top_k: int, seed: int
) -> None:
    sparse = sparse_rows(3, len(targets), top_k, seed)
    expected = []
    for ids, log_probs, tail in zip(
        sparse.class_ids.tolist(), sparse.log_probs.tolist(), sparse.tail.tolist(), strict=True
    ):
        present = {c: p for c, p in zip(ids, log_probs, strict=True) if math.isfinite(p)}
        share = tail[0] - math.log(len(targets) - len(present))
        row = [present.get(c, share) for c in range(len(targets))]
        expected.append(by_loops(row, targets, 3))
    found = lens_of(targets, 3)(sparse)
    assert isinstance(found, DenseLogits)
    assert_close(found, expected)


def transform_rows(rows: int) -> tuple[EncodedLogits, Tensor]:
    generator = np.random.default_rng(0)
    outputs = log_softmax(generator.normal(size=(rows, 30)).astype(np.float32) * 4)[0]
    encoding = TransformEncoding.of(Basis.of(principal_directions(outputs), step=1.0), refined=9)
    arrays = encoding.encode(outputs)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    decoded = torch.from_numpy(encoding.decode(arrays).log_probs)
    return EncodedLogits(tensors, 30, TransformDecoder(encoding)), decoded


def test_outputs_that_stay_encoded_are_mapped_when_they_are_decoded() -> None:
    encoded, log_probs = transform_rows(8)
    targets = [c % 4 for c in range(30)]
    lens = pickle.loads(pickle.dumps(lens_of(targets, 3)))
    found = lens(encoded)
    assert isinstance(found, EncodedLogits)
    assert found.num_classes == 3
    assert_close(found, [by_loops(row, targets, 3) for row in log_probs.tolist()])
    moved = found.to(torch.device("cpu"))
    torch.testing.assert_close(moved.log_probs, found.log_probs, rtol=0, atol=0)
    assert moved.top_classes(1)[1].max() < 3


def test_rows_that_were_not_computed_stay_unknown() -> None:
    targets = [0, 1, 1, 2]
    dense = DenseLogits(torch.full((1, 4), torch.nan))
    unknown = torch.full((1, 2), torch.nan)
    sparse = SparseLogits(torch.zeros(1, 2, dtype=torch.long), unknown, unknown, 4)
    for logits in (dense, sparse):
        found = lens_of(targets, 2)(logits)
        assert not isinstance(found, SparseLogits)
        assert found.outside is not None
        assert found.log_probs.isnan().all()
        assert found.outside.isnan().all()
        assert found.top_classes(1)[1].tolist() == [[-1]]


def test_a_class_that_the_teacher_lacks_has_no_probability() -> None:
    found = lens_of([0, 0, 2], 3)(DenseLogits(torch.zeros(1, 3).log_softmax(1)))
    assert isinstance(found, DenseLogits)
    assert found.log_probs.exp().tolist()[0] == pytest.approx([2 / 3, 0.0, 1 / 3])
    assert found.outside is not None
    assert float(found.outside.exp()) == 0.0


def test_independent_classes_are_selected() -> None:
    logits = torch.tensor([[1.0, -2.0, 3.0, 0.5]])
    chosen = map_classes({"a": ["q"], "b": ["p"]}, list("pqrs"), ("a", "b"), "map")
    mapped = LogitsLens(chosen)(SigmoidLogits(logits))
    assert isinstance(mapped, SigmoidLogits)
    assert mapped.logits.tolist() == [[-2.0, 1.0]]
