"""What sharing costs: the check of a signature, and the bytes of a merge and of a slice.

The signed cache is simulated (:mod:`tests.benchmarks.simulated`): dense float16 outputs of 1.28M
images in 600 views, more than 1 TB by its commits. Bytes are those of objects that are read and
written of a cache of 81920 rows, K = 50 of C = 1000, over those of the result: of two caches with
every other image, merged; and of a tenth of the images, cut out by hash. The cache has twenty
units, as many as one of ImageNet, and one output of an image, or sixteen (views and teachers).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache import open_cache
from logitcache.cache.format.names import default_unit_rows
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
from tests.share.signing import write_keys

if TYPE_CHECKING:
    from logitcache.encoding.arrays import Encoded

IMAGES, VIEWS, TIMES = 1_281_167, 600, 21
UNIT = 65_536  # of the signed cache
ROWS, OUTPUTS = 81_920, (1, 16)


class CountedLocation(LocalLocation):
    """A folder that counts the bytes of objects that are read and written."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.bytes_read = self.bytes_written = 0

    def read(self, key: str, *arguments: Any, **options: Any) -> bytes | None:
        content = super().read(key, *arguments, **options)
        self.bytes_read += 0 if content is None else len(content)
        return content

    def digest(self, key: str, *, most: int) -> tuple[int, str] | None:
        found = super().digest(key, most=most)
        self.bytes_read += 0 if found is None else found[0]
        return found

    def write(self, key: str, content: bytes | memoryview) -> None:
        super().write(key, content)
        self.bytes_written += len(content)


def measure() -> list[Measurement]:
    """Return seconds of the check, and bytes as shares of those of the result."""
    with tempfile.TemporaryDirectory() as name:
        signed = _check_of_a_signature(Path(name))
    return [signed, *(row for outputs in OUTPUTS for row in _bytes(outputs))]


def _bytes(outputs: int) -> list[Measurement]:
    """Return bytes read and written, for a number of outputs (teachers and views) of an image."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples = _samples_by_hash()
        _write(folder / "whole", samples, outputs)
        keys = [str(key) for key in samples["key"]]
        parts = [folder / "even", folder / "odd"]
        for number, part in enumerate(parts):
            slice_cache(folder / "whole", part, rows=RowSelection(keys=frozenset(keys[number::2])))
        sources = [CountedLocation(part) for part in parts]
        merged = CountedLocation(folder / "merged")
        merge_caches(sources, merged)
        rows = _shares(f"merge of two halves, outputs per image: {outputs}", sources, merged)
        source, tenth = (CountedLocation(folder / place) for place in ("whole", "tenth"))
        slice_cache(source, tenth, rows=RowSelection(share=(0.0, 0.1)))
        rows += _shares(f"slice of a tenth, outputs per image: {outputs}", [source], tenth)
    return rows


def _write(path: Path, samples: Encoded, outputs: int) -> None:
    """Write a sealed cache of one view of several teachers."""
    unit = default_unit_rows(ROWS)
    writer, encoded = start_cache(path, ROWS, unit=unit), repeated(ROWS)
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


def _samples_by_hash() -> Encoded:
    """Return the samples in the order of a cache that was computed."""
    samples = samples_of(ROWS, unit=ROWS)
    samples["key"] = samples["key"][samples["hash"].argsort()]
    samples["hash"].sort()
    assert key_hash(str(samples["key"][0])) == samples["hash"][0]
    return samples


def _shares(name: str, sources: list[CountedLocation], made: CountedLocation) -> list[Measurement]:
    size = sum(file.stat().st_size for file in made.root.rglob("*") if file.is_file())
    read = sum(source.bytes_read for source in sources)
    note = f"{size / 2**20:.1f} MiB; of the result itself {made.bytes_read / 2**20:.1f} MiB read"
    return [
        Measurement(f"{name}: bytes read", read / size, "x", target=1.05, note=note),
        Measurement(f"{name}: bytes written", made.bytes_written / size, "x", target=1.05),
    ]
