"""A worker of a cluster: keeps the teachers loaded, and computes one item at a time.

Nothing heavy is imported before a worker prepares itself: a scheduler that passes tasks on needs
this module, but neither torch nor an image. Everything runs in threads, for a worker of dask is
daemonic and may have no child processes.
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

    from logitcache.precompute.cluster.environment_check import Agreement, Entry
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.precompute.plan.worklist import WorkItem

__all__ = ["GPU", "Opener", "Runner", "TeacherPlugin", "UnitRunnerOpener", "compute_on_worker"]

GPU = "GPU"
"""The resource that a worker with an accelerator offers, as dask-cuda's users name it."""

_REPORT_SECONDS = 0.5


class Runner(Protocol):
    """What computes items; see :class:`logitcache.precompute.run.compute.UnitRunner`."""

    def work_off(
        self, items: Iterable[WorkItem], while_waiting: Callable[[str], None]
    ) -> Generator[WorkItem]:
        """Compute what is still missing of items, and yield each when it is committed."""
        ...

    def close(self) -> None:
        """Stop its threads."""
        ...


class Opener(Protocol):
    """What makes a runner out of what a worker has itself; it travels to the workers."""

    def open(self, after_batch: Callable[[int], None], neighbors: int) -> Runner:
        """Make it.

        Args:
            after_batch: Called with the number of images of each batch; may raise to stop.
            neighbors: Most workers on one host, this one included: they share its processors.

        Raises:
            LogitcacheError: This worker lacks something, or has something else.
        """
        ...


class UnitRunnerOpener:
    """Opens images, teachers and cache on a worker, and compares them with the plan's.

    Args:
        config: What is precomputed.
        agreement: What the process that made the plan has.
        groups: Names of the groups that are written.
        threads: Threads of a forward, which also decode unless configured;
            None for this worker's share of its host.
    """

    def __init__(
        self,
        config: PrecomputeConfig,
        agreement: Agreement,
        groups: tuple[str, ...],
        threads: int | None,
    ) -> None:
        self._config, self._agreement = config, agreement
        self._groups, self._threads = groups, threads

    def open(self, after_batch: Callable[[int], None], neighbors: int) -> Runner:
        """Make a runner; see :class:`Opener`."""
        import torch

        from logitcache.cache.store.open import locate
        from logitcache.cache.write.claims import Claims
        from logitcache.networks.device import resolve_device
        from logitcache.precompute.cluster.environment_check import agreement_of, compare_agreements
        from logitcache.precompute.plan.plan import join_plan
        from logitcache.precompute.plan.rows import open_images
        from logitcache.precompute.run.compute import UnitRunner
        from logitcache.teachers.ensemble import Ensemble

        tune_allocator()
        config = self._config
        threads = self._threads or _share_of_host(neighbors)
        torch.set_num_threads(threads)
        source = open_images(config.data, locate(config.cache))
        device = resolve_device(config.device)
        ensemble = Ensemble(
            config.teachers,
            device=device,
            precision=config.precision,
            class_names=source.class_names,
        )
        locks = {name: member.lock for name, member in ensemble.members.items()}
        views = [view.id for view in config.views.views()]
        compare_agreements(self._agreement, agreement_of(source, locks, views), source)
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


def _share_of_host(neighbors: int) -> int:
    return max(1, available_processors() // neighbors)


class _StopRequestedError(Exception):
    """Leaves an item in the middle."""


class _NotYetError(Exception):
    """Leaves an item to whoever else works on it, or until its images are committed."""


class TeacherPlugin(WorkerPlugin):
    """Keeps a runner on every worker, those that join later included.

    It prepares in a thread, so that a worker stays in touch while it loads, and tells the topic
    that bears its name what happens: ``ready``, ``refused`` with the reason, ``images``, ``waits``
    with for which process.

    Args:
        name: Unique to the run.
        opener: Makes the runner.
        neighbors: Most workers on one host.
        needs_gpu: Whether workers that do not offer the resource are left alone.
        own: Whether the workers were started by this run, so that Ctrl-C is the parent's to handle.
    """

    def __init__(
        self, name: str, opener: Opener, *, neighbors: int, needs_gpu: bool, own: bool
    ) -> None:
        self.name = name
        self._opener, self._neighbors = opener, neighbors
        self._needs_gpu, self._own = needs_gpu, own

    def setup(self, worker: Worker) -> None:
        """Begin to prepare."""
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
        """Let go of the teachers."""
        del worker
        self.stop()
        runner, self._runner = self._runner, None  # before close(), which may take a while
        if runner is not None:
            runner.close()

    def stop(self) -> None:
        """Leave the current item after its current batch, and take no other."""
        self._stop.set()

    def compute(self, item: WorkItem) -> None:
        """Compute one item, or leave it to somebody else; commits tell which.

        Raises:
            LogitcacheError: It cannot be computed here.
        """
        self._prepared.wait()
        if self._runner is None:
            raise ClusterError("a worker that was refused was given work", got=self._why)
        # one at a time, also where a task of a worker that was given up is still running
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
        except Exception as error:  # whatever it is, the process that started the run reports it
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
    """Compute one item where this runs: the task. It returns nothing that dask would keep."""
    plugin_here = get_worker().plugins[plugin]
    assert isinstance(plugin_here, TeacherPlugin)
    plugin_here.compute(item)


@contextlib.contextmanager
def _naming_files() -> Iterator[None]:
    """Turn a file that cannot be read into an error that names it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise DataError(
            "a file cannot be read",
            where=error.filename,
            got=error.strerror,
            hint="every worker needs the same images, weights and cache under the same names",
        ) from error
