"""Progress on a terminal: text that fits, and a line while PyTorch is imported."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from logitcache.cli import app
from logitcache.cli.layout import PlainConsole
from logitcache.cli.progress import PhaseLines, ProgressLine
from logitcache.training.run.progress import TrainProgress

TITLE = "[6/8] from-rednet"
STEP = TrainProgress("training", 104, 400, 104, 400, 103, 400, 0.0021, 455.0, 0.15, None)


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Return true."""
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace stderr; in the test itself, since pytest replaces it before each of its steps."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


@pytest.mark.parametrize(
    ("width", "last"), [(60, "left"), (80, "loss 0.002"), (100, "images/s"), (120, "data wait 15%")]
)
def test_a_line_of_training_fits_into_a_terminal(
    width: int, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", str(width))
    with ProgressLine(TITLE) as line:
        line.train(TrainProgress("training", 0, 400, 0, 400, 0, 400, None, 0.0, 0.0, None))
        line.train(STEP)
        console = PlainConsole(file=io.StringIO(), width=width)
        console.print(line._bar.get_renderable())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("\n") == 1
    assert "…" not in shown or width < 80
    if width >= 80:
        assert f"{TITLE}: epoch 104/400" in shown
        assert "104/400 0 s left" in shown
        assert shown.strip().endswith(last)


def test_a_finished_stage_leaves_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine("[1/8] cnn") as line:
        line.finish()
    assert capsys.readouterr().err.endswith("[1/8] cnn: finished in 0 s\n")


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (250_001, 250_001, "verify: 251/251 kB"),
        (0, 250_001, "verify: 0/251 kB"),
        (12_000_000, 24_000_000, "verify: 12/24 MB"),
    ],
)
def test_bytes_of_small_caches_are_not_shown_as_nothing(
    done: int, total: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressLine("verify") as line:
        line.bytes(done, total)
    assert f"{shown}, " in capsys.readouterr().err


def test_a_terminal_shows_what_the_first_seconds_are_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["logitcache", "train"])
    app._announce("train")
    assert terminal.getvalue() == "train: loading PyTorch\n"


def test_help_and_pipes_show_no_such_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["logitcache", "train", "--help"])
    app._announce("train")
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "argv", ["logitcache", "train"])
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    app._announce("train")
    assert pipe.getvalue() == ""


@pytest.mark.parametrize(("step", "epoch", "shown"), [(22, 1, 1), (30, 1, 2), (88, 4, 4)])
def test_an_evaluation_belongs_to_the_epoch_that_it_follows(
    step: int, epoch: int, shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with ProgressLine("train") as line:
        line.train(TrainProgress("evaluating", 64, 450, step, 88, epoch, 4, 0.5, 99.0, 0.1, None))
    assert f"train: epoch {shown}/4, evaluating: 64/450" in pipe.getvalue()


def test_verify_announces_what_it_needs_for_teachers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setattr(sys, "argv", ["logitcache", "verify", "cache"])
    app._announce("verify")
    assert terminal.getvalue() == ""
    monkeypatch.setattr(sys, "argv", ["logitcache", "verify", "cache", "--teachers", "a=b"])
    app._announce("verify")
    assert terminal.getvalue() == "verify: loading PyTorch\n"


def test_a_phase_without_steps_has_its_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with PhaseLines() as lines:
        lines.show("images", 4, 8)
        lines.show("view fingerprints", 0, 0)
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "images: starting"
    assert shown[1].startswith("images: 4/8, ")
    assert shown[2:] == ["view fingerprints: starting"]


def test_the_end_of_the_interpreter_visits_no_object() -> None:
    """Collecting what PyTorch has made takes a second, and the process ends anyway."""
    script = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "from logitcache.cli.app import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True"
