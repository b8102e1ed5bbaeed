"""Prototypes of tokens: assignments, passes, and their start."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from logitcache.objectives.prototypes.table import PrototypeTable
from logitcache.tools.soft_clustering import State, improved, spread_centers


def tokens(count: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, channels)).astype(np.float32)


def shares_by_loops(p: list[float], centers: list[list[float]], scale: float) -> list[float]:
    exps = [
        math.exp(-scale * math.fsum((x - c) ** 2 for x, c in zip(p, center, strict=True)))
        for center in centers
    ]
    return [e / math.fsum(exps) for e in exps]


def test_a_pass_is_the_double_loop_however_the_tokens_are_divided() -> None:
    given, state = tokens(20), State(torch.from_numpy(tokens(4, seed=1)).double(), 0.7)
    centers = state.centers.tolist()
    shares = [shares_by_loops(p, centers, 0.7) for p in given.tolist()]
    log_shares = PrototypeTable.of(state.centers, 0.7).log_shares(torch.from_numpy(given).double())
    np.testing.assert_allclose(log_shares.exp(), shares, rtol=1e-10)
    wanted, distance = [], 0.0
    for k in range(4):
        weight = math.fsum(a[k] for a in shares)
        sums = [
            math.fsum(a[k] * p[e] for a, p in zip(shares, given.tolist(), strict=True))
            for e in range(3)
        ]
        wanted.append([x / weight for x in sums])
        for a, p in zip(shares, given.tolist(), strict=True):
            distance += a[k] * math.fsum((x - c) ** 2 for x, c in zip(p, centers[k], strict=True))
    means = [math.fsum(column) / 20 for column in zip(*given.tolist(), strict=True)]
    variance = math.fsum(
        (x - m) ** 2 for p in given.tolist() for x, m in zip(p, means, strict=True)
    )
    for parts in ([given], np.split(given, [3, 4, 11])):
        found = improved(iter(parts), state)
        np.testing.assert_allclose(found.centers, wanted, rtol=1e-10)
        assert found.explained == pytest.approx(1 - distance / variance, rel=1e-9)
        assert found.passes == 1


def test_no_pass_increases_the_free_energy() -> None:
    given = tokens(300, channels=4, seed=2)
    centers, distance = spread_centers(given, 6, seed=0)
    state = State(torch.from_numpy(centers), 5 / distance)
    energies = []
    for _ in range(12):
        squares = np.square(given[:, None] - state.centers.numpy()[None]).sum(2)
        energies.append(-np.log(np.exp(-state.scale * squares).sum(1)).mean() / state.scale)
        state = improved(iter([given]), state)
    assert np.diff(energies).max() <= 1e-12
    assert energies[-1] < energies[0] - 0.01


def test_planted_clusters_are_found() -> None:
    """The start chooses one token of each, and passes move it to the mean."""
    planted = 20 * np.eye(5, dtype=np.float32)
    given = (planted[:, None] + tokens(5 * 40, 5, seed=3).reshape(5, 40, 5)).reshape(-1, 5)
    centers, distance = spread_centers(given, 5, seed=0)
    state = State(torch.from_numpy(centers), 5 / distance)
    for _ in range(5):
        state = improved(iter([given]), state)
    means = given.reshape(5, 40, 5).mean(1)
    nearest = np.square(state.centers.numpy()[:, None] - means[None]).sum(2)
    assert sorted(nearest.argmin(1).tolist()) == list(range(5))
    assert nearest.min(1).max() < 0.01
    assert state.explained > 0.9


def test_a_prototype_without_tokens_stays_where_it_is() -> None:
    far = torch.tensor([[0.0, 0.0], [1e3, 0.0]], dtype=torch.float64)
    found = improved(iter([tokens(10, 2, seed=4)]), State(far, 1.0))
    assert found.centers[1].tolist() == [1e3, 0.0]
    assert found.centers.isfinite().all()


def test_equal_tokens_are_a_start_too() -> None:
    centers, distance = spread_centers(np.ones((6, 2), dtype=np.float32), 3, seed=0)
    assert centers.tolist() == [[1.0, 1.0]] * 3
    assert distance == 0
