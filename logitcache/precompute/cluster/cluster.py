"""Precomputation on dask.distributed workers.

The scheduler sees small items, never an image or a tensor; see
:mod:`logitcache.precompute.cluster.worker_pool`.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

import dask
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.utils import silence_logging_cmgr

from logitcache.errors import ClusterError, UsageError
from logitcache.precompute.cluster.environment_check import describe_environment
from logitcache.precompute.cluster.worker import GPU, UnitRunnerOpener
from logitcache.precompute.cluster.worker_pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitcache.data.readers import ImageSet
    from logitcache.precompute.cluster.worker import Opener
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.precompute.plan.plan import Plan
    from logitcache.precompute.plan.worklist import WorkItem
    from logitcache.precompute.run.compute import Progress
    from logitcache.teachers.ensemble import Ensemble

__all__ = ["compute_on_cluster", "compute_plan_on_cluster", "joined", "local_cluster"]

_CONNECT_SECONDS = 20.0
# by default, dask samples the stacks of a worker's threads every 10 ms, its event loop every 20 ms
_FRUGAL = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
}


@contextlib.contextmanager
def joined(scheduler: str, *, seconds: float = _CONNECT_SECONDS) -> Iterator[Client]:
    """Context with a client that is connected to a scheduler.

    Args:
        scheduler: Address of the scheduler, for example ``tcp://host:8786``.
        seconds: Timeout of the connection.

    Raises:
        UsageError: The address is malformed.
        ClusterError: No scheduler responds at this address.
    """
    try:
        # not the default: after a scheduler has died, other uses of dask would still look for it
        client = Client(scheduler, timeout=seconds, set_as_default=False)
    except (ValueError, TypeError) as error:
        raise UsageError(
            "malformed address of a dask scheduler",
            where=f"--scheduler {scheduler}",
            expected="tcp://HOST:PORT",
            got=error,
        ) from None
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            "cannot connect to the dask scheduler",
            where=scheduler,
            got=f"{str(error).partition(chr(10))[0]} ({seconds:.0f} s)",
            hint="check that a dask scheduler runs at this address and that its port is reachable",
        ) from None
    with silence_logging_cmgr(logging.CRITICAL), client:  # errors are raised by this process
        yield client


@contextlib.contextmanager
def local_cluster(workers: int, *, gpus: bool) -> Iterator[Client]:
    """Context with a client of a scheduler and workers on this machine; it stops them at the end.

    Args:
        workers: Number of worker processes.
        gpus: Whether each worker gets one GPU, by its number.
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
        Client(cluster, set_as_default=False) as client,
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
    data: ImageSet | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    after_item: Callable[[WorkItem], None] | None = None,
) -> int:
    """Compute the missing items of a plan on local workers, or on those of a scheduler.

    Args:
        plan: Missing items; notes for the user are added to it.
        ensemble: Teachers that the plan was made with.
        config: Configuration with ``workers`` or ``scheduler``.
        data: The images, instead of ``config.data``.
        on_progress: Called about twice a second.
        should_stop: Called at least as often; if it returns true, the run stops, and complete units
            are kept.
        after_item: Called with each committed item.

    Returns:
        Number of images processed by this run, counted once per item.

    Raises:
        ClusterError: See :func:`compute_on_cluster`.
    """
    if not plan.items:
        return 0
    locks = {name: member.lock for name, member in ensemble.members.items()}
    environment = describe_environment(plan.listed, locks, plan.views)
    with _cluster(config) as (client, gpus, threads):
        device = "cuda" if gpus else "cpu" if config.device == "auto" else config.device
        if config.device == "auto" and not gpus and config.scheduler is not None:
            plan.notes.append(f"no worker offers the resource {GPU}; computed on CPUs")
        placed = config.model_copy(update={"device": device})
        return compute_on_cluster(
            plan,
            UnitRunnerOpener(placed, environment, tuple(plan.groups), threads, data),
            client,
            needs_gpu=gpus,
            own=config.scheduler is None,
            on_progress=on_progress,
            should_stop=should_stop,
            after_item=after_item,
        )


@contextlib.contextmanager
def _cluster(config: PrecomputeConfig) -> Iterator[tuple[Client, bool, int | None]]:
    """Yield a client, whether GPUs are used, and the threads per worker; None if unknown."""
    wants_gpu = config.device.startswith("cuda")
    if config.scheduler is not None:
        with joined(config.scheduler) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            offered = any(worker["resources"].get(GPU) for worker in workers)
            yield client, wants_gpu or (config.device == "auto" and offered), None
        return
    workers = config.workers or 1
    gpus = wants_gpu or (config.device == "auto" and torch.cuda.is_available())
    if gpus and workers > torch.cuda.device_count():
        raise UsageError(
            "more workers than GPUs",
            where="--workers",
            expected=f"at most {torch.cuda.device_count()}, one per GPU",
            got=workers,
            hint="reduce --workers, or pass --device cpu",
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
    """Compute the missing items of a plan on the workers of a cluster.

    Args:
        plan: Missing items; notes for the user are added to it.
        opener: Function object that makes a runner on each worker.
        client: Client of the cluster.
        needs_gpu: Whether only workers that offer the resource GPU are used.
        own: Whether this run started the workers.
        on_progress: Called about twice a second.
        should_stop: Called at least as often; if it returns true, the run stops, and complete units
            are kept.
        after_item: Called with each committed item.

    Returns:
        Number of images processed by this run, counted once per item.

    Raises:
        ClusterError: There are no workers, all were refused, or one item terminates all of them.
        LogitcacheError: An item failed on a worker; the message names the worker.
        Interrupted: The run was stopped.
    """
    pool = WorkerPool(plan, client, needs_gpu=needs_gpu, own=own)
    pool.meet()
    try:
        pool.prepare(opener)
        return pool.work(on_progress, should_stop, after_item)
    finally:
        plan.notes.extend(pool.assignment.notices)
        pool.dismiss()
