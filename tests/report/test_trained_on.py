"""What a network was trained on, in a few words."""

from __future__ import annotations

from typing import Any

import pytest

from logitcache.report.trained_on import reads_labels, trained_on


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
        ({"objectives": [{"reconstruct": {"student": "norm"}}]}, "pixels"),
        (
            {"cache": "c", "objectives": [{"match": {"against": "pixels", "student": "x"}}]},
            "pixels",
        ),
        ({"objectives": ["label", {"attend": {"file": "f"}}]}, "labels and prototypes"),
    ],
)
def test_targets_are_named_once(train: dict[str, Any], expected: str) -> None:
    assert trained_on(train) == expected


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({}, True),
        ({"cache": "c"}, False),
        ({"cache": "c", "sampler": {"tau": 0.5}}, True),
        ({"objectives": [{"reconstruct": {"student": "norm"}}]}, False),
        ({"cache": "c", "objectives": [{"split": {}}]}, True),
        ({"cache": "c", "objectives": [{"fuse": {"teacher": "t", "tap": "x"}}]}, True),
        ({"cache": "c", "objectives": [{"label": {"pseudo": "ema"}}]}, False),
        ({"cache": "c", "objectives": [{"label": {"pseudo": "ema"}}, "label"]}, True),
    ],
)
def test_labels_are_read_by_some_terms_and_by_samplers(
    train: dict[str, Any], expected: bool
) -> None:
    assert reads_labels(train) is expected
