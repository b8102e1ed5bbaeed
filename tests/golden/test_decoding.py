"""Odd image files are decoded by each version of the table as they were when it was written."""

from __future__ import annotations

import json
import warnings
from functools import partial

import pytest

from logitcache.data.decode import TABLES, decode
from tests.golden.odd_images import HERE, outcome, read_files


@pytest.mark.requirement("V5.2", "V5.3", "V5.4", "V5.5", "V5.6", "V5.7", "V5.8", "V5.13", "V5.14")
@pytest.mark.parametrize("table", TABLES)
def test_a_table_never_changes(table: int) -> None:
    golden = json.loads((HERE / f"table-{table}.json").read_text())
    files = read_files()
    assert golden.keys() == files.keys()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow has to say of odd files
        found = {name: outcome(partial(decode, table=table), files[name]) for name in files}
    differing = [name for name in files if found[name] != golden[name]]
    assert not differing


@pytest.mark.requirement("V5.1", "V5.14")
def test_tables_differ_where_the_document_says() -> None:
    one, two = (json.loads((HERE / f"table-{n}.json").read_text()) for n in (1, 2))
    assert {name for name in one if one[name] != two[name]} == {
        "bad-text-crc.png",
        "bit-flipped.jpg",
        "cmyk-cut-closed.jpg",
        "cut-closed-exif.jpg",
        "cut-closed.jpg",
        "exif-6-late.jpg",
        "half-zeros.jpg",
        "half-zeros.png",
        "hole.jpg",
        "long-international-text.png",
        "long-profile.png",
        "long-text.png",
        "progressive-cut-closed.jpg",
        "xmp-6.jpg",
    }
