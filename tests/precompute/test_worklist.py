from __future__ import annotations

import pytest

from logitcache.precompute.plan.worklist import Missing, WorkItem, worklist

U = 32


@pytest.mark.parametrize(
    ("samples", "groups", "expected"),
    [
        pytest.param(set(), {}, [], id="nothing"),
        pytest.param(
            {0, 1},
            {"a": Missing(U, {"v": {0, 1}})},
            [WorkItem("v", 0, True, {"a": (0,)}), WorkItem("v", 1, True, {"a": (1,)})],
            id="samples-go-with-the-first-view",
        ),
        pytest.param(
            {0},
            {"a": Missing(U, {"v": {0}, "w": {0}})},
            [WorkItem("v", 0, True, {"a": (0,)}), WorkItem("w", 0, False, {"a": (0,)})],
            id="and-only-with-it",
        ),
        pytest.param(
            {0},
            {"a": Missing(8, {"v": {0, 3}})},
            [WorkItem("v", 0, True), WorkItem("v", 0, False, {"a": (0, 3)})],
            id="samples-go-first-where-units-are-small",
        ),
        pytest.param(
            set(),
            {"a": Missing(U, {"v": {1}}), "b": Missing(8, {"v": {4, 5, 9}})},
            [
                WorkItem("v", 1, False, {"a": (1,), "b": (4, 5)}),
                WorkItem("v", 2, False, {"b": (9,)}),
            ],
            id="teachers-share-a-block",
        ),
        pytest.param(
            {0},
            {"a": Missing(U, {"v": {0, 1}, "w": {0, 1}})},
            [
                WorkItem("v", 0, True, {"a": (0,)}),
                WorkItem("w", 0, False, {"a": (0,)}),
                WorkItem("v", 1, False, {"a": (1,)}),
                WorkItem("w", 1, False, {"a": (1,)}),
            ],
            id="views-of-a-block-follow-each-other",
        ),
        pytest.param(
            {2},
            {"a": Missing(U, {"v": {0}})},
            [WorkItem("v", 0, False, {"a": (0,)}), WorkItem("v", 2, True)],
            id="samples-alone",
        ),
        pytest.param(
            set(),
            {"a": Missing(U, {"w": {0}})},
            [WorkItem("w", 0, False, {"a": (0,)})],
            id="a-view-only-one-lacks",
        ),
    ],
)
def test_what_is_missing_is_listed_once_and_in_order(
    samples: set[int], groups: dict[str, Missing], expected: list[WorkItem]
) -> None:
    assert worklist(U, ["v", "w"], samples, groups) == expected
