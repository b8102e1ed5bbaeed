"""A visit to a hostile cache, in a process of its own: what it prints, takes, and leaves with."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.cache.format.partners import mixed_views
from logitcache.cache.format.squares import stored_views
from logitcache.cache.read.cached_images import CachedImages
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.verify.restore import rewrite_unsealed
from logitcache.cache.write.writer import CacheWriter
from logitcache.cli import app as cli
from logitcache.cli import maintain, options, tables, trust  # noqa: F401  # what commands import
from logitcache.errors import LogitcacheError
from logitcache.views.spec import parse_view
from tests.processes import forking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection

__all__ = ["ACTIONS", "FAR", "Outcome", "visit"]

for _client in ("aiohttp", "s3fs"):  # once, in the fork server
    importlib.import_module(_client)

FAR = ("verify", "read")
"""What is done with a cache on a server."""

_SECONDS = 60
_ADDRESS_SPACE = 8 * 2**30  # so that a bomb ends this process and not the machine


@dataclass(frozen=True)
class Outcome:
    """What came of one action.

    Attributes:
        code: Exit code; of a Python call 0, or the exit code of the error that it raised.
        output: What was printed, or the message of the error.
        seconds: Of processor time.
        megabytes: Of memory beyond what the process had before.
        crash: A traceback that is no error of ours; empty if there is none.
    """

    code: int
    output: str
    seconds: float
    megabytes: float
    crash: str = ""


def read_everything(url: str) -> None:
    """Read all that a student may read."""
    cache = open_cache(url, local_copy_bytes=0)
    assert cache.samples.rows.size
    for view_id, recipe in cache.views.items():
        parse_view(recipe, view_id)
    for name, group in cache.teachers.items():
        for view in cache.views_of([name]):
            stop = cache.units()[-1] * cache.unit_rows + cache.unit_rows
            group.encoding.decode(cache.read(name, view, 0, stop))
    for view in mixed_views(cache.manifest):
        for unit in cache.units():
            cache.unit_partners(view, unit)
    cache.probes()
    if cache.squares is not None:
        for view in stored_views(cache.manifest):
            for row in cache.samples.readable.tolist():
                with contextlib.suppress(LogitcacheError):
                    cache.squares.read(view, row)
    if cache.image_bytes is not None:
        images = CachedImages(cache)
        for index in range(len(images.keys)):
            with contextlib.suppress(LogitcacheError):  # to read the next one as well
                images.read(index)


def extend(url: str) -> None:
    """Run the part of precompute before the first forward pass."""
    if "://" in url:
        return  # not every place can be written to
    writer = CacheWriter.open(locate(url, write=True))
    rewrite_unsealed(writer)
    writer.missing()
    writer.read_samples(0, writer.manifest.capacity)
    for group in writer.row_groups().values():
        for view in group.view_ids:
            writer.read_rows(group, view, 0, group.unit_rows, list(group.specs()))
    for view in mixed_views(writer.manifest):
        writer.read_partners(view, 0)


def _command(*arguments: str) -> int:
    sys.argv = ["logitcache", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


NEAR = ("verify", "inspect", "check", "read", "extend")
"""What is done with a cache in a folder."""

ACTIONS: dict[str, Callable[[str], object]] = {
    "verify": lambda url: _command("verify", url),
    "verify --quick": lambda url: _command("verify", "--quick", url),
    "inspect": lambda url: _command("inspect", url),
    "check": verify,
    "read": read_everything,
    "extend": extend,
}


def visit(
    url: str,
    actions: tuple[str, ...] = NEAR,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Outcome] | int:
    """Perform actions on a cache in a process of its own.

    Args:
        url: The cache.
        actions: Keys of :data:`ACTIONS`.
        environment: Variables of that process.

    Returns:
        Outcomes by action; the exit code of the process if it died.
    """
    context = forking()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_visit, args=(theirs, url, actions, environment or {}))
    process.start()
    theirs.close()
    found: dict[str, Outcome] = {}
    try:
        while len(found) < len(actions) and ours.poll(2 * _SECONDS):
            name, outcome = ours.recv()
            found[name] = outcome
    except EOFError:
        pass  # it died; its exit code tells
    process.join(_SECONDS)
    return found if len(found) == len(actions) else process.exitcode or -1


def _visit(
    pipe: Connection, url: str, actions: tuple[str, ...], environment: Mapping[str, str]
) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    signal.alarm(_SECONDS)
    os.environ |= {"COLUMNS": "200", **environment}
    for name in actions:
        before, started = _peak(), time.process_time()
        code, crash, output = 0, "", io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                found = ACTIONS[name](url)
                code = found if isinstance(found, int) else 0
            except LogitcacheError as error:
                code = error.exit_code
                print(error, file=output)
            except BaseException:
                crash = traceback.format_exc()
        seconds = time.process_time() - started
        pipe.send((name, Outcome(code, output.getvalue(), seconds, _peak() - before, crash)))


def _peak() -> float:
    """Return the largest memory of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
