"""Every shipped encoding of logits passes the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.testing import EncodingContract

if TYPE_CHECKING:
    from logitcache.encoding.kinds import Encoding


class TestEncodings(EncodingContract):
    @pytest.fixture(
        params=[
            DenseEncoding(20),
            DenseEncoding(20, "uint8"),
            SparseEncoding(20, 4),
            SparseEncoding(20, 4, bits=5),
            SparseEncoding(20, 4, "float16"),
            SparseEncoding(20, 8, mass=0.9),
            SparseEncoding(70_000, 3),
        ],
        ids=repr,
    )
    def encoding(self, request: pytest.FixtureRequest) -> Encoding:
        found: Encoding = request.param
        return found
