"""Every shipped encoding of logits passes the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sigmoid import SigmoidEncoding
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.transform import TransformEncoding
from logitcache.testing import EncodingContract

if TYPE_CHECKING:
    from logitcache.encoding.kinds import Encoding

NOISE = np.random.default_rng(0).normal(0, 2, (60, 20)).astype(np.float32)
BASIS = Basis.of(principal_directions(log_softmax(NOISE)[0]), step=1.0)


class TestEncodings(EncodingContract):
    @pytest.fixture(
        params=[
            DenseEncoding(20),
            DenseEncoding(20, "uint8"),
            SparseEncoding(20, 4),
            SparseEncoding(20, 4, bits=5),
            SparseEncoding(20, 4, bits=5, relative=True),
            SparseEncoding(20, 4, "float16"),
            SparseEncoding(20, 8, mass=0.9),
            SparseEncoding(70_000, 3),
            SigmoidEncoding(20),
            SigmoidEncoding(20, "uint8"),
            TransformEncoding(20, BASIS, refined=7, fine=2, refined_step=0.5),
            TransformEncoding(20, BASIS, refined=20, fine=20, refined_step=0.5),
            TransformEncoding(20, BASIS, refined=1, fine=0, refined_step=0.5),
        ],
        ids=lambda encoding: str(encoding.settings()),
    )
    def encoding(self, request: pytest.FixtureRequest) -> Encoding:
        found: Encoding = request.param
        return found
