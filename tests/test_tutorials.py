"""The short tutorials, run as they are written; ``.ci/matrix tutorials`` runs all of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.notebook import PAGE, notebook
from tests.tutorials import PAGES, blocks, run_page

if TYPE_CHECKING:
    from pathlib import Path

SHORT = ("4-your-own-training-script", "8-a-loss-of-your-own")
"""Tutorials that start from the cache in the package and need neither teachers nor a server."""


@pytest.mark.parametrize("name", SHORT)
def test_a_short_tutorial_runs_as_it_is_written(name: str, tmp_path: Path) -> None:
    (page,) = (page for page in PAGES if page.stem == name)
    assert run_page(page, tmp_path)


def test_there_are_eight_tutorials_and_every_block_is_run_or_has_a_reason() -> None:
    assert [page.name.partition("-")[0] for page in PAGES] == [str(n) for n in range(1, 9)]
    for page in PAGES:
        for language, text, reason in blocks(page):
            assert language in {"bash", "text"} or reason or text.startswith("# "), text


def test_the_notebook_is_that_of_its_page() -> None:
    assert json.loads(PAGE.with_suffix(".ipynb").read_text()) == notebook(PAGE), (
        "python -m tests.notebook"
    )
