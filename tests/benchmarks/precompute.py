"""Precompute compared with the bare loop, and the time of a row without its forward pass.

The bare loop has the same loader (reading, digests, decoding, views) and the same teachers; what
they say is dropped. Both sides take turns in one process. A row's own cost is processor time of all
threads, with answers and pixels that cost nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.cache.format.names import Status
from logitcache.cache.write.claims import Claims
from logitcache.cache.write.unit_commit import Conditions
from logitcache.data.readers import open_source
from logitcache.encoding.sparse import SparseEncoding
from logitcache.platforms import available_processors
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.plan.plan import make_plan
from logitcache.precompute.plan.worklist import Block, WorkItem
from logitcache.precompute.run.compute import compute_plan
from logitcache.precompute.run.source_renderer import SourceRenderer
from logitcache.precompute.run.unit import Batch, Work
from logitcache.teachers.ensemble import Ensemble
from logitcache.views.render import IMAGE_MEMORY
from logitcache.views.spec import parse_view
from tests.benchmarks.measuring import Measurement, ratio_of_times
from tests.benchmarks.synthetic import teacher_logits
from tests.cache.building import RECIPE, VIEW, declare, samples_of, start_cache
from tests.conftest import jpeg, shape_image, write_teacher
from tests.precompute.null import compute_alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from logitcache.precompute.plan.plan import Plan
    from logitcache.views.tokens import ShownPatches

CLASSES, TOP_K = 1000, 50
ROWS, UNIT, BATCH = 16384, 4096, 64
IMAGES, VIEWS, SIDE = 256, 3, 48


def measure() -> list[Measurement]:
    """Return the processor time of a row, and images/s over those of the bare loop."""
    return [_row_cost(), _against_the_bare_loop()]


class _Blank:
    """Pixels that cost nothing."""

    def batches(self, view_id: str, starts: Iterable[int], block: Block) -> Iterator[Batch]:
        del view_id, block
        for start in starts:
            yield Batch(start, {}, {})


class _Known:
    """Answers that are known: rows of synthetic logits, batch by batch."""

    def __init__(self) -> None:
        self._logits_NC = teacher_logits(UNIT, CLASSES)
        self._next = 0

    def start(
        self,
        pixels: Mapping[int, NDArray[np.uint8]],
        batches: Mapping[str, int],
        kept_patches: Mapping[str, NDArray[np.int64] | None],
        shown: ShownPatches | None = None,
    ) -> dict[str, Callable[[], NDArray[np.float32]]]:
        del pixels, batches, shown
        start = self._next % UNIT
        self._next += BATCH
        logits_BC = self._logits_NC[start : start + BATCH]
        return dict.fromkeys(kept_patches, lambda: logits_BC)


def _row_cost() -> Measurement:
    """Top-K, encoding, fidelity of the sample, writing and committing."""
    teachers, times = _Known(), []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            writer = start_cache(Path(folder) / "c", ROWS, unit=UNIT)
            samples: Any = samples_of(ROWS, unit=UNIT)
            group = declare(writer, "t", SparseEncoding(CLASSES, TOP_K), UNIT)
            work = Work(
                writer=writer,
                renderer=_Blank(),
                teachers=teachers,
                groups={"t": group},
                conditions={"t": Conditions(BATCH, "float32", 1)},
                views={VIEW: parse_view(RECIPE, VIEW)},
                batch_rows=BATCH,
                skip_bad_images=False,
                after_batch=lambda _: None,
            )
            started = time.process_time()
            for unit in range(ROWS // UNIT):
                rows = slice(unit * UNIT, (unit + 1) * UNIT)
                block = Block(
                    start=rows.start,
                    indices=np.arange(rows.start, rows.stop),
                    keys=samples["key"][rows],
                    hashes=samples["hash"][rows],
                    labels=samples["label"][rows],
                    status=np.full(UNIT, Status.OK, dtype=np.uint8),
                    digests=samples["digest"][rows],
                    sizes=samples["bytes"][rows],
                )
                compute_alone(work, WorkItem(VIEW, unit, units={"t": (unit,)}), block)
            times.append((time.process_time() - started) / ROWS)
    low, median, high = statistics.quantiles([1e6 * seconds for seconds in times], n=4)
    name = f"core time of a row, view and teacher: top-{TOP_K}, encode, write, C = {CLASSES}"
    return Measurement(name, median, "us", low, high, target=50.0)


def _against_the_bare_loop() -> Measurement:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = _small_teachers(folder)
        caches = iter(range(1000))

        def plan_anew() -> tuple[Plan, Ensemble, Claims]:
            cache = str(folder / f"cache-{next(caches)}")
            config = PrecomputeConfig.parse({**values, "cache": cache}, "")
            plan = make_plan(config, source, ensemble)
            return plan, ensemble, Claims(plan.writer.location)

        def precompute() -> None:
            plan, teachers, claims = planned.pop()
            shown = compute_plan(
                plan, teachers, claims, precision="float32", threads=None, skip_bad_images=False
            )
            assert shown == IMAGES * VIEWS

        def bare() -> None:
            _bare_loop(bare_plan, ensemble)

        source = open_source(str(values["data"]))
        config = PrecomputeConfig.parse({**values, "cache": "-"}, "")
        ensemble = Ensemble(config.teachers, device=torch.device("cpu"), precision="float32")
        rounds = 5
        planned = [plan_anew() for _ in range(rounds + 1)]
        bare_plan = plan_anew()[0]
        return ratio_of_times(
            f"precompute images/s, CNN + involution at {SIDE}, of the bare loop",
            precompute,
            bare,
            rounds=rounds,
            target=0.97,
            inverse=True,
        )


def _small_teachers(folder: Path) -> dict[str, object]:
    """Write photos without classes and two networks of 1000 classes."""
    for number in range(IMAGES):
        (folder / "photos").mkdir(exist_ok=True)
        content = jpeg(shape_image(number, (200, 180)))
        (folder / "photos" / f"{number:04d}.jpg").write_bytes(content)
    teachers = {
        kind: {
            "model": f"local-dir:{write_teacher(folder / kind, classes=CLASSES, model=kind)}",
            "size": SIDE,
        }
        for kind in ("cnn", "rednet")
    }
    return {
        "data": str(folder / "photos"),
        "teachers": teachers,
        "views": {"count": VIEWS},
        "encoding": {"top_k": TOP_K},
        "unit_rows": IMAGES,
        "batch_size": BATCH,
    }


def _bare_loop(plan: Plan, ensemble: Ensemble) -> None:
    """Show every image to every teacher and drop what they say."""
    renderer = SourceRenderer(
        plan.source,
        plan.views,
        ensemble.sizes,
        batch_rows=BATCH,
        threads=available_processors(),
        table=plan.decoding,
        partners=plan.partners,
        image_memory=IMAGE_MEMORY,
    )
    batches = dict.fromkeys(ensemble.members, BATCH)
    requested = dict.fromkeys(ensemble.members)
    try:
        for view_id in plan.views:
            block = plan.block(0)
            starts = range(0, len(block.indices), BATCH)
            for batch in renderer.batches(view_id, starts, block):
                ensemble.run(batch.pixels, batches, requested)
    finally:
        renderer.close()
