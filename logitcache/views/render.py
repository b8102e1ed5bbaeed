"""Views of whole batches, rendered by threads into contiguous uint8 arrays.

Threads, not processes: decoding and resizing release the interpreter lock, child processes are
refused inside a dask worker, and nothing here has global state that threads could race for.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from logitcache.data.decode import decode
from logitcache.errors import UnreadableImage
from logitcache.views.algorithm import Box, Parameters, parameters, view_floats
from logitcache.views.geometry import crop_box, crop_centre, flip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.views.spec import Interpolation, View

    Read = Callable[[int], bytes | NDArray[np.uint8]]

__all__ = ["BatchRequest", "RenderedBatch", "ViewRenderer", "render"]

_IMAGES_PER_TASK = 16
_PADDING = -1


@dataclass(frozen=True)
class BatchRequest:
    """Which images of which view to render.

    Attributes:
        view: The view.
        indices: What to read, int64 (B,); -1 for a position that stays zero.
        hashes: Key hashes of the images, uint64 (B,).
        tag: A number that comes back with the batch.
    """

    view: View
    indices: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    tag: int = 0


@dataclass
class RenderedBatch:
    """Pixels of one request.

    Attributes:
        request: What was asked for.
        pixels: By side in pixels S: uint8 (B, 3, S, S); zeros where nothing could be read.
        failures: By position in the batch: why an image could not be read.
    """

    request: BatchRequest
    pixels: dict[int, NDArray[np.uint8]]
    failures: dict[int, UnreadableImage] = field(default_factory=dict)


def render(image_CHW: Tensor, how: Parameters, size: int, interpolation: Interpolation) -> Tensor:
    """Render one decoded image as a square: uint8 (3, S, S)."""
    if isinstance(how.crop, Box):
        out = crop_box(image_CHW, how.crop, size, interpolation)
    else:
        out = crop_centre(image_CHW, how.crop.crop_pct, size, interpolation)
    return flip(out) if how.flip else out


class ViewRenderer:
    """Decodes each image once and renders it at every size that is wanted.

    The pixels depend on the request alone, not on the number of threads or the order.

    Args:
        read: Thread-safe function from an index of a request to the stored image.
        sizes: Sides to render, in pixels.
        threads: Threads that decode and render.
        ahead: Batches that are worked on before they are asked for.
    """

    def __init__(self, read: Read, sizes: Sequence[int], *, threads: int, ahead: int = 3) -> None:
        self._read = read
        self._sizes = tuple(sorted(set(sizes)))
        self._ahead = ahead
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; batches under way are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(self, requests: Iterable[BatchRequest]) -> Iterator[RenderedBatch]:
        """Render requests in order, some ahead of the consumer."""
        pending: deque[tuple[RenderedBatch, list[Future[None]]]] = deque()
        for request in requests:
            pending.append(self._start(request))
            if len(pending) > self._ahead:
                yield _finish(*pending.popleft())
        while pending:
            yield _finish(*pending.popleft())

    def _start(self, request: BatchRequest) -> tuple[RenderedBatch, list[Future[None]]]:
        count = len(request.indices)
        pixels = {size: np.zeros((count, 3, size, size), dtype=np.uint8) for size in self._sizes}
        batch = RenderedBatch(request, pixels)
        floats = view_floats(request.view, request.hashes)
        starts = range(0, count, _IMAGES_PER_TASK)
        tasks = [self._pool.submit(self._fill, batch, floats, start) for start in starts]
        return batch, tasks

    def _fill(self, batch: RenderedBatch, floats: list[NDArray[np.float64]], start: int) -> None:
        """Render a few neighbouring images of a batch."""
        view, indices = batch.request.view, batch.request.indices
        for position in range(start, min(start + _IMAGES_PER_TASK, len(indices))):
            if indices[position] == _PADDING:
                continue
            try:
                image = decode(self._read(int(indices[position])))
            except UnreadableImage as error:
                batch.failures[position] = error
                continue
            how = parameters(view, [f[position].tolist() for f in floats], *image.shape[1:])
            for size, pixels in batch.pixels.items():
                pixels[position] = render(image, how, size, view.interpolation).numpy()


def _finish(batch: RenderedBatch, tasks: list[Future[None]]) -> RenderedBatch:
    for task in tasks:
        task.result()
    return batch
