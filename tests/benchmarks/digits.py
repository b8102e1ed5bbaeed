"""What the systems of ``pipelines/`` show on digits: accuracies and paired differences of seeds.

::

    for system in dpk rtk; do logitcache run $system --seeds 3 --out runs/$system; done
    python -m tests.benchmarks.digits runs/dpk runs/rtk

A row for each system: the accuracy of its student, and this accuracy less that of the other
students of the pipeline, which are its controls. Differences are paired by seed and followed by the
95 % interval of Student's t; those whose interval is on one side of zero are bold.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from tests.benchmarks.real import half_width, top1
from tests.end_to_end.test_systems import JUDGED

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = (
    "| system | top-1 | less labels alone | less plain soft targets | less shuffled targets "
    "| less others |\n" + "|---" * 6 + "|"
)
COLUMNS = ("labels", "kd", "shuffled")
"""Controls that most pipelines have; all others are in the last column."""
OTHERS = ("any", "real", "start", "alone", "student-1", "finetuned-alone", "probe-copy", "tuned")
NOT_FINE_TUNED = {"shuffled", "alone"}
"""No controls of a student that is fine-tuned."""


def row(folder: Path) -> str:
    """Return the row of a pipeline that was run with several seeds."""
    seeds = sorted(folder.glob("seed-*"))
    judged = JUDGED.get(folder.name, "student")
    if not (seeds[0] / judged).exists():  # generations
        judged = max(path.name for path in seeds[0].glob(f"{judged}-*") if path.is_dir())
    no_controls = {judged} | (NOT_FINE_TUNED if folder.name in JUDGED else set())
    own = [top1(seed / judged) for seed in seeds]
    found = {
        name: difference(own, seeds, name)
        for name in (*COLUMNS, *OTHERS)
        if name not in no_controls and (seeds[0] / name).exists()
    }
    cells = [f"`{folder.name}`", f"{mean(own):.1f} ± {stdev(own):.1f}"]
    cells += [found.pop(name, "") for name in COLUMNS]
    cells.append("; ".join(f"`{name}` {text}" for name, text in found.items()))
    return f"| {' | '.join(cells)} |"


def difference(own: Sequence[float], seeds: Sequence[Path], name: str) -> str:
    """Return the mean of paired differences and its interval."""
    found = [mine - top1(seed / name) for mine, seed in zip(own, seeds, strict=True)]
    middle, half = mean(found), half_width(found, 0.975)
    text = f"{middle:+.1f} [{middle - half:+.1f}, {middle + half:+.1f}]"
    return f"**{text}**" if abs(middle) > half else text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", type=Path, help="runs of pipelines with --seeds")
    print(HEADER, *map(row, parser.parse_args().folders), sep="\n")


if __name__ == "__main__":
    main()
