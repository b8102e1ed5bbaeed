"""Kill ``push`` at random moments, to a folder and to an S3 server, push again, compare.

Every second copy is an update of an earlier revision, which has to stay readable after the kill.
"""

from __future__ import annotations

import logging
import os
import random
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3

from logitcache.cache.verify.integrity import verify
from logitcache.errors import CacheError
from logitcache.share.destination import MARKER
from logitcache.share.transfer import push
from tests.remote.buckets import CREDENTIALS
from tests.share.growing import build, contents, grow, in_a_child, same_contents, written

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Reader", "kill_transfers"]

_BUCKET = "transfers"
_LEAST_MOMENTS = 120  # of an update; a first copy has more


def kill_transfers(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill ``count`` times: half of them in a folder, half in a bucket; return what came of it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel("ERROR")
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    os.environ.update({"AWS_ENDPOINT_URL": address, **CREDENTIALS})
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket=_BUCKET)
    young, grown = build(folder / "young"), grow(build(folder / "grown"))
    draw, failures = random.Random(seed), []
    moments, reads = [], []
    for number in range(count):
        distant, update = number % 2 == 1, number // 2 % 2 == 1
        place = f"s3://{_BUCKET}/{number}" if distant else str(folder / f"copy-{number}")
        moments.append(draw.randrange(_LEAST_MOMENTS if update else 2 * _LEAST_MOMENTS))
        if update:
            push(young, place)
        logs = folder / f"{number}-first.log", folder / f"{number}-second.log"
        reader = Reader(place, [young] if update else [], grown)
        work = partial(push, grown, place)
        if in_a_child(work, logs[0], moments[-1], reader.read):
            failures.append([number, place, "not killed"])
        reader.read()  # what the kill has left
        failures += [[number, place, what] for what in dict.fromkeys(reader.wrong)]
        reads.append(reader.count)
        in_a_child(work, logs[1], meanwhile=reader.read)
        # a lock is written again for as long as it is held
        again = set(written(logs[0])) & set(written(logs[1])) - {MARKER}
        twice = [key for key in again if not key.startswith("claims/")]
        if twice:
            failures.append([number, place, f"written twice: {sorted(twice)[:3]}"])
        if not same_contents(contents(place), contents(grown)) or not verify(place).ok:
            failures.append([number, place, "the copy differs"])
    server.stop()
    return {
        "kills": count,
        "in_a_bucket": count // 2,
        "moments": moments,
        "reads": reads,
        "failures": failures,
    }


class Reader:
    """Reader of a copy while it is written.

    Args:
        place: The copy.
        before: Revisions that it has had; without one, there may be no cache.
        after: The revision that it is to have.
    """

    def __init__(self, place: str, before: Sequence[Path], after: Path) -> None:
        self._place, self._has_been = place, bool(before)
        self._allowed = [contents(path) for path in (*before, after)]
        self.count = 0
        self.wrong: list[str] = []

    def read(self) -> None:
        """Read everything once."""
        self.count += 1
        try:
            seen = contents(self._place)
        except CacheError:
            if self._has_been:
                self.wrong.append("a reader finds no cache")
            return
        if not any(same_contents(seen, allowed) for allowed in self._allowed):
            self.wrong.append("a reader finds neither revision")
