"""Outputs of teachers are mapped to the classes of the data by name."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from logitcache.errors import UsageError
from logitcache.teachers.class_map import choose_class_map

DATA = ["bird", "cat", "dog"]


@pytest.mark.requirement("F4.10")
@given(st.permutations(["ant", "bird", "cat", "dog", "eel"]))
def test_every_class_gets_the_output_of_its_name(own: list[str]) -> None:
    found, notes = choose_class_map("t", None, DATA, own, len(own))
    assert found is not None
    assert [own[output] for output in found] == DATA
    assert "3 of its 5 classes are mapped by name" in notes[0]


def test_the_same_classes_in_the_same_order_need_no_map() -> None:
    """So a teacher that was locked before classes had names is still the same."""
    assert choose_class_map("t", None, DATA, DATA, 3) == (None, [])
    assert choose_class_map("t", "position", DATA, ["x", "y", "z"], 3) == (None, [])
    assert choose_class_map("t", None, [], DATA, 3) == (None, [])


def test_accents_are_compared_in_one_form() -> None:
    composed, decomposed = "\u00e9", "e\u0301"
    assert choose_class_map("t", None, [composed], [decomposed], 1) == (None, [])


def test_classes_without_names_are_taken_by_position_and_that_is_noted() -> None:
    found, (note,) = choose_class_map("t", None, DATA, None, 3)
    assert found is None
    assert "bird, cat, dog" in note


def test_a_class_that_the_teacher_does_not_have_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        choose_class_map("t", None, DATA, ["bird", "cats", "dog", "eel"], 4)
    text = caught.value.render()
    assert "1 of 3 classes" in text
    assert "got:      cat\n" in text
    assert "class_map=[...]" in text
    assert "position" in text


def test_a_map_of_the_user_goes_before_names() -> None:
    assert choose_class_map("t", (2, 0), ["a", "b"], ["a", "b", "c"], 3) == ([2, 0], [])
    with pytest.raises(UsageError, match="0 to 2"):
        choose_class_map("t", (3, 0), ["a", "b"], None, 3)
