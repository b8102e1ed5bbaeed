"""What a network was trained on, in a few words."""

from __future__ import annotations

from typing import Any

import pytest

from logitcache.report.trained_on import trained_on


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, "labels"),
        ({"cache": "c"}, "cache of all teachers"),
        ({"cache": "c", "objectives": ["soft", "label"]}, "cache of all teachers and labels"),
        (
            {"cache": "c", "objectives": [{"episode": {"student": "x"}}], "shuffle_targets": True},
            "labels, shuffled",
        ),
        (
            {
                "cache": "c",
                "objectives": [
                    "label",
                    {"label": {"pseudo": "ema"}},
                    {"gap": {"parts": ["a", "b"]}},
                ],
            },
            "labels and pseudo labels of ema",
        ),
        (
            {"cache": "c", "objectives": [{"match": {"teacher": "t", "tap": "x"}}]},
            "features of t",
        ),
    ],
)
def test_targets_are_named_once(train: dict[str, Any], expected: str) -> None:
    assert trained_on(train) == expected
