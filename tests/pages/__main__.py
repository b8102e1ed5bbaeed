"""Run pages and print how long each has taken; see :mod:`tests.pages`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.pages.blocks import PAGES, TUTORIALS, named
from tests.pages.servers import object_store
from tests.pages.session import is_run, run_page
from tests.pages.warm import WarmPython


def main(folder: Path, names: list[str]) -> None:
    """Run tutorials as a user types them, in one folder, and each other page in its own.

    Args:
        folder: Where they are run.
        names: Beginnings of the names of pages, such as ``3-`` or ``sharing``; by default all.
    """
    chosen = [
        page
        for page in [*TUTORIALS, *(page for page in PAGES if page not in TUTORIALS)]
        if is_run(page) and (not names or page.name.startswith(tuple(names)))
    ]
    failed = []
    real = Path(sys.executable).parent
    with object_store() as store, WarmPython(folder / "warm", ("tests.pages.stand_ins",)) as warm:
        for page in chosen:
            place = folder / ("tutorials" if page in TUTORIALS else page.stem)
            place.mkdir(parents=True, exist_ok=True)
            programs = real if page in TUTORIALS else warm.folder
            started, used = time.monotonic(), warm.seconds()
            try:
                print(run_page(page, place, programs, store=store))
            except AssertionError as error:
                failed.append(named(page))
                print(error)
            passed, used = time.monotonic() - started, warm.seconds() - used
            print(f"== {named(page)}: {passed:.0f} s ({used:.0f} s of processors)", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
