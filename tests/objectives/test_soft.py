from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from logitcache.batch import DenseLogits, SparseLogits, TargetBatch
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import UsageError
from logitcache.objectives import soft, sparse_cross_entropy
from logitcache.objectives.soft import Soft, SoftConfig, soft_divergence
from tests.memory import peak_bytes
from tests.objectives import reference

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.objectives.soft import Tail

MODES: list[Tail] = ["uniform", "bucket", "renorm"]
TEMPERATURES = [1.0, 1.5, 4.0]


def random_logits(rows: int, classes: int, seed: int, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, dtype=torch.float64, generator=generator)


def sparse_of(teacher_logits: Tensor, top_k: int, unused: int = 1) -> SparseLogits:
    """Return exact sparse targets, in float64, with unused entries at the end."""
    log_p = teacher_logits.log_softmax(1)
    classes = log_p.shape[1]
    ids = log_p.topk(top_k, dim=1).indices.sort(dim=1).values
    kept = log_p.gather(1, ids)
    absent = log_p.scatter(1, ids, -torch.inf)
    tail = torch.stack([absent.logsumexp(1), (absent / 4).logsumexp(1)], dim=1)
    return SparseLogits(
        class_ids=torch.cat([ids, ids[:, -1:].expand(-1, unused)], 1),
        log_probs=torch.cat([kept, kept.new_full((len(kept), unused), -torch.inf)], 1),
        tail=tail.clamp(-65504.0, 65504.0),
        num_classes=classes,
    )


def by_loops(z: Tensor, teacher: SparseLogits, temperature: float, mode: str) -> list[float]:
    values = []
    for row, ids, log_probs, tail in zip(
        z.tolist(),
        teacher.class_ids.tolist(),
        teacher.log_probs.tolist(),
        teacher.tail.tolist(),
        strict=True,
    ):
        present = {c: p for c, p in zip(ids, log_probs, strict=True) if math.isfinite(p)}
        values.append(reference.sparse(row, present, tuple(tail), temperature, mode))
    return values


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("top_k", [1, 4, 11])
@pytest.mark.parametrize("unused", [0, 2])
def test_the_value_is_that_of_the_plain_loops(
    mode: Tail, temperature: float, top_k: int, unused: int
) -> None:
    z, teacher = random_logits(5, 12, 0), sparse_of(random_logits(5, 12, 1), top_k, unused)
    got = soft_divergence(z, teacher, temperature=temperature, tail=mode)
    assert got.tolist() == pytest.approx(by_loops(z, teacher, temperature, mode), rel=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("unused", [0, 2])
def test_the_gradient_is_that_of_the_plain_loops(
    mode: Tail, temperature: float, unused: int
) -> None:
    z, teacher = random_logits(3, 8, 2), sparse_of(random_logits(3, 8, 3), 3, unused)
    z.requires_grad_()
    (got,) = torch.autograd.grad(
        soft_divergence(z, teacher, temperature=temperature, tail=mode).sum(), z
    )
    step = 1e-5
    for row in range(3):
        for column in range(8):
            up, down = z.detach().clone(), z.detach().clone()
            up[row, column] += step
            down[row, column] -= step
            difference = by_loops(up, teacher, temperature, mode)[row]
            difference -= by_loops(down, teacher, temperature, mode)[row]
            assert float(got[row, column]) == pytest.approx(difference / (2 * step), abs=1e-8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unused", [0, 1])
def test_gradcheck_with_unequal_weights_of_rows(mode: Tail, unused: int) -> None:
    z = random_logits(3, 7, 4).requires_grad_()
    teacher = sparse_of(random_logits(3, 7, 5), 3, unused)
    weights = torch.tensor([0.2, -1.0, 3.0], dtype=torch.float64)
    assert gradcheck(lambda x: soft_divergence(x, teacher, temperature=2.0, tail=mode) * weights, z)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_with_all_classes_it_is_the_dense_loss(mode: Tail, temperature: float) -> None:
    """The loop here, the dense target of the package and every tail agree where K = C."""
    z, t = random_logits(4, 9, 6).requires_grad_(), random_logits(4, 9, 7)
    every = SparseLogits(
        class_ids=torch.arange(9).expand(4, -1).contiguous(),
        log_probs=t.log_softmax(1),
        tail=torch.full((4, 2), -65504.0, dtype=torch.float64),
        num_classes=9,
    )
    expected = [
        reference.dense(a, b, temperature) for a, b in zip(z.tolist(), t.tolist(), strict=True)
    ]
    sparse = soft_divergence(z, every, temperature=temperature, tail=mode)
    dense = soft_divergence(z, DenseLogits(t.log_softmax(1)), temperature=temperature)
    assert sparse.tolist() == pytest.approx(expected, rel=1e-10)
    assert dense.tolist() == pytest.approx(expected, rel=1e-10)
    (of_sparse,) = torch.autograd.grad(sparse.sum(), z)
    (of_dense,) = torch.autograd.grad(dense.sum(), z)
    torch.testing.assert_close(of_sparse, of_dense, rtol=1e-9, atol=1e-12)


def test_below_all_classes_it_is_the_dense_loss_of_the_reconstruction() -> None:
    z, teacher = random_logits(4, 9, 8), sparse_of(random_logits(4, 9, 9), 4)
    q = torch.zeros(4, 9, dtype=torch.float64)
    q += teacher.tail[:, :1].exp() / 5
    kept = teacher.class_ids[:, :4]
    q.scatter_(1, kept, teacher.log_probs[:, :4].exp())
    expected = F.kl_div(z.log_softmax(1), q, reduction="none").sum(1)
    torch.testing.assert_close(soft_divergence(z, teacher), expected)


@pytest.mark.parametrize("mode", MODES)
def test_what_was_stored_is_what_the_loss_sees(mode: Tail) -> None:
    """Through the codes and back: within a thousandth of the exact targets."""
    t, z = random_logits(16, 60, 10).float(), random_logits(16, 60, 11)
    encoding = SparseEncoding(60, 20)
    stored = encoding.decode(encoding.encode(log_softmax(t.numpy())[0]))
    coded = SparseLogits(
        torch.from_numpy(stored.class_ids),
        torch.from_numpy(stored.log_probs),
        torch.from_numpy(stored.tail),
        60,
    )
    exact = soft_divergence(z, sparse_of(t.double(), 20), tail=mode)
    torch.testing.assert_close(soft_divergence(z, coded, tail=mode), exact, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("mode", MODES)
def test_a_graph_can_be_walked_twice(mode: Tail) -> None:
    z, teacher = random_logits(4, 9, 22).requires_grad_(), sparse_of(random_logits(4, 9, 23), 3)
    loss = soft_divergence(z, teacher, tail=mode).sum()
    (first,) = torch.autograd.grad(loss, z, retain_graph=True)
    (second,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("mode", MODES)
def test_a_student_sure_beyond_the_smallest_float_gets_a_finite_loss(mode: Tail) -> None:
    """What it leaves to the absent classes is e^-200, which no float32 holds."""
    teacher = sparse_of(random_logits(4, 9, 24), 3)
    z = torch.full((4, 9), -200.0, dtype=torch.float64).scatter(1, teacher.class_ids, 0.0)
    single = z.float().requires_grad_()
    loss = soft_divergence(single, teacher, tail=mode)
    (gradient,) = torch.autograd.grad(loss.sum(), single)
    z.requires_grad_()
    expected = soft_divergence(z, teacher, tail=mode)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    (wide,) = torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(gradient.double(), wide, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("top_k", [10, 50])
def test_float32_has_the_digits_of_float64(mode: Tail, temperature: float, top_k: int) -> None:
    z, teacher = random_logits(16, 1000, 25), sparse_of(random_logits(16, 1000, 26), top_k)
    single = z.float().requires_grad_()
    narrow = replace(teacher, log_probs=teacher.log_probs.float(), tail=teacher.tail.float())
    loss = soft_divergence(single, narrow, temperature=temperature, tail=mode)
    (gradient,) = torch.autograd.grad(loss.sum(), single)
    z.requires_grad_()
    expected = soft_divergence(z, teacher, temperature=temperature, tail=mode)
    (wide,) = torch.autograd.grad(expected.sum(), z)
    # at T = 4 the loss is a small difference of large numbers, times 16
    rtol = 1e-6 if temperature == 1.0 else 2e-5
    torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("top_k", [3, 8, 9])
@pytest.mark.parametrize("unused", [0, 1])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_loss_on_an_accelerator_is_that_on_a_processor(
    monkeypatch: pytest.MonkeyPatch, mode: Tail, top_k: int, unused: int, temperature: float
) -> None:
    """On a processor values are read to choose the shorter way, elsewhere they are not."""
    z = random_logits(6, 9, 27).requires_grad_()
    teacher = sparse_of(random_logits(6, 9, 28), top_k, unused)

    def both() -> tuple[Tensor, Tensor]:
        loss = soft_divergence(z, teacher, temperature=temperature, tail=mode)
        return loss, torch.autograd.grad(loss.sum(), z)[0]

    shorter = both()
    monkeypatch.setattr(sparse_cross_entropy, "may_read", lambda _: False)
    monkeypatch.setattr(soft, "may_read", lambda _: False)
    for one, two in zip(shorter, both(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_a_second_derivative_is_refused(mode: Tail) -> None:
    z, teacher = random_logits(3, 7, 29).requires_grad_(), sparse_of(random_logits(3, 7, 30), 3)
    loss = soft_divergence(z, teacher, tail=mode).sum()
    with pytest.raises(UsageError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss, z, create_graph=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("unused", [0, 1])
def test_nothing_that_it_reads_is_changed(mode: Tail, temperature: float, unused: int) -> None:
    z, teacher = random_logits(3, 7, 31), sparse_of(random_logits(3, 7, 32), 3, unused)
    tensors = [z, teacher.class_ids, teacher.log_probs, teacher.tail]
    before = [tensor.clone() for tensor in tensors]
    z.requires_grad_()
    torch.autograd.grad(soft_divergence(z, teacher, temperature=temperature, tail=mode).sum(), z)
    for old, new in zip(before, tensors, strict=True):
        assert torch.equal(old, new.detach())


@pytest.mark.parametrize("mode", MODES)
def test_autocast_and_half_precision_leave_the_loss_in_float32(mode: Tail) -> None:
    z, teacher = random_logits(4, 9, 33).bfloat16(), sparse_of(random_logits(4, 9, 34), 3)
    leaf = z.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = soft_divergence(leaf, teacher, tail=mode)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    wide = z.float().requires_grad_()
    expected = soft_divergence(wide, teacher, tail=mode)
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(loss, expected)
    (of_wide,) = torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(gradient, of_wide.bfloat16())


# the compiler of torch 2.6 creates such a function itself
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
def test_it_is_compiled_as_one_graph(mode: Tail) -> None:
    z, teacher = random_logits(4, 9, 35), sparse_of(random_logits(4, 9, 36), 3)

    def loss(logits: Tensor) -> Tensor:
        return soft_divergence(logits, teacher, tail=mode).sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = []
    for function in (loss, compiled):
        leaf = z.clone().requires_grad_()
        value = function(leaf)
        results.append((value, torch.autograd.grad(value, leaf)[0]))
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(plain, other)


@pytest.mark.parametrize("mode", MODES)
def test_a_shift_of_all_logits_changes_nothing(mode: Tail) -> None:
    z, teacher = random_logits(4, 9, 12), sparse_of(random_logits(4, 9, 13), 3)
    shifted = z + torch.tensor([[5.0], [-300.0], [1e3], [0.0]])
    torch.testing.assert_close(
        soft_divergence(shifted, teacher, tail=mode), soft_divergence(z, teacher, tail=mode)
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_it_is_zero_for_the_teacher_itself(temperature: float) -> None:
    t = random_logits(4, 9, 14)
    dense = soft_divergence(t, DenseLogits(t.log_softmax(1)), temperature=temperature)
    bucket = soft_divergence(t, sparse_of(t, 4), temperature=1.0, tail="bucket")
    torch.testing.assert_close(dense, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(bucket, torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_bucket_never_exceeds_the_dense_loss() -> None:
    z, t = random_logits(64, 9, 15), random_logits(64, 9, 16)
    bucket = soft_divergence(z, sparse_of(t, 3), tail="bucket")
    assert (bucket <= soft_divergence(z, DenseLogits(t.log_softmax(1))) + 1e-12).all()


def test_half_precision_logits_are_widened() -> None:
    z, teacher = random_logits(4, 9, 17), sparse_of(random_logits(4, 9, 18), 3)
    half = soft_divergence(z.bfloat16(), teacher)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, soft_divergence(z.bfloat16().float(), teacher))


def batch_of(**teachers: SparseLogits | DenseLogits) -> TargetBatch:
    return TargetBatch(torch.arange(4), torch.full((4,), -1), teachers)


def test_teachers_are_weighted() -> None:
    z = random_logits(4, 9, 19)
    a, b = sparse_of(random_logits(4, 9, 20), 3), sparse_of(random_logits(4, 9, 21), 5)
    of_a, of_b = soft_divergence(z, a).mean(), soft_divergence(z, b).mean()
    weighted = Soft(SoftConfig(teachers={"a": 2.0, "b": 0.5}))
    alike = Soft()
    assert float(weighted(z, batch_of(a=a, b=b))) == pytest.approx(float(2 * of_a + 0.5 * of_b))
    assert float(alike(z, batch_of(a=a, b=b))) == pytest.approx(float((of_a + of_b) / 2))


def test_an_unknown_teacher_is_named() -> None:
    soft = Soft(SoftConfig(teachers={"cnm": 1.0}))
    with pytest.raises(UsageError, match="did you mean 'cnn'"):
        soft(random_logits(4, 9, 0), batch_of(cnn=sparse_of(random_logits(4, 9, 1), 3)))
    with pytest.raises(UsageError, match="the batch has none"):
        Soft()(random_logits(4, 9, 0), batch_of())


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="different numbers of classes"):
        soft_divergence(random_logits(4, 8, 0), sparse_of(random_logits(4, 9, 1), 3))


@pytest.mark.parametrize("classes", [1000, 21841])
@pytest.mark.parametrize("mode", MODES)
def test_no_dense_teacher_is_ever_built(classes: int, mode: Tail) -> None:
    z = torch.randn(64, classes, requires_grad=True)
    teacher = sparse_of(torch.randn(64, classes), 50)
    one_dense = z.numel() * z.element_size()
    labels = torch.zeros(64, dtype=torch.long)
    plain = peak_bytes(lambda: F.cross_entropy(z, labels), z)
    ours = peak_bytes(lambda: soft_divergence(z, teacher, tail=mode).mean(), z)
    assert ours - plain < one_dense
