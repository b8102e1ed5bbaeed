"""Contract of an encoding of logits.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.encoding.arrays import filled
from logitcache.encoding.fidelity import measure_fidelity
from logitcache.encoding.kinds import parse_encoding
from logitcache.encoding.logits import log_softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EncodingContract"]


def _rows(num_classes: int, scale: float) -> NDArray[np.float64]:
    generator = np.random.default_rng(num_classes)
    return log_softmax(generator.normal(0, scale, (7, num_classes)).astype(np.float32))[0]


class EncodingContract:
    """Tests that every encoding of logits passes.

    Define a fixture ``encoding`` that returns one.
    """

    @pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
    def test_arrays_are_as_specified(self, encoding: Any, scale: float) -> None:
        """Encoded arrays have the names, shapes and dtypes of ``specs()``, row by row."""
        arrays = encoding.encode(_rows(encoding.num_classes, scale))
        specs = encoding.specs()
        assert arrays.keys() == specs.keys()
        for name, spec in specs.items():
            assert (arrays[name].shape, arrays[name].dtype) == ((7, *spec.shape), spec.dtype)

    @pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
    def test_rows_do_not_depend_on_each_other(self, encoding: Any, scale: float) -> None:
        """Each row is encoded alike alone and in a batch, bit for bit."""
        log_probs_NC = _rows(encoding.num_classes, scale)
        whole = encoding.encode(log_probs_NC)
        for row in range(len(log_probs_NC)):
            alone = encoding.encode(log_probs_NC[row : row + 1])
            for name, array in whole.items():
                assert alone[name][0].tobytes() == array[row].tobytes()

    @pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
    def test_what_is_encoded_is_accepted_and_decoded(self, encoding: Any, scale: float) -> None:
        """Encoded rows pass the checks of the encoding and decode to log-probabilities."""
        log_probs_NC = _rows(encoding.num_classes, scale)
        arrays = encoding.encode(log_probs_NC)
        assert encoding.fault_of(arrays) is None
        assert encoding.consistent(arrays, log_probs_NC, np.zeros(7)).all()
        decoded = encoding.decode(arrays)
        assert not np.isnan(decoded.log_probs).any()
        assert (decoded.log_probs <= 1e-6).all()

    def test_what_is_lost_is_measured(self, encoding: Any) -> None:
        """The fidelity of the encoding can be measured; the KL divergence is finite."""
        log_probs_NC = _rows(encoding.num_classes, 3.0)
        fidelity = measure_fidelity(encoding, log_probs_NC)
        assert np.isfinite([fidelity.kl(temperature) for temperature in fidelity.losses]).all()

    def test_it_is_read_back_from_its_attributes(self, encoding: Any) -> None:
        """``to_json()`` describes the encoding completely."""
        assert parse_encoding(encoding.to_json(), encoding.num_classes, "") == encoding

    def test_fill_values_fit_the_arrays(self, encoding: Any) -> None:
        """Rows that are not computed can be represented."""
        for name, array in filled(encoding.specs(), 2).items():
            assert array.dtype == encoding.specs()[name].dtype
