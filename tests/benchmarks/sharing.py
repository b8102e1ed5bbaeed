"""What sharing costs: the check of a signature, and the bytes of a merge and of a slice.

The signed cache is simulated (:mod:`tests.benchmarks.simulated`): dense float16 outputs of 1.28M
images in 600 views, more than 1 TB by its commits.

Bytes are those of all objects, shards and documents, that are read and written, over those of the
result: of two caches with every other image, merged; of a tenth of the images, cut out by hash; and
of every hundredth image, which are in all units. K = 50 of C = 1000, one output of an image or
sixteen (views and teachers), in twenty units: as many as a cache of ImageNet has, and of their size
or a sixteenth of it. The least that a slice can read are the units that have one of its images, the
ledgers of its views, the metadata of its arrays, the revision and the root.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from logitcache import open_cache
from logitcache.cache.format.names import default_unit_rows
from logitcache.cache.format.placement import read_ledger
from logitcache.cache.format.samples import sample_placement
from logitcache.cache.store.local import LocalLocation
from logitcache.data.identity import key_hash
from logitcache.encoding.dense import DenseEncoding
from logitcache.share.merging import merge_caches
from logitcache.share.row_selection import RowSelection
from logitcache.share.sign import sign_cache
from logitcache.share.slicing import slice_cache
from tests.benchmarks.logits import CLASSES
from tests.benchmarks.measuring import Measurement
from tests.benchmarks.reading import ENCODING, repeated
from tests.benchmarks.simulated import simulate
from tests.cache.building import declare, samples_of, start_cache, write_samples, write_teacher
from tests.share.counted import CountedLocation
from tests.share.signing import write_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from logitcache.encoding.arrays import Encoded

IMAGES, VIEWS, TIMES = 1_281_167, 600, 21
UNIT = 65_536  # of the signed cache
CASES = ((81_920, 16), (81_920, 1), (1_310_720, 1))
"""Rows, and outputs of an image."""


def measure() -> list[Measurement]:
    """Return seconds of the check, and bytes as shares of those of the result."""
    with tempfile.TemporaryDirectory() as name:
        signed = _check_of_a_signature(Path(name))
    return [signed, *(row for rows, outputs in CASES for row in _bytes(rows, outputs))]


def _bytes(rows: int, outputs: int) -> list[Measurement]:
    """Return bytes read and written, for a number of outputs (teachers and views) of an image."""
    of = f"{rows} images, outputs of an image: {outputs}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = _samples_by_hash(rows)
        _write(folder / "whole", samples, outputs)
        number = np.arange(rows)
        parts = {
            "even half": number % 2 == 0,
            "odd half": number % 2 == 1,
            "hundredth, every hundredth image": number % 100 == 0,
            "tenth, by hash": samples["hash"] < np.uint64(2**64 // 10),
        }
        measured = []
        for part, chosen in parts.items():
            selection = RowSelection(keys=frozenset(map(str, samples["key"][chosen])))
            if "by hash" in part:
                selection = RowSelection(share=(0.0, 0.1))
            source, made = CountedLocation(folder / "whole"), CountedLocation(folder / part)
            slice_cache(source, made, rows=selection)
            if "half" not in part:
                least = _least(folder / "whole", np.flatnonzero(chosen))
                measured += _shares(f"slice of a {part}, {of}", [source], made, least)
        sources = [CountedLocation(folder / part) for part in list(parts)[:2]]
        merged = CountedLocation(folder / "merged")
        merge_caches(sources, merged)
        return measured + _shares(f"merge of two halves, {of}", sources, merged)


def _least(path: Path, rows: NDArray[np.int64]) -> int:
    """Return the bytes that have to be read of a cache for some of its rows in all views."""
    cache = open_cache(path)
    placements = [sample_placement(cache.manifest)]
    placements += [g.placement(v) for g in cache.teachers.values() for v in g.view_ids]
    pointer = cache.manifest.revision
    assert pointer is not None
    documents = ["zarr.json", f"revisions/{pointer.number}.json"]
    shards = 0
    for placement in placements:
        units = placement.units(cache.revision.segments, cache.unit_rows)
        ledger = read_ledger(LocalLocation(path), cache.revision, placement, units)
        for unit in np.unique(rows // placement.unit_rows).tolist():
            shards += sum(stored.bytes for stored in ledger.commits[unit].arrays.values())
        documents.append(cache.revision.ledgers[placement.ledger].key)
        paths = [placement.group, *map(placement.path, placement.specs)]
        documents += [f"{path}/zarr.json" for path in paths]
    return shards + sum((path / key).stat().st_size for key in documents)


def _write(path: Path, samples: Encoded, outputs: int) -> None:
    """Write a sealed cache of one view of several teachers."""
    rows = len(samples["key"])
    unit = default_unit_rows(rows)
    writer, encoded = start_cache(path, rows, unit=unit), repeated(rows)
    write_samples(writer, samples)
    for number in range(outputs):
        write_teacher(writer, declare(writer, f"teacher-{number}", ENCODING, unit), encoded)
    writer.seal("fingerprint", {})


def _check_of_a_signature(folder: Path) -> Measurement:
    private, public = write_keys(folder / "keys", "publisher")
    writer = simulate(folder / "c", IMAGES, VIEWS, DenseEncoding(CLASSES))
    sign_cache(folder / "c", private)
    stored = writer.location.bytes_below("teachers") * len(writer.needed_units(UNIT)) * VIEWS
    pairs = []
    for _ in range(TIMES):
        clock = time.perf_counter()
        open_cache(folder / "c", signed_by=public)
        checked = time.perf_counter()
        open_cache(folder / "c")
        pairs.append((checked - clock, time.perf_counter() - checked))
    low, median, high = statistics.quantiles([checked for checked, _ in pairs], n=4)
    plain = statistics.median(plain for _, plain in pairs)
    note = f"{stored / 1e12:.2f} TB; without the check {plain:.4f} s"
    name = "open a signed cache of 1 TB and check its signature"
    return Measurement(name, median, "s", low, high, target=1.0, note=note)


def _samples_by_hash(rows: int) -> Encoded:
    """Return the samples in the order of a cache that was computed."""
    samples = samples_of(rows, unit=rows)
    samples["key"] = samples["key"][samples["hash"].argsort()]
    samples["hash"].sort()
    assert key_hash(str(samples["key"][0])) == samples["hash"][0]
    samples["digest"] = np.random.default_rng(0).integers(0, 256, (rows, 16), np.uint8)
    return samples


def _shares(
    name: str, sources: list[CountedLocation], made: CountedLocation, least: int | None = None
) -> list[Measurement]:
    """Return bytes over those of the result; also over the least that can be read, if known."""
    size = sum(file.stat().st_size for file in made.root.rglob("*") if file.is_file())
    read = sum(source.bytes_read.total() for source in sources)
    again = made.bytes_read.total()
    note = f"{size / 2**20:.1f} MiB; of the result itself {again} bytes read"
    rows = [
        Measurement(f"{name}: bytes read", (read + again) / size, "x", target=1.05, note=note),
        Measurement(f"{name}: bytes written", made.bytes_written.total() / size, "x", target=1.05),
    ]
    if least is not None:
        what = f"{name}: bytes read over the least possible"
        rows.append(Measurement(what, (read + again) / least, "x", target=1.05))
    return rows
