"""Kill ``push`` at random moments, to a folder and to an S3 server, push again, compare.

Every second copy is an update of an earlier revision, which has to stay readable after the kill.
"""

from __future__ import annotations

import logging
import os
import random
from typing import TYPE_CHECKING, Any

import boto3

from logitcache.cache.verify.integrity import verify
from logitcache.errors import CacheError
from logitcache.share.destination import MARKER
from logitcache.share.transfer import push
from tests.remote.buckets import CREDENTIALS
from tests.share.growing import build, contents, grow, in_a_child, same_contents, written

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["kill_transfers"]

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
    draw, failures, moments = random.Random(seed), [], []
    for number in range(count):
        distant, update = number % 2 == 1, number // 2 % 2 == 1
        place = f"s3://{_BUCKET}/{number}" if distant else str(folder / f"copy-{number}")
        moments.append(draw.randrange(_LEAST_MOMENTS if update else 2 * _LEAST_MOMENTS))
        if update:
            push(young, place)
        logs = folder / f"{number}-first.log", folder / f"{number}-second.log"
        if in_a_child(lambda place=place: push(grown, place), logs[0], moments[-1]):  # type: ignore[misc]
            failures.append([number, place, "not killed"])
        expected = contents(young) if update else None
        try:
            seen: Any = contents(place)
        except CacheError:
            seen = None
        old = (
            seen == expected if expected is None or seen is None else same_contents(seen, expected)
        )
        new = seen is not None and same_contents(seen, contents(grown))
        if not (old or new):
            failures.append([number, place, "a reader finds neither revision"])
        in_a_child(lambda place=place: push(grown, place), logs[1])  # type: ignore[misc]
        twice = set(written(logs[0])) & set(written(logs[1])) - {MARKER}
        if twice:
            failures.append([number, place, f"written twice: {sorted(twice)[:3]}"])
        if not same_contents(contents(place), contents(grown)) or not verify(place).ok:
            failures.append([number, place, "the copy differs"])
    server.stop()
    return {"kills": count, "in_a_bucket": count // 2, "moments": moments, "failures": failures}
