"""A command that is killed while it writes ends with the same bytes when it is run again.

``python -m tests.share.kills`` does the same with more kills.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.share.kills import COMMANDS, kill_command

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_killed_continues_to_the_same_bytes(command: str, tmp_path: Path) -> None:
    found = kill_command(command, tmp_path, 3, seed=5)
    assert found["failures"] == []
    assert found["kills"] == 3
