"""A worker of a cluster: keeps the teachers loaded, and computes one item at a time.

Heavy imports happen when a worker prepares: a scheduler that forwards tasks needs this module, but
not torch. Everything runs in threads, because dask workers are daemonic processes, which cannot
have child processes.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from distributed import WorkerPlugin, get_worker

from logitcache.errors import ClusterError, DataError, LogitcacheError
from logitcache.platforms import available_processors, tune_allocator

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from distributed import Worker

    from logitcache.data.readers import ImageSet
    from logitcache.precompute.cluster.environment_check import Entry, Environment
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.precompute.plan.worklist import WorkItem

__all__ = ["GPU", "Opener", "Runner", "TeacherPlugin", "UnitRunnerOpener", "compute_on_worker"]

GPU = "GPU"
"""Resource of a worker with an accelerator, named as in dask-cuda."""

_REPORT_SECONDS = 0.5


class Runner(Protocol):
    """Runner of items; see :class:`logitcache.precompute.run.compute.UnitRunner`."""

    def work_off(
        self, items: Iterable[WorkItem], while_waiting: Callable[[str], None]
    ) -> Generator[WorkItem]:
        """Compute the units of items that are still missing, and yield each committed item."""
        ...

    def close(self) -> None:
        """Stop the threads."""
        ...


class Opener(Protocol):
    """Function object that makes a runner on a worker; it is pickled and sent to all workers."""

    def open(self, after_batch: Callable[[int], None], neighbors: int) -> Runner:
        """Make a runner.

        Args:
            after_batch: Called with the number of images of each batch; may raise to stop.
            neighbors: Largest number of workers on one host; they share its processors.

        Raises:
            LogitcacheError: The environment of this worker is incomplete, or differs.
        """
        ...


class UnitRunnerOpener:
    """Opener of images, teachers and cache on a worker, which compares them with the plan.

    Args:
        config: Configuration of the run.
        environment: Environment of the process that made the plan.
        groups: Names of the groups to write.
        threads: Threads of a forward pass, and by default of decoding; None for an equal share of
            the processors of the host.
        data: The images, instead of ``config.data``.
    """

    def __init__(
        self,
        config: PrecomputeConfig,
        environment: Environment,
        groups: tuple[str, ...],
        threads: int | None,
        data: ImageSet | None = None,
    ) -> None:
        self._config, self._data, self._environment = config, data, environment
        self._groups, self._threads = groups, threads

    def open(self, after_batch: Callable[[int], None], neighbors: int) -> Runner:
        """Make a runner; see :class:`Opener`."""
        import torch

        from logitcache.cache.store.open import locate
        from logitcache.cache.write.claims import Claims
        from logitcache.networks.device import resolve_device
        from logitcache.precompute.cluster.environment_check import (
            compare_environments,
            describe_environment,
        )
        from logitcache.precompute.plan.plan import join_plan
        from logitcache.precompute.plan.rows import open_images
        from logitcache.precompute.run.compute import UnitRunner
        from logitcache.teachers.ensemble import Ensemble

        tune_allocator()
        config = self._config
        threads = self._threads or max(1, available_processors() // neighbors)
        torch.set_num_threads(threads)
        data = config.data if self._data is None else self._data
        source = open_images(data, locate(config.cache), config.images)
        device = resolve_device(config.device)
        ensemble = Ensemble(
            config.teachers,
            device=device,
            precision=config.precision,
            class_names=source.class_names,
        )
        locks = {name: member.lock for name, member in ensemble.members.items()}
        views = [view.id for view in config.views.views()]
        compare_environments(self._environment, describe_environment(source, locks, views), source)
        plan = join_plan(config, source, self._groups)
        return UnitRunner(
            plan,
            ensemble,
            Claims(locate(config.cache)),
            precision=config.precision,
            threads=config.threads or threads,
            image_memory=config.image_memory,
            skip_bad_images=config.on_bad_image == "skip",
            after_batch=after_batch,
        )


class _StopRequestedError(Exception):
    """Ends an item after a batch, because the run stops."""


class _NotYetError(Exception):
    """Ends an item that another process has claimed, or whose images are not committed yet."""


class TeacherPlugin(WorkerPlugin):
    """Dask plugin with a runner on every worker, including workers that join later.

    The runner is made in a thread, so that the worker sends heartbeats while it loads. Events are
    logged to the topic with the name of the plugin: ``ready``, ``refused`` with the reason,
    ``images``, and ``waits`` with a description of the process that has the claim.

    Args:
        name: Name of the plugin, unique to the run.
        opener: Function object that makes the runner.
        neighbors: Largest number of workers on one host.
        needs_gpu: Whether only workers that offer the resource GPU make a runner.
        own: Whether this run started the workers, whose parent then handles Ctrl-C.
    """

    def __init__(
        self, name: str, opener: Opener, *, neighbors: int, needs_gpu: bool, own: bool
    ) -> None:
        self.name = name
        self._opener, self._neighbors = opener, neighbors
        self._needs_gpu, self._own = needs_gpu, own

    def setup(self, worker: Worker) -> None:
        """Start to make the runner; called by dask when the plugin is registered."""
        self._worker = worker
        self._runner: Runner | None = None
        self._why = ""
        self._prepared, self._stop, self._turn = (
            threading.Event(),
            threading.Event(),
            threading.Lock(),
        )
        self._images, self._reported = 0, 0.0
        if self._own and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._needs_gpu and not worker.state.total_resources.get(GPU):
            self._why = f"offers no resource {GPU}"
            self._prepared.set()
            return
        threading.Thread(target=self._prepare, name=self.name, daemon=True).start()

    def teardown(self, worker: Worker) -> None:
        """Stop, and release the teachers."""
        del worker
        self.stop()
        runner, self._runner = self._runner, None  # before close(), which may take a while
        if runner is not None:
            runner.close()

    def stop(self) -> None:
        """End the current item after its current batch, and compute no other one."""
        self._stop.set()

    def compute(self, item: WorkItem) -> None:
        """Compute one item, unless another process has claimed it; commits show the outcome.

        Raises:
            LogitcacheError: The item cannot be computed on this worker.
        """
        self._prepared.wait()
        if self._runner is None:
            raise ClusterError("an item was assigned to a refused worker", got=self._why)
        # one at a time: an earlier task may still run after its item was assigned again
        with self._turn, contextlib.suppress(_NotYetError, _StopRequestedError), _naming_files():
            self._images, self._reported = 0, 0.0
            with contextlib.closing(self._runner.work_off([item], self._leave)) as computed:
                for _ in computed:
                    pass

    def _prepare(self) -> None:
        disputed: Mapping[int, list[Entry]] = {}
        try:
            with _naming_files():
                self._runner = self._opener.open(self._after_batch, self._neighbors)
        except Exception as error:  # reported by the process that started the run
            self._why = str(error) if isinstance(error, LogitcacheError) else repr(error)
            disputed = getattr(error, "disputed", {})
        finally:
            self._prepared.set()
        if self._runner is None:
            self._report("refused", why=self._why, disputed=list(disputed.items()))
        else:
            self._report("ready")

    def _after_batch(self, images: int) -> None:
        self._images += images
        now = time.monotonic()
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report("images", images=self._images)
        if self._stop.is_set():
            raise _StopRequestedError

    def _leave(self, why: str) -> None:
        self._report("waits", why=why)
        raise _NotYetError

    def _report(self, kind: str, **more: Any) -> None:
        worker = self._worker
        name = f"{worker.name} on {socket.gethostname()}"
        event = {"kind": kind, "worker": worker.address, "name": name, **more}
        worker.log_event(self.name, event)


def compute_on_worker(plugin: str, item: WorkItem) -> None:
    """Compute one item on this worker: the task of dask. It has no result, for dask keeps those."""
    plugin_here = get_worker().plugins[plugin]
    assert isinstance(plugin_here, TeacherPlugin)
    plugin_here.compute(item)


@contextlib.contextmanager
def _naming_files() -> Iterator[None]:
    """Raise a ``DataError`` with the file name instead of ``OSError``."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise DataError(
            "a file cannot be read",
            where=error.filename,
            got=error.strerror,
            hint="make images, weights and cache available under the same paths on every worker",
        ) from error
