from __future__ import annotations

import math

import numpy as np
import pytest

from logitcache.encoding.feature_fidelity import feature_fidelity_of, row_feature_losses
from logitcache.encoding.features import FeatureEncoding
from logitcache.encoding.fidelity import add_up
from logitcache.encoding.principal_components import Principal

ROWS, TOKENS, CHANNELS = 12, 5, 16


def features(seed: int = 0) -> np.ndarray:
    """Tokens whose channels have falling energy, as networks' have."""
    generator = np.random.default_rng(seed)
    scale = 1.5 ** -np.arange(CHANNELS)
    return (generator.normal(size=(ROWS, TOKENS, CHANNELS)) * scale).astype(np.float32)


def stored(encoding: FeatureEncoding, rows: np.ndarray) -> np.ndarray:
    return encoding.decode(encoding.encode(rows))


def plain_loops(exact: np.ndarray, reduced: np.ndarray, kept: np.ndarray) -> dict[str, float]:
    energy = errors = reductions = codings = gradients = student_gradients = cosines = 0.0
    for row in range(len(exact)):
        dot = own = other = 0.0
        triples = zip(exact[row].flat, reduced[row].flat, kept[row].flat, strict=True)
        for e, r, s in triples:
            a, b, c = float(e), float(r), float(s)
            energy += a * a
            errors += (c - a) ** 2
            reductions += (b - a) ** 2
            codings += (c - b) ** 2
            student = 0.6 * a
            gradients += (2 * (student - a)) ** 2
            student_gradients += (2 * (student - c) - 2 * (student - a)) ** 2
            dot, own, other = dot + a * c, own + a * a, other + c * c
        cosines += dot / math.sqrt(own * other)
    return {
        "reduction": math.sqrt(reductions / energy),
        "coding": math.sqrt(codings / energy),
        "error": math.sqrt(errors / energy),
        "cosine": cosines / len(exact),
        "gradient": math.sqrt(student_gradients / gradients),
    }


@pytest.mark.requirement("F13.4", "F13.5")
def test_it_is_that_of_the_plain_loops() -> None:
    exact = features()
    flat = exact.reshape(-1, CHANNELS).astype(np.float64)
    principal = Principal.fit(flat, 4)
    coordinates = ((exact - principal.mean) @ principal.basis).astype(np.float32)
    encoding = FeatureEncoding("NLC", (TOKENS, 4), "int8", principal=principal)
    reduced, kept = (
        rows @ principal.basis.T + principal.mean
        for rows in (coordinates, stored(encoding, coordinates))
    )
    found = feature_fidelity_of(add_up([row_feature_losses(exact, kept, reduced)]))
    expected = plain_loops(exact, reduced, kept)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name
    assert found.rows == ROWS
    assert found.reduction is not None
    assert 0 < found.coding < found.reduction < found.error < 0.5


def test_finer_codes_lose_less() -> None:
    exact = features()
    found = [
        feature_fidelity_of(add_up([row_feature_losses(exact, stored(encoding, exact), exact)]))
        for encoding in (
            FeatureEncoding("NLC", (TOKENS, CHANNELS), "float16"),
            FeatureEncoding("NLC", (TOKENS, CHANNELS), "bfloat16"),
            FeatureEncoding("NLC", (TOKENS, CHANNELS), "int8"),
        )
    ]
    assert [f.reduction for f in found] == [0, 0, 0]
    assert found[0].error < found[1].error < found[2].error < 0.02
    assert found[0].cosine > found[1].cosine > found[2].cosine > 0.9999


def test_sums_do_not_depend_on_how_rows_come() -> None:
    exact = features()
    rounded = exact.astype(np.float16)
    whole = add_up([row_feature_losses(exact, rounded)])
    parts = [row_feature_losses(e[None], r[None]) for e, r in zip(exact, rounded, strict=True)]
    assert add_up(reversed(parts)) == whole


@pytest.mark.requirement("F13.5")
def test_nothing_lost_of_nothing() -> None:
    zeros = np.zeros((2, 3), dtype=np.float32)
    found = feature_fidelity_of(add_up([row_feature_losses(zeros, zeros)]))
    assert (found.error, found.cosine, found.gradient) == (0, 1, 0)
    gone = feature_fidelity_of(add_up([row_feature_losses(zeros + 1, zeros)]))
    assert (gone.error, gone.cosine, gone.reduction) == (1, 0, None)
