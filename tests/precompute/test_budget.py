"""How a new teacher is stored, chosen on a sample of its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from logitcache.cache.format.arrays import packed_bytes
from logitcache.cache.read.reader import open_cache
from logitcache.encoding.fidelity import measure_fidelity
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import UsageError
from logitcache.precompute.build import build_cache
from tests.benchmarks.synthetic import teacher_logits
from tests.cache.building import declare, encode, samples_of, start_cache, write_teacher
from tests.conftest import jpeg, shape_image
from tests.conftest import write_teacher as export_teacher
from tests.precompute.test_building import config

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return images without classes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        (folder / f"{number}.jpg").write_bytes(jpeg(shape_image(number)))
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    folder = export_teacher(tmp_path_factory.mktemp("many") / "t", classes=60)
    return {"many": {"model": f"local-dir:{folder}"}}


def test_a_budget_is_kept_and_said(photos: Path, many: Teachers, tmp_path: Path) -> None:
    limited = {"encoding": {"budget": "20B"}}
    summary = build_cache(config(tmp_path / "c", photos, many, **limited))
    group = open_cache(tmp_path / "c").teacher("many")
    (note,) = [note for note in summary.notes if "bytes per row and view" in note]
    row_bytes = float(note.split("; ")[1].split(" bytes")[0])
    assert 0 < row_bytes <= 20
    assert f"kind {group.encoding.to_json()['kind']}" in note
    again = build_cache(config(tmp_path / "c", photos, many, **limited, views={"count": 3}))
    assert open_cache(tmp_path / "c").teacher("many").encoding == group.encoding
    assert not any("bytes per row and view" in note for note in again.notes), "it is what it was"


def test_a_largest_loss_is_kept(photos: Path, many: Teachers, tmp_path: Path) -> None:
    build_cache(config(tmp_path / "c", photos, many, encoding={"max_kl": "1e-6@T=4"}))
    encoding = open_cache(tmp_path / "c").teacher("many").encoding
    assert not isinstance(encoding, SparseEncoding), "at T = 4 only dense targets are so close"


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ({"budget": "1B"}, "fits into the byte budget"),
        ({"budget": "80KB"}, "such as 80B"),
        ({"max_kl": "0.1@4"}, "such as 0.05@T=1"),
        ({"budget": "80B", "top_k": 5}, "not both"),
    ],
)
def test_what_cannot_be_leaves_nothing_behind(
    photos: Path, many: Teachers, tmp_path: Path, encoding: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_cache(config(tmp_path / "c", photos, many, encoding=encoding))
    assert not (tmp_path / "c").exists()


def test_what_is_promised_is_what_it_takes(tmp_path: Path) -> None:
    """Within a twentieth of the shards of a real cache, checksums and indexes included."""
    logits = teacher_logits(512, 200)
    encoding = SparseEncoding(200, 20, bits=6)
    promised = packed_bytes(encoding.specs(), encoding.encode(log_softmax(logits)[0]))
    samples = samples_of(512, unit=512)
    writer = start_cache(tmp_path / "d", 512, unit=512)
    group = declare(writer, "t", encoding, 512)
    write_teacher(writer, group, encode(group, logits, samples))
    found = sum(
        path.stat().st_size
        for name in encoding.specs()
        for path in (tmp_path / "d" / "teachers" / "t" / name / "c").rglob("*")
        if path.is_file()
    )
    assert promised == pytest.approx(found, rel=0.05)


def test_more_bits_cost_more_and_lose_less() -> None:
    log_probs = log_softmax(teacher_logits(128, 200))[0]
    coarse, fine = (SparseEncoding(200, 20, bits=bits) for bits in (4, 8))
    cost = [packed_bytes(e.specs(), e.encode(log_probs)) for e in (coarse, fine)]
    lost = [measure_fidelity(e, log_probs).kl(1.0) for e in (coarse, fine)]
    assert cost[0] < cost[1]
    assert lost[0] > lost[1]
