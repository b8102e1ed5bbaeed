"""Views of whole batches, rendered by child processes.

For students whose decoding does not scale with threads, or whose training keeps the interpreter
locked. A worker renders a whole request into one contiguous uint8 array, which is returned through
shared memory without a copy.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils.data import DataLoader, Dataset

from logitcache.data.decode import DECODING
from logitcache.errors import ClusterError, LogitcacheError, UsageError
from logitcache.platforms import available_processors
from logitcache.views.render import (
    Decoder,
    Drawn,
    RenderedBatch,
    ViewRenderer,
    empty_batch,
    fill,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from logitcache.errors import UnreadableImage
    from logitcache.views.pixel_values import PixelValues
    from logitcache.views.render import BatchRequest, Read

    Filled = tuple[dict[int, Tensor], dict[int, UnreadableImage]] | LogitcacheError

__all__ = ["RequestDataset", "WorkerRenderer", "make_renderer"]

_GUARD = 'a script whose code is below if __name__ == "__main__":'


class RequestDataset(Dataset[Any]):
    """Dataset of rendered requests, for a DataLoader whose batch sampler yields requests.

    Args:
        read: Function from an index of a request to the stored image; can be pickled.
        sizes: Sides to render, in pixels.
        table: Version of the table that images are decoded by.
    """

    def __init__(self, read: Read, sizes: Sequence[int], table: int) -> None:
        self._decode = Decoder(read, table)
        self._sizes = tuple(sorted(set(sizes)))

    def __getitems__(self, request: BatchRequest) -> Filled:
        """Return the pixels by size, uint8 (B, 3, S, S), and the failures; or an error.

        An error is returned instead of raised, since torch would wrap it into a traceback.
        """
        try:
            batch = empty_batch(request, self._sizes)
            fill(batch, Drawn(request), self._decode, 0, len(request.indices))
        except LogitcacheError as error:
            return error
        pixels = {size: torch.from_numpy(array) for size, array in batch.pixels.items()}
        return pixels, batch.failures


class _Feed:
    """Batch sampler that yields the requests that are assigned to it."""

    def __init__(self) -> None:
        self.requests: Iterable[BatchRequest] = ()
        # batches come back in this order, without their requests
        self.sent: deque[BatchRequest] = deque()

    def __iter__(self) -> Iterator[BatchRequest]:
        self.sent.clear()
        for request in self.requests:
            self.sent.append(request)
            yield request


class WorkerRenderer:
    """Renderer with child processes; :class:`~logitcache.views.render.ViewRenderer` has threads.

    Args:
        read: Function from an index of a request to the stored image; can be pickled.
        sizes: Sides to render, in pixels.
        workers: Number of child processes, which run until :meth:`close`.
        table: Version of the table that images are decoded by.
        context: Start method: ``spawn``, ``forkserver`` or ``fork``; by default the second, where
            it exists, since a child that is forked from a process with threads may hang.

    Raises:
        UsageError: This process is a worker that imports a script which starts workers.
    """

    def __init__(
        self,
        read: Read,
        sizes: Sequence[int],
        *,
        workers: int,
        table: int = DECODING,
        context: str | None = None,
    ) -> None:
        # set while a child imports the script of its parent; multiprocessing itself looks at it
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise UsageError(
                "a worker process imports the script, which would start workers again",
                expected=_GUARD,
                hint="move the code of the script below that line",
            )
        if context is None:
            known = multiprocessing.get_all_start_methods()
            context = "forkserver" if "forkserver" in known else "spawn"
        self._feed = _Feed()
        self._loader: DataLoader[Any] | None = DataLoader(
            RequestDataset(read, sizes, table),
            batch_sampler=self._feed,  # type: ignore[arg-type]  # lists of indices, by torch's types
            num_workers=min(workers, available_processors()),
            collate_fn=_as_it_is,
            multiprocessing_context=context,
            persistent_workers=True,
            # the seed of the workers, which none of them uses, is drawn from it: drawn from the
            # global generator it would change the dropout of a run
            generator=torch.Generator(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; unfinished batches are dropped."""
        self._loader = None  # the iterator it keeps ends its workers when it is collected

    def batches(self, requests: Iterable[BatchRequest]) -> Iterator[RenderedBatch]:
        """Render requests in order, two per worker ahead of the consumer."""
        assert self._loader is not None, "closed"
        self._feed.requests = requests
        for filled in _filled(self._loader):
            request = self._feed.sent.popleft()
            if isinstance(filled, LogitcacheError):
                raise filled
            pixels, failures = filled
            yield RenderedBatch(
                request, {size: array.numpy() for size, array in pixels.items()}, failures
            )


def _filled(loader: DataLoader[Any]) -> Iterator[Filled]:
    """Yield the results of the workers, and report the end of one of them.

    Raises:
        ClusterError: A worker has ended.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise ClusterError(
            "a worker process of the loader has ended",
            got=str(error),
            expected=_GUARD,
            hint="see its error message above; without one it was killed, perhaps for lack of "
            "memory: use fewer workers, or threads (workers=0)",
        ) from None


def make_renderer(
    read: Read,
    sizes: Sequence[int],
    *,
    threads: int | None,
    workers: int,
    table: int,
    image_memory: int = 0,
    values: PixelValues | None = None,
) -> ViewRenderer | WorkerRenderer:
    """Return a renderer with child processes if any are requested, with threads otherwise.

    Args:
        read: Function from an index of a request to the stored image.
        sizes: Sides to render, in pixels.
        threads: Number of threads; all processors by default.
        workers: Number of child processes.
        table: Version of the table that images are decoded by.
        image_memory: Bytes of decoded images that threads keep for later requests.
        values: Values of the pixels that threads render; child processes return levels.
    """
    if workers:
        return WorkerRenderer(read, sizes, workers=workers, table=table)
    return ViewRenderer(
        read,
        sizes,
        threads=threads or available_processors(),
        table=table,
        image_memory=image_memory,
        values=values,
    )


def _as_it_is(filled: Any) -> Any:
    return filled
