"""Students on an accelerator: loss, transfer, mixed precision, resume and nccl."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch

from logitcache.batch import EncodedLogits, SparseLogits
from logitcache.cache.read.reader import open_cache
from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.transform import NOT_COMPUTED, TransformEncoding
from logitcache.errors import Interrupted
from logitcache.objectives.soft import Tail, soft_divergence
from logitcache.targets.decoding.transform_decoder import TransformDecoder
from logitcache.targets.loader import loader
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.run.journal import read_journal
from tests.processes import Failed, run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "size": 16,
    "kwargs": {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "drop_path_rate": 0.2,
        "dynamic_img_size": True,
    },
}
TAILS: list[Tail] = ["uniform", "bucket", "renorm"]


def config(out: Path, images: Path, cache: Path, device: str, **fields: object) -> TrainConfig:
    values = {
        "out": str(out),
        "data": str(images),
        "val": str(images),
        "cache": str(cache),
        "student": VIT,
        "objectives": ["soft", {"label": {"weight": 0.5}}],
        "epochs": 3,
        "batch_size": 16,
        "device": "cpu" if device == "cpu" else "auto",
        "threads": 1,
        **fields,
    }
    return TrainConfig.parse(values, "")


def weights(out: Path) -> dict[str, Tensor]:
    return dict(timm.create_model(f"local-dir:{out / 'export'}", pretrained=True).state_dict())


def losses(out: Path) -> list[float]:
    return [event["loss"] for event in read_journal(out)]


def sparse(rows: int, classes: int, top_k: int) -> SparseLogits:
    log_p = (3 * torch.randn(rows, classes)).log_softmax(1)
    ids = log_p.topk(top_k).indices.sort(1).values
    absent = log_p.scatter(1, ids, -torch.inf)
    tail = torch.stack([absent.logsumexp(1), (absent / 4).logsumexp(1)], 1)
    return SparseLogits(ids, log_p.gather(1, ids), tail, classes)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_sparse_loss_is_that_of_float64_on_a_processor(
    device: str, tail: Tail, temperature: float
) -> None:
    torch.manual_seed(0)
    teacher, logits = sparse(32, 1000, 20), 3 * torch.randn(32, 1000)
    found = []
    for place, dtype in ((device, torch.float32), (device, torch.float32), ("cpu", torch.float64)):
        leaf = logits.to(place, dtype).requires_grad_()
        loss = soft_divergence(
            leaf, teacher.to(torch.device(place)), temperature=temperature, tail=tail
        )
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        found.append((loss.detach().cpu(), gradient.cpu()))
    first, again, expected = found
    for one, two, wide in zip(first, again, expected, strict=True):
        assert torch.equal(one, two), "it is repeatable: no two stored classes of a row are equal"
        torch.testing.assert_close(one.double(), wide, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("encoding", [{}, {"kind": "transform", "step": 0.1, "refined": 2}])
def test_batches_on_the_device_are_those_of_a_processor(
    device: str, cache_on: Callable[..., Path], images: Path, encoding: dict[str, Any]
) -> None:
    """All batches are kept, while memory of the transfer is used again for later ones."""
    cache = open_cache(str(cache_on("cpu", encoding=encoding)))
    there, here = (
        loader(cache, str(images), batch_size=8, size=16, threads=2, device=place)
        for place in (device, None)
    )
    with there, here:
        for _ in range(2):
            moved, plain = list(there), list(here)
            assert len(moved) == len(plain) == 8
            for (images_there, targets_there), (images_here, targets_here) in zip(
                moved, plain, strict=True
            ):
                assert images_there.device.type == device
                torch.testing.assert_close(images_there.cpu(), images_here, rtol=1e-6, atol=1e-6)
                back = targets_there.to(torch.device("cpu"))
                assert torch.equal(back.rows, targets_here.rows)
                assert torch.equal(back.labels, targets_here.labels)
                for name, teacher in targets_here.teachers.items():
                    other = targets_there.teachers[name]
                    assert isinstance(other, SparseLogits) is isinstance(teacher, SparseLogits)
                    decoded = device == "cuda" and bool(encoding)
                    assert isinstance(other, EncodedLogits) is decoded
                    tolerance = 1e-6 if decoded else 0.0
                    torch.testing.assert_close(
                        other.log_probs.cpu(), teacher.log_probs, rtol=tolerance, atol=tolerance
                    )


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_transform_targets_are_decoded_alike(device: str, precision: str) -> None:
    """The same scores and refined classes with TF32 and bfloat16 products and under autocast."""
    before = torch.get_float32_matmul_precision()
    rows, classes, rng = 512, 1000, np.random.default_rng(0)
    log_p = log_softmax(rng.normal(0, 3, (rows, classes)).astype(np.float32))[0]
    encoding = TransformEncoding.of(Basis.of(principal_directions(log_p), 4.0), refined=48)
    arrays = encoding.encode(log_p)
    arrays["coefficients"][0, 0] = NOT_COMPUTED
    here = {name: torch.from_numpy(array) for name, array in arrays.items()}
    there = {name: tensor.to(device) for name, tensor in here.items()}
    decoder = TransformDecoder(encoding)
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast(device, dtype=torch.bfloat16):
            scores = decoder.scores(there["coefficients"])
            ids, log_probs = decoder.refined_ids(scores), decoder(there)
    finally:
        torch.set_float32_matmul_precision(before)
    expected = decoder.scores(here["coefficients"])
    assert torch.equal(scores.cpu(), expected)
    assert torch.equal(ids.cpu(), decoder.refined_ids(expected))
    plain = torch.from_numpy(encoding.decode(arrays).log_probs)
    torch.testing.assert_close(log_probs.cpu(), plain, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_to_a_similar_loss(
    device: str,
    cache_on: Callable[..., Path],
    images: Path,
    tmp_path: Path,
    precision: str,
) -> None:
    if device == "cpu" and precision == "fp16":
        pytest.skip("accelerate has fp16 for accelerators only")
    cache = cache_on("cpu")
    for name in ("no", precision):
        train_student(config(tmp_path / name, images, cache, device, precision=name))
    assert losses(tmp_path / precision) == pytest.approx(losses(tmp_path / "no"), rel=0.05)
    assert {value.dtype for value in weights(tmp_path / precision).values()} == {torch.float32}


def test_a_resumed_run_over_a_change_of_size_is_the_same(
    device: str, cache_on: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    cache = cache_on("cpu")
    size = {"start": 8, "multiple": 4}
    train_student(config(tmp_path / "whole", images, cache, device, size=size))
    left = iter([False] * 4)
    with pytest.raises(Interrupted):
        train_student(
            config(tmp_path / "cut", images, cache, device, size=size),
            should_stop=lambda: next(left, True),
        )
    train_student(config(tmp_path / "cut", images, cache, device, size=size), resume=True)
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    for name, value in theirs.items():  # kernels of an accelerator may add in another order
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4, msg=name)


def trained(rank: int, values: TrainConfig) -> int:
    """Train as one process of several, and return its rank."""
    train_student(values)
    return rank


def test_one_process_of_a_group_is_a_run_without_a_group(
    device: str, cache_on: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    """The group has the backend of the device: nccl on CUDA, gloo on a processor."""
    cache = cache_on("cpu")
    train_student(config(tmp_path / "alone", images, cache, device))
    (result,) = run_ranks(1, trained, config(tmp_path / "group", images, cache, device))
    assert not isinstance(result, Failed), result
    assert losses(tmp_path / "group") == pytest.approx(losses(tmp_path / "alone"), rel=1e-3)
