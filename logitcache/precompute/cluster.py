"""Stage 1 on a cluster: dask.distributed starts, restarts and reaches the workers.

The scheduler sees small items with a number, never an image or a tensor. Each goes to one worker
that has proved to have the same libraries, weights and images, one at a time; what is done is what
has a commit in the cache, so a task that dask runs twice changes nothing, and no result is kept.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import dask
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.utils import silence_logging_cmgr

from logitcache.errors import ClusterError, LogitcacheError, UsageError
from logitcache.precompute.agreement import agreement_of, named
from logitcache.precompute.compute import stopped
from logitcache.precompute.dispatch import Dispatch, in_words
from logitcache.precompute.share import still_missing
from logitcache.precompute.worker import (
    GPU,
    Opener,
    TeacherPlugin,
    WorkbenchOpener,
    compute_on_worker,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from distributed import Future, Worker

    from logitcache.precompute.compute import Progress
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.precompute.plan import Plan
    from logitcache.precompute.worklist import WorkItem
    from logitcache.teachers.ensemble import Ensemble

__all__ = ["Crew", "compute_on_cluster", "compute_plan_on_cluster", "joined", "local_cluster"]

_CONNECT_SECONDS = 20.0
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_DRAIN_SECONDS = 15.0
_BRIEF_SECONDS = 3.0
_POLL_SECONDS = 0.05
_MOST_NAMED = 5
# dask looks at the stacks of a worker's threads every 10 ms, and at its own loop every 20
_FRUGAL = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
}


@contextlib.contextmanager
def joined(scheduler: str, *, seconds: float = _CONNECT_SECONDS) -> Iterator[Client]:
    """Connect to a scheduler for the length of a ``with``.

    Args:
        scheduler: Its address, as ``tcp://host:8786``.
        seconds: How long to try.

    Raises:
        UsageError: This is no address.
        ClusterError: Nobody answers there.
    """
    try:
        client = Client(scheduler, timeout=seconds, set_as_default=True)
    except (ValueError, TypeError) as error:
        raise UsageError(
            "not the address of a scheduler",
            where=f"--scheduler {scheduler}",
            expected="tcp://HOST:PORT",
            got=error,
        ) from None
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            "the scheduler cannot be reached",
            where=scheduler,
            got=f"{str(error).partition(chr(10))[0]} ({seconds:.0f} s)",
            hint="is dask scheduler running there, and is its port open from here?",
        ) from None
    with silence_logging_cmgr(logging.CRITICAL), client:  # what goes wrong is told here
        yield client


@contextlib.contextmanager
def local_cluster(workers: int, *, gpus: bool) -> Iterator[Client]:
    """Start a scheduler and workers on this machine, and stop them afterwards.

    Args:
        workers: How many processes.
        gpus: Whether each gets a GPU of its own, in the order of their numbers.
    """
    options: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "dashboard": False}
    specification = {
        number: {
            "cls": Nanny,
            "options": {**options, "silence_logs": logging.CRITICAL, **_gpu(number, gpus)},
        }
        for number in range(workers)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": "127.0.0.1",
            "port": 0,
            "dashboard": False,
            "dashboard_address": "127.0.0.1:0",
        },
    }
    with (
        dask.config.set(_FRUGAL),
        SpecCluster(
            workers=specification, scheduler=scheduler, silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _gpu(number: int, gpus: bool) -> dict[str, Any]:
    if not gpus:
        return {}
    return {"resources": {GPU: 1}, "env": {"CUDA_VISIBLE_DEVICES": str(number)}}


def compute_plan_on_cluster(
    plan: Plan,
    ensemble: Ensemble,
    config: PrecomputeConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    after_item: Callable[[WorkItem], None] | None = None,
) -> int:
    """Compute what a plan lacks as the configuration says: by workers of here or of elsewhere.

    Args:
        plan: What is missing; what the user should be told goes to its notes.
        ensemble: The teachers it was made with.
        config: With ``workers`` or ``scheduler``.
        on_progress: Called about twice a second.
        should_stop: Asked as often; units that are whole by then are kept.
        after_item: Called when an item is committed.

    Returns:
        Images shown to the teachers, every view counted.

    Raises:
        ClusterError: See :func:`compute_on_cluster`.
    """
    if not plan.items:
        return 0
    locks = {name: member.lock for name, member in ensemble.members.items()}
    agreement = agreement_of(plan.source, locks, plan.views)
    with _cluster(config) as (client, gpus, threads):
        device = "cuda" if gpus else "cpu" if config.device == "auto" else config.device
        if config.device == "auto" and not gpus and config.scheduler is not None:
            plan.notes.append(f"no worker offers the resource {GPU}: computed on processors")
        told = config.model_copy(update={"device": device})
        return compute_on_cluster(
            plan,
            WorkbenchOpener(told, agreement, tuple(plan.groups), threads),
            client,
            needs_gpu=gpus,
            own=config.scheduler is None,
            on_progress=on_progress,
            should_stop=should_stop,
            after_item=after_item,
        )


@contextlib.contextmanager
def _cluster(config: PrecomputeConfig) -> Iterator[tuple[Client, bool, int | None]]:
    """Yield a client, whether GPUs are used, and the threads of a worker where that is known."""
    asked = config.device.startswith("cuda")
    if config.scheduler is not None:
        with joined(config.scheduler) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            offered = any(worker["resources"].get(GPU) for worker in workers)
            yield client, asked or (config.device == "auto" and offered), None
        return
    workers = config.workers or 1
    gpus = asked or (config.device == "auto" and torch.cuda.is_available())
    if gpus and workers > torch.cuda.device_count():
        raise UsageError(
            "more workers than GPUs",
            where=f"--workers {workers}",
            expected=f"at most {torch.cuda.device_count()}, one for each",
            hint="or pass --device cpu",
        )
    with local_cluster(workers, gpus=gpus) as client:
        yield client, gpus, max(1, torch.get_num_threads() // workers)


def compute_on_cluster(
    plan: Plan,
    opener: Opener,
    client: Client,
    *,
    needs_gpu: bool,
    own: bool,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    after_item: Callable[[WorkItem], None] | None = None,
) -> int:
    """Compute what a plan lacks on the workers of a cluster.

    Args:
        plan: What is missing; what the user should be told goes to its notes.
        opener: How a worker prepares itself.
        client: Of the cluster.
        needs_gpu: Whether only workers that offer the resource GPU may work.
        own: Whether this run started the workers.
        on_progress: Called about twice a second.
        should_stop: Asked as often; units that are whole by then are kept.
        after_item: Called when an item is committed.

    Returns:
        Images shown to the teachers, every view counted.

    Raises:
        ClusterError: There are no workers, or none may work, or one unit kills all of them.
        LogitcacheError: What went wrong on a worker, with its name.
        Interrupted: Asked to stop.
    """
    crew = Crew(plan, client, needs_gpu=needs_gpu, own=own)
    crew.meet()
    try:
        crew.hire(opener)
        return crew.work(on_progress, should_stop, after_item)
    finally:
        plan.notes.extend(crew.dispatch.notices)
        crew.dismiss()


class Crew:
    """The workers of a cluster, for one run.

    Args:
        plan: What is missing.
        client: Of the cluster.
        needs_gpu: Whether only workers that offer the resource GPU may work.
        own: Whether this run started the workers.

    Attributes:
        dispatch: Who works on what.
    """

    def __init__(self, plan: Plan, client: Client, *, needs_gpu: bool, own: bool) -> None:
        self._plan, self._client = plan, client
        self._needs_gpu, self._own = needs_gpu, own
        self._name = f"logitcache-{uuid.uuid4().hex[:12]}"
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._futures: dict[str, Future[None]] = {}
        most = int(dask.config.get("distributed.scheduler.allowed-failures"))
        self.dispatch = Dispatch(plan.items, plan.images_of, time.monotonic, most)
        self._looked = self._hoped = time.monotonic()
        self._neighbours = 1

    def meet(self) -> None:
        """Find the workers there are.

        Raises:
            ClusterError: There are none, none that may work, or one that lacks logitcache.
        """
        workers = self._wait_for_workers()
        self._require_package(workers)
        for address, worker in workers.items():
            self.dispatch.here(address, _name(worker))
        self._neighbours = max(Counter(worker["host"] for worker in workers.values()).values())

    def hire(self, opener: Opener) -> None:
        """Have every worker prepare itself, those that join later included.

        Raises:
            ClusterError: A worker cannot even load what it shall do.
        """
        self._listen()
        plugin = TeacherPlugin(
            self._name,
            opener,
            neighbours=self._neighbours,
            needs_gpu=self._needs_gpu,
            own=self._own,
        )
        try:
            self._client.register_plugin(plugin, name=self._name)
        except Exception as error:  # whatever unpickling raises on a worker of another version
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
        """Work until every item is committed; return the images that were shown."""
        dispatch = self.dispatch
        while not dispatch.finished:
            for done in self._settle():
                if after_item is not None:
                    after_item(done)
            if time.monotonic() - self._looked >= _LOOK_SECONDS:
                self._look()
                if on_progress is not None:
                    on_progress(dispatch.progress())
            if should_stop is not None and should_stop():
                raise stopped(self._plan.writer)
            self._give_up_without_hope()
            for address, number in dispatch.take():
                self._submit(address, number)
        if on_progress is not None:
            on_progress(dispatch.progress())
        return dispatch.shown

    def dismiss(self) -> None:
        """Stop what is under way after its current batch, and let the workers go."""
        if self._client.status != "running":
            return
        if self._futures:
            self._ask_to_stop()
        for future in self._futures.values():
            future.cancel()
        if not self._own:
            _briefly(self._client.unregister_worker_plugin, self._name)
        self._client.unsubscribe_topic(self._name)

    def _wait_for_workers(self) -> Mapping[str, Any]:
        """Return the workers that may work, once there are some."""
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
                    hint="start some: dask worker ADDRESS --nthreads 1",
                )
            time.sleep(_LOOK_SECONDS)
        able = {a: w for a, w in workers.items() if not self._needs_gpu or w["resources"].get(GPU)}
        if not able:
            raise ClusterError(
                f"no worker offers the resource {GPU}",
                where=self._address(),
                expected=f"at least one worker with {GPU}=1",
                got=f"{len(workers)} workers without",
                hint="start them with dask worker ADDRESS --nthreads 1 --resources GPU=1, one for "
                "each GPU; or pass --device cpu",
            )
        return able

    def _require_package(self, workers: Mapping[str, Any]) -> None:
        """Find workers that could not even be told what to do."""
        found: Any = self._client.get_versions(packages=["logitcache"])
        lacking = [
            _name(workers[address])
            for address, versions in found["workers"].items()
            if address in workers and not versions["packages"].get("logitcache")
        ]
        if lacking:
            raise ClusterError(
                "logitcache is not installed on every worker",
                where=", ".join(lacking[:5]),
                hint="install the same version in the environment of the workers",
            )

    def _listen(self) -> None:
        """Subscribe to what workers tell, and wait until that holds: nothing is told twice."""
        self._client.subscribe_topic(self._name, self._hear)
        for _ in range(int(_CONNECT_SECONDS / _POLL_SECONDS)):
            self._client.log_event(self._name, {"kind": "heard"})
            with contextlib.suppress(queue.Empty):
                self._heard.get(timeout=_POLL_SECONDS)
                return
        raise self._lost_scheduler()

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        self._heard.put(event[1])

    def _settle(self) -> Iterator[WorkItem]:
        """Take in what was heard; yield the items that are committed by now."""
        timeout = _LOOK_SECONDS
        while True:
            try:
                told = self._heard.get(timeout=timeout)
            except queue.Empty:
                return
            timeout = 0.0
            kind, address = told["kind"], told.get("worker", "")
            if kind == "ready":
                self.dispatch.ready(address, told["name"])
            elif kind == "refused":
                images = named(self._plan.source, dict(told["disputed"]))[:_MOST_NAMED]
                self.dispatch.refused(address, told["name"], "; ".join([told["why"], *images]))
            elif kind == "images":
                self.dispatch.progressed(address, told["images"])
            elif kind == "returned" and self.dispatch.has(address, told["item"]):
                yield from self._returned(address, told["item"])

    def _returned(self, address: str, number: int) -> Iterator[WorkItem]:
        """Look at what came of a task: its commits tell, not its result."""
        future, item = self._futures.pop(address), self.dispatch.items[number]
        error = future.exception(timeout=_CONNECT_SECONDS) if future.status == "error" else None
        future.release()
        if error is not None:
            raise _told(error, self.dispatch.name_of(address), item)
        left = still_missing(self._plan.writer.location, self._plan.groups, item)
        self.dispatch.returned(address, number, committed=left is None)
        if left is None:
            yield item

    def _submit(self, address: str, number: int) -> None:
        future = self._client.submit(
            compute_on_worker,
            self._name,
            self.dispatch.items[number],
            key=f"{self._name}-{number}-{uuid.uuid4().hex[:8]}",
            workers=[address],
            allow_other_workers=False,
            resources={GPU: 1} if self._needs_gpu else None,
            pure=False,
        )
        self._futures[address] = future
        told = {"kind": "returned", "worker": address, "item": number}
        future.add_done_callback(lambda _: self._heard.put(told))

    def _look(self) -> None:
        """Compare the workers that are known with those that are there."""
        self._looked = time.monotonic()
        if self._client.status != "running":
            raise self._lost_scheduler()
        try:
            there = set(self._client.nthreads())
            new = there.difference(self.dispatch.addresses())
            if new:
                workers = self._client.scheduler_info(n_workers=-1)["workers"]
                for address in new.intersection(workers):
                    if not self._needs_gpu or workers[address]["resources"].get(GPU):
                        self.dispatch.here(address, _name(workers[address]))
        except (OSError, TimeoutError):
            raise self._lost_scheduler() from None
        gone = set(self.dispatch.addresses()) - there
        for address in gone & self._futures.keys():
            self._futures.pop(address).cancel()
        self.dispatch.gone(gone)

    def _lost_scheduler(self) -> ClusterError:
        return ClusterError(
            "the scheduler is gone",
            where=self._address(),
            got=f"{self.dispatch.done} of {len(self.dispatch.items)} items are committed",
            hint="start it again; the same command goes on",
        )

    def _address(self) -> str:
        scheduler = self._client.scheduler
        return str(scheduler.address) if scheduler is not None else "unknown"

    def _give_up_without_hope(self) -> None:
        """Stop where no worker is left that could take an item."""
        dispatch, now = self.dispatch, time.monotonic()
        if dispatch.hopeful:
            self._hoped = now
            return
        refusals = dispatch.refusals
        if not refusals and now - self._hoped < _PATIENCE_SECONDS:
            return
        said = "\n".join(f"worker {name}: {why}" for name, why in refusals.items())
        raise ClusterError(
            "no worker may work" if refusals else "no worker is left",
            where=self._address(),
            got=said
            or f"none for {_PATIENCE_SECONDS:.0f} s; "
            f"{dispatch.done} of {len(dispatch.items)} items are committed",
            hint="what was committed is intact; the same command goes on",
        )

    def _ask_to_stop(self) -> None:
        """Have busy workers leave their items, and wait a little until those who live have."""
        with contextlib.suppress(ClusterError):  # it is over already
            self._look()
        busy = list(self._futures)
        _briefly(self._client.run, _stop, self._name, workers=busy, wait=False)
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < deadline and not all(
            self._futures[address].done() for address in busy
        ):
            time.sleep(_POLL_SECONDS)


def _briefly(function: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Call what asks all workers, and wait a moment: one that has just died answers late."""

    def call() -> None:
        with contextlib.suppress(Exception):  # what is asked for at the end is a courtesy
            function(*arguments, **options)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(_BRIEF_SECONDS)


async def _stop(plugin: str, dask_worker: Worker) -> None:
    """Ask a worker to leave its item; runs on the worker, and is not waited for."""
    dask_worker.plugins[plugin].stop()  # type: ignore[attr-defined]  # it is our plugin


def _told(error: BaseException, worker: str, item: WorkItem) -> BaseException:
    """Return what went wrong on a worker, with its name."""
    if not isinstance(error, LogitcacheError):
        error.add_note(f"on worker {worker}, {in_words(item)}")
        return error
    error.where = f"{error.where or in_words(item)}, on worker {worker}"
    error.args = (error.render(),)
    return error


def _name(worker: Mapping[str, Any]) -> str:
    return f"{worker['name']} on {worker['host']}"
