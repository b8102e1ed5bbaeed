"""What a large cache would take, from rates measured here and now: nodes, hours, GB, requests.

::

    python -m tests.benchmarks.cost_model                       # on this processor
    python -m tests.benchmarks.cost_model --rate cnn=2900 --rate involution=1500 --decode 14000

A worker runs every teacher on an image in turn; decoding and rendering run in parallel where they
have processors of their own (``--decode``, images/s of those), and take turns with the teachers
where they have not. Bytes are those of synthetic logits of that many classes, encoded and
compressed as a shard is; objects are counted from the format.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from logitcache.cache.format.arrays import packed_bytes
from logitcache.cache.format.names import SAMPLE_ARRAYS, default_unit_rows
from logitcache.encoding.arrays import filled
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import SparseEncoding
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import ViewsConfig
from tests.benchmarks.synthetic import teacher_logits
from tests.benchmarks.view_rates import photographs

NETWORKS = {"cnn": "resnet50", "involution": "rednet50"}
SIDE, BATCH, PIECE, PIECES = 224, 16, 1024, 4
OPTIONAL_BYTES = 4 + 2  # lse and label_logp, hardly compressible


def teacher_rate(model: str) -> float:
    """Return images/s of one network on one processor."""
    network = build_network(NetworkConfig(model=model), 1000).eval()
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    times = []
    with torch.inference_mode():
        network(images)
        for _ in range(3):
            started = time.perf_counter()
            network(images)
            times.append(time.perf_counter() - started)
    return BATCH / statistics.median(times)


def decode_rate() -> float:
    """Return images/s that one thread decodes and renders."""
    files = photographs(64)
    view = ViewsConfig(auto_augment="rand-m9-mstd0.5-inc1").random_view(1)
    order = np.arange(len(files))
    with ViewRenderer(lambda index: files[index], [SIDE], threads=1) as renderer:
        request = BatchRequest(view, order, order.astype(np.uint64))
        started = time.perf_counter()
        list(renderer.batches([request]))
        return len(files) / (time.perf_counter() - started)


def row_bytes(classes: int, top_k: int) -> float:
    """Return stored bytes of a row and view of one teacher."""
    encoding, total = SparseEncoding(classes, top_k), 0.0
    parts = [
        encoding.encode(log_softmax(teacher_logits(PIECE, classes, seed))[0])
        for seed in range(PIECES)
    ]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    total = packed_bytes(encoding.specs(), whole) / (PIECE * PIECES)
    return total + OPTIONAL_BYTES


def arrays_of(top_k: int, classes: int) -> int:
    """Return the objects of one unit of a teacher: its arrays and the commit."""
    return len(filled(SparseEncoding(classes, top_k).specs(), 1)) + 2 + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=14_000_000)
    parser.add_argument("--views", type=int, default=90)
    parser.add_argument("--classes", type=int, default=21841)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--rate", action="append", default=[], metavar="NAME=IMAGES/S")
    parser.add_argument("--decode", type=float, help="images/s of processors of its own")
    parser.add_argument("--efficiency", type=float, default=0.92, help="of workers side by side")
    parser.add_argument("--hourly", type=float, help="price of a worker and hour")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rates = {
        name: float(value) for name, _, value in (rate.partition("=") for rate in options.rate)
    }
    measured = not rates
    rates = rates or {name: teacher_rate(model) for name, model in NETWORKS.items()}
    forwards = sum(1 / rate for rate in rates.values())
    decoding = 1 / (options.decode or decode_rate())
    seconds = max(forwards, decoding) if options.decode else forwards + decoding
    where = "measured here, one processor" if measured else "as given"
    for name, rate in rates.items():
        print(f"{name}: {rate:.1f} images/s ({where})")
    print(f"decoding and rendering: {1 / decoding:.0f} images/s")
    each = row_bytes(options.classes, options.top_k)
    shown = options.images * options.views
    unit = default_unit_rows(options.images)
    blocks = -(-options.images // unit)
    units = blocks * options.views * len(rates)
    objects = units * arrays_of(options.top_k, options.classes)
    objects += blocks * (len(SAMPLE_ARRAYS) + 2)
    print(f"{shown:.3g} images shown, each {1000 * seconds:.3g} ms of a worker")
    print(
        f"{each:.1f} B a row, view and teacher: {each * shown * len(rates) / 1e9:.0f} GB "
        f"(dense float32: {4 * options.classes * shown * len(rates) / 1e12:.0f} TB)"
    )
    print(f"{blocks} blocks of {unit} rows, {units} units, {blocks * options.views} items of work")
    print(f"{objects} objects written, {2 * blocks * options.views} claims taken and given back")
    print(
        f"a student reads {blocks * (arrays_of(options.top_k, options.classes) - 1)} objects "
        "an epoch"
    )
    hours = shown * seconds / 3600
    print(f"{hours:.0f} hours of workers; at {options.efficiency:.0%} of their rate side by side:")
    for workers in (1, 8, 64, 512):
        spent = hours / workers / (options.efficiency if workers > 1 else 1.0)
        price = f", {spent * workers * options.hourly:.0f}" if options.hourly else ""
        item = unit * seconds / (options.efficiency if workers > 1 else 1.0)
        print(f"  {workers:4d} workers: {spent:.0f} h ({spent / 24:.1f} days){price}", end="; ")
        print(f"an item takes {item / 60:.0f} min")


if __name__ == "__main__":
    main()
