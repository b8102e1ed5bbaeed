"""Targets that stay encoded until they are on the device, against those decoded by numpy."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache.batch import DenseLogits, EncodedLogits, SparseLogits, TargetBatch
from logitcache.cache.read.reader import open_cache
from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.transform import NOT_COMPUTED, TransformEncoding, _unpacked
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.decoding import transform_decoder
from logitcache.targets.decoding.transform_decoder import TransformDecoder
from logitcache.targets.loader import loader
from logitcache.targets.settings import LoaderSettings
from tests.golden.caches_of import HERE, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.encoding.arrays import Encoded

Teachers = dict[str, dict[str, str]]
CLASSES = 60


def outputs(rows: int, seed: int, scale: float = 4.0) -> NDArray[np.float64]:
    """Return log-probabilities (N, 60) that vary along few directions most."""
    generator = np.random.default_rng(seed)
    directions = np.random.default_rng(1).normal(size=(9, CLASSES))
    noise = generator.normal(size=(rows, CLASSES))
    return log_softmax(
        (scale * generator.normal(size=(rows, 9)) @ directions + noise).astype("f4")
    )[0]


PRINCIPAL = principal_directions(outputs(200, 0))
ENCODING = TransformEncoding.of(Basis.of(PRINCIPAL, step=2.0), refined=17)


def tensors(arrays: Encoded) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def random_rows(encoding: TransformEncoding, rows: int, seed: int) -> Encoded:
    """Return rows of arbitrary bytes, the first of them not computed."""
    generator = np.random.default_rng(seed)
    arrays: Encoded = {
        name: generator.integers(0, 256, (rows, *spec.shape)).astype(np.uint8)
        for name, spec in encoding.specs().items()
    }
    arrays["coefficients"][0, 0] = NOT_COMPUTED
    return arrays


def assert_decoded_alike(encoding: TransformEncoding, arrays: dict[str, NDArray[Any]]) -> None:
    """Scores and refined classes are equal, log-probabilities up to the sum of a row."""
    decoder, given_arrays = TransformDecoder(encoding), tensors(arrays)
    basis = encoding.basis
    scores = basis.scores(_unpacked(arrays["coefficients"], basis.wide, basis.count))
    found = decoder.scores(given_arrays["coefficients"])
    np.testing.assert_array_equal(found.numpy(), scores)
    np.testing.assert_array_equal(decoder.refined_ids(found).numpy(), encoding._refined_ids(scores))
    log_probs = decoder(given_arrays)
    assert log_probs.dtype == torch.float32
    assert_close(log_probs, encoding.decode(arrays).log_probs)


def assert_close(found: Tensor, expected: NDArray[np.float32]) -> None:
    """Within one unit in the last place; near 0, within the rounding of a float64 sum near 1."""
    wide = [torch.as_tensor(each).double() for each in (found, expected)]
    torch.testing.assert_close(*wide, rtol=2.0**-23, atol=1e-14, equal_nan=True)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    wide=st.integers(1, 9),
    step=st.sampled_from([0.3, 2.0, 8.0]),
    refined=st.integers(1, CLASSES),
    fine=st.integers(0, 9),
)
def test_any_bytes_are_decoded_as_by_numpy(
    seed: int, rows: int, wide: int, step: float, refined: int, fine: int
) -> None:
    basis = Basis.of(PRINCIPAL, step)
    basis = replace(basis, wide=min(wide, basis.count))
    encoding = TransformEncoding(CLASSES, basis, refined, min(fine, refined), 0.6)
    assert_decoded_alike(encoding, random_rows(encoding, rows, seed))


@given(seed=st.integers(0, 2**32 - 1))
def test_of_equal_scores_the_lowest_classes_are_refined(seed: int) -> None:
    """Scores of a few values only, many of them equal."""
    generator = np.random.default_rng(seed)
    basis = Basis(
        mean=generator.integers(-2, 3, CLASSES).astype(np.int32),
        directions=generator.choice([-1, 0, 1], (5, CLASSES)).astype(np.int8),
        wide=1,
        scale=0.5,
        step=1.0,
    )
    encoding = TransformEncoding.of(basis, refined=23)
    arrays = random_rows(encoding, 4, seed)
    arrays["coefficients"][1:, 0] = generator.integers(0, 3, 3)
    assert_decoded_alike(encoding, arrays)


def test_the_largest_scores_are_exact() -> None:
    """One below 2^24, the product of the largest codes and directions."""
    basis = Basis(
        mean=np.full(CLASSES, 2**24 - 1 - 200 * 128 * 127 - 128 * 8, np.int32),
        directions=np.full((201, CLASSES), 127, np.int8),
        wide=200,
        scale=1e-3,
        step=1.0,
    )
    basis.directions[200] = 128 - 256  # of one narrow code
    assert basis.is_exact
    encoding = TransformEncoding.of(basis, refined=9)
    arrays = random_rows(encoding, 3, 0)
    arrays["coefficients"][1, :200], arrays["coefficients"][1, 200] = 0x80, 0x07
    arrays["coefficients"][2, :200], arrays["coefficients"][2, 200] = 0x7F, 0x08
    assert_decoded_alike(encoding, arrays)
    scores = TransformDecoder(encoding).scores(tensors(arrays)["coefficients"])
    exact = 2**24 - 1 - 200 * 128 * 127 - 128 * 8 + 200 * 127 * 127 + 128 * 8
    assert scores[2].tolist() == [exact] * CLASSES


def test_autocast_changes_no_bit() -> None:
    arrays = tensors(ENCODING.encode(outputs(8, 3)))
    decoder = TransformDecoder(ENCODING)
    plain = decoder(arrays)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(decoder(arrays), plain)


def test_the_golden_cache_is_decoded_alike(tmp_path: Path) -> None:
    """Against the log-probabilities that were recorded with it, also where none were computed."""
    unpack(HERE / "0.2" / "transform.tar.xz", tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    group: Any = cache.teacher("t")
    (view_id,) = group.view_ids
    arrays = cache.read("t", view_id, 0, 48)
    stored = {name: arrays[name] for name in group.batch_arrays}
    assert_decoded_alike(group.encoding, stored)
    log_probs = TransformDecoder(group.encoding)(tensors(stored))
    with np.load(HERE / "0.2" / "transform.npz") as golden:
        expected = golden[f"t|{view_id}|decoded|log_probs"]
    assert 0 < np.isnan(expected).all(axis=1).sum() < len(expected)
    assert_close(log_probs, expected)


def test_sums_in_float32_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on accelerators: 20 000 classes, sharp and flat outputs."""
    generator = np.random.default_rng(0)
    basis = Basis(
        mean=generator.integers(-400, 400, 20_000).astype(np.int32),
        directions=generator.integers(-127, 128, (6, 20_000)).astype(np.int8),
        wide=2,
        scale=2e-3,
        step=1.0,
    )
    encoding = TransformEncoding.of(basis, refined=48)
    arrays = random_rows(encoding, 16, 1)
    arrays["coefficients"][1:4] = 0
    expected = TransformDecoder(encoding)(tensors(arrays))
    monkeypatch.setattr(transform_decoder, "_SUM_TYPES", {})
    found = TransformDecoder(encoding)(tensors(arrays))
    assert not torch.equal(found[1:], expected[1:])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


def encoded(rows: int = 6) -> tuple[EncodedLogits, DenseLogits]:
    """Return targets, and the same ones decoded by numpy; the first row was not computed."""
    arrays = ENCODING.encode(outputs(rows, 5))
    arrays["coefficients"][0, 0] = NOT_COMPUTED
    dense = DenseLogits(torch.from_numpy(ENCODING.decode(arrays).log_probs))
    return EncodedLogits(tensors(arrays), CLASSES, TransformDecoder(ENCODING)), dense


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)


def batch_of(teacher: Any) -> TargetBatch:
    return TargetBatch(torch.arange(6), torch.arange(6), {"t": teacher})


def test_they_can_be_used_as_dense_ones() -> None:
    packed, dense = encoded()
    assert packed.num_classes == dense.num_classes == CLASSES
    for k in (1, 5):
        for found, expected in zip(packed.top_classes(k), dense.top_classes(k), strict=True):
            assert_same(found, expected)
    assert packed.log_probs is packed.log_probs, "decoded once"


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize(
    "copied",
    [
        lambda batch: batch.take(torch.tensor([4, 0, 1])),
        lambda batch: batch.to(torch.device("cpu")).take(torch.tensor([4, 0, 1])),
        lambda batch: pickle.loads(pickle.dumps(batch)).take(torch.tensor([4, 0, 1])),
        lambda batch: batch.pin_memory().take(torch.tensor([4, 0, 1])),
    ],
    ids=["take", "to", "pickle", "pin_memory"],
)
def test_copies_are_decoded_again(
    monkeypatch: pytest.MonkeyPatch, copied: Callable[[TargetBatch], TargetBatch], decoded: bool
) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    packed, dense = encoded()
    if decoded:
        assert packed.log_probs.shape == (6, CLASSES)
    teacher = copied(batch_of(packed)).teachers["t"]
    assert isinstance(teacher, EncodedLogits)
    assert "log_probs" not in teacher.__dict__
    assert {name: array.shape[0] for name, array in teacher.arrays.items()} == {
        "coefficients": 3,
        "refinements": 3,
    }
    assert_same(teacher.log_probs, dense.log_probs[[4, 0, 1]])


def test_only_bytes_are_moved_pickled_and_kept_for_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed, _ = encoded()
    assert packed.log_probs is not None
    moved: list[Tensor] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, _: moved.append(tensor))
    stream: Any = None
    replace(batch_of(packed), rows=torch.zeros(0), labels=torch.zeros(0)).record_stream(stream)
    row_bytes = ENCODING.basis.code_bytes + ENCODING.refined_bytes
    assert sum(tensor.nbytes for tensor in moved) == 6 * row_bytes < 6 * 4 * CLASSES / 3
    sizes = [len(pickle.dumps(each)) for each in (encoded()[0], packed)]
    assert sizes[0] == sizes[1], "neither log-probabilities nor the basis on a device"


@pytest.fixture(scope="module")
def transformed(
    images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """Return a cache of a teacher in the transform encoding and a sparse one, and its images."""
    path = str(tmp_path_factory.mktemp("transformed") / "cache")
    shared = {"cache": path, "data": str(images), "views": {"count": 2}, "unit_rows": 16}
    kinds: Mapping[str, dict[str, Any]] = {
        "cnn": {"kind": "transform", "step": 0.1, "refined": 2},
        "red": {"kind": "sparse", "top_k": 2},
    }
    for name, encoding in kinds.items():
        values = {**shared, "teachers": {name: teachers[name]}, "encoding": encoding}
        build_cache(PrecomputeConfig.parse(values, ""))
    return path, str(images)


@pytest.mark.parametrize(
    "term",
    [
        {"soft": {"teachers": {"cnn": 1.0}, "temperature": 1.0}},
        {"soft": {"teachers": {"cnn": 1.0}, "temperature": 4.0}},
        {
            "split": {
                "teachers": {"cnn": 1.0},
                "form": "dkd",
                "target": 1,
                "others": 8,
                "temperature": 4,
            }
        },
    ],
)
def test_losses_are_the_same(
    transformed: tuple[str, str], monkeypatch: pytest.MonkeyPatch, term: dict[str, Any]
) -> None:
    """Batches of 24 rows have rows of several windows of 16."""
    cache, images = open_cache(transformed[0]), transformed[1]
    found = []
    for on_device in (False, True):
        monkeypatch.setattr(LoaderSettings, "decodes_on_device", on_device)
        with loader(cache, images, batch_size=24, size=8, threads=1, target_memory=2000) as own:
            found.append([batch for _ in range(2) for _, batch in own])
    objective = build_objective([ObjectiveConfig.model_validate(term)])
    assert len(found[0]) == len(found[1]) == 6
    for normal, packed in zip(*found, strict=True):
        assert isinstance(normal.teachers["cnn"], DenseLogits)
        assert isinstance(packed.teachers["cnn"], EncodedLogits)
        assert isinstance(packed.teachers["red"], SparseLogits)
        assert torch.equal(normal.rows, packed.rows)
        losses = []
        for targets in (normal, packed):
            logits = torch.linspace(-2, 2, len(targets) * targets.teachers["cnn"].num_classes)
            logits = logits.view(len(targets), -1).requires_grad_()
            loss = objective(logits, targets)
            loss.backward()
            losses.append((loss.detach(), logits.grad))
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("device", "expected"), [(None, False), ("cpu", False), ("cuda:1", True), ("mps", False)]
)
def test_targets_stay_encoded_on_the_way_to_a_cuda_device(
    device: str | None, expected: bool
) -> None:
    place = None if device is None else torch.device(device)
    assert LoaderSettings(4, 8, device=place).decodes_on_device is expected


def test_a_loader_of_encoded_targets_can_be_pickled(
    transformed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoaderSettings, "decodes_on_device", True)
    own = loader(open_cache(transformed[0]), transformed[1], batch_size=60, size=8, threads=1)
    with own:
        ((_, first),) = list(own.epoch(0))
        expected = first.teachers["cnn"].log_probs
        copy = pickle.loads(pickle.dumps(own))
    with copy:
        ((_, again),) = list(copy.epoch(0))
        assert torch.equal(again.teachers["cnn"].log_probs, expected)
