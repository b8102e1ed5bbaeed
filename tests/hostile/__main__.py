"""Visit hostile caches and print what ``logitcache verify`` says of each, as a table of Markdown.

``python -m tests.hostile [--s3] [PATTERN]``; names of inputs that are not refused as they should be
go to stderr. With ``--s3`` caches are on an S3 server, as far as one can have them.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path

from moto.server import ThreadedMotoServer

from tests.hostile.forge import Forgery
from tests.hostile.inputs import INPUTS, intact
from tests.hostile.test_hostile import check
from tests.hostile.visit import FAR, Outcome, visit
from tests.remote.buckets import upload


def message_of(outcome: Outcome, root: Path) -> str:
    """Return the first line that names what is wrong."""
    text = outcome.output.replace(str(root), "CACHE")
    for line in text.splitlines():
        if line.startswith("error: "):
            return line.removeprefix("error: ")
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) > 3:
            return ": ".join(cells[2:4])
    return "ok" if outcome.code == 0 else text.strip().splitlines()[-1]


def main(*arguments: str) -> None:
    """Visit the inputs whose names match a pattern."""
    pattern = next((text for text in arguments if text != "--s3"), "")
    server = None
    if "--s3" in arguments:
        logging.getLogger("werkzeug").setLevel("ERROR")
        server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        server.start()
    print("| kind | input | exit code | message |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        intact(base)
        for number, hostile in enumerate(INPUTS):
            if not re.search(pattern, hostile.name) or (server and not hostile.files):
                continue
            root = Path(folder) / str(number)
            shutil.copytree(base, root / "cache")
            hostile.build(Forgery(root / "cache"))
            if server is None:
                outcomes = visit(str(root / "cache"))
            else:
                url, environment = upload(root / "cache", server.get_host_and_port())
                outcomes = visit(url, FAR, environment)
            try:
                check(outcomes, hostile, far=server is not None)
            except AssertionError as error:
                print(f"{hostile.name}: {str(error)[-1500:]}", file=sys.stderr)
            if isinstance(outcomes, dict):
                found = outcomes["verify"]
                message = message_of(found, root / "cache")
                message = re.sub(r"[|\[\]]", r"\\\g<0>", message)  # neither columns nor links
                print(f"| {hostile.kind} | {hostile.name} | {found.code} | {message} |")
            shutil.rmtree(root, ignore_errors=True)
    if server is not None:
        server.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
