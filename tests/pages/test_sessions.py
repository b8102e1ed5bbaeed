"""Short pages are run as they are written; ``.ci/matrix tutorials`` runs all of them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.pages.blocks import PAGES, TUTORIALS, named
from tests.pages.session import is_run, run_page, script_of
from tests.pages.warm import WarmPython

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG = {
    *(page.stem for page in TUTORIALS if page.name[0] not in "48"),  # train teachers, or serve
    "benchmarks-views",  # minutes of measurement
    "results",  # the demo with three seeds
    "scale",  # starts four processes
    "teachers",  # exports a program
    "training-on-several-processes",  # starts two processes
    "training-options",  # compiles
}
"""Pages that are run by ``.ci/matrix tutorials`` alone."""


SHORT = [page for page in PAGES if is_run(page) and page.stem not in LONG]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of programs that start with torch imported."""
    with WarmPython(tmp_path_factory.mktemp("warm"), ("tests.pages.stand_ins",)) as warm:
        yield warm.folder


@pytest.mark.parametrize("page", SHORT, ids=named)
def test_a_page_runs_as_it_is_written(
    page: Path, programs: Path, tmp_path: Path, s3_server: tuple[str, int]
) -> None:
    run_page(page, tmp_path, programs, store="http://{}:{}".format(*s3_server))


def test_long_pages_are_pages_that_are_run() -> None:
    assert {page.stem for page in PAGES if is_run(page)} >= LONG


def test_files_of_how_to_pages_are_written_before_the_commands() -> None:
    (page,) = (page for page in PAGES if page.stem == "teachers")
    script = script_of(page)
    assert script.index("> models.py") < script.index("logitcache precompute")
    assert script.rstrip().endswith("python page.py")


def test_a_warm_process_has_arguments_folder_environment_and_exit_code(
    programs: Path, tmp_path: Path
) -> None:
    """The processes of the pages are like those that a user starts."""
    (tmp_path / "script.py").write_text(
        "import os, sys\n"
        "print(sys.argv[1:], os.getcwd(), os.environ['NAME'], __name__)\n"
        "sys.exit(7)\n"
    )
    done = subprocess.run(
        [programs / "python", "script.py", "a b"],
        cwd=tmp_path,
        env={"NAME": "value"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == f"['a b'] {tmp_path} value __main__\n"
