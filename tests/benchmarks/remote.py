"""Training from a remote cache: waiting time and requests.

scikit-learn's digits, two views of one teacher in 11 units, one epoch a view: from a folder, over
HTTP and from an S3 server, as they are, and with 30 ms before every answer and every tenth request
answered by a 503. Servers are threads of this process, so they take time from the student too.
Needs the ``dev`` extra.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from moto.server import ThreadedMotoServer

from logitcache.cache.read.reader import open_cache
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.benchmarks.measuring import Measurement
from tests.conftest import write_teacher
from tests.remote.servers import Behavior, FaultyServer, from_folder, from_upstream
from tests.remote.traffic import stored_targets, traffic_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from logitcache.training.run.result import TrainResult

VIEWS, UNIT, BATCH = 2, 128, 32
STUDENT = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 8, "patch_size": 2, "embed_dim": 128, "depth": 6, "num_heads": 4},
}
READ = ("class_ids", "codes", "tail", "label_logp")
_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def measure() -> list[Measurement]:
    """Return waiting and traffic of training from a folder, over HTTP and from S3."""
    logging.getLogger("werkzeug").setLevel("ERROR")
    rows: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder, _environment(_CREDENTIALS):
        root = Path(folder)
        teacher = write_teacher(root / "teacher", classes=10)
        _build(f"{root}/web/c", teacher)
        _train(f"{root}/web/c", root / "warm")
        rows.append(_wait("a folder", _train(f"{root}/web/c", root / "local")))
        with FaultyServer(from_folder(root / "web")) as server:
            rows += _measure_server("HTTP", f"{server.url}/c", server, root)
        with _s3() as address:
            boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
            host, port = address.removeprefix("http://").split(":")
            with (
                FaultyServer(from_upstream((host, int(port)))) as server,
                _environment({"AWS_ENDPOINT_URL": server.url}),
            ):
                _build("s3://bucket/c", teacher)
                rows += _measure_server("S3", "s3://bucket/c", server, root)
    return rows


def _measure_server(name: str, url: str, server: FaultyServer, root: Path) -> list[Measurement]:
    """Train thrice: from a server that is well, from one that is not, and from copies."""
    rows = [_wait(f"{name}, no copies", _train(url, root / f"{name}-well", local_copy_bytes=0))]
    server.behavior = Behavior(latency=0.03, failing=0.1)
    copies = str(root / f"{name}-copies")
    server.clear()
    result = _train(url, root / f"{name}-ill", local_copy=copies)
    log = list(server.log)
    rows.append(_wait(f"{name}, 30 ms, 10 % of requests fail", result))
    server.clear()
    again = _train(url, root / f"{name}-again", local_copy=copies)
    rows.append(_wait(f"{name}, the same, shards kept on this machine", again))
    rest = traffic_of(server.log)
    server.behavior = Behavior()
    cache = open_cache(url, local_copy_bytes=0)
    stored = {k: s for view in cache.views for k, s in stored_targets(cache, view, READ).items()}
    found = traffic_of(log)
    ill = f"{name}, 30 ms, 10 % fail"
    gets, size = len(found.targets), sum(one.bytes for one in stored.values())
    return [
        *rows,
        Measurement(
            f"{ill}: successful GETs of target shards over the shards of the views",
            gets / len(stored),
            "x",
            target=1.0,
            note=f"{gets} of {len(stored)}",
        ),
        Measurement(
            f"{ill}: their bytes over those that are stored",
            found.target_bytes / size,
            "x",
            target=1.0,
            note=f"{found.target_bytes} of {size} B",
        ),
        Measurement(f"{ill}: requests failed and retried", found.failed, ""),
        Measurement(f"{ill}: reads of samples", found.samples, ""),
        Measurement(f"{ill}: requests for documents", found.metadata, ""),
        Measurement(
            f"{name}, shards kept: GETs of target shards", len(rest.targets), "", target=0.0
        ),
    ]


def _wait(name: str, result: TrainResult) -> Measurement:
    note = f"{result.seconds:.1f} s, {result.images / result.seconds:.0f} images/s"
    return Measurement(f"{name}: share of time spent waiting", result.data_wait, "", note=note)


def _build(url: str, teacher: Path) -> None:
    values: dict[str, Any] = {
        "cache": url,
        "data": "digits",
        "teachers": {"t": {"model": f"local-dir:{teacher}"}},
        "views": {"count": VIEWS},
        "encoding": {"top_k": 5},
        "unit_rows": UNIT,
        "min_accuracy": 0.0,
    }
    build_cache(PrecomputeConfig.parse(values, ""))


def _train(url: str, out: Path, **fields: object) -> TrainResult:
    values = {
        "out": str(out),
        "data": "digits",
        "cache": url,
        "student": STUDENT,
        "epochs": VIEWS,
        "batch_size": BATCH,
    }
    return train_student(TrainConfig.parse({**values, **fields}, ""))


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _s3() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()
