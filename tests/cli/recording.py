"""A recording of a command in a terminal: its screen over time, silences, and wrapped lines.

``python -m tests.cli.recording [--columns 80] [--lines 50] COMMAND...`` runs a command in a shell
inside tmux and looks at the screen five times a second. It prints each new or changed line with the
second, the stretches of more than two seconds without a change, and the lines that are wider than
the terminal. It is run by hand and needs tmux.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ["Recording", "record"]

EVERY = 0.2
"""Seconds between two looks at the screen."""
SILENCE = 2.0
"""Seconds without a change that count as a silence."""


class Recording(NamedTuple):
    """What a command has shown.

    Attributes:
        frames: Second and lines of the screen at each change.
        seconds: Duration of the command.
        status: Exit status of the command.
        text: All lines that were left in the terminal, with those that it wrapped as one.
    """

    frames: list[tuple[float, list[str]]]
    seconds: float
    status: int
    text: list[str]

    def silences(self) -> list[tuple[float, float]]:
        """Return when nothing changed for too long: second and duration."""
        changes = [0.0, *(second for second, _ in self.frames), self.seconds]
        pairs = itertools.pairwise(changes)
        return [(start, stop - start) for start, stop in pairs if stop - start > SILENCE]

    def wrapped(self, columns: int) -> list[str]:
        """Return the lines that are wider than the terminal."""
        return [line for line in self.text if len(line) > columns]


def record(command: str, columns: int, lines: int) -> Recording:
    """Run a command of a shell in a terminal of this size, and record its screen."""
    server = f"recording-{os.getpid()}"

    def tmux(*arguments: str) -> str:
        return subprocess.run(
            ["tmux", "-L", server, "-f", "/dev/null", *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    with tempfile.TemporaryDirectory() as folder:
        ended = Path(folder) / "status"
        shell = f"({command})\nprintf %s $? > {ended}.new; mv {ended}.new {ended}; sleep 3600"
        size = ["-x", str(columns), "-y", str(lines)]
        started = time.monotonic()
        tmux("new-session", "-d", "-s", "recording", *size, "bash", "-c", shell)
        try:
            frames: list[tuple[float, list[str]]] = []
            while not ended.exists():
                time.sleep(EVERY)
                screen = tmux("capture-pane", "-p").rstrip().splitlines()
                if not frames or screen != frames[-1][1]:
                    frames.append((time.monotonic() - started, screen))
            seconds = time.monotonic() - started
            text = tmux("capture-pane", "-p", "-J", "-S", "-").rstrip().splitlines()
            return Recording(frames, seconds, int(ended.read_text()), text)
        finally:
            tmux("kill-server")


def print_recording(recording: Recording, columns: int) -> None:
    """Print changes of lines, silences, and lines that are too wide."""
    before: list[str] = []
    for second, screen in recording.frames:
        new = [line for line in screen if line not in before]
        print(f"{second:7.1f} s  " + "\n           ".join(new or ["(lines were removed)"]))
        before = screen
    print(f"\n{recording.seconds:.1f} s, exit status {recording.status}")
    for start, duration in recording.silences():
        print(f"silent for {duration:.1f} s from {start:.1f} s on")
    for line in recording.wrapped(columns):
        print(f"wrapped: {line}")


def main() -> None:
    """Record the command of the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.cli.recording")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--lines", type=int, default=50)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = " ".join(options.command)
    print_recording(record(command, options.columns, options.lines), options.columns)


if __name__ == "__main__":
    main()
