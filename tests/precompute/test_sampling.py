"""What encodings lose is measured on a sample while a cache is made, whoever makes it when."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.cache.format.ledger import committed_units
from logitcache.cache.format.manifest import Segment, read_manifest
from logitcache.cache.format.names import NO_VIEW, SAMPLES
from logitcache.cache.store.open import locate
from logitcache.encoding.fidelity import add_up, fidelity_of, measure_fidelity, row_losses
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import Interrupted
from logitcache.precompute.run.compared_rows import SAMPLED_ROWS, FidelitySample
from logitcache.report.describe import describe
from tests.cache.building import VIEW, declare, make_cache, start_cache
from tests.precompute import null

if TYPE_CHECKING:
    from pathlib import Path

ENCODING = SparseEncoding(null.CLASSES, 5)


def exact_outputs(rows: int = null.ROWS) -> Any:
    every = np.arange(rows)
    return log_softmax(null.logits_of(every, np.zeros_like(every), "t"))[0]


def flat(values: Any, prefix: str = "") -> dict[str, float]:
    """Return nested numbers by dotted path."""
    if not isinstance(values, dict):
        return {prefix: values}
    return {k: v for n, inner in values.items() for k, v in flat(inner, f"{prefix}.{n}").items()}


@pytest.mark.requirement("F13.3")
@pytest.mark.parametrize("unit_rows", [null.UNIT, null.UNIT // 4])
def test_the_manifest_says_what_the_first_view_loses(tmp_path: Path, unit_rows: int) -> None:
    null.run(tmp_path, {"t": unit_rows})
    expected = measure_fidelity(ENCODING, exact_outputs()).to_json()
    (teacher,) = describe(tmp_path).teachers
    assert teacher.fidelity is not None
    # sums of units, rounded one by one: how close they come depends on the processor's exp and log
    assert flat(teacher.fidelity) == pytest.approx(flat(expected), rel=1e-9, abs=1e-12)
    assert teacher.fidelity["rows"] == expected["rows"] == null.ROWS


def test_however_often_it_was_stopped_it_says_the_same(tmp_path: Path) -> None:
    null.run(tmp_path / "whole", {"t": null.UNIT})
    left = [3]

    def stop(_: int) -> None:
        left[0] -= 1
        if not left[0]:
            left[0] = 6
            raise Interrupted("stopped", kept=True)

    stops = 0
    while True:
        try:
            null.run(tmp_path / "cut", {"t": null.UNIT}, after_batch=stop)
            break
        except Interrupted:
            stops += 1
    assert stops >= 3
    whole, cut = (read_manifest(locate(tmp_path / name)) for name in ("whole", "cut"))
    assert whole.teachers["t"].fidelity is not None
    assert cut.teachers == whole.teachers


@pytest.mark.requirement("F13.1")
def test_more_views_and_images_change_nothing(tmp_path: Path) -> None:
    null.run(tmp_path, {"t": null.UNIT}, views=null.VIEWS[:1])
    before = read_manifest(locate(tmp_path)).teachers["t"].fidelity
    null.run(tmp_path, {"t": null.UNIT}, more=40)
    assert committed_units(locate(tmp_path), SAMPLES, NO_VIEW) == set(range(6))
    assert read_manifest(locate(tmp_path)).teachers["t"].fidelity == before


@pytest.mark.requirement("F13.1")
@pytest.mark.parametrize(("rows", "unit_rows"), [(100, 16), (5000, 16), (40000, 16), (9000, 1024)])
def test_the_sample_is_bounded_and_spread(tmp_path: Path, rows: int, unit_rows: int) -> None:
    writer = start_cache(tmp_path, rows, unit=unit_rows)
    group = declare(writer, "t", ENCODING, unit_rows)
    sample = FidelitySample(writer.manifest, group, group.view_ids[0])
    units = -(-rows // unit_rows)
    counts = [min(sample.rows_of(unit), unit_rows) for unit in range(units)]
    assert sum(counts) <= SAMPLED_ROWS
    assert sum(counts) >= min(rows, SAMPLED_ROWS // 2)
    taken = np.flatnonzero(counts)
    assert taken[0] == 0
    assert taken[-1] >= units - units // 100 - 3, "up to the end"
    assert FidelitySample(writer.manifest, group, "another view").rows_of(0) == 0


@pytest.mark.requirement("F13.2")
def test_sums_are_the_same_in_parts_and_in_any_order() -> None:
    exact = exact_outputs()
    encoded = ENCODING.encode(exact)
    whole = add_up([row_losses(ENCODING, exact, encoded)])
    parts = [
        row_losses(ENCODING, exact[i : i + 7], {n: a[i : i + 7] for n, a in encoded.items()})
        for i in range(0, len(exact), 7)
    ]
    assert add_up(parts[::-1]) == whole
    assert add_up([add_up(parts[3:]), add_up(parts[:3])]) == pytest.approx(whole, rel=1e-15)
    assert fidelity_of(whole) == measure_fidelity(ENCODING, exact)


@pytest.mark.requirement("F13.3")
def test_a_cache_of_which_nothing_was_measured_says_so(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    make_cache(tmp_path, {"t": (SparseEncoding(12, 3), logits)}, rows=20)
    assert describe(tmp_path).teachers[0].fidelity is None
    assert "fidelity" not in read_manifest(locate(tmp_path)).to_json()["teachers"]["t"]


@pytest.mark.requirement("F13.1")
def test_a_segment_more_does_not_move_the_sample(tmp_path: Path) -> None:
    null.run(tmp_path, {"t": null.UNIT})
    writer = null.open_or_create(tmp_path)
    (group,) = writer.row_groups().values()
    longer = writer.manifest.changed(
        segments=(*writer.manifest.segments, Segment(start=128, rows=99))
    )
    before = FidelitySample(writer.manifest, group, group.view_ids[0])
    after = FidelitySample(longer, group, group.view_ids[0])
    assert [before.rows_of(u) for u in range(8)] == [after.rows_of(u) for u in range(8)]
    assert after.rows_of(4) == 0


@pytest.mark.requirement("F13.1")
@pytest.mark.parametrize("rows", [100, 5000, 16_400, 40_000])
def test_every_s_th_unit_gives_its_leading_rows(tmp_path: Path, rows: int) -> None:
    writer = start_cache(tmp_path, rows, unit=16)
    sample = FidelitySample(writer.manifest, declare(writer, "t", ENCODING, 16), VIEW)
    n = math.ceil(rows / 16)
    s = math.ceil(n / 1024)
    each = math.floor(1024 / math.ceil(n / s))
    expected = [0 if unit % s else each for unit in range(n)]
    assert [sample.rows_of(unit) for unit in range(n)] == expected


@pytest.mark.requirement("F13.2")
def test_measured_sums_are_in_the_commits_of_the_sample(tmp_path: Path) -> None:
    null.run(tmp_path, {"t": null.UNIT})
    first, second = null.VIEWS
    sums = {"rows", "top1"} | {
        f"{name}@{temperature}"
        for name in ("kl_truncated", "kl_stored", "error2", "gradient2")
        for temperature in (1, 2, 4)
    }
    for unit in range(4):
        paths = [tmp_path / f"commits/teachers/t/{view}/{unit}.json" for view in (first, second)]
        measured, other = (json.loads(path.read_bytes()).get("measured") for path in paths)
        assert measured.keys() == sums
        assert measured["rows"] == min(32, null.ROWS - 32 * unit)
        assert other is None, "of the first view alone"
