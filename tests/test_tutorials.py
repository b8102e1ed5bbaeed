"""The short tutorials, run as they are written; ``.ci/matrix tutorials`` runs all of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import logitcache
from tests.notebook import PAGE, notebook
from tests.tutorials import PAGES, blocks, run_page

if TYPE_CHECKING:
    from pathlib import Path

SHORT = ("4-your-own-training-script", "8-a-loss-of-your-own")
"""Tutorials that start from the cache of the demo and need neither teachers nor a server."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache in place of the demo's: two untrained teachers of digits."""
    folder = tmp_path_factory.mktemp("tutorials")
    sizes: dict[str, Any] = {"channels": [8, 8, 8, 8], "stem_width": 8}
    teachers: dict[str, Any] = {}
    for name in ("cnn", "rednet"):
        torch.manual_seed(len(teachers))
        network = timm.create_model("resnet10t", num_classes=10, **sizes)
        save_file(network.state_dict(), folder / f"{name}.safetensors")
        weights = str(folder / f"{name}.safetensors")
        teachers[name] = {"model": "resnet10t", "weights": weights, "kwargs": sizes, "size": 16}
    values = {
        "cache": str(folder / "runs/demo/cache"),
        "data": "digits",
        "teachers": teachers,
        "views": {"count": 2},
        "min_accuracy": 0,
        "device": "cpu",
    }
    logitcache.build_cache(logitcache.PrecomputeConfig.parse(values, "tutorials"))
    return folder


@pytest.mark.parametrize("name", SHORT)
def test_a_short_tutorial_runs_as_it_is_written(name: str, folder: Path) -> None:
    (page,) = (page for page in PAGES if page.stem == name)
    assert run_page(page, folder)


def test_there_are_eight_tutorials_and_every_block_is_run_or_has_a_reason() -> None:
    assert [page.name.partition("-")[0] for page in PAGES] == [str(n) for n in range(1, 9)]
    for page in PAGES:
        for language, text, reason in blocks(page):
            assert language in {"bash", "text"} or reason or text.startswith("# "), text


def test_the_notebook_is_that_of_its_page() -> None:
    assert json.loads(PAGE.with_suffix(".ipynb").read_text()) == notebook(PAGE), (
        "python -m tests.notebook"
    )
