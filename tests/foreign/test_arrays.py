"""The page on numpy arrays with JAX and Keras: the same student three times."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import logitcache
from tests.foreign.test_trainers import needs
from tests.guides import page_code

if TYPE_CHECKING:
    from pathlib import Path


@needs("jax")
@needs("keras")
def test_students_of_numpy_jax_and_keras_have_the_same_losses(
    images: Path,
    teachers: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/train").symlink_to(images, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    monkeypatch.setitem(os.environ, "JAX_PLATFORMS", "cpu")
    values: dict[str, Any] = {"teachers": {"cnn": teachers["cnn"]}, "views": {"count": 2}}
    logitcache.build_cache(
        logitcache.PrecomputeConfig(cache="runs/cache", data="photos/train", **values)
    )
    names: dict[str, Any] = {}
    exec(page_code("docs/numpy.md"), names)
    assert len(names["losses"]) == 6
    assert names["jax_losses"] == pytest.approx(names["losses"], rel=1e-4)
    assert names["keras_losses"] == pytest.approx(names["losses"], rel=1e-4)
