from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.encoding.budget import (
    Limit,
    candidates,
    choose_within,
    parse_budget,
    parse_max_kl,
)
from logitcache.encoding.fidelity import measure_fidelity
from logitcache.errors import UsageError
from tests.encoding.strategies import log_probs_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import ArraySpec, Encoded

CLASSES = 60
_SETS = ((1.0,), (2.0,), (4.0,), (1.0, 2.0, 4.0))


def sample() -> NDArray[np.float64]:
    z = 3 * np.random.default_rng(0).normal(size=(48, CLASSES))
    return log_probs_of(z.astype(np.float32))


def packed(specs: dict[str, ArraySpec], encoded: Encoded) -> float:
    """The bits that differ among a column's values: a stand-in for a compressor."""
    total = 0.0
    for name, spec in specs.items():
        bits = np.log2(len(np.unique(encoded[name])))
        total += float(bits) / 8 * spec.row_bytes * len(encoded[name])
    return total


def test_within_a_budget_the_closest() -> None:
    chosen = choose_within(Limit(row_bytes=40), sample(), packed, "t")
    assert chosen.row_bytes <= 40
    for other in candidates(CLASSES):
        if packed(other.specs(), other.encode(sample())) / 48 <= 40:
            assert measure_fidelity(other, sample()).kl(1.0) >= chosen.fidelity.kl(1.0)


def test_a_larger_budget_is_never_worse() -> None:
    losses = [
        choose_within(Limit(row_bytes=budget), sample(), packed, "t").fidelity.kl(1.0)
        for budget in (15, 25, 40, 80)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_below_a_loss_the_smallest() -> None:
    loose = choose_within(Limit(kl=0.2), sample(), packed, "t")
    strict = choose_within(Limit(kl=0.02), sample(), packed, "t")
    assert loose.fidelity.kl(1.0) <= 0.2
    assert strict.fidelity.kl(1.0) <= 0.02
    assert loose.row_bytes < strict.row_bytes


def test_a_limit_at_another_temperature() -> None:
    chosen = choose_within(Limit(kl=0.05, temperatures=(4.0,)), sample(), packed, "t")
    assert chosen.fidelity.kl(4.0) <= 0.05


def test_a_limit_at_several_temperatures_is_met_at_each() -> None:
    at = {t: choose_within(Limit(kl=0.05, temperatures=t), sample(), packed, "t") for t in _SETS}
    everywhere = at[_SETS[-1]]
    assert max(everywhere.fidelity.kl(t) for t in (1.0, 2.0, 4.0)) <= 0.05
    assert everywhere.row_bytes >= max(choice.row_bytes for choice in at.values())


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (Limit(row_bytes=1), "fits into the byte budget"),
        (Limit(kl=1e-12), "meets the limit of the KL divergence"),
        (Limit(row_bytes=15, kl=0.001), "with 1"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_an_error(limit: Limit, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_within(limit, sample(), packed, "t")


def test_what_a_user_writes() -> None:
    assert [parse_budget(text) for text in ("80B", "80 B", "12.5")] == [80, 80, 12.5]
    assert parse_max_kl("0.05@T=1") == (0.05, (1.0,))
    assert parse_max_kl(".1@T=2.5") == (0.1, (2.5,))
    assert parse_max_kl("1e-3") == (0.001, (1.0,))
    assert parse_max_kl("0.03@T=1,2,4") == (0.03, (1.0, 2.0, 4.0))
    for wrong in ("80KB", "-1", "0B", ""):
        with pytest.raises(ValueError, match="80B"):
            parse_budget(wrong)
    for wrong in ("0.05@1", "x", "0", "0.1@T=0", "0.1@T=1,", "0.1@T=1,0"):
        with pytest.raises(ValueError, match="T=1"):
            parse_max_kl(wrong)
