"""Names decide, wherever a process runs; other interpreters and locales in ``.ci/matrix``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.matrix.names import CLASSES, Setting, outcome, write_inputs

if TYPE_CHECKING:
    from pathlib import Path


def test_a_run_does_not_depend_on_hash_seed_locale_and_order_of_listing(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    first = outcome(tmp_path, Setting(sys.executable, "0", "C", "ignoring-case"))
    assert first["classes"] == first["exported classes"]
    assert set(first["classes"]) == set(CLASSES)
    assert outcome(tmp_path, Setting(sys.executable, "7", "C.UTF-8", "backward")) == first
