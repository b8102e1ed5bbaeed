"""Few-shot episodes: one half of a batch is classified by the class means of the other half."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.batch import TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.episode import Episode, EpisodeConfig
from tests.objectives import feature_reference as reference
from tests.objectives.features import noise, outputs_of, vector

if TYPE_CHECKING:
    from torch import Tensor

LABELS = [2, 0, 0, 2, -1, 1, 5, 0, 2, 5, 0]
"""Labeled rows in turn: support 2, 0, 1, 0, 5 and queries 0, 2, 5, 2, 0."""


def episode(**config: object) -> Episode:
    return Episode(EpisodeConfig.parse({"student": "x", "scale": 7.0, **config}, "episode"))


def targets(labels: list[int], **fields: Any) -> TargetBatch:
    return TargetBatch(torch.arange(len(labels)), torch.tensor(labels), {}, **fields)


def by_loops(vectors: Tensor, labels: list[int], scale: float) -> float:
    """The loss, over Python floats."""
    units = [[x / reference.length(row) for x in row] for row in vectors.tolist()]
    labeled = [i for i, label in enumerate(labels) if label >= 0]
    support, queries = labeled[0::2], labeled[1::2]
    means: dict[int, list[float]] = {}
    for label in {labels[i] for i in support}:
        own = [units[i] for i in support if labels[i] == label]
        means[label] = [math.fsum(column) / len(own) for column in zip(*own, strict=True)]
    losses = []
    for i in queries:
        if labels[i] in means:
            z = {c: scale * reference.dot(units[i], mean) for c, mean in means.items()}
            losses.append(math.log(math.fsum(math.exp(v) for v in z.values())) - z[labels[i]])
    return math.fsum(losses) / len(losses)


def test_value_and_gradient_are_those_of_the_plain_loops() -> None:
    x = noise(len(LABELS), 4, seed=0)

    def loop(x: Tensor) -> float:
        return by_loops(x, LABELS, 7.0)

    x.requires_grad_()
    loss = episode()(outputs_of(x=vector(x)), targets(LABELS))
    assert loss.item() == pytest.approx(loop(x.detach()), rel=1e-12)
    (got,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(got, reference.gradient(loop, x.detach()), rtol=1e-6, atol=1e-8)


def test_lengths_of_vectors_and_numbers_of_classes_change_nothing() -> None:
    x = noise(len(LABELS), 4, seed=1)
    longer = x * torch.linspace(0.1, 9, len(LABELS), dtype=torch.float64)[:, None]
    renamed = targets([{2: 0, 0: 7, 1: 3, 5: 1}.get(label, -1) for label in LABELS])
    losses = [
        episode()(outputs_of(x=vector(values)), batch)
        for values, batch in ((x, targets(LABELS)), (longer, targets(LABELS)), (x, renamed))
    ]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def test_rows_without_a_part_have_no_gradient_and_are_not_counted() -> None:
    """Queries of classes without support, and rows without a label."""
    labels = [0, 1, 0, 0, -1, 1]  # support 0, 0, 1 and queries 1, 0
    x = noise(6, 3, seed=2).requires_grad_()
    batch = targets([*labels[:5], 0])  # support 0, 0, 0 and queries 1 and 0
    loss = episode()(outputs_of(x=vector(x)), batch)
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.norm(dim=1).gt(0).tolist() == [False] * 6, "one class has no loss"
    assert episode().count(batch) == 1
    assert episode().count(targets(labels)) == 2


def test_without_any_query_it_is_zero() -> None:
    x = noise(3, 3, seed=3).requires_grad_()
    loss = episode()(outputs_of(x=vector(x)), targets([-1, 4, -1]))
    torch.autograd.backward(loss)
    assert loss.item() == 0
    assert episode().count(targets([-1, 4, -1])) == 0


@pytest.mark.parametrize(
    "fields", [{"label_sets": torch.zeros(2, 3)}, {"lam": torch.ones(2), "partner_labels": None}]
)
def test_several_labels_of_an_image_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="class means need images with one label each"):
        episode()(outputs_of(x=vector(noise(2, 3, seed=4))), targets([0, 0], **fields))
