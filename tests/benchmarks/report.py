"""Time and memory of a report on a cache of 1.3 million rows, 1000 classes and two teachers.

``python -m tests.benchmarks.report [FOLDER]`` writes the cache (0.4 GB) and makes its report. The
outputs of 8192 synthetic rows are repeated; every row has a name, a label and outputs of its own
place, so all bytes are read and decoded as those of a real cache.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from logitcache.cache.format.groups import TeacherGroup
from logitcache.cache.format.manifest import DataRecord, Segment, TeacherRecord
from logitcache.cache.format.names import canonical_json, default_unit_rows, sha256
from logitcache.cache.store.open import locate
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.report.page.report import make_report
from tests.benchmarks.logits import CLASSES
from tests.benchmarks.reading import ENCODING, repeated
from tests.cache.building import LOCK, RECIPE, VIEW, samples_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import Encoded

ROWS = 20 * 65536
TEACHERS = ("large", "small")


def write_cache(path: Path, rows: int = ROWS) -> None:
    """Write and seal the cache."""
    names = tuple(f"class {number}" for number in range(CLASSES))
    unit_rows = default_unit_rows(rows)
    writer = CacheWriter.create(
        locate(path, write=True),
        unit_rows=unit_rows,
        segment=Segment(start=0, rows=rows),
        data=DataRecord(description="repeated synthetic outputs", class_names=names),
        versions={"numpy": np.__version__},
    )
    writer.add_views({VIEW: RECIPE})
    outputs = repeated(unit_rows)
    samples = samples_of(rows, unit=unit_rows)
    samples["label"] = np.resize(_likely(outputs), rows).astype(np.int32)
    for unit in range(rows // unit_rows):
        here = slice(unit * unit_rows, (unit + 1) * unit_rows)
        writer.write_samples(unit, {name: array[here] for name, array in samples.items()})
    for number, name in enumerate(TEACHERS):
        group = TeacherGroup(
            teacher=name,
            num_classes=CLASSES,
            encoding=ENCODING,
            optional=("lse", "label_logp"),
            unit_rows=unit_rows,
            slots=(VIEW,),
            lock_sha256=sha256(canonical_json(LOCK)),
            class_names_sha256=sha256(canonical_json(list(names))),
        )
        record = TeacherRecord(lock=LOCK, canonical_batch=256, source="synthetic")
        writer.add_teacher(record, group)
        # the second teacher differs from the first one on a part of the rows
        moved = {name: np.roll(array, 3 * number, axis=0) for name, array in outputs.items()}
        for unit in range(rows // unit_rows):
            writer.write_unit(group, VIEW, unit, moved, Conditions(canonical_batch=256))
    writer.seal(sha256(b"images"), {name: {VIEW: 0.5} for name in TEACHERS})


def _likely(outputs: Encoded) -> NDArray[np.int64]:
    """Return the most probable class of each row."""
    decoded = ENCODING.decode({name: outputs[name] for name in ENCODING.specs()})
    return decoded.top_class()


def main(folder: Path) -> None:
    """Write the cache if it is missing, make its report, and print time and memory."""
    path = folder / "cache"
    if not path.exists():
        write_cache(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    made = make_report([str(path)])
    seconds = time.perf_counter() - started
    (folder / "report.html").write_text(made.text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{ROWS} rows: {seconds:.1f} s, {len(made.text) / 1e3:.0f} kB, {made.problems}")
    print(f"peak memory {peak / 1e6:.2f} GB, {before / 1e6:.2f} GB before the report")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
