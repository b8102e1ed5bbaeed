from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from logitcache.encoding.choice import EncodingConfig, choose
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.kinds import parse_encoding
from logitcache.encoding.logits import label_log_probs, log_softmax, non_finite_rows
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheError


@pytest.mark.requirement("F7.3")
@pytest.mark.parametrize(
    ("config", "classes", "expected"),
    [
        ({}, 10, DenseEncoding(10)),
        ({}, 256, DenseEncoding(256)),
        ({}, 257, SparseEncoding(257, 50, bits=5, relative=True)),
        ({"top_k": 20}, 120, SparseEncoding(120, 20, bits=5, relative=True)),
        ({"top_k": 10}, 10, DenseEncoding(10)),
        ({"top_k": 11}, 10, DenseEncoding(10)),
        ({"kind": "dense"}, 1000, DenseEncoding(1000)),
        ({"kind": "sparse"}, 100, SparseEncoding(100, 50, bits=5, relative=True)),
        ({"kind": "dense", "dense_values": "uint8"}, 9, DenseEncoding(9, "uint8")),
        ({"top_k": 5, "bits": 4}, 9, SparseEncoding(9, 5, bits=4, relative=True)),
        ({"top_k": 5, "bits": 8}, 9, SparseEncoding(9, 5)),
        ({"top_k": 5, "sparse_values": "float16"}, 9, SparseEncoding(9, 5, "float16", 5)),
    ],
)
def test_dense_where_sparse_would_gain_nothing(
    config: dict[str, Any], classes: int, expected: object
) -> None:
    assert choose(EncodingConfig(**config), classes) == expected


@pytest.mark.parametrize("relative", [False, True])
def test_codes_of_a_stored_teacher_stay_as_they_are(relative: bool) -> None:
    stored = SparseEncoding(1000, 50, bits=5, relative=relative)
    assert choose(EncodingConfig(), 1000, stored) == stored
    assert choose(EncodingConfig(bits=5), 1000, stored) == stored


@pytest.mark.parametrize(
    "encoding",
    [
        DenseEncoding(9),
        DenseEncoding(9, "uint8"),
        SparseEncoding(9, 3, bits=5),
        SparseEncoding(9, 3, bits=5, relative=True),
        SparseEncoding(9, 3, "float16"),
        SparseEncoding(9, 3, mass=0.99),
    ],
)
def test_an_encoding_survives_json(encoding: SparseEncoding | DenseEncoding) -> None:
    assert parse_encoding(encoding.to_json(), 9, "here") == encoding


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "wavelet"},
        {},
        {"kind": "sparse"},
        {"kind": "sparse", "top_k": 3, "values": "codes", "mass": 2.0},
        {"kind": "sparse", "top_k": 3, "values": "codes", "relative": 1},
        {"kind": "sparse", "top_k": 3, "values": "float16", "relative": True},
    ],
)
def test_an_unknown_encoding_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(CacheError, match="encoding"):
        parse_encoding(values, 9, "here")


@pytest.mark.requirement("F6.1")
def test_log_softmax_is_exact_far_from_zero() -> None:
    z = np.array([[1000.0, 999.0], [-1e30, 0.0]], dtype=np.float32)
    log_probs, lse = log_softmax(z)
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1)
    np.testing.assert_allclose(log_probs + lse[:, None], z)


@pytest.mark.requirement("F6.1")
def test_rows_that_are_not_finite_are_found() -> None:
    z = np.zeros((4, 3), dtype=np.float32)
    z[1, 2], z[3, 0] = np.nan, np.inf
    assert non_finite_rows(z).tolist() == [1, 3]


def test_rows_without_a_label_have_no_log_probability() -> None:
    log_probs = np.log(np.array([[0.2, 0.8], [0.5, 0.5]]))
    got = label_log_probs(log_probs, np.array([1, -1], dtype=np.int32))
    assert got[0] == pytest.approx(np.log(0.8), rel=1e-3)
    assert np.isnan(got[1])
