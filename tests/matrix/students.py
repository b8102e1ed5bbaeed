"""The second half of every system in an environment without the package of teachers.

Started as a script, ``python -m tests.matrix.students PYTHON [SYSTEM...]`` runs the stages of each
pipeline up to its last cache here, and those behind it with the other interpreter, in which
``logitcache.teachers`` must not be installed. It prints a line for each system, and fails where a
stage fails there or its student is not above twice chance.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from logitcache.cli.run import load_pipelines
from logitcache.pipeline.run import DONE
from tests.end_to_end.test_systems import CHANCE, JUDGED, STUDENT, SYSTEMS

__all__ = ["Failed", "run_split"]


class Failed(Exception):
    """A command that failed, or a student that did not learn."""


def run_split(system: str, python: str, folder: Path) -> float:
    """Run a pipeline in two environments, and return the accuracy of its student.

    Args:
        system: Name of the pipeline.
        python: Interpreter for the stages after the last cache.
        folder: For all outputs.

    Raises:
        Failed: A stage failed, or the student is not above twice chance.
    """
    (pipeline,) = load_pipelines(system, out=str(folder), seeds=1, sets=[])
    caches = [i for i, stage in enumerate(pipeline.stages) if stage.kind == "precompute"]
    names = [stage.name for stage in pipeline.stages]
    for interpreter, part in (
        (sys.executable, names[: caches[-1] + 1]),
        (python, names[caches[-1] + 1 :]),
    ):
        only = [word for name in part for word in ("--only", name)]
        command = [interpreter, "-P", "-m", "logitcache", "-q", "run", system, *only]
        _checked([*command, "--out", str(folder)], folder.parent)
    judged = JUDGED.get(system, STUDENT.get(system, "student"))
    result = json.loads((folder / f"{judged}{DONE}").read_text())["result"]
    top1 = float(result["evaluation"]["top1"])
    if top1 <= 2 * CHANCE:
        raise Failed(f"the student is right on {100 * top1:.1f} % of the images")
    return top1


def _checked(command: list[str], cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")


def main(python: str, systems: list[str]) -> int:
    """Run systems, print a line for each, and return the exit code."""
    found = subprocess.run(
        [python, "-P", "-c", "import logitcache; import logitcache.teachers"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named 'logitcache.teachers'" not in found.stderr:
        print(f"logitcache.teachers can be imported by {python}, or logitcache cannot")
        return 1
    failed = 0
    for system in systems or SYSTEMS:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = f"{100 * run_split(system, python, Path(folder) / system):.1f} %"
            except Failed as error:  # the others run nevertheless
                outcome = f"failed: {error}"
                failed += 1
        print(f"{system}: {outcome}, {time.perf_counter() - started:.0f} s", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
