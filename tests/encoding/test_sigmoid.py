"""Log-odds of teachers with a sigmoid for each class: stored, decoded, measured."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.cache.format import manifest as manifest_module
from logitcache.cache.format.names import FEATURES
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.write.writer import CacheWriter
from logitcache.encoding.agreement import row_closeness
from logitcache.encoding.arrays import filled
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.fidelity import measure_fidelity
from logitcache.encoding.heads import HEADS
from logitcache.encoding.sigmoid import SigmoidEncoding
from logitcache.errors import CacheDamaged, UnsupportedFormat, UsageError
from logitcache.precompute.config import PrecomputeConfig
from tests.cache.building import declare, start_cache
from tests.objectives import reference

if TYPE_CHECKING:
    from pathlib import Path

Z = 4 * np.random.default_rng(0).normal(size=(50, 7))


@pytest.mark.requirement("F7.3.1", "F7.3.2", "F7.3.3")
@pytest.mark.parametrize("values", ["float16", "uint8"])
def test_logits_are_stored_as_the_format_defines_them(values: str) -> None:
    z = np.vstack([Z, np.full((1, 7), 1e6), np.linspace(-1e6, 3, 7)[None]])
    arrays = SigmoidEncoding(7, values).encode(z)  # type: ignore[arg-type]
    clipped = np.clip(z, -65504, 65504)
    if values == "float16":
        assert arrays.keys() == {"logit"}
        assert (arrays["logit"] == clipped.astype(np.float16)).all()
        return
    assert arrays.keys() == {"logit", "logit_range"}
    low, high = arrays["logit_range"].astype(np.float64).T
    assert (low <= clipped.min(1)).all()
    assert (high >= clipped.max(1)).all()
    span = np.where(high > low, high - low, 1.0)
    levels = np.clip(np.rint(255 * (clipped - low[:, None]) / span[:, None]), 0, 255)
    assert (arrays["logit"] == np.where((high > low)[:, None], levels, 0)).all()


@pytest.mark.parametrize("values", ["float16", "uint8"])
def test_decoded_probabilities_are_independent_of_each_other(values: str) -> None:
    encoding = SigmoidEncoding(7, values)  # type: ignore[arg-type]
    decoded = encoding.decode(encoding.encode(Z))
    step = 2.0**-11 * np.abs(Z).max() if values == "float16" else np.ptp(Z, 1).max() / 500
    np.testing.assert_allclose(decoded.logits, Z, atol=step)
    expected = [[reference.sigmoid(z) for z in row] for row in decoded.logits.tolist()]
    np.testing.assert_allclose(decoded.probs(), expected, rtol=1e-6)
    assert (decoded.top_class() == decoded.logits.argmax(1)).all()
    assert (decoded.tail_mass() == 0).all()
    entropies = [
        math.fsum(-p * math.log(p) - (1 - p) * math.log(1 - p) for p in row) for row in expected
    ]
    np.testing.assert_allclose(decoded.entropy(), entropies, rtol=1e-5)
    assert decoded.entropy().max() <= HEADS["sigmoid"].max_entropy(7)


def test_a_probability_near_one_keeps_its_digits() -> None:
    """Of log-probabilities, a byte keeps nothing that tells .999 from .9."""
    z = np.array([[-12.0, math.log(999.0), math.log(9.0)]])
    sigmoid = SigmoidEncoding(3, "uint8")
    found = sigmoid.decode(sigmoid.encode(z)).probs()[0]
    np.testing.assert_allclose(1 - found[1:], [0.001, 0.1], rtol=0.05)
    dense = DenseEncoding(3, "uint8")
    log_probs = -np.logaddexp(0, -z)
    stored = dense.encode(log_probs)["logp"][0]
    assert abs(int(stored[1]) - int(stored[2])) <= 3


@pytest.mark.requirement("F13.2.1")
@pytest.mark.parametrize("values", ["float16", "uint8"])
def test_the_measured_loss_is_that_of_the_loops(values: str) -> None:
    encoding = SigmoidEncoding(7, values)  # type: ignore[arg-type]
    fidelity = measure_fidelity(encoding, Z)
    stored = encoding.decode(encoding.encode(Z)).logits
    for temperature, loss in fidelity.losses.items():
        rows = [
            reference.binary_divergence(s, z, temperature) / temperature**2
            for s, z in zip(stored.tolist(), Z.tolist(), strict=True)
        ]
        assert loss.truncation == 0
        assert loss.coding == pytest.approx(math.fsum(rows) / len(rows), rel=1e-5)
        error = gradient = 0.0
        for s, z in zip(stored.ravel().tolist(), Z.ravel().tolist(), strict=True):
            p = reference.sigmoid(z / temperature)
            error += (reference.sigmoid(s / temperature) - p) ** 2
            gradient += (reference.sigmoid(0.6 * z / temperature) - p) ** 2
        assert loss.gradient == pytest.approx(math.sqrt(error / gradient), rel=1e-5)
    assert fidelity.top1 == 1.0
    assert 0 < fidelity.kl(1.0) < {"float16": 1e-5, "uint8": 1e-2}[values]


@pytest.mark.requirement("F7.3.3")
@pytest.mark.parametrize("values", ["float16", "uint8"])
def test_rows_that_were_not_computed_are_unknown(values: str) -> None:
    encoding = SigmoidEncoding(7, values)  # type: ignore[arg-type]
    decoded = encoding.decode(filled(encoding.specs(), 2))
    assert not decoded.computed.any()
    assert (decoded.top_class() == -1).all()
    assert np.isnan(decoded.entropy()).all()
    arrays = encoding.encode(Z[:2])
    assert (row_closeness(encoding, arrays, arrays)["kl"] == 0).all()
    assert (row_closeness(encoding, arrays, filled(encoding.specs(), 2))["agreement"] == 0).all()


@pytest.mark.parametrize("values", ["float16", "uint8"])
def test_other_logits_are_not_consistent(values: str) -> None:
    encoding = SigmoidEncoding(7, values)  # type: ignore[arg-type]
    arrays = encoding.encode(Z)
    eps = np.full(len(Z), 1e-3)
    assert encoding.consistent(arrays, Z + 5e-4, eps).all()
    assert not encoding.consistent(arrays, Z + 0.5, eps).any()


@pytest.mark.requirement("F2.5.5", "F7.3.1", "F10.1")
def test_a_group_of_log_odds_has_its_head_and_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = start_cache(tmp_path, 16)
    declare(writer, "t", SigmoidEncoding(10))
    reopened = CacheWriter.open(locate(tmp_path))
    assert "sigmoid" in reopened.manifest.requires
    assert reopened.teachers()["t"].to_json()["head"] == "sigmoid"
    group = tmp_path / "teachers" / "t" / "zarr.json"
    document = json.loads(group.read_text())
    document["attributes"]["logitcache"]["head"] = "softmax"
    group.write_text(json.dumps(document))
    with pytest.raises(CacheDamaged, match="does not fit its head"):
        CacheWriter.open(locate(tmp_path)).teachers()
    older = {name: what for name, what in FEATURES.items() if name != "sigmoid"}
    monkeypatch.setattr(manifest_module, "FEATURES", older)
    with pytest.raises(UnsupportedFormat, match="sigmoid"):
        open_cache(tmp_path)


@pytest.mark.parametrize(
    "encoding",
    [
        {"kind": "sparse"},
        {"kind": "transform"},
        {"top_k": 5},
        {"mass": 0.9},
        {"budget": "80B"},
        {"max_kl": "0.05@T=1"},
    ],
)
def test_encodings_that_leave_classes_out_are_refused(encoding: dict[str, object]) -> None:
    teacher = {"model": "resnet18", "weights": "x.pth", "head": "sigmoid"}
    given = {"cache": "c", "data": "d", "teachers": {"t": teacher}}
    with pytest.raises(UsageError, match=r"'t' with head: sigmoid[\s\S]*stored dense only"):
        PrecomputeConfig.parse({**given, "encoding": encoding}, "")
    for kept in ({"kind": "dense"}, {"dense_values": "uint8"}, {}):
        assert PrecomputeConfig.parse({**given, "encoding": kept}, "").encoding.stores_all_classes
