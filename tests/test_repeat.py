"""Blocks of pipeline stages that are run several times."""

from __future__ import annotations

from typing import Any

import pytest

from logitcache.errors import UsageError
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.repeat import expanded
from logitcache.pipeline.run import Pipeline
from logitcache.pipeline.settings import override

BLOCK: dict[str, Any] = {
    "name": "generations",
    "repeat": 2,
    "initial": {"student": "start"},
    "stages": [
        {"name": "cache", "precompute": {"teachers": {"ema": {"model": "stage:student"}}}},
        {
            "name": "student",
            "train": {"cache": "stage:cache", "student": {"model": "stage:student"}},
        },
    ],
}
START = {"name": "start", "train": {"student": {"model": "resnet10t"}, "steps": 3}}
LAST = {"name": "last", "train": {"cache": "stage:cache", "student": {"model": "stage:student"}}}
BY_HAND = [
    START,
    {"name": "cache-1", "precompute": {"teachers": {"ema": {"model": "stage:start"}}}},
    {"name": "student-1", "train": {"cache": "stage:cache-1", "student": {"model": "stage:start"}}},
    {"name": "cache-2", "precompute": {"teachers": {"ema": {"model": "stage:student-1"}}}},
    {
        "name": "student-2",
        "train": {"cache": "stage:cache-2", "student": {"model": "stage:student-1"}},
    },
    {
        "name": "last",
        "train": {"cache": "stage:cache-2", "student": {"model": "stage:student-2"}},
    },
]


def pipeline(stages: list[Any]) -> Pipeline:
    values = {"name": "p", "out": "runs/p", "data": "digits", "stages": stages}
    return Pipeline(PipelineConfig.parse(values, "p"))


def test_a_block_is_the_same_as_its_rounds_written_by_hand() -> None:
    assert expanded([START, BLOCK, LAST]) == BY_HAND
    written, by_hand = pipeline([START, BLOCK, LAST]), pipeline(BY_HAND)
    assert [stage.digest for stage in written.stages] == [stage.digest for stage in by_hand.stages]


def test_results_and_keys_are_renamed_too() -> None:
    stages = [
        {"name": "hints", "pick_hints": {"cache": "x"}},
        {"name": "c", "precompute": {"features": {"stage:hints/taps/0": {}}}},
    ]
    block = {"name": "b", "repeat": 2, "stages": stages}
    assert [list(stage["precompute"]["features"]) for stage in expanded([block])[1::2]] == [
        ["stage:hints-1/taps/0"],
        ["stage:hints-2/taps/0"],
    ]


def test_a_name_without_a_stage_in_the_first_round_is_an_error() -> None:
    block = {**BLOCK, "initial": {}}
    with pytest.raises(UsageError, match="no earlier stage 'student'"):
        pipeline([START, block])


def test_settings_of_a_block_are_set_by_its_name() -> None:
    values = {"stages": [START, BLOCK]}
    path = "stages.generations.stages.student.train.steps=7"
    stages = expanded(override(values, [path])["stages"])
    steps = [stage["train"].get("steps") for stage in stages if "train" in stage]
    assert steps == [3, 7, 7]


@pytest.mark.parametrize("block", [{"repeat": 0}, {"repeats": 2}, {"stages": []}])
def test_mistakes_in_a_block_are_named(block: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"stages"):
        pipeline([START, {**BLOCK, **block}])
