"""Import paths of version 0.1 still work, and name the new ones."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import logitcache
from logitcache.moved import MOVED

PUBLIC_OF_0_1 = {
    "Cache": "cache.reader",
    "DataConfig": "data.readers",
    "DenseLogits": "batch",
    "EncodingConfig": "encoding.choice",
    "Features": "batch",
    "Label": "objectives.label",
    "LabelConfig": "objectives.label",
    "Loader": "targets.loader",
    "LogitcacheError": "errors",
    "NetworkConfig": "networks.build",
    "ObjectiveConfig": "objectives.combine",
    "Outputs": "batch",
    "PrecomputeConfig": "precompute.config",
    "Soft": "objectives.soft",
    "SoftConfig": "objectives.soft",
    "SparseLogits": "batch",
    "TargetBatch": "batch",
    "TeacherConfig": "teachers.member",
    "TrainConfig": "training.config",
    "ViewsConfig": "views.spec",
    "build_cache": "precompute.local",
    "build_network": "networks.build",
    "build_objective": "objectives.combine",
    "loader": "targets.loader",
    "open_cache": "cache.reader",
    "open_source": "data.readers",
    "train_student": "training.loop",
}
"""The public names of version 0.1, and the modules they were defined in."""


@pytest.mark.parametrize("name", PUBLIC_OF_0_1)
@pytest.mark.filterwarnings("ignore:.* has moved to:DeprecationWarning")
def test_a_public_name_is_found_where_it_was(name: str) -> None:
    module = importlib.import_module(f"logitcache.{PUBLIC_OF_0_1[name]}")
    assert getattr(module, name) is getattr(logitcache, name)


@pytest.mark.parametrize("old", MOVED)
def test_every_name_of_a_moved_module_warns_and_is_the_new_one(old: str) -> None:
    module = importlib.import_module(f"logitcache.{old}")
    for home in MOVED[old]:
        new = importlib.import_module(f"logitcache.{home}")
        for name in new.__all__:
            text = f"logitcache.{old}.{name} has moved to logitcache.*.{name}"
            with pytest.warns(DeprecationWarning, match=text):
                assert getattr(module, name) is not None


def test_an_import_names_the_line_of_the_user() -> None:
    with pytest.warns(
        DeprecationWarning, match="moved to logitcache.targets.cache_targets"
    ) as found:
        from logitcache.cache.reader import open_cache  # type: ignore[import-not-found]
    assert open_cache is logitcache.open_cache
    assert found[0].filename == __file__


def test_an_unknown_name_is_unknown() -> None:
    module = importlib.import_module("logitcache.cache.reader")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_the_modules_are_found_in_a_process_of_their_own() -> None:
    code = "import logitcache.precompute.local as old; print(old.build_cache.__module__)"
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "logitcache.precompute.build"
