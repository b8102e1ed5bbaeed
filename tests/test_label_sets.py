"""Sets of classes: conversions compared with Python's own sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.data.classes import label_table
from logitcache.label_sets import LabelSets, label_sets_of, label_texts

CLASSES = 9
SETS = st.lists(st.none() | st.sets(st.integers(0, CLASSES - 1)), max_size=12)


def listed(sets: LabelSets) -> list[list[int] | None]:
    return [sets[index] for index in range(len(sets))]


def plain(sets: list[set[int] | None]) -> list[list[int] | None]:
    return [None if one is None else sorted(one) for one in sets]


@given(SETS, st.integers(0, 3))
def test_sets_survive_being_stored_as_rows(given_sets: list[set[int] | None], more: int) -> None:
    sets = LabelSets.of(given_sets)
    assert listed(sets) == plain(given_sets)
    count_N, ids_NW = sets.rows(int(sets.counts.max(initial=0)) + more)
    assert LabelSets.of_rows(count_N, ids_NW) == sets
    assert count_N.tolist() == [-1 if one is None else len(one) for one in given_sets]


@given(SETS, st.data())
def test_some_images_have_their_own_sets(
    given_sets: list[set[int] | None], data: st.DataObject
) -> None:
    indices = data.draw(st.lists(st.integers(-1, len(given_sets) - 1), max_size=20))
    taken = LabelSets.of(given_sets).take(np.array(indices, dtype=np.int64))
    expected = [None if index < 0 else plain(given_sets)[index] for index in indices]
    assert listed(taken) == expected


@given(SETS, st.permutations(range(CLASSES)))
def test_classes_are_renumbered_by_name(
    given_sets: list[set[int] | None], order: list[int]
) -> None:
    names = [f"class-{number}" for number in range(CLASSES)]
    among = [names[number] for number in order]
    mapped = LabelSets.of(given_sets).mapped(label_table(names, among))
    for before, after in zip(given_sets, listed(mapped), strict=True):
        named = None if before is None else {names[label] for label in before}
        assert (None if after is None else {among[label] for label in after}) == named
        assert after is None or after == sorted(after)


@given(st.lists(st.tuples(*[st.none() | st.sets(st.integers(0, 3))] * 2), max_size=12))
def test_different_known_sets_differ(pairs: list[tuple[set[int] | None, set[int] | None]]) -> None:
    first, second = (LabelSets.of([pair[side] for pair in pairs]) for side in (0, 1))
    expected = [None not in pair and pair[0] != pair[1] for pair in pairs]
    assert first.differ(second).tolist() == expected


@given(SETS)
def test_indicators_are_one_for_the_classes_of_an_image(given_sets: list[set[int] | None]) -> None:
    found = LabelSets.of(given_sets).indicators(CLASSES)
    assert found.dtype == np.float32
    for row, one in zip(found, given_sets, strict=True):
        if one is None:
            assert np.isnan(row).all()
        else:
            assert row.tolist() == [float(number in one) for number in range(CLASSES)]


def test_an_image_of_no_class_is_not_an_image_without_labels() -> None:
    assert LabelSets.of([set(), None]) != LabelSets.of([None, set()])
    assert LabelSets.of([set()]).counts.tolist() == LabelSets.of([None]).counts.tolist() == [0]


def test_sets_are_compared_and_not_hashed() -> None:
    sets = LabelSets.of([{1}])
    assert sets != [1]
    with pytest.raises(TypeError, match="hash"):
        hash(sets)


def test_labels_as_text_tell_unknown_from_empty() -> None:
    class Two:
        labels = np.array([3, -1, -1, -1], dtype=np.int32)

    everything = np.arange(4)
    assert list(label_texts(Two(), everything)) == ["3", "-1", "-1", "-1"]
    assert label_sets_of(Two()) is None
    two = Two()
    two.label_sets = LabelSets.of([{3, 1}, None, set(), {10}])  # type: ignore[attr-defined]
    assert list(label_texts(two, everything)) == ["1,3", "-1", "", "10"]


@given(SETS, st.lists(st.integers(-1, 4), min_size=CLASSES, max_size=CLASSES))
def test_classes_are_merged_and_left_out(
    given_sets: list[set[int] | None], numbers: list[int]
) -> None:
    merged = LabelSets.of(given_sets).merged(np.array([*numbers, -1], dtype=np.int32))
    expected: list[set[int] | None] = [
        None if one is None else {numbers[label] for label in one} - {-1} for one in given_sets
    ]
    assert listed(merged) == plain(expected)
