"""Attention and assignment to prototypes of a teacher."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from logitcache.batch import Outputs, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.prototypes.assign import Assign, AssignConfig
from logitcache.objectives.prototypes.attend import Attend, AttendConfig
from logitcache.objectives.prototypes.table import PrototypeTable
from logitcache.tools.soft_clustering import State, improved, spread_centers
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens, vector
from tests.objectives.test_match import first

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from logitcache.batch import Features

COUNT, CHANNELS, CLASSES = 4, 3, 2
SCALE = 0.6


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Return prototypes as the stage writes them."""
    centers = noise(COUNT, CHANNELS, seed=0)
    bias = -SCALE * centers.square().sum(1)
    return {"centers": centers, "weight": 2 * SCALE * centers, "bias": bias}


@pytest.fixture
def file(tensors: dict[str, Tensor], tmp_path: Path) -> str:
    path = tmp_path / "prototypes.safetensors"
    save_file({name: tensor.float() for name, tensor in tensors.items()}, path)
    return str(path)


def shares(p: reference.Vector, table: dict[str, Any], temperature: float = 1.0) -> list[float]:
    scores = [
        (reference.dot(w, p) + b) / temperature
        for w, b in zip(table["weight"], table["bias"], strict=True)
    ]
    exps = [math.exp(score) for score in scores]
    return [e / math.fsum(exps) for e in exps]


def descriptors(row: reference.Row, table: dict[str, Any]) -> reference.Row:
    """The double loop over prototypes and positions."""
    found = []
    for k, center in enumerate(table["centers"]):
        total = [0.0] * len(center)
        for p in row:
            a = shares(p, table)[k]
            total = [t + a * (x - c) for t, x, c in zip(total, p, center, strict=True)]
        found.append(total)
    return found


def plain(module: torch.nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in module.state_dict().items()}


def test_descriptors_are_the_double_loop(tensors: dict[str, Tensor]) -> None:
    table = PrototypeTable(**tensors)
    p = noise(2, 5, CHANNELS, seed=1)
    wanted = [descriptors(row, plain(table)) for row in p.tolist()]
    torch.testing.assert_close(table.descriptors(p), torch.tensor(wanted, dtype=torch.float64))
    nearest = torch.cdist(p, tensors["centers"]).square().mul(-SCALE).log_softmax(2)
    torch.testing.assert_close(table.log_shares(p), nearest)


def attending(file: str, held: Features, z: Tensor) -> Attend:
    """Return the term in float64."""
    torch.manual_seed(0)
    attend = Attend(AttendConfig(file=file, student="x", width=3, temperature=2.0))
    attend.fit(Outputs(z[:1].float(), {"x": first(held)}), targets_of(x=first(held)))
    return attend.double()


def enhanced(row: reference.Row, s: dict[str, Any]) -> reference.Row:
    def layer(values: reference.Row, name: str) -> reference.Row:
        return reference.linear(values, s[f"{name}.weight"], s[f"{name}.bias"])

    table = {name: s[f"table.{name}"] for name in ("centers", "weight", "bias")}
    added = [[x / len(row) for x in v] for v in descriptors(layer(row, "align"), table)]
    memory = reference.layer_norm(
        reference.added(table["centers"], added), s["norm.weight"], s["norm.bias"]
    )
    keys, values = layer(memory, "key"), layer(memory, "value")
    mixed = []
    for query in layer(row, "query"):
        exps = [math.exp(reference.dot(query, key) / math.sqrt(len(query))) for key in keys]
        mixed.append(
            [
                math.fsum(e / math.fsum(exps) * v[c] for e, v in zip(exps, values, strict=True))
                for c in range(len(query))
            ]
        )
    return reference.added(row, layer(mixed, "out"))


def test_attention_is_that_of_the_plain_loops(file: str) -> None:
    """The value, and the gradients of the student's features and of its logits."""
    x, z = noise(3, 4, 2, 2, seed=2), noise(3, CLASSES, seed=3)
    labels = torch.tensor([1, 0, -1])
    targets = TargetBatch(torch.arange(3), labels, {})
    attend = attending(file, maps(x), z)
    fixed = attend.logits(Outputs(z, {"x": maps(x)})).tolist()

    def loop(x: Tensor, z: Tensor) -> float:
        total, state = 0.0, plain(attend)
        own = {k.removeprefix("attention."): v for k, v in state.items()}
        for row, mine, y, u in zip(x, z.tolist(), labels.tolist(), fixed, strict=True):
            mean = reference.mean_of(enhanced(row.flatten(1).T.tolist(), own))
            w, b = state["classifier.weight"], state["classifier.bias"]
            (scores,) = reference.linear([mean], w, b)
            if y >= 0:
                total += math.log(math.fsum(math.exp(s) for s in scores)) - scores[y]
            t, s = ([math.exp(v / 2.0) for v in values] for values in (u, mine))
            total += 4.0 * math.fsum(
                a / sum(t) * math.log(a / sum(t) / (c / sum(s))) for a, c in zip(t, s, strict=True)
            )
        return total / 3

    x.requires_grad_()
    z.requires_grad_()
    loss = attend(Outputs(z, {"x": maps(x)}), targets)
    assert loss.item() == pytest.approx(loop(x.detach(), z.detach()), rel=1e-6)
    of_x, of_z = torch.autograd.grad(loss, [x, z])
    at_x, at_z = x.detach(), z.detach()
    wanted = reference.gradient(lambda x: loop(x, at_z), at_x)
    torch.testing.assert_close(of_x, wanted, rtol=1e-5, atol=1e-7)
    wanted = reference.gradient(lambda z: loop(at_x, z), at_z)
    torch.testing.assert_close(of_z, wanted, rtol=1e-5, atol=1e-7)


def test_prototypes_are_not_trained_but_saved(file: str) -> None:
    x, z = noise(2, 4, 2, 2, seed=4), noise(2, CLASSES, seed=5)
    attend = attending(file, maps(x), z)
    assert not [name for name, _ in attend.named_parameters() if ".table." in name]
    assert "attention.table.centers" in attend.state_dict()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_assignments_are_those_of_the_plain_loops(file: str, temperature: float) -> None:
    s, t = noise(2, 5, 6, seed=6), noise(2, 5, CHANNELS, seed=7)
    torch.manual_seed(0)
    values = {"teacher": "t", "tap": "x", "file": file, "temperature": temperature}
    assign = Assign(AssignConfig.parse(values, "assign"))
    assign.fit(outputs_of(x=first(tokens(s, prefix=1))), targets_of(x=first(tokens(t, prefix=1))))
    assign.double()
    state = plain(assign)
    table = {name: state[f"table.{name}"] for name in ("centers", "weight", "bias")}

    def loop(s: Tensor) -> float:
        total = 0.0
        for ours, theirs in zip(s[:, 1:].tolist(), t[:, 1:].tolist(), strict=True):
            aligned = reference.linear(ours, state["align.weight"], state["align.bias"])
            for a, b in zip(aligned, theirs, strict=True):
                found, wanted = shares(a, table), shares(b, table, temperature)
                total += math.fsum(w * math.log(w / f) for w, f in zip(wanted, found, strict=True))
        return total / 8

    s.requires_grad_()
    loss = assign(outputs_of(x=tokens(s, prefix=1)), targets_of(x=tokens(t, prefix=1)))
    assert loss.item() == pytest.approx(loop(s.detach()), rel=1e-9)
    (got,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(got, reference.gradient(loop, s.detach()), rtol=1e-5, atol=1e-8)


def test_a_student_with_the_features_of_the_teacher_has_no_loss(file: str) -> None:
    held = tokens(noise(2, 4, CHANNELS, seed=8))
    assign = Assign(AssignConfig(teacher="t", tap="x", file=file))
    assign.fit(outputs_of(x=first(held)), targets_of(x=first(held)))
    assign.double()
    assert isinstance(assign.align, torch.nn.Linear)
    with torch.no_grad():
        assign.align.weight.copy_(torch.eye(CHANNELS))
        assign.align.bias.zero_()
    loss = assign(outputs_of(x=held), targets_of(x=held))
    assert loss.item() == pytest.approx(0, abs=1e-12)


def test_kept_tokens_are_compared_at_their_positions(file: str) -> None:
    s, t = noise(2, 4, 6, seed=9), noise(2, 4, CHANNELS, seed=10)
    positions = torch.tensor([[0, 3], [1, 2]])
    kept = tokens(
        t.gather(1, positions[..., None].expand(-1, -1, CHANNELS)), grid=2, positions=positions
    )
    assign = Assign(AssignConfig(teacher="t", tap="x", file=file))
    assign.fit(outputs_of(x=first(tokens(s))), targets_of(x=first(kept)))
    assign.double()
    assert assign.table is not None
    assert assign.align is not None
    wanted, found = assign.table.log_shares(t), assign.table.log_shares(assign.align(s))
    each = F.kl_div(found, wanted, reduction="none", log_target=True).sum(2).gather(1, positions)
    torch.testing.assert_close(assign(outputs_of(x=tokens(s)), targets_of(x=kept)), each.mean())


def test_what_has_no_prototypes_is_explained(file: str, tmp_path: Path) -> None:
    outputs = Outputs(torch.zeros(1, CLASSES), {"x": maps(noise(1, 4, 2, 2, seed=11).float())})
    targets = targets_of(x=maps(noise(1, CHANNELS + 1, 2, 2, seed=12).float()))
    (tmp_path / "damaged").write_bytes(b"no tensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other")
    for name, got in {
        "absent": "no such file",
        "damaged": "not of this",
        "other": "weight",
    }.items():
        with pytest.raises(UsageError, match="no prototypes can be read") as caught:
            Attend(AttendConfig(file=str(tmp_path / name), student="x")).fit(outputs, targets)
        assert got in str(caught.value.got)
    with pytest.raises(UsageError, match="another number of channels"):
        Assign(AssignConfig(teacher="t", tap="x", file=file)).fit(outputs, targets)
    flat = Outputs(torch.zeros(1, CLASSES), {"x": vector(noise(1, 4, seed=13).float())})
    with pytest.raises(UsageError, match="this layer is a vector"):
        Attend(AttendConfig(file=file, student="x")).fit(flat, targets)
    with pytest.raises(UsageError, match=r"call fit\(outputs, targets\)"):
        Attend(AttendConfig(file=file, student="x"))(outputs, targets)


def tokens_of_classes(
    classes: Tensor, centers: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return what a teacher and a student see of images whose class has two frequent parts.

    Every position shows one of the parts. The teacher's tokens are near the part's center; in those
    of the student all channels but the first are noise.
    """
    parts = torch.stack([classes, (classes + 1) % len(centers)], 1)
    frequent = parts.gather(1, torch.randint(0, 2, (len(classes), 9), generator=generator))
    other = torch.randint(0, len(centers), frequent.shape, generator=generator)
    rare = torch.rand(frequent.shape, generator=generator) < 0.2
    shown = centers[torch.where(rare, other, frequent)]
    teacher = shown + 0.1 * torch.randn(shown.shape, generator=generator)
    student = shown + 0.3 * torch.randn(shown.shape, generator=generator)
    noisy = torch.randn(*shown.shape[:2], 24 * shown.shape[2], generator=generator)
    return teacher, torch.cat([student, noisy], 2)


class Small(torch.nn.Module):
    """A student of tokens with a layer (B, P, 16) and logits (B, 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(
            torch.nn.Linear(channels, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16)
        )
        self.classifier = torch.nn.Linear(16, 3)

    def forward(self, given: Tensor) -> Outputs:
        held = self.layer(given)
        return Outputs(self.classifier(held.relu().mean(1)), {"x": tokens(held)})


def accuracy_with_few_labels(file: str, centers: Tensor, seed: int, *, prototypes: bool) -> float:
    """Return the accuracy on held-out images of classes 3 to 5, of which 20 images have labels."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, 6, (1200,), generator=generator)
    theirs, ours = tokens_of_classes(classes, centers, generator)
    labels = classes - 3
    torch.manual_seed(seed)
    student = Small(ours.shape[2])

    def trained(terms: list[Any], last: int, steps: int) -> None:
        """Train with the terms, the first images alone."""
        loss = build_objective([ObjectiveConfig.model_validate(term) for term in terms])
        one = tokens(theirs[:1])
        loss.fit(student(ours[:1]), targets_of(x=one))
        own = [*student.parameters(), *loss.parameters()]
        optimizer = torch.optim.Adam(own, lr=0.005)
        for _ in range(steps):
            rows = torch.randint(0, last, (64,), generator=generator)
            targets = TargetBatch(rows, labels[rows], {}, features={"t/x": tokens(theirs[rows])})
            optimizer.zero_grad()
            torch.autograd.backward(loss(student(ours[rows]), targets))
            optimizer.step()

    if prototypes:
        assign = {"assign": {"teacher": "t", "tap": "x", "file": file}}
        trained([assign], 200, 300)
        trained(["label", assign, {"attend": {"student": "x", "file": file}}], 20, 80)
    else:
        trained(["label"], 20, 80)
    with torch.no_grad():
        found = student(ours[200:]).logits.argmax(1)
    return float((found == labels[200:]).float().mean())


def test_few_labels_of_other_classes_are_learned_better_with_prototypes(tmp_path: Path) -> None:
    """A tenth of 200 images has labels; prototypes are learned of images of other classes."""
    generator = torch.Generator().manual_seed(0)
    centers = 2 * torch.randn(6, 4, generator=generator)
    known = torch.randint(0, 3, (200,), generator=generator)
    seen, _ = tokens_of_classes(known, centers, generator)
    given = seen.flatten(0, 1).numpy()
    start, distance = spread_centers(given, 8, seed=0)
    state = State(torch.from_numpy(start), 5 / distance)
    for _ in range(5):
        state = improved(iter([given]), state)
    file = tmp_path / "prototypes.safetensors"
    table = PrototypeTable.of(state.centers, state.scale).float()
    save_file(table.state_dict(), file)
    gains = [
        accuracy_with_few_labels(str(file), centers, seed, prototypes=True)
        - accuracy_with_few_labels(str(file), centers, seed, prototypes=False)
        for seed in range(2)
    ]
    assert min(gains) > 0.05
