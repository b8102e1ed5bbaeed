"""Options of all commands: quiet, verbose, and a log file."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import pytest

from logitcache.cli import logs
from logitcache.cli.progress import ProgressLine
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore the loggers of the package, which belong to the process."""
    logger = logging.getLogger("logitcache")
    handlers, level = list(logger.handlers), logger.level
    yield
    for handler in set(logger.handlers) - set(handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)
    logs.configure(quiet=False, verbose=False, file=None)


def test_quiet_prints_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("before"):
        pass
    logs.configure(quiet=True, verbose=False, file=None)
    with ProgressLine("after") as line:
        line.count(1, 2)
    assert capsys.readouterr().err == "before: starting\n"


def test_verbose_prints_decisions_but_not_progress_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(quiet=False, verbose=True, file=None)
    logging.getLogger("logitcache.networks.device").info("device cpu: %s", "no\x1b accelerator")
    with ProgressLine("count"):
        pass
    assert capsys.readouterr().err == "device cpu: no\\x1b accelerator\ncount: starting\n"


def test_a_log_file_has_times_decisions_progress_and_the_command(tmp_path: Path) -> None:
    file = tmp_path / "run.log"
    file.write_text("earlier\n")
    arguments = ["train", "--cache", "https://me:secret@host/cache"]
    logs.configure(quiet=True, verbose=False, file=file, arguments=arguments)
    logging.getLogger("logitcache.networks").info("first\nsecond")
    with ProgressLine("count") as line:
        line.count(3, 4)
    earlier, command, first, second, *progress = file.read_text().splitlines()
    assert earlier == "earlier"
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", command)
    assert command.endswith("logitcache train --cache https://***@host/cache")
    assert first.endswith("INFO logitcache.networks: first")
    assert second == "second"
    assert progress[0].endswith("progress: count: starting")
    assert "count: 3/4" in progress[-1]


def test_a_log_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the log file cannot be written"):
        logs.configure(quiet=False, verbose=False, file=tmp_path / "none" / "run.log")
    with pytest.raises(UsageError, match="exclude each other"):
        logs.configure(quiet=True, verbose=True, file=None)
