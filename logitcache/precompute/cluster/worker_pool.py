"""The workers of a cluster during one run.

Each item is assigned to one worker, whose libraries, weights and images were compared with those of
the run. Commits in the cache show which items are done, so a task that runs twice changes nothing,
and dask keeps no results. An item is assigned again if its worker sends no heartbeats for two
minutes by the clock of this process, the time after which its claim is stale. If that worker
commits the item later, the bytes are the same.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import dask

from logitcache.cache.write import claims
from logitcache.cache.write.unchanged import Unchanged
from logitcache.errors import ClusterError, LogitcacheError, first_of
from logitcache.precompute.cluster.assignment import Assignment
from logitcache.precompute.cluster.environment_check import named
from logitcache.precompute.cluster.worker import GPU, TeacherPlugin, compute_on_worker
from logitcache.precompute.plan.worklist import in_words
from logitcache.precompute.run.claim_queue import still_missing
from logitcache.precompute.run.compute import stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from distributed import Client, Future, Worker

    from logitcache.precompute.cluster.worker import Opener
    from logitcache.precompute.plan.plan import Plan
    from logitcache.precompute.plan.worklist import WorkItem
    from logitcache.precompute.run.compute import Progress

__all__ = ["WorkerPool"]

_ANSWER_SECONDS = 20.0
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_DRAIN_SECONDS = 15.0
_BRIEF_SECONDS = 3.0
_POLL_SECONDS = 0.05
_MOST_NAMED = 5
_WATCH_SECONDS = 5.0  # between two comparisons of heartbeats


class WorkerPool:
    """The workers of a cluster, for one run.

    Args:
        plan: Missing items, and the cache that they belong to.
        client: Client of the cluster.
        needs_gpu: Whether only workers that offer the resource GPU are used.
        own: Whether this run started the workers.

    Attributes:
        assignment: Assignment of items to workers.
    """

    def __init__(self, plan: Plan, client: Client, *, needs_gpu: bool, own: bool) -> None:
        self._plan, self._client = plan, client
        self._needs_gpu, self._own = needs_gpu, own
        self._name = f"logitcache-{uuid.uuid4().hex[:12]}"
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._futures: dict[str, Future[None]] = {}
        most = int(dask.config.get("distributed.scheduler.allowed-failures"))
        self.assignment = Assignment(plan.items, plan.images_of, time.monotonic, most)
        self._looked = self._could_continue = time.monotonic()
        self._neighbors = 1
        self._silent_seconds = claims.STALE_SECONDS
        self._watch_seconds = min(_WATCH_SECONDS, self._silent_seconds / 8)
        self._heartbeats = Unchanged(self._silent_seconds / 4)
        self._watched = time.monotonic()
        self._claims = claims.Claims(plan.writer.location)
        self._given_up: set[str] = set()

    def meet(self) -> None:
        """Wait for workers, and record them.

        Raises:
            ClusterError: There are no workers, none with a required GPU, or some without
                logitcache.
        """
        workers = self._wait_for_workers()
        self._require_package(workers)
        for address, worker in workers.items():
            self.assignment.joined(address, _name(worker))
        self._neighbors = max(Counter(worker["host"] for worker in workers.values()).values())

    def prepare(self, opener: Opener) -> None:
        """Register the plugin on every worker, including workers that join later.

        Raises:
            ClusterError: A worker cannot unpickle the plugin.
        """
        self._listen()
        plugin = TeacherPlugin(
            self._name,
            opener,
            neighbors=self._neighbors,
            needs_gpu=self._needs_gpu,
            own=self._own,
        )
        try:
            self._client.register_plugin(plugin, name=self._name)
        except Exception as error:  # any exception of unpickling on a worker with another version
            raise ClusterError(
                "a worker cannot load this version of logitcache",
                where=self._address(),
                got=str(error).partition("\n")[0],
                hint="install the same version in the environment of the workers",
            ) from error

    def work(
        self,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool] | None,
        after_item: Callable[[WorkItem], None] | None,
    ) -> int:
        """Run until every item is committed; return the number of processed images."""
        assignment = self.assignment
        while not assignment.finished:
            for done in self._settle():
                if after_item is not None:
                    after_item(done)
            if time.monotonic() - self._looked >= _LOOK_SECONDS:
                self._look()
                self._watch()
                if on_progress is not None:
                    on_progress(assignment.progress())
            if should_stop is not None and should_stop():
                raise stopped(self._plan.writer)
            self._stop_if_none_can_continue()
            for address, number in assignment.take():
                self._submit(address, number)
        if on_progress is not None:
            on_progress(assignment.progress())
        return assignment.shown

    def dismiss(self) -> None:
        """Stop running items after their current batch, and remove the plugin from the workers."""
        if self._client.status != "running":
            return
        if self._futures:
            self._request_stop()
        for future in self._futures.values():
            future.cancel()
        if not self._own:
            _briefly(self._client.unregister_worker_plugin, self._name)
        self._client.unsubscribe_topic(self._name)

    def _wait_for_workers(self) -> Mapping[str, Any]:
        """Return the workers that can be used, once there are some."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
            if workers:
                break
            if time.monotonic() > deadline:
                raise ClusterError(
                    "the scheduler has no workers",
                    where=self._address(),
                    got=f"none within {_PATIENCE_SECONDS:.0f} s",
                    hint="start workers: dask worker ADDRESS --nthreads 1",
                )
            time.sleep(_LOOK_SECONDS)
        able = {a: w for a, w in workers.items() if not self._needs_gpu or w["resources"].get(GPU)}
        if not able:
            raise ClusterError(
                f"no worker offers the resource {GPU}",
                where=self._address(),
                expected=f"at least one worker with {GPU}=1",
                got=f"{len(workers)} workers without it",
                hint="start them with dask worker ADDRESS --nthreads 1 --resources GPU=1, one for "
                "each GPU; or pass --device cpu",
            )
        return able

    def _require_package(self, workers: Mapping[str, Any]) -> None:
        """Raise an error if some workers cannot import logitcache."""
        found: Any = self._client.get_versions(packages=["logitcache"])
        lacking = [
            _name(workers[address])
            for address, versions in found["workers"].items()
            if address in workers and not versions["packages"].get("logitcache")
        ]
        if lacking:
            raise ClusterError(
                "logitcache is not installed on every worker",
                where=f"workers {first_of(lacking)}",
                hint="install the same version in the environment of the workers",
            )

    def _listen(self) -> None:
        """Subscribe to the events of the workers, and wait until the subscription is active."""
        self._client.subscribe_topic(self._name, self._receive)
        # events that are logged before the scheduler knows the subscription are lost silently
        for _ in range(int(_ANSWER_SECONDS / _POLL_SECONDS)):
            self._client.log_event(self._name, {"kind": "subscribed"})
            with contextlib.suppress(queue.Empty):
                self._events.get(timeout=_POLL_SECONDS)
                return
        raise self._lost_scheduler()

    def _receive(self, event: tuple[float, dict[str, Any]]) -> None:
        self._events.put(event[1])

    def _settle(self) -> Iterator[WorkItem]:
        """Process the events that have arrived; yield items that are committed."""
        timeout = _LOOK_SECONDS
        while True:
            try:
                event = self._events.get(timeout=timeout)
            except queue.Empty:
                return
            timeout = 0.0
            kind, address = event["kind"], event.get("worker", "")
            if kind == "ready":
                self.assignment.ready(address, event["name"])
            elif kind == "refused":
                images = named(self._plan.listed, dict(event["disputed"]))[:_MOST_NAMED]
                self.assignment.refused(address, event["name"], "; ".join([event["why"], *images]))
            elif kind == "images":
                self.assignment.progressed(address, event["images"])
            elif kind == "waits":
                self.assignment.waits(address, event["why"])
            elif kind == "returned" and self.assignment.has(address, event["item"]):
                yield from self._returned(address, event["item"])

    def _returned(self, address: str, number: int) -> Iterator[WorkItem]:
        """Process the end of a task; commits, not its result, show whether the item is done."""
        future, item = self._futures.pop(address), self.assignment.items[number]
        error = future.exception(timeout=_ANSWER_SECONDS) if future.status == "error" else None
        future.release()
        if error is not None:
            raise _with_worker_name(error, self.assignment.name_of(address), item)
        left = still_missing(self._plan.writer.location, self._plan.groups, item)
        self.assignment.returned(address, number, committed=left is None)
        if left is None:
            yield item

    def _submit(self, address: str, number: int) -> None:
        future = self._client.submit(
            compute_on_worker,
            self._name,
            self.assignment.items[number],
            # a new key every time: dask would return the result of an earlier task
            key=f"{self._name}-{number}-{uuid.uuid4().hex[:8]}",
            workers=[address],
            allow_other_workers=False,
            resources={GPU: 1} if self._needs_gpu else None,
            pure=False,
        )
        self._futures[address] = future
        event = {"kind": "returned", "worker": address, "item": number}
        future.add_done_callback(lambda _: self._events.put(event))

    def _look(self) -> None:
        """Compare the recorded workers with the connected ones."""
        self._looked = time.monotonic()
        if self._client.status != "running":
            raise self._lost_scheduler()
        try:
            there = set(self._client.nthreads())
            new = there.difference(self.assignment.addresses())
            if new:
                workers = self._client.scheduler_info(n_workers=-1)["workers"]
                for address in new.intersection(workers):
                    if not self._needs_gpu or workers[address]["resources"].get(GPU):
                        self.assignment.joined(address, _name(workers[address]))
        except (OSError, TimeoutError):
            raise self._lost_scheduler() from None
        gone = set(self.assignment.addresses()) - there
        for address in gone & self._futures.keys():
            # before the item is assigned again, so that dask does not run the task elsewhere
            self._futures.pop(address).cancel()
        self.assignment.gone(gone)

    def _watch(self) -> None:
        """Reassign the items of workers that send no heartbeats: stopped, or not connected."""
        if time.monotonic() - self._watched < self._watch_seconds:
            return
        self._watched = time.monotonic()
        try:
            there = self._client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError):
            raise self._lost_scheduler() from None
        for address in there.keys() & set(self.assignment.addresses()):
            silent = self._heartbeats.seconds(address, there[address]["last_seen"])
            item = self.assignment.item_of(address)
            if silent == 0.0:
                self.assignment.alive(address)
            elif silent > self._silent_seconds:
                lost = self.assignment.silent(address, silent)
                if lost is not None:
                    self._futures.pop(address).cancel()
                    self._given_up.add(lost.claim)
            elif item is not None and silent > 2 * self._watch_seconds:
                self._claims.remove_if_stale(item.claim)  # the first call starts its clock
        removed = {name for name in self._given_up if self._claims.remove_if_stale(name)}
        self._given_up -= removed

    def _lost_scheduler(self) -> ClusterError:
        return ClusterError(
            "lost the connection to the dask scheduler",
            where=self._address(),
            got=f"{self.assignment.done} of {len(self.assignment.items)} items are committed",
            hint="start the scheduler and re-run the same command",
        )

    def _address(self) -> str:
        scheduler = self._client.scheduler
        return str(scheduler.address) if scheduler is not None else "unknown"

    def _stop_if_none_can_continue(self) -> None:
        """Raise an error if no connected worker can take an item."""
        assignment, now = self.assignment, time.monotonic()
        if assignment.can_continue:
            self._could_continue = now
            return
        refusals = assignment.refusals
        if not refusals and now - self._could_continue < _PATIENCE_SECONDS:
            return
        reasons = "; ".join(f"worker {name}: {why}" for name, why in refusals.items())
        raise ClusterError(
            "every worker was refused" if refusals else "no worker is connected",
            where=self._address(),
            got=reasons
            or f"none for {_PATIENCE_SECONDS:.0f} s; "
            f"{assignment.done} of {len(assignment.items)} items are committed",
            hint=("correct what differs on the workers" if refusals else "start workers")
            + " and re-run the same command; committed data is intact",
        )

    def _request_stop(self) -> None:
        """Request busy workers to end their items, and wait for a limited time."""
        with contextlib.suppress(ClusterError):  # the run ends anyway
            self._look()
        busy = list(self._futures)
        _briefly(self._client.run, _stop, self._name, workers=busy, wait=False)
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < deadline and not all(
            self._futures[address].done() for address in busy
        ):
            time.sleep(_POLL_SECONDS)


def _briefly(function: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Call a function that waits for all workers, for a limited time: some may have died."""

    def call() -> None:
        with contextlib.suppress(Exception):  # best effort: the run ends anyway
            function(*arguments, **options)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(_BRIEF_SECONDS)


async def _stop(plugin: str, dask_worker: Worker) -> None:
    """Request a worker to end its item; runs on the worker, without waiting."""
    dask_worker.plugins[plugin].stop()  # type: ignore[attr-defined]  # it is our plugin


def _with_worker_name(error: BaseException, worker: str, item: WorkItem) -> BaseException:
    """Return the exception of a worker, with the worker's name in its message."""
    if not isinstance(error, LogitcacheError):
        error.add_note(f"on worker {worker}, {in_words(item)}")
        return error
    error.where = f"{error.where or in_words(item)}, on worker {worker}"
    error.args = (error.render(),)
    return error


def _name(worker: Mapping[str, Any]) -> str:
    return f"{worker['name']} on {worker['host']}"
