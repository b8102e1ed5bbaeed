"""GHOST's gates: one for each row and pair of layers, with a straight-through gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.batch import Outputs, TargetBatch
from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig
from logitcache.objectives import gate as gate_module
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.objectives.gate import Gate, GateConfig
from logitcache.students.fake_quant import FakeQuantConfig, fake_quantize
from tests.objectives import feature_reference as reference
from tests.objectives.features import maps, noise, outputs_of, targets_of, tokens, vector
from tests.objectives.test_match import first

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import Features

ROWS = 3
NOISE = torch.tensor([[0.4, -3.0], [2.0, 0.1], [-0.2, 1.5]], dtype=torch.float64)
"""Of every row and pair; some of the gates below are closed by it."""


def gated(student: dict[str, Features], teacher: dict[str, Features], **config: Any) -> Gate:
    """Return the loss with its queries and keys, in float64."""
    torch.manual_seed(0)
    pairs = [{"teacher": "t", "tap": tap} for tap in teacher]
    gate = Gate(GateConfig.parse({"pairs": pairs, "width": 4, **config}, "gate"))
    one = [{tap: first(held) for tap, held in side.items()} for side in (student, teacher)]
    gate.fit(outputs_of(**one[0]), targets_of(**one[1]))
    return gate.double()


def layers() -> tuple[dict[str, Tensor], dict[str, Features]]:
    """Return maps of a student and of a teacher at two layers, of other widths and sides."""
    student = {"a": noise(ROWS, 3, 4, 4, seed=0), "b": noise(ROWS, 2, 2, 2, seed=1)}
    teacher = {"a": noise(ROWS, 5, 2, 2, seed=2), "b": noise(ROWS, 4, 2, 2, seed=3)}
    return student, {tap: maps(values) for tap, values in teacher.items()}


def as_rows(values: Tensor) -> list[reference.Row]:
    """Return the positions of every map (B, D, H, W), each with its channels."""
    found: list[reference.Row] = values.flatten(2).transpose(1, 2).tolist()
    return found


def normed(rows: list[reference.Vector]) -> list[reference.Vector]:
    """Batch norm without scale and offset, of the rows of a batch."""
    columns = []
    for column in zip(*rows, strict=True):
        mean = math.fsum(column) / len(column)
        variance = math.fsum((x - mean) ** 2 for x in column) / len(column)
        columns.append([(x - mean) / math.sqrt(variance + 1e-5) for x in column])
    return [list(row) for row in zip(*columns, strict=True)]


def by_loops(
    gate: Gate, student: dict[str, Tensor], teacher: dict[str, Features], noisy: bool = True
) -> tuple[list[list[float]], list[list[float]]]:
    """Return the probabilities of the gates, and the distances of the maps, by row and pair."""
    state = {name: value.tolist() for name, value in gate.state_dict().items()}
    probabilities = [[0.0] * len(student) for _ in range(ROWS)]
    distances = [[0.0] * len(student) for _ in range(ROWS)]
    for index, tap in enumerate(student):
        ours, theirs = as_rows(student[tap]), as_rows(teacher[tap].values)

        def projected(side: str, rows: list[reference.Row], index: int = index) -> reference.Row:
            means = [[math.fsum(c) / len(row) for c in zip(*row, strict=True)] for row in rows]
            name = f"{side}.{index}.0"
            linear = reference.linear(means, state[f"{name}.weight"], state[f"{name}.bias"])
            return normed(linear)

        queries = projected("queries", theirs)
        keys = reference.relu(projected("keys", ours))
        for n in range(ROWS):
            score = reference.dot(queries[n], keys[n]) / math.sqrt(4)
            score += NOISE[n, index].item() if noisy else 0.0
            probabilities[n][index] = 1 / (1 + math.exp(-score))
            energies = [
                [[math.fsum(x * x for x in p) / len(p)] for p in row]
                for row in (ours[n], theirs[n])
            ]
            if len(energies[0]) > len(energies[1]):
                energies[0] = reference.pool(energies[0], 2)
            mine, wanted = ([e[0] for e in energy] for energy in energies)
            mine, wanted = (
                [e / reference.length(energy) for e in energy] for energy in (mine, wanted)
            )
            off = [(x - y) ** 2 for x, y in zip(mine, wanted, strict=True)]
            distances[n][index] = math.fsum(off) / len(off)
    return probabilities, distances


def weighted(weights: list[list[float]], distances: list[list[float]]) -> float:
    both = zip(weights, distances, strict=True)
    return math.fsum(w * d for a, b in both for w, d in zip(a, b, strict=True)) / ROWS


def test_value_and_straight_through_gradient_are_those_of_the_plain_loops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient is that of open gates times distances, and of probabilities times distances."""
    monkeypatch.setattr(gate_module, "_gumbel", lambda _: NOISE)
    student, teacher = layers()
    gate = gated({tap: maps(values) for tap, values in student.items()}, teacher)
    probabilities, distances = by_loops(gate, student, teacher)
    hard = [[float(p > 0.5) for p in row] for row in probabilities]
    assert 0 < sum(map(sum, hard)) < 6, "some gates are open and some are closed"
    for values in student.values():
        values.requires_grad_()
    loss = gate(outputs_of(**{t: maps(v) for t, v in student.items()}), targets_of(**teacher))
    assert loss.item() == pytest.approx(weighted(hard, distances), rel=1e-9)
    got = torch.autograd.grad(loss, [*student.values()])
    fixed = {tap: values.detach() for tap, values in student.items()}
    for tap, gradient in zip(student, got, strict=True):

        def surrogate(at: Tensor, tap: str = tap) -> float:
            soft, off = by_loops(gate, {**fixed, tap: at}, teacher)
            return weighted(hard, off) + weighted(soft, distances)

        expected = reference.gradient(surrogate, fixed[tap])
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8, msg=tap)


def test_gates_are_zero_or_one_and_other_rows_and_steps_have_others() -> None:
    student, teacher = layers()
    many = {tap: maps(values.repeat(40, 1, 1, 1)) for tap, values in student.items()}
    theirs = {tap: maps(held.values.repeat(40, 1, 1, 1)) for tap, held in teacher.items()}
    gate = gated(many, theirs)
    drawn = [gate.gates([*many.values()], [*theirs.values()]).detach() for _ in range(2)]
    for gates in drawn:
        assert set(gates.flatten().tolist()) == {0.0, 1.0}
    assert not torch.equal(*drawn)


def test_a_gate_opens_as_often_as_its_score_with_one_gumbel_number_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P(score + g > 0) = 1 - exp(-exp(score)) for the standard Gumbel distribution."""
    torch.manual_seed(0)
    for score in (-1.0, 0.0, 1.0):
        scores = torch.full((20000,), score, dtype=torch.float64)
        share = float((scores + gate_module._gumbel(scores) > 0).double().mean())
        assert share == pytest.approx(1 - math.exp(-math.exp(score)), abs=0.015)
    student, teacher = layers()
    ours = {tap: maps(values) for tap, values in student.items()}
    gate = gated(ours, teacher)
    monkeypatch.setattr(gate_module, "_gumbel", torch.zeros_like)
    quiet = gate.gates([*ours.values()], [*teacher.values()])
    expected, _ = by_loops(gate, student, teacher, noisy=False)
    assert (quiet > 0.5).tolist() == [[p > 0.5 for p in row] for row in expected]


def test_a_pair_with_the_same_energy_has_no_loss() -> None:
    values = noise(ROWS, 3, 2, 2, seed=4)
    gate = gated({"a": maps(values)}, {"a": maps(5.0 * values)})
    for layer in gate.queries:
        torch.nn.init.zeros_(layer[1].weight)  # type: ignore[index]  # a Sequential
        torch.nn.init.ones_(layer[1].bias)  # type: ignore[index]  # a Sequential
    loss = gate(outputs_of(a=maps(values)), targets_of(a=maps(5.0 * values)))
    assert loss.item() == pytest.approx(0, abs=1e-15)


WHOLE = maps(noise(ROWS, 3, 2, 2, seed=8))


@pytest.mark.parametrize(
    ("student", "teacher", "hint"),
    [
        (WHOLE, vector(noise(ROWS, 3, seed=5)), "another layer of the teacher"),
        (WHOLE, maps(noise(ROWS, 1, 2, 2, seed=6), reduction="energy"), "without reduce"),
        (
            WHOLE,
            tokens(noise(ROWS, 2, 3, seed=7), grid=2, positions=torch.tensor([[0, 1]] * ROWS)),
            "without reduce and tokens",
        ),
        (vector(noise(ROWS, 3, seed=5)), WHOLE, "a student layer with maps"),
    ],
)
def test_what_is_not_a_whole_map_is_refused(
    student: Features, teacher: Features, hint: str
) -> None:
    with pytest.raises(UsageError, match="do not fit the cached activations") as caught:
        gated({"a": student}, {"a": teacher})
    assert hint in str(caught.value.hint)


def test_without_fit_the_error_describes_what_is_missing() -> None:
    student, teacher = layers()
    gate = Gate(GateConfig.parse({"teacher": "t", "tap": "a"}, "gate"))
    with pytest.raises(UsageError, match="call fit"):
        gate(outputs_of(a=maps(student["a"])), targets_of(**teacher))


class Small(torch.nn.Module):
    """A network of images of 8 x 8 gray values with two convolutions and four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self._layer(1, 8, 1)
        self.two = self._layer(8, 16, 2)
        self.classifier = torch.nn.Linear(16, 4)

    @staticmethod
    def _layer(channels: int, wanted: int, stride: int) -> torch.nn.Sequential:
        convolution = torch.nn.Conv2d(channels, wanted, 3, stride, padding=1, bias=False)
        return torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(wanted), torch.nn.ReLU())

    def get_classifier(self) -> torch.nn.Module:
        return self.classifier

    def forward(self, images: Tensor) -> Outputs:
        one = self.one(images)
        two = self.two(one)
        return Outputs(self.classifier(two.mean((2, 3))), {"one": maps(one), "two": maps(two)})


def shapes_in_noise(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images with the 3 x 3 shape of their class at any place, and the classes."""
    shapes = 1.5 * torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    classes = torch.randint(0, 4, (count,), generator=generator)
    images = 0.8 * torch.randn(count, 1, 8, 8, generator=generator)
    for image, label in zip(images, classes.tolist(), strict=True):
        row, column = torch.randint(0, 6, (2,), generator=generator).tolist()
        image[0, row : row + 3, column : column + 3] += shapes[label]
    return images, classes


def fitted(
    network: torch.nn.Module,
    images: Tensor,
    labels: Tensor,
    terms: list[object],
    steps: int,
    teacher: torch.nn.Module | None = None,
) -> torch.nn.Module:
    """Train a network with some terms, labels of which may be -1, and return it."""
    loss = build_objective([ObjectiveConfig.model_validate(term) for term in terms])
    generator = torch.Generator().manual_seed(0)

    def targets(rows: Tensor) -> TargetBatch:
        with torch.no_grad():
            held = {} if teacher is None else teacher(images[rows]).features
        features = {f"t/{tap}": features for tap, features in held.items()}
        return TargetBatch(rows, labels[rows], {}, features=features)

    loss.fit(network.eval()(images[:1]), targets(torch.arange(1)))
    network.train()
    optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=0.01)
    for _ in range(steps):
        rows = torch.randint(0, len(images), (64,), generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(loss(network(images[rows]), targets(rows)))
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("seed", range(3))
def test_with_few_labels_four_bits_with_gates_are_better_than_four_bits_alone(seed: int) -> None:
    """Eight labels of 800 images; the student is the rounded copy of its teacher, as in GHOST."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(10 + seed)
    images, classes = shapes_in_noise(800, generator)
    others, theirs = shapes_in_noise(1000, generator)
    teacher = fitted(Small(), images, classes, ["label"], 200)
    pairs = [{"teacher": "t", "tap": "one"}, {"teacher": "t", "tap": "two"}]
    gates: dict[str, object] = {"gate": {"weight": 400, "width": 16, "pairs": pairs}}

    def accuracy(shown: int, terms: list[object]) -> float:
        """Return that of a copy in four bits that is trained with the first images."""
        copy = Small()
        copy.load_state_dict(teacher.state_dict())
        config = FakeQuantConfig(bits=4, activations=4, rescale=False)
        copy = fake_quantize(copy, config, NetworkConfig(model="-"))  # type: ignore[assignment]
        few = torch.where(torch.arange(shown) < 8, classes[:shown], -1)
        torch.manual_seed(seed)
        student = fitted(copy, images[:shown], few, terms, 60, teacher)
        with torch.no_grad():
            return float((student(others).logits.argmax(1) == theirs).double().mean())

    assert accuracy(800, ["label", gates]) > accuracy(8, ["label"]) + 0.05
