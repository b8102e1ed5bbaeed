"""Views of a block from one decoding of its images, against a decoding for every view.

Synthetic photographs of 500 x 375 pixels as JPEG, uint8 views of 224 pixels, no teachers: the part
of precompute that renders. Both sides render the same requests in turns. Pixels are equal: see
``tests/precompute/test_building.py``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from logitcache.views.render import IMAGE_MEMORY, BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig
from tests.benchmarks.measuring import Measurement, ratio_of_times
from tests.benchmarks.view_rates import BATCH, POLICIES, SIZE, THREADS, photographs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.views.spec import View

IMAGES, ROUNDS = 192, 5
VIEWS = (1, 4, 16)


def measure() -> list[Measurement]:
    """Return how many times faster views are rendered, by their number and their operations."""
    files = photographs(IMAGES)
    rows = []
    for policy, settings in POLICIES.items():
        for count in VIEWS:
            views = ViewsConfig(count=count, **settings).views()
            rows.append(
                ratio_of_times(
                    f"{count} views rendered from one decoding, {policy}",
                    partial(_render, files, views, IMAGE_MEMORY if count > 1 else 0),
                    partial(_render, files, views, 0),
                    rounds=ROUNDS,
                    inverse=True,
                )
            )
    return rows


def _render(files: Sequence[bytes], views: Sequence[View], image_memory: int) -> None:
    hashes = np.arange(len(files), dtype=np.uint64) * np.uint64(2**40 + 1)
    rows = [np.arange(start, start + BATCH) for start in range(0, len(files), BATCH)]
    requests = (BatchRequest(view, part, hashes[part]) for view in views for part in rows)
    with ViewRenderer(
        lambda index: files[index], [SIZE], threads=THREADS, image_memory=image_memory
    ) as renderer:
        for _ in renderer.batches(requests):
            pass
