"""A cached teacher in a script that calls ``teacher(images)``."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional
from torch.utils.data import DataLoader

import logitcache
from logitcache.batch import DenseLogits, SparseLogits, TargetBatch
from logitcache.encoding.decoded import DecodedSparse
from logitcache.errors import UsageError
from logitcache.objectives.soft import soft_divergence
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.cached_teacher import dense_logits
from tests.guides import page_code, section_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

Teachers = dict[str, dict[str, str]]
SIZE = 8


@pytest.fixture
def batches(cache_path: Path, images: Path) -> Iterator[logitcache.Loader]:
    with logitcache.loader(
        logitcache.open_cache(cache_path), str(images), batch_size=7, size=SIZE
    ) as found:
        yield found


@pytest.fixture
def teacher(cache_path: Path) -> logitcache.CachedTeacher:
    return logitcache.CachedTeacher(logitcache.open_cache(cache_path), "cnn")


def test_a_script_gets_the_logits_of_the_live_teacher(
    cache_path: Path, images: Path, teachers: Teachers, teacher: logitcache.CachedTeacher
) -> None:
    """Up to a constant of each row and float16, in every view, and in batches of a data set."""
    live = timm.create_model(teachers["cnn"]["model"], pretrained=True).eval()
    data = logitcache.CachedDataset(logitcache.open_cache(cache_path), str(images), size=SIZE)
    worst, seen = 0.0, 0
    for view in data.views:
        data.view = view
        loader = DataLoader(data, 7, shuffle=True, collate_fn=data.collate)
        for pixels, labels in teacher.follow(loader):
            logits = teacher(pixels)
            assert (logits.shape, logits.dtype) == ((len(pixels), 3), torch.float32)
            assert not logits.requires_grad
            with torch.no_grad():
                expected = live(pixels).log_softmax(1)
            worst = max(worst, float((logits - expected).abs().max() / expected.abs().max()))
            assert torch.equal(labels, teacher.targets(pixels).labels)
            seen += len(labels)
    assert seen == 2 * 60
    assert 0 < worst < 2**-10, "dense logits are stored as float16"


def sparse_rows(classes: int, stored: int, *, unused: bool) -> tuple[SparseLogits, Tensor]:
    """Return sparse targets of random distributions, and these distributions."""
    generator = torch.Generator().manual_seed(classes)
    log_probs = (3 * torch.randn(6, classes, generator=generator, dtype=torch.float64)).log_softmax(
        1
    )
    ids = log_probs.topk(stored).indices.sort(1).values
    present = torch.zeros_like(log_probs, dtype=torch.bool).scatter_(1, ids, True)
    kept = log_probs.gather(1, ids)
    if unused:
        present[0, ids[0, -1]] = False
        ids[0, -1], kept[0, -1] = ids[0, 0], -torch.inf
    absent = log_probs.masked_fill(present, -torch.inf)
    tail = torch.stack([absent.logsumexp(1), (absent / 4).logsumexp(1)], 1)
    return SparseLogits(ids, kept.float(), tail.float(), classes), log_probs


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("unused", [False, True])
def test_sparse_targets_have_the_stored_mass_at_the_temperature(
    temperature: float, unused: bool
) -> None:
    """The loss of a script equals that of the objective, which knows the tail."""
    sparse, exact = sparse_rows(12, 4, unused=unused)
    logits = dense_logits(sparse, temperature)
    reference = DecodedSparse(
        sparse.log_probs.numpy(), 12, sparse.class_ids.numpy(), sparse.tail.numpy()
    ).dense_log_probs(1 / temperature)
    torch.testing.assert_close(
        (logits / temperature).log_softmax(1).double(),
        torch.from_numpy(reference),
        atol=1e-5,
        rtol=0,
    )
    student = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    loss = temperature**2 * functional.kl_div(
        (student / temperature).log_softmax(1),
        (logits / temperature).log_softmax(1),
        reduction="none",
        log_target=True,
    ).sum(1)
    expected = soft_divergence(student, sparse, temperature=temperature)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    stored = sparse.log_probs > -torch.inf
    assert torch.equal(logits.gather(1, sparse.class_ids)[stored], sparse.log_probs[stored])
    if temperature in (1.0, 4.0):
        live = (exact / temperature).log_softmax(1)
        found = (logits / temperature).log_softmax(1).double().gather(1, sparse.class_ids)
        expected_kept = live.gather(1, sparse.class_ids)
        torch.testing.assert_close(found[stored], expected_kept[stored], atol=1e-5, rtol=0)


def test_sparse_targets_with_every_class_are_the_log_probabilities() -> None:
    sparse, exact = sparse_rows(5, 5, unused=False)
    torch.testing.assert_close(dense_logits(sparse, 2.0).double(), exact, atol=1e-6, rtol=0)
    dense = DenseLogits(exact.float())
    assert dense_logits(dense, 3.0) is dense.log_probs


def test_a_sparse_teacher_of_a_cache(cache_path: Path, batches: logitcache.Loader) -> None:
    teacher = logitcache.CachedTeacher(logitcache.open_cache(cache_path), "red", temperature=4.0)
    student = torch.randn(7, 3)
    for pixels, _ in teacher.follow(batches):
        logits, targets = teacher(pixels), teacher.targets(pixels)
        rows = student[: len(pixels)]
        loss = functional.kl_div(
            (rows / 4).log_softmax(1),
            (logits / 4).log_softmax(1),
            reduction="none",
            log_target=True,
        ).sum(1)
        expected = soft_divergence(rows, targets.teachers["red"], temperature=4.0)
        torch.testing.assert_close(16 * loss, expected, atol=1e-5, rtol=1e-4)


def moved(images: Tensor) -> Tensor:
    """Return images as a script may pass them on: another type, layout and normalization."""
    images = images.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    scale = torch.tensor([0.5, 0.7, 1.5], dtype=torch.bfloat16).view(1, 3, 1, 1)
    return images * scale + 0.25


def test_images_that_were_moved_are_recognized(
    teacher: logitcache.CachedTeacher, batches: logitcache.Loader
) -> None:
    for pixels, _ in teacher.follow(batches):
        expected = teacher(pixels)
        for same in (
            pixels,
            pixels.detach(),
            pixels.clone(),
            pixels.double(),
            pixels.half(),
            moved(pixels),
        ):
            assert torch.equal(teacher(same), expected)


def mixed_in_place(images: Tensor) -> Tensor:
    return images.mul_(0.8).add_(images.flip(0), alpha=0.2)


def erased(images: Tensor) -> Tensor:
    images = images.clone()
    images[:, :, 2:7, 2:7] = 0
    return images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images.flip(3), "other images than those of the current batch"),
        (lambda images: images.flip(2), "other images than those of the current batch"),
        (lambda images: images.roll(1, 0), "other images than those of the current batch"),
        (lambda images: -images, "other images than those of the current batch"),
        (lambda images: images * torch.nan, "other images than those of the current batch"),
        (erased, "other images than those of the current batch"),
        (mixed_in_place, "other images than those of the current batch"),
        (lambda images: images[:3], r"another number of images[\s\S]*7 images[\s\S]*got: +3"),
        (lambda images: images[:, :, ::2, ::2], r"another shape[\s\S]*check_images=False"),
    ],
)
def test_images_that_were_changed_are_refused(
    teacher: logitcache.CachedTeacher,
    batches: logitcache.Loader,
    change: Callable[[Tensor], Tensor],
    message: str,
) -> None:
    pixels, _ = next(iter(teacher.follow(batches)))
    with pytest.raises(UsageError, match=message):
        teacher(change(pixels))


def test_images_of_another_size_on_request(cache_path: Path, batches: logitcache.Loader) -> None:
    teacher = logitcache.CachedTeacher(logitcache.open_cache(cache_path), "cnn", check_images=False)
    for pixels, _ in teacher.follow(batches):
        assert torch.equal(teacher(pixels[:, :, ::2, ::2]), teacher(pixels))
        with pytest.raises(UsageError, match="another number of images"):
            teacher(pixels[1:])


def test_without_a_current_batch_calls_are_refused(
    teacher: logitcache.CachedTeacher, batches: logitcache.Loader
) -> None:
    pixels = torch.zeros(7, 3, SIZE, SIZE)
    with pytest.raises(UsageError, match=r"without a current batch[\s\S]*teacher\.follow"):
        teacher(pixels)
    for pixels, _ in teacher.follow(batches):
        teacher(pixels)
    with pytest.raises(UsageError, match="without a current batch"):
        teacher(pixels)  # of the last batch, after the end of the epoch
    images, targets = next(iter(batches))
    teacher.bind(images, targets)
    assert torch.equal(teacher(images), targets.teachers["cnn"].log_probs)
    for other in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        with pytest.raises(UsageError, match="without a current batch"):
            other(images)


def test_the_batches_have_the_attributes_of_the_loader(
    teacher: logitcache.CachedTeacher, batches: logitcache.Loader
) -> None:
    followed = teacher.follow(batches)
    assert len(followed) == len(batches)
    followed.sampler.set_epoch(3)
    assert followed.state_dict() == batches.state_dict()
    assert followed.state_dict()["epoch"] == 3
    with pytest.raises(AttributeError, match="no_such"):
        followed.no_such  # noqa: B018
    assert len(pickle.loads(pickle.dumps(followed))) == len(batches)


def test_a_training_step_changes_only_the_student(
    teacher: logitcache.CachedTeacher, batches: logitcache.Loader
) -> None:
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 3))
    assert not list(teacher.parameters())
    assert not teacher.state_dict()
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=0.05)
    losses = []
    for _ in range(4):
        total = 0.0
        for pixels, _ in teacher.eval().follow(batches):
            loss = functional.kl_div(
                student(pixels).log_softmax(1),
                teacher(pixels).log_softmax(1),
                reduction="batchmean",
                log_target=True,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item()
        losses.append(total)
    assert losses[-1] < losses[0]


def test_batches_and_teachers_that_do_not_fit(
    cache_path: Path, images: Path, teacher: logitcache.CachedTeacher, batches: logitcache.Loader
) -> None:
    cache = logitcache.open_cache(cache_path)
    with pytest.raises(UsageError, match=r"several teachers[\s\S]*CachedTeacher\(cache, 'cnn'\)"):
        logitcache.CachedTeacher(cache)
    with pytest.raises(UsageError, match=r"no logits of a teacher 'cn'[\s\S]*did you mean 'cnn'"):
        logitcache.CachedTeacher(cache, "cn")
    with pytest.raises(UsageError, match="temperature has to be positive"):
        logitcache.CachedTeacher(cache, "cnn", temperature=0)
    with pytest.raises(UsageError, match=r"no cached targets[\s\S]*got: +Tensor"):
        next(iter(teacher.follow([(torch.zeros(2, 3, 8, 8), torch.zeros(2))])))
    with pytest.raises(UsageError, match=r"no cached targets[\s\S]*got: +dict"):
        next(iter(teacher.follow([{"images": 1}])))
    with pytest.raises(UsageError, match=r"no outputs of teacher 'cnn'[\s\S]*got: +red"):
        next(iter(teacher.follow(logitcache.loader(cache, str(images), size=8, teachers=["red"]))))
    pixels, targets = next(iter(batches))
    with pytest.raises(UsageError, match=r"differ in number[\s\S]*7 images"):
        teacher.bind(pixels[:2], targets)
    outside = DenseLogits(torch.zeros(7, 2), outside=torch.zeros(7))
    mapped = TargetBatch(targets.rows, targets.labels, {"cnn": outside})
    with pytest.raises(
        UsageError, match=r"mapped to other classes[\s\S]*3 classes[\s\S]*2 classes"
    ):
        teacher.bind(pixels, mapped)
    mixed = TargetBatch(targets.rows, targets.labels, targets.teachers, lam=torch.ones(7))
    with pytest.raises(UsageError, match=r"this view mixes images[\s\S]*teacher\.bind"):
        next(iter(teacher.follow([(pixels, mixed)])))


@pytest.fixture
def _place(cache_path: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a folder with the cache and the images that pages name."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/train").symlink_to(images, target_is_directory=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/cache").symlink_to(cache_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_place")
def test_the_section_on_scripts_with_a_teacher_is_right() -> None:
    """The code of the page is run as it is written."""
    layer = torch.nn.Linear(12, 3)
    student = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), layer)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    names: dict[str, Any] = {"student": student, "optimizer": optimizer}
    exec(section_code("docs/training-loops.md", "A script that calls a teacher"), names)
    assert not torch.equal(layer.weight, before)
    assert names["loss"].isfinite()
    names["batches"].close()


@pytest.mark.usefixtures("_place")
def test_the_page_on_numpy_trains_a_student() -> None:
    """The code of the page is run as it is written; its gradient is that of PyTorch."""
    names: dict[str, Any] = {}
    numpy_alone, _, _ = page_code("docs/numpy.md").partition("import jax\n")
    exec(numpy_alone, names)
    losses = names["losses"]
    assert losses[-1] < 0.8 * losses[0]
    with names["batches"] as batches:
        images, log_probs, _ = next(names["arrays"](batches, names["teacher"]))
    assert (images.shape[1:], log_probs.shape[1:]) == ((SIZE, SIZE, 3), (3,))
    logits = torch.zeros(len(images), 3, requires_grad=True)
    loss = soft_divergence(logits, DenseLogits(torch.from_numpy(log_probs)), temperature=2.0).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    softmax = names["softmax"]
    gradient = 2.0 * (softmax(np.zeros_like(log_probs)) - softmax(log_probs / 2.0)) / len(images)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-6)


def test_a_cache_of_a_single_teacher_needs_no_name(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"cache": str(tmp_path), "data": str(images), "views": {"count": 1}}
    build_cache(PrecomputeConfig.parse({**values, "teachers": {"one": teachers["red"]}}, ""))
    assert logitcache.CachedTeacher(logitcache.open_cache(tmp_path)).name == "one"
