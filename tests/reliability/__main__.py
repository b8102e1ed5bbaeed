"""``python -m tests.reliability kills|real|train|systems|transfer|… FOLDER``: one JSON document.

What ``docs/measurements/reliability.md`` quotes.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

_KILLS = {
    "kills": ("kills", "kill_null_runs"),
    "real": ("real", "kill_real_runs"),
    "cluster": ("cluster", "kill_workers"),
    "process-1": ("namespace", "kill_process_1"),
    "train": ("runs", "kill_trainings"),
    "run": ("runs", "kill_pipelines"),
    "systems": ("systems", "kill_systems"),
    "transfer": ("transfers", "kill_transfers"),
    "hub": ("hub_pushes", "kill_hub_pushes"),
    "pull": ("pulls", "kill_pulls"),
    "hub-pull": ("pulls", "kill_hub_pulls"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability")
    parser.add_argument("what", choices=sorted([*_KILLS, "verification", "digests"]))
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    parser.add_argument("--count", type=int, default=50, help="how many kills (of each system)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(_run(arguments), indent=1))


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.what in _KILLS:
        module, function = _KILLS[arguments.what]
        kill = getattr(importlib.import_module(f"tests.reliability.{module}"), function)
        found: dict[str, Any] = kill(arguments.folder, arguments.count, arguments.seed)
        return found
    from tests.reliability.cost import digests, verification

    if arguments.what == "verification":
        return verification(arguments.folder)
    return digests(arguments.folder)


if __name__ == "__main__":
    main()
