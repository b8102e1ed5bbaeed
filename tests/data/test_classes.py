from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from timm.utils.misc import natural_key

from logitcache.data.classes import (
    RelabeledSource,
    class_positions,
    label_table,
    map_labels,
    sorted_classes,
)
from logitcache.data.readers import open_source
from logitcache.data.readers.arrays import ArraySource
from logitcache.errors import DataMismatch
from tests.conftest import write_images

if TYPE_CHECKING:
    from pathlib import Path


def source_of(names: list[str], labels: list[int]) -> ArraySource:
    images = [np.zeros((2, 2, 3), dtype=np.uint8) for _ in labels]
    return ArraySource("arrays", "train", images, np.array(labels, dtype=np.int32), names)


@pytest.mark.requirement("F4.8")
@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)))
def test_the_order_is_timms_where_timm_has_one(names: list[str]) -> None:
    ours = sorted_classes(names)
    key: Any = natural_key  # timm does not annotate it
    assert [key(name) for name in ours] == sorted(map(key, names))


@given(st.sets(st.text(min_size=1)))
def test_the_order_does_not_depend_on_where_it_begins(names: set[str]) -> None:
    once = sorted_classes(names)
    assert sorted_classes(reversed(once)) == once
    assert set(once) == names


@pytest.mark.requirement("F4.8")
def test_ties_are_broken_by_the_name() -> None:
    assert sorted_classes(["7", "007", "07"]) == ["007", "07", "7"]
    assert sorted_classes(["cat", "Cat", "CAT"]) == ["CAT", "Cat", "cat"]
    assert sorted_classes(["10", "2", "b", "1", "A"]) == ["1", "2", "10", "A", "b"]
    assert sorted_classes(["²", "x²", "\u0661", "2"]) == ["2", "x²", "²", "\u0661"]


def test_classes_are_found_in_any_unicode_form() -> None:
    assert class_positions(["cafe\u0301", "tea"], ["tea", "caf\u00e9"]) == [1, 0]
    assert class_positions(["milk"], ["tea"]) == [None]


@pytest.mark.requirement("F4.10")
def test_labels_are_mapped_by_name() -> None:
    source = source_of(["dog", "cat"], [0, 1, -1, 0])
    assert map_labels(source, ["bird", "cat", "dog"], "x").tolist() == [2, 1, -1, 2]
    assert label_table(["dog", "cat"], ["cat"]).tolist() == [-2, 0, -1]
    relabeled = RelabeledSource(source, ["bird", "cat", "dog"], "x")
    assert relabeled.labels.tolist() == [2, 1, -1, 2]
    assert relabeled.class_names == ["bird", "cat", "dog"]


def test_a_class_without_images_need_not_be_known() -> None:
    assert map_labels(source_of(["dog", "cow"], [0]), ["dog"], "x").tolist() == [0]


@pytest.mark.requirement("F4.9")
def test_unknown_classes_are_named() -> None:
    source = source_of(["dog", "cow", "cat"], [0, 1, 2])
    with pytest.raises(DataMismatch) as found:
        map_labels(source, ["dog", "cats", "bird"], "the training set")
    text = found.value.render()
    assert "2 classes of these images are not classes of the training set" in text
    assert "got:      cow, cat" in text
    assert "the images lack classes of the training set: cats, bird" in text


def test_a_folder_has_one_class_order_whatever_the_process(tmp_path: Path) -> None:
    names = ("7", "07", "007", "Cat", "cat", "10", "é", "É", "Z")
    write_images(tmp_path, 1, names)
    expected = list(open_source(str(tmp_path)).class_names)
    assert set(expected) == set(names)
    script = (
        "import os, sys\n"
        "real = os.scandir\n"
        "order = sys.argv[2]\n"
        "def listed(path):\n"
        "    entries = sorted(real(path), key=lambda e: (e.name.lower(), e.name))\n"
        "    return iter(entries[::-1] if order == 'back' else entries)\n"
        "os.scandir = listed\n"
        "from logitcache.data.readers import open_source\n"
        "source = open_source(sys.argv[1])\n"
        "print(ascii(list(source.class_names)), ascii(list(source.keys)))\n"
    )
    printed = set()
    for seed, locale, order in (("0", "C", "on"), ("1", "C.UTF-8", "back"), ("7", "POSIX", "on")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "PYTHONUTF8": "1"}
        command = [sys.executable, "-c", script, str(tmp_path), order]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        printed.add(done.stdout)
    assert len(printed) == 1
    assert printed.pop().startswith(ascii(expected))
