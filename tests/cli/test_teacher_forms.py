"""Teachers from code of the user and from programs on the command line: results and messages."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.networks.user_networks import load, write_exported, write_module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

MODULE = "user_of_the_command_line"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with the code of a user and a program."""
    network = load(write_module(tmp_path, MODULE)).tiny()
    write_exported(network, tmp_path / "tiny.pt2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_precompute_and_evaluate(
    logitcache: Callable[..., Outcome], here: Path, images: Path
) -> None:
    teachers = ["--teacher", f"own={MODULE}:named", "--teacher", "program=tiny.pt2"]
    sets = ["--set", "teachers.program.mean=[0.5,0.5,0.5]", "--set", "teachers.program.std=[1,1,1]"]
    where = ["--data", images, "--cache", here / "cache", "--views", 1, "--threads", 1]
    done = logitcache("precompute", *where, *teachers, *sets)
    assert done.code == 0, done.err
    teacher, program = logitcache("inspect", here / "cache", "--json").json["teachers"]
    assert (teacher["architecture"], teacher["num_classes"]) == (f"{MODULE}:named", 3)
    assert (program["architecture"], program["source"]) == ("tiny.pt2", "tiny.pt2")
    evaluated = logitcache("evaluate", f"{MODULE}:named", "--data", images, "--json")
    assert evaluated.code == 0, evaluated.err
    assert (evaluated.json["classes"], evaluated.json["evaluation"]["images"]) == (3, 60)


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        (f"{MODULE}:broken", 1, "KeyError: 'no such checkpoint'"),
        (f"{MODULE}:other", 2, "the factory does not return a network"),
        ("no_such_module_at_all:f", 2, "there is no module 'no_such_module_at_all'"),
        ("missing.pt2", 2, "the file of the program does not exist"),
        (f"{MODULE}.py", 2, "MODULE:FACTORY"),
        ("tiny.pt2", 2, "no mean, no std"),
        ("torchvision/resnet19@pretrained", 2, "no classification network 'resnet19'"),
    ],
)
def test_mistakes_have_a_message_and_leave_no_cache(
    logitcache: Callable[..., Outcome],
    here: Path,
    images: Path,
    model: str,
    code: int,
    message: str,
) -> None:
    where = ["--data", images, "--cache", here / "cache"]
    done = logitcache("precompute", *where, "--teacher", f"t={model}")
    assert done.code == code, done.err
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert not (here / "cache").exists()
