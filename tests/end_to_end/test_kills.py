"""A training and a pipeline that are killed while they work on files end with the very same bits.

``python -m tests.reliability train|run|systems`` does the same with more kills; results are in
docs/measurements/reliability.md.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.reliability.runs import kill_pipelines, kill_trainings
from tests.reliability.systems import kill_systems

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_training_that_is_killed_resumes_to_equal_bits(tmp_path: Path) -> None:
    found = kill_trainings(tmp_path, 2, seed=5)
    assert found["failures"] == []
    assert found["kills"] == 2
    assert {"open", "write", "fsync", "rename", "remove"} <= found["moments_by_kind"].keys()


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_pipeline_that_is_killed_resumes_to_equal_bits(tmp_path: Path) -> None:
    found = kill_pipelines(tmp_path, 2, seed=5)
    assert found["failures"] == []
    assert found["kills"] == 2


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_student_with_gates_that_is_killed_resumes_to_equal_bits(tmp_path: Path) -> None:
    """Of a system whose term has parameters and draws random numbers in every step."""
    found = kill_systems(tmp_path, 1, seed=5, systems=["ghost"])["ghost"]
    assert found["failures"] == []
    assert found["kills"] == 1
