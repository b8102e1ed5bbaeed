from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.data.readers import open_source
from logitcache.errors import DataMismatch, UnreadableImage
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig
from logitcache.views.workers import WorkerRenderer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

VIEW = ViewsConfig(auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5, mixup_alpha=1).random_view(3)


class Reader:
    """Reads pixels; some indices fail."""

    def __call__(self, index: int) -> bytes | NDArray[np.uint8]:
        if index == 98:
            raise DataMismatch("changed", where=index)
        return b"junk" if index == 99 else np.full((8, 8, 3), index, dtype=np.uint8)


def requests(indices: list[int], batch: int) -> Iterator[BatchRequest]:
    for start in range(0, len(indices), batch):
        chosen = np.array(indices[start : start + batch])
        hashes = chosen.astype(np.uint64) * np.uint64(2**40 + 1)
        yield BatchRequest(
            VIEW, chosen, hashes, partners=chosen[::-1].copy(), partner_hashes=hashes[::-1].copy()
        )


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_make_the_pixels_of_threads(images: Path, context: str) -> None:
    source, order = open_source(str(images)), list(range(60))
    with ViewRenderer(source.read, [16, 24], threads=2) as renderer:
        expected = list(renderer.batches(requests(order, 8)))
    with WorkerRenderer(source.read, [16, 24], workers=2, context=context) as other:
        for _ in range(2):
            got = list(other.batches(requests(order, 8)))
            assert len(got) == len(expected) == 8
            for ours, theirs in zip(got, expected, strict=True):
                assert ours.pixels[16].flags.c_contiguous
                assert (ours.pixels[16] == theirs.pixels[16]).all()
                assert (ours.pixels[24] == theirs.pixels[24]).all()


def test_an_epoch_that_is_left_does_not_leak_into_the_next() -> None:
    with WorkerRenderer(Reader(), [8], workers=2) as renderer:
        left = renderer.batches(requests(list(range(40)), 4))
        next(left)
        next(left)
        again = list(renderer.batches(requests(list(range(50, 70)), 4)))
    assert [batch.request.indices[0] for batch in again] == [50, 54, 58, 62, 66]
    assert all(batch.pixels[8].shape == (4, 3, 8, 8) for batch in again)


def test_errors_come_back_as_themselves() -> None:
    with WorkerRenderer(Reader(), [8], workers=1) as renderer:
        (batch,) = renderer.batches(requests([1, 99], 2))
        assert set(batch.failures) <= {0, 1}
        assert isinstance(batch.failures[1], UnreadableImage)
        assert batch.failures[1].where == 99
        with pytest.raises(DataMismatch, match="changed") as found:
            list(renderer.batches(requests([1, 98], 2)))
    assert found.value.where == 98


SCRIPT = """
import sys
from logitcache.views.render import BatchRequest
from logitcache.views.spec import ViewsConfig
from logitcache.views.workers import WorkerRenderer
from tests.views.test_workers import Reader
import numpy as np

with WorkerRenderer(Reader(), [8], workers=1, context=sys.argv[1]) as renderer:
    view = ViewsConfig().random_view(1)
    request = BatchRequest(view, np.arange(4), np.arange(4, dtype=np.uint64))
    print(len(list(renderer.batches([request]))), "batches")
"""


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_a_script_without_a_guard_is_named(tmp_path: Path, context: str) -> None:
    """Neither a fork bomb nor a wait without end: each side names what to change."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), context]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 1
    assert "a worker process imports the script" in done.stderr
    assert "a worker process of the loader has ended" in done.stderr
    assert done.stderr.count('if __name__ == "__main__":') >= 2
    guarded = SCRIPT.replace("\nwith", '\nif __name__ == "__main__":\n  with')
    script.write_text(guarded.replace("\n    ", "\n      "))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert "1 batches" in done.stdout
