"""The reader printed in docs/format.md, run where logitcache cannot be imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from logitcache.encoding.basis import Basis, principal_directions
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.encoding.transform import TransformEncoding
from tests.cache.building import (
    VIEW,
    declare,
    encode,
    make_cache,
    samples_of,
    start_cache,
    write_samples,
    write_teacher,
)
from tests.encoding.strategies import log_error_bound

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
ROWS, UNREADABLE = 37, (5, 20)
OK = [row for row in range(ROWS) if row not in UNREADABLE]


def printed_reader() -> str:
    (code,) = re.findall(r"## A reader.*?```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return str(code)


def read_alone(
    cache: Path, teacher: str, tmp_path: Path
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Run the printed reader in a process of its own."""
    out = tmp_path / "out.npy"
    script = (
        "import sys; sys.modules['logitcache'] = None\n"
        f"{printed_reader()}\n"
        f"np.save({str(out)!r}, read_log_probs({str(cache)!r}, {teacher!r}, {VIEW!r}))\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)
    read: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = np.load(out)
    return read


def teacher_logits(classes: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    generator = np.random.default_rng(classes)
    z = generator.normal(size=(ROWS, classes)) * 3
    z[np.arange(ROWS), generator.integers(0, classes, ROWS)] += 12
    return z.astype(np.float32)


def test_the_reader_has_at_most_40_lines() -> None:
    assert len([line for line in printed_reader().splitlines() if line.strip()]) <= 40


@pytest.mark.requirement("F5.6", "F6.4", "F6.7", "F6.8")
@pytest.mark.parametrize(
    "encoding",
    [
        pytest.param(SparseEncoding(1000, 50), id="sparse"),
        pytest.param(SparseEncoding(1000, 10, bits=5), id="sparse-5-bits"),
        pytest.param(SparseEncoding(1000, 50, "float16"), id="sparse-float16"),
        pytest.param(SparseEncoding(70000, 20), id="uint32-ids"),
    ],
)
def test_sparse_targets(encoding: SparseEncoding, tmp_path: Path) -> None:
    z = teacher_logits(encoding.num_classes)
    make_cache(tmp_path / "c", {"t": (encoding, z)}, ROWS, UNREADABLE)
    read = read_alone(tmp_path / "c", "t", tmp_path)
    assert np.isnan(read[list(UNREADABLE)]).all()
    assert np.isnan(read[ROWS:]).all()
    exact = log_softmax(z)[0]
    np.testing.assert_allclose(np.exp(read[OK]).sum(1), 1, atol=1e-4)
    for row in OK:
        kept = np.argsort(-exact[row], kind="stable")[: encoding.top_k]
        p = np.exp(exact[row][kept])
        if encoding.values == "codes":
            n = encoding.levels
            codes = np.clip(np.rint(n * p ** (1 / 8)), 1, n)
            bound = np.array([log_error_bound(int(code)) for code in codes])
            covered = p >= n**-8.0
        else:
            bound, covered = 2.0**-11 * abs(exact[row][kept]) + 1e-6, p > 0
        shift = np.log((p * np.exp(2 * bound)).sum() / p.sum()) + 2e-3
        error = abs(read[row][kept] - exact[row][kept])
        assert (error <= bound + shift)[covered].all()
        absent = np.setdiff1d(np.arange(encoding.num_classes), kept)
        mass = np.exp(exact[row][absent]).sum()
        assert np.exp(read[row][absent]).sum() == pytest.approx(mass, rel=1e-2, abs=1e-7)


@pytest.mark.requirement("F5.6", "F7.1", "F7.2")
@pytest.mark.parametrize("values", ["float16", "uint8"])
def test_dense_targets(values: str, tmp_path: Path) -> None:
    z = teacher_logits(300)
    encoding = DenseEncoding(300, values)  # type: ignore[arg-type]  # parametrized as str
    make_cache(tmp_path / "c", {"t": (encoding, z)}, ROWS, UNREADABLE)
    read = read_alone(tmp_path / "c", "t", tmp_path)
    exact = log_softmax(z)[0]
    assert np.isnan(read[list(UNREADABLE)]).all()
    span = exact.max(1) - exact.min(1)
    bound = 2.0**-11 * abs(exact) if values == "float16" else (span / 510 + 0.02)[:, None]
    assert (abs(read[:ROWS] - exact) <= bound)[OK].all()


@pytest.mark.requirement("F6.6", "F6.7")
def test_empty_tails_and_unused_entries(tmp_path: Path) -> None:
    """A teacher that is certain: nothing is left for absent classes, and two entries suffice."""
    encoding = SparseEncoding(1000, 4)
    z = np.full((ROWS, 1000), -1e5, dtype=np.float32)
    z[:, 7] = z[:, 900] = 0
    writer, samples = start_cache(tmp_path / "c", ROWS), samples_of(ROWS)
    write_samples(writer, samples)
    group = declare(writer, "t", encoding)
    arrays = encode(group, z, samples)
    arrays["class_ids"][:ROWS] = [7, 893, 0, 0]
    arrays["codes"][:ROWS] = [234, 234, 0, 0]
    write_teacher(writer, group, arrays)
    writer.seal("fingerprint", {})
    read = read_alone(tmp_path / "c", "t", tmp_path)
    np.testing.assert_allclose(read[:ROWS, [7, 900]], np.log(0.5), atol=1e-9)
    assert np.isneginf(np.delete(read[:ROWS], [7, 900], axis=1)).all()


def printed_transform_reader() -> str:
    (code,) = re.findall(
        r"```python\n(def decode_transform.*?)```", DOCUMENT.read_text(), re.DOTALL
    )
    return str(code)


def transform_of(z: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> TransformEncoding:
    principal = principal_directions(log_softmax(z)[0])
    return TransformEncoding.of(Basis.of(principal, step=2.0), refined=9)


@pytest.mark.requirement("F7.8", "F7.9", "F7.10", "F7.11", "F7.12")
def test_transformed_targets(tmp_path: Path) -> None:
    z = teacher_logits(300)
    encoding = transform_of(z)
    make_cache(tmp_path / "c", {"t": (encoding, z)}, ROWS, UNREADABLE)
    out = tmp_path / "out.npy"
    script = (
        "import sys; sys.modules['logitcache'] = None\nimport numpy as np\nimport zarr\n"
        f"{printed_transform_reader()}\n"
        f"group = zarr.open_group({str(tmp_path / 'c')!r}, path='teachers/t', mode='r')\n"
        "encoding = group.attrs['logitcache']['encoding']\n"
        "arrays = (group[name][0] for name in ('coefficients', 'refinements'))\n"
        f"np.save({str(out)!r}, decode_transform(encoding, *arrays))\n"
    )
    subprocess.run([sys.executable, "-I", "-c", script], check=True)
    read = np.load(out)
    assert np.isnan(read[list(UNREADABLE)]).all()
    assert np.isnan(read[ROWS:]).all()
    encoded = encoding.encode(log_softmax(z)[0])
    np.testing.assert_allclose(
        read[OK], encoding.decode(encoded).log_probs[OK], rtol=1e-5, atol=1e-5
    )
    exact = log_softmax(z)[0][OK]
    assert (np.exp(exact) * (exact - read[OK])).sum(1).mean() < 0.05
