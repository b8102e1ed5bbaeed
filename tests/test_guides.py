"""The pages that show how to extend the package, followed as they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.guides import ROOT, code_lines, follow

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("page", "most", "passed"),
    [
        ("adding-a-loss", 20, "3 passed"),
        ("adding-a-projector", 20, "2 passed"),
        ("adding-a-reader", 30, "13 passed"),
        ("adding-a-stage", 30, "1 passed"),
    ],
)
def test_a_guide_is_followed(page: str, most: int, passed: str, tmp_path: Path) -> None:
    path = ROOT / "docs" / f"{page}.md"
    assert code_lines(path) <= most
    assert passed in follow(path, tmp_path)
