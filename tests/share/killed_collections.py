"""Garbage collections that are killed, with a reader and a run that adds a teacher at work.

``python -m tests.share.killed_collections FOLDER --count 100`` prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.groups import TeacherGroup, groups_of
from logitcache.cache.format.manifest import TeacherRecord
from logitcache.cache.format.names import canonical_json, sha256
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.claims import MANIFEST, Claims
from logitcache.cache.write.drop import drop_from_cache, finish_drops
from logitcache.cache.write.writer import CacheWriter
from logitcache.errors import CacheError
from logitcache.precompute.run.summary import accuracy_of, images_fingerprint
from logitcache.share.garbage import collect_garbage
from tests.processes import forking
from tests.share.caches import CONDITIONS, VIEWS, Part, build, keys_of
from tests.share.kills import Moments

if TYPE_CHECKING:
    from logitcache.cache.read.reader import Cache

__all__ = ["age", "content_of", "kill_collections"]

_REFUSED = 7
_MOST_MOMENTS = 120


def age(path: Path, seconds: float = 2 * 24 * 3600) -> None:
    """Make all files of a cache older."""
    for file in path.rglob("*"):
        if file.is_file():
            found = file.stat()
            os.utime(file, (found.st_atime - seconds, found.st_mtime - seconds))


def content_of(cache: Cache) -> dict[str, bytes]:
    """Return everything that a reader reads of a cache."""
    found = {"keys": "".join(cache.samples.keys).encode()}
    for name, group in cache.groups.items():
        for view in group.view_ids:
            arrays = cache.read(name, view, 0, cache.rows_end)
            for array, rows in arrays.items():
                found[f"{name}/{view}/{array}"] = np.ascontiguousarray(rows).tobytes()
    return found


def kill_collections(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Collect garbage until ``count`` collections were killed, and each of them again to the end.

    Returns:
        Numbers of collections that were killed, complete and refused, and what was lost.
    """
    build(folder / "cache", Part([keys_of(40)], list(VIEWS), taps=["a"]))
    drop_from_cache(folder / "cache", teachers=["sparse"])
    drop_from_cache(folder / "cache", views=["0"])
    age(folder / "cache")
    generator, ended, failures = random.Random(seed), Counter[str](), []
    while ended["killed"] < count:
        number = ended.total()
        path = folder / f"cache-{number}"
        shutil.copytree(folder / "cache", path)  # with the times of the files
        failures += [[number, what] for what in _attempt(path, generator, ended)]
        shutil.rmtree(path)
    return {
        "collections": ended.total(),
        "ended": dict(sorted(ended.items())),
        "failures": failures,
    }


def _attempt(path: Path, generator: random.Random, ended: Counter[str]) -> list[str]:
    """Collect once while a reader and a run are active; return what was lost."""
    reader = open_cache(path)
    expected = content_of(open_cache(path))
    kill_at = generator.randrange(_MOST_MOMENTS)
    run = forking().Process(target=add_teacher, args=(path,))
    collection = forking().Process(target=_collect, args=(path, kill_at))
    for process in generator.sample([run, collection], 2):
        process.start()
    failures = []
    while run.is_alive() or collection.is_alive():
        if content_of(reader) != expected:
            failures.append("a reader was disturbed")
    run.join()
    collection.join()
    names = {0: "complete", _REFUSED: "refused", -signal.SIGKILL: "killed"}
    ended[names.get(collection.exitcode or 0, f"exit code {collection.exitcode}")] += 1
    if run.exitcode != 0:
        failures.append(f"the run ended with {run.exitcode}")
    collect_garbage(path, remove=True)
    collect_garbage(path, remove=True, grace_seconds=0)
    found = content_of(open_cache(path))
    if {name: found.get(name) for name in expected} != expected:
        failures.append("outputs were lost")
    if not any(name.startswith("late/") for name in found):
        failures.append("the added teacher was lost")
    report = verify(path)
    if not report.ok or report.orphans:
        failures.append(f"verify: {report.faults[:3]} {report.orphans[:3]}")
    return failures


def _collect(path: Path, kill_at: int) -> None:
    Moments(kill_at).install()
    try:
        collect_garbage(path, remove=True)
    except CacheError:
        os._exit(_REFUSED)


def add_teacher(path: Path) -> None:
    """Add a teacher to a cache in the order of precompute: declare, commit by claims, seal."""
    location = locate(path, write=True)
    claims = Claims(location)
    with claims.exclusive(MANIFEST):
        writer = CacheWriter.open(location)
        finish_drops(writer)
        dense = groups_of(writer.groups(), TeacherGroup)["dense"]
        lock = {"weights_sha256": "late"}
        record = TeacherRecord(lock=lock, canonical_batch=4, source="late")
        digest = sha256(canonical_json(lock))
        group = replace(dense, teacher="late", lock_sha256=digest, slots=dense.view_ids)
        writer.add_teacher(record, group)
    for view in group.view_ids:
        for unit in sorted(group.needed_units(writer.manifest)):
            start, stop = unit * group.unit_rows, (unit + 1) * group.unit_rows
            with claims.claimed(f"late-{view}-{unit}"):
                rows = writer.read_rows(dense, view, start, stop, list(dense.specs()))
                writer.write_unit(group, view, unit, rows, CONDITIONS)
    with claims.exclusive(MANIFEST):
        writer.refresh()
        writer.seal(images_fingerprint(writer), accuracy_of(writer))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.share.killed_collections")
    parser.add_argument("folder", type=Path, help="an empty folder to work in")
    parser.add_argument("--count", type=int, default=100, help="how many kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    found = kill_collections(arguments.folder, arguments.count, arguments.seed)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
