"""A classifier over the maps of student and teachers, and the student that learns from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from logitcache.batch import Features, Outputs, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.fuse import Fuse, FuseConfig
from logitcache.objectives.fused_head import DualAttention, FusedHead, MultiScale
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, tokens, vector
from tests.objectives.test_match import first

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 3
LABELS = torch.tensor([2, 0, -1])


def batch(student: Tensor, *teachers: Features, logits: Tensor) -> tuple[Outputs, TargetBatch]:
    """Return a batch whose last image has no label."""
    named = {f"t/{name}": held for name, held in zip("abc", teachers, strict=False)}
    rows = len(student)
    targets = TargetBatch(torch.arange(rows), LABELS[:rows], {}, features=named)
    return Outputs(logits, {"x": maps(student)}), targets


def fitted(outputs: Outputs, targets: TargetBatch, **options: Any) -> Fuse:
    """Return the loss in float64, with parameters that differ from the initial ones and zeros."""
    torch.manual_seed(0)
    pairs = [{"teacher": "t", "tap": name[-1], "student": "x"} for name in targets.features]
    fuse = Fuse(FuseConfig.parse({"pairs": pairs, "scales": 2, "width": 3, **options}, "fuse"))
    one = {name: first(held) for name, held in targets.features.items()}
    student = {name: first(held) for name, held in outputs.features.items()}
    example = TargetBatch(targets.rows[:1], torch.tensor([-1]), {}, features=one)
    fuse.fit(Outputs(outputs.logits[:1].float(), student), example)
    fuse.double()
    with torch.no_grad():
        for index, parameter in enumerate(fuse.parameters()):
            parameter.add_(0.3 * noise(*parameter.shape, seed=100 + index))
    return fuse


def joined(rows: tuple[reference.Row, ...]) -> reference.Row:
    """Return rows with the channels of all of them."""
    return [[x for part in parts for x in part] for parts in zip(*rows, strict=True)]


class Loops:
    """The term written down a second time over lists, its weights named as the module's."""

    def __init__(self, fuse: Fuse) -> None:
        self.state: dict[str, Any] = {k: v.tolist() for k, v in fuse.state_dict().items()}

    def convolved(self, row: reference.Row, name: str) -> reference.Row:
        weight = self.state[f"fused.{name}.weight"]
        return reference.convolve(row, weight, [0.0] * len(weight))

    def normed(self, rows: list[reference.Row], name: str) -> list[reference.Row]:
        weight, bias = (self.state[f"fused.{name}.{part}"] for part in ("weight", "bias"))
        return [reference.relu(row) for row in reference.batch_norm(rows, weight, bias)]

    def multi_scale(self, rows: list[reference.Row], name: str, scales: int) -> list[reference.Row]:
        group = len(rows[0][0]) // scales
        parts = [
            [[a[i * group : (i + 1) * group] for a in row] for row in rows] for i in range(scales)
        ]
        found = [parts[0]]
        for i in range(1, scales):
            before = [reference.added(a, b) for a, b in zip(parts[i], found[-1], strict=True)]
            taken = parts[i] if i == 1 else before
            made = [self.convolved(row, f"{name}.cascade.{i - 1}.0") for row in taken]
            found.append(self.normed(made, f"{name}.cascade.{i - 1}.1"))
        return [joined(rows) for rows in zip(*found, strict=True)]

    def attention(self, row: reference.Row, name: str) -> reference.Row:
        s = self.state
        w1, b1, w2, b2 = (
            s[f"fused.{name}.channels.{i}.{part}"] for i in (0, 2) for part in ("weight", "bias")
        )
        (hidden,) = reference.relu(reference.linear([reference.mean_of(row)], w1, b1))
        (gates,) = reference.linear([hidden], w2, b2)
        row = [[x / (1 + math.exp(-g)) for x, g in zip(a, gates, strict=True)] for a in row]
        summary = [[math.fsum(a) / len(a), max(a)] for a in row]
        scores = self.convolved(summary, f"{name}.positions.0")
        return [[x / (1 + math.exp(-g)) for x in a] for a, (g,) in zip(row, scores, strict=True)]

    def logits(
        self, networks: list[list[reference.Row]], scales: int, attention: bool
    ) -> list[Any]:
        parts = []
        for n, rows in enumerate(networks):
            rows = self.multi_scale(rows, f"branches.{n}.0", scales)
            parts.append(
                [self.attention(r, f"branches.{n}.1") for r in rows] if attention else rows
            )
        rows = [joined(each) for each in zip(*parts, strict=True)]
        weight = self.state["fused.fusion.0.weight"]
        deep = []
        for row in rows:  # every channel with weights of its own
            channels = [
                [a[0] for a in reference.convolve([[p[c]] for p in row], [w], [0.0])]
                for c, w in enumerate(weight)
            ]
            deep.append([list(a) for a in zip(*channels, strict=True)])
        made = [self.convolved(row, "fusion.3") for row in self.normed(deep, "fusion.1")]
        means = [reference.mean_of(row) for row in self.normed(made, "fusion.4")]
        w, b = (self.state[f"fused.classifier.{part}"] for part in ("weight", "bias"))
        return reference.linear(means, w, b)


def log_softmax(z: list[float]) -> list[float]:
    total = math.log(math.fsum(math.exp(x) for x in z))
    return [x - total for x in z]


def by_loops(
    fuse: Fuse, maps: list[Tensor], z: Tensor, temperature: float, fixed: list[Any] | None = None
) -> float:
    """The loss; the target of the student is ``fixed``, as it has no gradient."""
    networks = [[m.flatten(1).T.tolist() for m in values] for values in maps]
    u = Loops(fuse).logits(networks, fuse.config.scales, fuse.config.attention)
    total = 0.0
    for row, (mine, label) in enumerate(zip(z.tolist(), LABELS.tolist(), strict=True)):
        if label >= 0:
            total -= log_softmax(u[row])[label]
        t = log_softmax([x / temperature for x in (fixed or u)[row]])
        s = log_softmax([x / temperature for x in mine])
        total += temperature**2 * math.fsum(
            math.exp(a) * (a - b) for a, b in zip(t, s, strict=True)
        )
    return total / len(z)


@pytest.mark.parametrize(("scales", "attention"), [(2, True), (1, False), (4, True)])
def test_value_and_gradient_are_those_of_the_plain_loops(scales: int, attention: bool) -> None:
    x, z = noise(3, 4, 2, 2, seed=1), noise(3, CLASSES, seed=2)
    theirs = [maps(noise(3, 4, 2, 2, seed=3)), maps(noise(3, 8, 2, 2, seed=4))]
    fuse = fitted(*batch(x, *theirs, logits=z), scales=scales, attention=attention)
    fixed = fuse.logits(*batch(x, *theirs, logits=z)).tolist()
    values = [held.values for held in theirs]

    def loop_x(x: Tensor) -> float:
        return by_loops(fuse, [x, *values], z, 3.0, fixed)

    def loop_z(z: Tensor) -> float:
        return by_loops(fuse, [x.detach(), *values], z, 3.0, fixed)

    x.requires_grad_()
    z.requires_grad_()
    loss = fuse(*batch(x, *theirs, logits=z))
    assert loss.item() == pytest.approx(by_loops(fuse, [x.detach(), *values], z.detach(), 3.0))
    of_x, of_z = torch.autograd.grad(loss, [x, z])
    torch.testing.assert_close(of_x, reference.gradient(loop_x, x.detach()), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(of_z, reference.gradient(loop_z, z.detach()), rtol=1e-5, atol=1e-8)


def test_each_part_has_an_effect_and_can_be_left_out() -> None:
    x = noise(2, 4, 3, 3, seed=5)
    torch.manual_seed(0)
    for part in (MultiScale(4, 2).double(), DualAttention(4).double()):
        assert part(x).shape == x.shape
        assert not torch.allclose(part(x), x)
    torch.testing.assert_close(MultiScale(4, 1)(x), x)
    assert not list(MultiScale(4, 1).parameters())
    plain = FusedHead([4, 4], 3, CLASSES, scales=1, attention=False)
    assert not list(plain.branches.parameters())


def test_the_target_of_the_student_has_no_gradient() -> None:
    """Parameters of the classifier learn from labels alone; without any they do not learn."""
    x, z = noise(3, 4, 2, 2, seed=6), noise(3, CLASSES, seed=7).requires_grad_()
    outputs, targets = batch(x, maps(noise(3, 4, 2, 2, seed=8)), logits=z)
    fuse = fitted(outputs, targets)
    hidden = replace(targets, labels=torch.full((3,), -1))
    of_z, *own = torch.autograd.grad(fuse(outputs, hidden), [z, *fuse.parameters()])
    assert of_z.abs().sum() > 0
    assert all(not grad.any() for grad in own)
    assert any(
        grad.any() for grad in torch.autograd.grad(fuse(outputs, targets), list(fuse.parameters()))
    )


def test_label_sets_are_learned_one_class_at_a_time() -> None:
    x, z = noise(3, 4, 2, 2, seed=9), noise(3, CLASSES, seed=10)
    outputs, targets = batch(x, maps(noise(3, 4, 2, 2, seed=11)), logits=z)
    sets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    targets = replace(targets, labels=torch.full((3,), -1), label_sets=sets)
    fuse = fitted(outputs, targets, temperature=1.0)
    u = fuse.logits(outputs, targets).detach()
    q = u.sigmoid()
    entropy = F.binary_cross_entropy(q, q, reduction="none")
    wanted = F.binary_cross_entropy_with_logits(u, sets.double(), reduction="none")
    wanted = wanted + F.binary_cross_entropy_with_logits(z, q, reduction="none") - entropy
    torch.testing.assert_close(
        fuse(outputs, targets).double(), wanted.sum(1).mean(), rtol=1e-5, atol=1e-6
    )


def accuracy_of_halves(halves: list[int]) -> float:
    """Return the accuracy on held-out digits of a head over networks that see one half each."""
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(load_digits().target)
    torch.manual_seed(0)
    peers = [torch.nn.Conv2d(1, 8, 3, padding=1).requires_grad_(False) for _ in range(2)]
    seen = [peers[half](images[..., 4 * half : 4 * half + 4]).relu() for half in halves]
    head = FusedHead([8] * len(halves), 32, 10, scales=4, attention=True)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for step in range(60):
        rows = torch.randint(0, 1200, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = F.cross_entropy(head([each[rows] for each in seen]), labels[rows])
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        answer = head.eval()([each[1200:] for each in seen])
    return float((answer.argmax(1) == labels[1200:]).float().mean())


def test_fused_maps_are_better_than_those_of_either_network() -> None:
    left, right, both = (accuracy_of_halves(halves) for halves in ([0], [1], [0, 1]))
    assert both > max(left, right) + 0.03


@pytest.mark.parametrize(
    ("teachers", "options", "message"),
    [
        ([vector(noise(1, 4, seed=12))], {}, "whole maps on one square grid"),
        (
            [maps(noise(1, 4, 2, 2, seed=13)), maps(noise(1, 4, 4, 4, seed=14))],
            {},
            "grid of side 2",
        ),
        ([tokens(noise(1, 3, 4, seed=15))], {}, "do not fit"),
        ([maps(noise(1, 6, 2, 2, seed=16))], {"scales": 4}, "a divisor of 4, 6"),
    ],
)
def test_what_cannot_be_fused_is_refused(
    teachers: list[Features], options: dict[str, Any], message: str
) -> None:
    given = batch(noise(1, 4, 2, 2, seed=17), *teachers, logits=noise(1, CLASSES, seed=18))
    with pytest.raises(UsageError, match=message):
        fitted(*given, **options)


def test_before_it_is_fitted_it_explains_what_is_missing() -> None:
    outputs, targets = batch(noise(1, 4, 2, 2, seed=19), logits=noise(1, CLASSES, seed=20))
    with pytest.raises(UsageError, match=r"call fit\(outputs, targets\)"):
        Fuse(FuseConfig.parse({"teacher": "t", "tap": "a"}, "fuse"))(outputs, targets)
