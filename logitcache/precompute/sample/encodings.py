"""Encodings of a sample of teacher outputs: bytes, losses and times of each.

Shapes: N rows, C classes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.arrays import pack, packed_bytes, unpack
from logitcache.cache.format.groups import OPTIONAL_ARRAYS
from logitcache.encoding.choice import choose, choose_on_sample, fits_basis, held_out
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.feature_fidelity import feature_fidelity_of, row_feature_losses
from logitcache.encoding.fidelity import add_up, measure_fidelity
from logitcache.encoding.heads import HEADS
from logitcache.encoding.logits import label_log_probs
from logitcache.encoding.sigmoid import SigmoidEncoding
from logitcache.encoding.sparse import SparseEncoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import ArraySpec, Encoded
    from logitcache.encoding.choice import EncodingConfig
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.encoding.kinds import Encoding

__all__ = ["EncodedFeatures", "EncodedOutputs"]

_TOP_KS = (10, 20, 50, 100, 200)
_BITS = (8, 5)


class EncodedOutputs:
    """Outputs of one teacher for a sample, and their measurements in several encodings.

    Args:
        config: Configured encoding.
        name: Name of the teacher.
        logits_NC: Raw logits.
        labels_N: Labels, -1 for rows without one; None if the image set has no labels.
        head: Head of the teacher.

    Attributes:
        accuracy: Accuracy on the labeled rows; None without labels.
        chosen: Encoding that the configuration results in.
        tried: Encodings to compare, including the chosen one.
        store: Seconds per row to encode and compress with the chosen encoding.
        fetch: Seconds per row to decompress, gather and decode with the chosen encoding.
    """

    def __init__(
        self,
        config: EncodingConfig,
        name: str,
        logits_NC: NDArray[np.float32],
        labels_N: NDArray[np.int32] | None,
        head: str = "softmax",
    ) -> None:
        self._log_probs_NC, lse_N = HEADS[head].normalize(logits_NC)
        self._extra: Encoded = {}
        one_class = head == "softmax"
        if config.lse and one_class:
            self._extra["lse"] = lse_N.astype(np.float32)
        if config.label_log_probs and one_class and labels_N is not None:
            self._extra["label_logp"] = label_log_probs(self._log_probs_NC, labels_N)
        self.accuracy = None if labels_N is None else _accuracy(logits_NC, labels_N)
        self.chosen = self._choose(config, name, head)
        if fits_basis(config, self.chosen.num_classes):
            rest_N = held_out(len(lse_N))
            self._log_probs_NC = self._log_probs_NC[rest_N]
            self._extra = {array: numbers[rest_N] for array, numbers in self._extra.items()}
        self.tried = _tried(self.chosen)
        self.store, self.fetch = self._seconds()

    def specs(self, encoding: Encoding) -> dict[str, ArraySpec]:
        """Return the arrays of the group by name."""
        return encoding.specs() | {name: OPTIONAL_ARRAYS[name] for name in self._extra}

    def row_bytes(self, encoding: Encoding) -> float:
        """Return the compressed bytes per row and view."""
        encoded = {**encoding.encode(self._log_probs_NC), **self._extra}
        return packed_bytes(self.specs(encoding), encoded) / len(self._log_probs_NC)

    def fidelity(self, encoding: Encoding) -> dict[str, Any]:
        """Return the losses of an encoding, as ``docs/format.md`` defines them."""
        return measure_fidelity(encoding, self._log_probs_NC).to_json()

    def _choose(self, config: EncodingConfig, name: str, head: str) -> Encoding:
        if not config.is_fitted:
            return choose(config, self._log_probs_NC.shape[1], head=head)
        where = f"teacher {name!r}"
        return choose_on_sample(config, self._log_probs_NC, packed_bytes, where).encoding

    def _seconds(self) -> tuple[float, float]:
        rows, specs = len(self._log_probs_NC), self.specs(self.chosen)
        started = time.perf_counter()
        encoded = {**self.chosen.encode(self._log_probs_NC), **self._extra}
        packed = pack(specs, encoded)
        stored = time.perf_counter()
        self.chosen.decode(_gathered(unpack(specs, packed), rows))
        return (stored - started) / rows, (time.perf_counter() - stored) / rows


class EncodedFeatures:
    """Features of one layer for a sample, and their measurements in the configured encoding.

    Args:
        encoding: Encoding of the features.
        rows_N: Reduced features, float32 (N, ...).

    Attributes:
        encoding: Encoding of the features.
        row_bytes: Bytes per row and view, after compression if the encoding compresses.
        fidelity: Losses of the encoding, as ``docs/format.md`` defines them.
        store: Seconds per row to encode and compress.
        fetch: Seconds per row to decompress, gather and decode.
    """

    def __init__(self, encoding: FeatureEncoding, rows_N: NDArray[np.float32]) -> None:
        self.encoding, specs, rows = encoding, encoding.specs(), len(rows_N)
        started = time.perf_counter()
        packed = pack(specs, encoding.encode(rows_N))
        stored = time.perf_counter()
        arrays = unpack(specs, packed)
        encoding.decode(_gathered(arrays, rows))
        self.store, self.fetch = (stored - started) / rows, (time.perf_counter() - stored) / rows
        self.row_bytes = sum(len(content) for content in packed.values()) / rows
        whole = rows_N if encoding.principal is None else None
        losses = row_feature_losses(rows_N, encoding.decode(arrays), whole)
        self.fidelity = feature_fidelity_of(add_up([losses])).to_json()


def _gathered(arrays: Encoded, rows: int) -> Encoded:
    """Return the rows in a random order, as the training of a student gathers them."""
    order = np.random.default_rng(0).permutation(rows)
    return {name: array[order] for name, array in arrays.items()}


def _accuracy(logits_NC: NDArray[np.float32], labels_N: NDArray[np.int32]) -> float | None:
    known = labels_N >= 0
    right = logits_NC.argmax(axis=1)[known] == labels_N[known]
    return float(right.mean()) if known.any() else None


def _tried(chosen: Encoding) -> list[Encoding]:
    classes = chosen.num_classes
    if isinstance(chosen, SigmoidEncoding):
        return [SigmoidEncoding(classes, "uint8"), SigmoidEncoding(classes)]
    tried: list[Encoding] = [
        SparseEncoding.new(classes, top_k, bits=bits)
        for top_k in _TOP_KS
        if top_k < classes
        for bits in _BITS
    ]
    tried += [DenseEncoding(classes, "uint8"), DenseEncoding(classes)]
    return tried if chosen in tried else [chosen, *tried]
