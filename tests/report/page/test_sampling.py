"""Samples of caches with more bytes than are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.report import output_sample
from logitcache.report.output_sample import sample_outputs
from logitcache.report.page.report import make_report
from logitcache.targets.reader import TargetsReader

if TYPE_CHECKING:
    from pathlib import Path

UNIT = 16


@pytest.mark.parametrize(("cells", "units", "views"), [(6, 3, 2), (3, 3, 1), (2, 2, 1), (1, 1, 1)])
def test_units_and_views_are_left_out_where_they_have_too_many_bytes(
    pipeline: Path, monkeypatch: pytest.MonkeyPatch, cells: int, units: int, views: int
) -> None:
    cache = open_cache(pipeline / "seed-0" / "cache")
    row_bytes = TargetsReader(cache, list(cache.teachers)).row_bytes
    monkeypatch.setattr(output_sample, "_MOST_BYTES", cells * UNIT * row_bytes)
    sample = sample_outputs(cache)
    assert sample is not None
    pairs = set(zip((sample.rows // UNIT).tolist(), sample.view.tolist(), strict=True))
    assert len({unit for unit, _ in pairs}) == units
    assert len(pairs) == units * views
    if cells == 3:
        assert set(sample.view.tolist()) == {0, 1}, "views alternate from unit to unit"
    assert sample.population == 2 * 36
    assert sample.is_complete == (cells == 6)


def test_a_page_names_its_sample(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = pipeline / "seed-0" / "cache"
    assert "Measured on all outputs of each teacher (72)" in make_report([str(cache)]).text
    monkeypatch.setattr(output_sample, "_MOST_BYTES", 1)
    text = make_report([str(cache)]).text
    count = np.count_nonzero(np.arange(36) < UNIT)
    assert f"Measured on a sample: {count} of 72 outputs of each teacher of “cache”" in text
