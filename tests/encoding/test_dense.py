from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given

from logitcache.encoding.dense import DenseEncoding
from tests.encoding.strategies import log_probs_of, logits

if TYPE_CHECKING:
    from numpy.typing import NDArray


@pytest.mark.requirement("F7.1")
@given(z=logits())
def test_float16_keeps_eleven_bits(z: NDArray[np.float32]) -> None:
    exact = log_probs_of(z)
    encoding = DenseEncoding(z.shape[1])
    decoded = encoding.decode(encoding.encode(exact)).log_probs
    assert (abs(decoded - exact) <= 2.0**-10 * abs(exact) + 2e-3).all()


@pytest.mark.requirement("F7.2")
@given(z=logits())
def test_bytes_are_within_half_a_level(z: NDArray[np.float32]) -> None:
    exact = log_probs_of(z)
    encoding = DenseEncoding(z.shape[1], "uint8")
    arrays = encoding.encode(exact)
    low, high = arrays["logp_range"].astype(np.float64).T
    assert (low <= exact.min(1)).all()
    assert (high >= exact.max(1)).all()
    raw = low[:, None] + arrays["logp"].astype(np.float64) * ((high - low) / 255)[:, None]
    assert (abs(raw - exact) <= ((high - low) / 510)[:, None] + 1e-9).all()
    decoded = encoding.decode(arrays).log_probs
    np.testing.assert_allclose(np.exp(decoded.astype(np.float64)).sum(1), 1.0, atol=1e-5)


@pytest.mark.parametrize("values", ["float16", "uint8"])
def test_equal_logits_stay_equal(values: str) -> None:
    encoding = DenseEncoding(4, values)  # type: ignore[arg-type]  # parametrized as str
    decoded = encoding.decode(encoding.encode(log_probs_of(np.ones((2, 4), np.float32))))
    np.testing.assert_allclose(decoded.log_probs, np.log(0.25), rtol=1e-6)
