"""Stage 1 on real workers of dask: deaths, refusals, wishes to stop, and what is kept."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import pytest

from logitcache.errors import ClusterError, DataMismatch, Interrupted, UsageError
from logitcache.precompute.cluster.cluster import compute_on_cluster, joined, local_cluster
from tests.precompute import null
from tests.precompute.null_workers import TEACHERS, NullOpener, null_plan
from tests.reliability.kills import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

    from logitcache.precompute.plan.plan import Plan
    from logitcache.precompute.run.compute import Progress

ROWS = 500  # 16 blocks, 32 of the coarse units and 64 of the fine ones


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(2, gpus=False) as client:
        yield client


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return what one process makes of it, without a cluster."""
    path = tmp_path_factory.mktemp("whole") / "c"
    null.run(path, TEACHERS, rows=ROWS)
    return snapshot(path)


def work(
    plan: Plan,
    client: Client,
    *,
    needs_gpu: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    **faults: Any,
) -> int:
    """Compute a plan on a cluster that this run did not start."""
    if not needs_gpu:
        wait_for_all_workers(client)
    return compute_on_cluster(
        plan,
        NullOpener(Path(str(plan.writer.location)), **faults),
        client,
        needs_gpu=needs_gpu,
        own=False,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def wait_for_all_workers(client: Client) -> None:
    """Wait until every worker answers: some may be restarting, and the dead are still listed."""
    cluster: Any = client.cluster
    deadline = time.monotonic() + 120
    while cluster.workers:
        answers = client.run(os.getpid, on_error="return")
        if len([a for a in answers.values() if isinstance(a, int)]) == len(cluster.workers):
            return
        assert time.monotonic() < deadline, answers
        time.sleep(0.05)


def kill_a_worker(client: Client, generator: random.Random) -> None:
    """Kill one that has an item if there is one: one that was just started may not have any."""
    busy = [worker for worker, keys in client.processing().items() if keys]
    pids = client.run(os.getpid, workers=busy or None)
    if pids:
        os.kill(generator.choice(sorted(pids.values())), signal.SIGKILL)


def test_two_workers_make_what_one_process_makes(
    client: Client, whole: dict[str, bytes], tmp_path: Path
) -> None:
    plan = null_plan(tmp_path / "c", ROWS)
    seen: list[Progress] = []
    shown = work(plan, client, batch_seconds=0.002, on_progress=seen.append)
    assert shown == plan.images
    plan.writer.seal("fingerprint", {})
    assert snapshot(tmp_path / "c") == whole
    assert (seen[-1].images, seen[-1].total) == (plan.images, plan.images)
    assert len(seen[-1].workers) == 2
    assert any(worker.item for progress in seen for worker in progress.workers)
    assert plan.notes == []
    assert work(null_plan(tmp_path / "c", ROWS), client) == 0


# Before the tests that kill workers: which one refuses first is decided by who is there.


def test_a_worker_with_other_images_is_refused_and_the_other_one_works(
    client: Client, tmp_path: Path
) -> None:
    plan = null_plan(tmp_path / "c")
    work(plan, client, refusals=1)
    assert plan.writer.missing() == {}
    (note,) = plan.notes
    assert "was refused: these are not the images; where: refusal 0" in note


def test_where_all_are_refused_each_one_says_why(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="every worker was refused") as caught:
        work(null_plan(tmp_path / "c"), client, refusals=9)
    assert str(caught.value).count("these are not the images") == 2
    assert caught.value.exit_code == 3


def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    client: Client, whole: dict[str, bytes], tmp_path: Path
) -> None:
    plan, generator = null_plan(tmp_path / "c", ROWS), random.Random(0)
    moments = iter([0.2, 0.7])
    due = [next(moments)]

    def kill_now_and_then(progress: Progress) -> None:
        if due and progress.images >= due[0] * progress.total:
            kill_a_worker(client, generator)
            due[:] = [moment] if (moment := next(moments, None)) else []

    work(plan, client, batch_seconds=0.02, on_progress=kill_now_and_then)
    assert not due, "not all kills happened"
    # the second one may have been without an item
    assert len([note for note in plan.notes if "was lost" in note]) in (1, 2)
    again = null_plan(tmp_path / "c", ROWS)  # which sweeps what the dead have left half written
    assert again.items == []
    again.writer.seal("fingerprint", {})
    made = snapshot(tmp_path / "c")
    assert {name: b for name, b in made.items() if not name.startswith("claims/")} == whole


def test_a_stopped_worker_loses_its_item_and_what_it_commits_later_changes_nothing(
    client: Client, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitcache.cache.write.claims.STALE_SECONDS", 2.0)
    for attempt in range(4):  # a worker may finish its item just before it is stopped
        path, stopped = tmp_path / str(attempt), list[int]()
        try:
            lost = stop_a_worker(client, path, stopped)
            made = snapshot(path)
        finally:
            for process in stopped:
                os.kill(process, signal.SIGCONT)
        wait_for_all_workers(client)
        if lost:
            break
    else:
        pytest.fail("no worker was stopped while it had an item")
    left = {name for name in made.keys() - whole.keys() if name.endswith(".partial")}
    assert {name: content for name, content in made.items() if name not in left} == whole
    deadline = time.monotonic() + 60
    while snapshot(path) != whole:
        assert time.monotonic() < deadline, "what the stopped worker had under way"
        time.sleep(0.1)


def stop_a_worker(client: Client, path: Path, stopped: list[int]) -> bool:
    """Stop one of two workers that have items; return whether its item was assigned again.

    Args:
        client: Client of the cluster.
        path: A new cache, which is computed and sealed.
        stopped: The process that was stopped is added.
    """
    plan = null_plan(path, ROWS)

    def stop_one(progress: Progress) -> None:
        busy = [worker for worker in progress.workers if worker.item]
        if not stopped and progress.images >= 0.2 * progress.total and len(busy) == 2:
            stopped.append(sorted(client.run(os.getpid).values())[0])
            os.kill(stopped[0], signal.SIGSTOP)

    work(plan, client, batch_seconds=0.02, stale_seconds=2.0, on_progress=stop_one)
    plan.writer.seal("fingerprint", {})
    return any("has sent no heartbeat for" in note for note in plan.notes)


def test_a_unit_that_kills_every_worker_is_named_and_the_rest_is_kept(
    client: Client, tmp_path: Path
) -> None:
    plan = null_plan(tmp_path / "c", 100)
    with pytest.raises(
        ClusterError, match="every worker that computes this item terminates"
    ) as caught:
        work(plan, client, deadly=2)
    assert f"block 2 of view {null.VIEWS[0]}" in str(caught.value)
    assert "items are committed" in str(caught.value)
    missing = null.open_or_create(tmp_path / "c").missing()
    assert missing == {
        "samples/-": 1,
        f"teachers/coarse/{null.VIEWS[0]}": 1,
        f"teachers/coarse/{null.VIEWS[1]}": 1,
        f"teachers/fine/{null.VIEWS[0]}": 2,
        f"teachers/fine/{null.VIEWS[1]}": 2,
    }
    work(null_plan(tmp_path / "c", 100), client)
    assert null.open_or_create(tmp_path / "c").missing() == {}


def test_what_goes_wrong_on_a_worker_is_told_with_its_name(client: Client, tmp_path: Path) -> None:
    plan = null_plan(tmp_path / "c")
    with pytest.raises(DataMismatch, match=r"changed since[\s\S]*cat.jpg, on worker"):
        work(plan, client, faulty=1)
    work(plan, client)
    assert plan.writer.missing() == {}


def test_a_wish_to_stop_keeps_what_is_whole(client: Client, tmp_path: Path) -> None:
    plan, stop = null_plan(tmp_path / "c"), threading.Event()

    def after_a_while(progress: Progress) -> None:
        if progress.images > 40:
            stop.set()

    with pytest.raises(Interrupted) as caught:
        work(plan, client, batch_seconds=0.1, on_progress=after_a_while, should_stop=stop.is_set)
    assert caught.value.exit_code == 3
    assert plan.writer.missing() != {}
    assert list((tmp_path / "c").glob("claims/*")) == [], "workers let their items go"
    work(null_plan(tmp_path / "c"), client)
    assert plan.writer.missing() == {}


def test_gpus_are_asked_for_and_missed_at_once(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"no worker offers the resource GPU[\s\S]*--resources"):
        work(null_plan(tmp_path / "c"), client, needs_gpu=True)


def test_a_gpu_is_one_workers_own(tmp_path: Path) -> None:
    plan = null_plan(tmp_path / "c")
    with local_cluster(1, gpus=True) as client:
        assert list(client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"]).values()) == ["0"]
        work(plan, client, needs_gpu=True)
    assert plan.writer.missing() == {}


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("tcp://127.0.0.1:9", ClusterError, "cannot connect"),
        ("nonsense://x:1", UsageError, "malformed address"),
        ("tcp://127.0.0.1:many", UsageError, "malformed address"),
    ],
)
def test_a_scheduler_that_is_not_there(address: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), joined(address, seconds=0.5):
        pass


def test_a_scheduler_that_dies(tmp_path: Path) -> None:
    """With short timeouts: dask waits for 30 seconds for a scheduler that has ended."""
    plan = null_plan(tmp_path / "c")
    short = {"distributed.comm.timeouts.connect": "3s", "distributed.comm.retry.count": 0}
    with dask.config.set(short), local_cluster(1, gpus=False) as client:
        cluster: Any = client.cluster
        assert dask.config.get("scheduler", None) is None, "other uses of dask are left alone"

        def die(progress: Progress) -> None:
            if progress.images and client.status == "running":
                cluster.sync(cluster.scheduler.close)

        with pytest.raises(
            ClusterError,
            match=r"lost the connection to the dask scheduler[\s\S]*items are committed",
        ):
            work(plan, client, batch_seconds=0.2, on_progress=die)
    assert plan.writer.missing() != {}


def test_a_scheduler_without_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitcache.precompute.cluster.worker_pool._PATIENCE_SECONDS", 0.5)
    with (
        local_cluster(0, gpus=False) as client,
        pytest.raises(ClusterError, match=r"has no workers[\s\S]*dask worker"),
    ):
        work(null_plan(tmp_path / "c"), client)
