"""``python -m tests.reliability kills|real|cluster|… FOLDER``: one JSON document.

What ``docs/reliability.md`` quotes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability")
    parser.add_argument("what", choices=["kills", "real", "cluster", "verification", "digests"])
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    parser.add_argument("--count", type=int, default=50, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(_run(arguments), indent=1))


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.what == "kills":
        from tests.reliability.kills import kill_at_random_moments

        kills = kill_at_random_moments(arguments.folder, arguments.count, arguments.seed)
        return kills.to_json()
    if arguments.what == "real":
        from tests.reliability.real import kill_real_runs

        return kill_real_runs(arguments.folder, arguments.count, arguments.seed)
    if arguments.what == "cluster":
        from tests.reliability.cluster import kill_workers

        return kill_workers(arguments.folder, arguments.count, arguments.seed)
    from tests.reliability.cost import digests, verification

    if arguments.what == "verification":
        return verification(arguments.folder)
    return digests(arguments.folder)


if __name__ == "__main__":
    main()
