"""Class maps: files and mappings, names and WordNet ids, and everything that is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from logitcache.data.class_map import class_maps, map_classes
from logitcache.errors import DataError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

IMAGENET = ["n02123045", "n02123159", "n02690373", "n02012849", "n03126707"]
"""Tabby, tiger cat, airliner, and the two cranes."""


def write(folder: Path, text: str, name: str = "map.csv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize("separator", [",", "\t"])
def test_a_file_has_a_class_of_the_teacher_and_one_of_the_student(
    tmp_path: Path, separator: str
) -> None:
    rows = [("tabby", "cat"), ("lynx", "cat"), ("sofa", ""), ("beagle", "dog")]
    text = "\ufeff" + "\n\n".join(separator.join(row) for row in rows) + "\n"
    expected = {"*": {"cat": ["tabby", "lynx"], "dog": ["beagle"]}}
    assert class_maps(write(tmp_path, text)) == expected


def test_names_with_commas_are_quoted(tmp_path: Path) -> None:
    assert class_maps(write(tmp_path, '"tench, Tinca tinca",fish\n')) == {
        "*": {"fish": ["tench, Tinca tinca"]}
    }


def test_maps_are_given_by_teacher_as_files_or_values(tmp_path: Path) -> None:
    path = write(tmp_path, "tabby,cat\n")
    found = class_maps({"a": path, "b": {"cat": "tabby", "dog": ["beagle", "pug"]}})
    assert found == {"a": {"cat": ["tabby"]}, "b": {"cat": ["tabby"], "dog": ["beagle", "pug"]}}
    assert class_maps(found) == found  # as a resumed run reads it


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("tabby,cat,x\n", DataError, r"two columns[\s\S]*line 1"),
        ("tabby,cat\nlynx\n", DataError, r"two columns[\s\S]*line 2"),
        (",cat\n", DataError, "two columns"),
        ("tabby,cat\ntabby,dog\n", UsageError, r"'tabby'[\s\S]*mapped twice[\s\S]*'cat' and 'dog'"),
        ("tabby,\ntabby,dog\n", UsageError, r"mapped twice[\s\S]*left out and 'dog'"),
        ("tabby,\n", UsageError, r"no class of the student[\s\S]*1 classes that are left out"),
        ("", UsageError, "no class of the student"),
    ],
)
def test_a_file_that_is_no_class_map_is_refused(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        class_maps(write(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        class_maps(str(tmp_path / "absent.csv"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        class_maps(str(tmp_path / "binary"))


@pytest.mark.parametrize("value", [3, {"a": 3}, {"a": ["x", "y"]}])
def test_a_value_that_is_no_class_map_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="cannot be understood"):
        class_maps(value)


def test_classes_are_merged_and_left_out() -> None:
    lens = map_classes({"cat": ["c", "a"], "dog": ["d"]}, list("abcd"), ["dog", "cat"], "x")
    np.testing.assert_array_equal(lens.targets, [1, 2, 1, 0])
    np.testing.assert_array_equal(lens.outside, [False, True, False, False])


def test_imagenet_is_named_by_id_or_word_whichever_the_teacher_has() -> None:
    by_word = {"cat": ["tabby", "n02123159"], "airplane": ["airliner"]}
    lens = map_classes(by_word, IMAGENET, ["airplane", "cat"], "x")
    np.testing.assert_array_equal(lens.targets, [1, 1, 0, 2, 2])
    own = ["airliner", "tiger cat", "tabby"]
    by_id = map_classes({"cat": ["n02123045", "n02123159"]}, own, ["cat"], "x")
    np.testing.assert_array_equal(by_id.targets, [1, 0, 0])


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ({"cat": ["tabbi"]}, "names 'tabbi', which is not a class of the teacher"),
        ({"cat": ["crane"]}, r"'crane' is the name of several[\s\S]*n02012849, n03126707"),
        ({"cat": ["tabby"], "dog": ["n02123045"]}, r"n02123045[\s\S]*mapped twice"),
        ({"catt": ["tabby"]}, r"leads to 'catt'[\s\S]*did you mean 'cat'"),
        ({"cat": [""]}, "names '', which is not a class"),
    ],
)
def test_a_name_in_no_list_or_of_two_classes_is_refused(
    class_map: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        map_classes(class_map, IMAGENET, ["cat", "dog"], "class_map")
