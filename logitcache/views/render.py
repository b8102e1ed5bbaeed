"""Views of whole batches, rendered by threads into contiguous arrays.

Threads, not processes: decoding and resizing release the interpreter lock, a dask worker may not
start child processes, and there is no global state that threads share.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL import Image

from logitcache.data.decode import DECODING, decode
from logitcache.errors import UnreadableImage
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.batch_memory import BatchMemory
from logitcache.views.color import COLOR_STEPS
from logitcache.views.erase import PAINT_STEPS
from logitcache.views.geometry import (
    AFFINE_STEPS,
    crop_border,
    crop_box,
    crop_center,
    crop_squash,
    flip,
    flip_vertical,
    low_resolution,
    rot90,
)
from logitcache.views.mix import mix_squares
from logitcache.views.operations import CentralCrop, SquashCrop
from logitcache.views.parameters import Box
from logitcache.views.pixel_values import Levels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.views.parameters import Crop, Parameters, Step
    from logitcache.views.pixel_values import PixelValues
    from logitcache.views.spec import Interpolation, View

    Read = Callable[[int], bytes | NDArray[np.uint8]]
    Decode = Callable[[int], Tensor]

__all__ = [
    "IMAGE_MEMORY",
    "BatchRequest",
    "DecodedImages",
    "RenderedBatch",
    "ViewRenderer",
    "render",
]

IMAGE_MEMORY = 2**30
"""Default bytes of decoded images that are kept: 1024 of 500 x 375 pixels take 0.58 GB."""

_AHEAD = 3  # batches that are rendered ahead of the consumer
_IMAGES_PER_TASK = 16
_PADDING = -1
_SQUARE_STEPS: dict[str, Callable[..., Tensor]] = {
    "flip": flip,
    "flip_vertical": flip_vertical,
    "rot90": rot90,
    **PAINT_STEPS,
}


@dataclass(frozen=True)
class BatchRequest:
    """Request to render some images of a view.

    Attributes:
        view: The view.
        indices: Indices of the images to read, int64 (B,); -1 for a position that stays zero.
        hashes: Key hashes of the images, uint64 (B,).
        tag: A number that is returned with the batch.
        partners: Indices of the images that are mixed in, int64 (B,); that of the image itself
            where it has no partner. None for a view that does not mix.
        partner_hashes: Key hashes of the partners, uint64 (B,).
        sizes: Sides to render, in pixels; empty for those of the renderer.

    Raises:
        ValueError: The view mixes images, and the partners are missing. Without them it would not
            be the view of its id.
    """

    view: View
    indices: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    tag: int = 0
    partners: NDArray[np.int64] | None = None
    partner_hashes: NDArray[np.uint64] | None = None
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.view.mixing is None:
            return
        if self.partners is None or self.partner_hashes is None:
            raise ValueError(
                f"view {self.view.id} mixes images: set partners and partner_hashes, "
                "or render View.unmixed"
            )


@dataclass
class RenderedBatch:
    """Pixels of one request.

    Attributes:
        request: The request.
        pixels: Pixels by side S, (B, 3, S, S), uint8 unless other values are wanted; zeros where no
            image could be read.
        failures: Errors of images that could not be read, by position in the batch; ``where`` is
            the index of the image.
        values: Values of the pixels.
    """

    request: BatchRequest
    pixels: dict[int, NDArray[Any]]
    failures: dict[int, UnreadableImage] = field(default_factory=dict)
    values: PixelValues = field(default_factory=Levels)


def render(
    image_CHW: Tensor,
    how: Parameters,
    size: int,
    interpolation: Interpolation,
    partner_CSS: Tensor | None = None,
) -> Tensor:
    """Render one decoded image as a square: uint8 (3, S, S).

    Args:
        image_CHW: Decoded image, uint8 (3, H, W).
        how: Its parameters.
        size: S.
        interpolation: Interpolation of resizing.
        partner_CSS: Square of the partner, see :func:`picture`; None to mix nothing in.
    """
    return finish(picture(image_CHW, how, size, interpolation), how, interpolation, partner_CSS)


def picture(image_CHW: Tensor, how: Parameters, size: int, interpolation: Interpolation) -> Tensor:
    """Return the square of an image with all steps before a mix, uint8 (3, S, S)."""
    return _apply(_cropped(image_CHW, how.crop, size, interpolation), how.steps, interpolation)


def finish(
    own_CSS: Tensor, how: Parameters, interpolation: Interpolation, partner_CSS: Tensor | None
) -> Tensor:
    """Mix the square of a partner into a row's own, and apply the steps after the mix."""
    if how.mix is not None and partner_CSS is not None:
        own_CSS = mix_squares(own_CSS, partner_CSS, how.mix)
    return _apply(own_CSS, how.after, interpolation)


def _cropped(image_CHW: Tensor, crop: Crop, size: int, interpolation: Interpolation) -> Tensor:
    if isinstance(crop, Box):
        return crop_box(image_CHW, crop, size, interpolation)
    if isinstance(crop, CentralCrop):
        return crop_center(image_CHW, crop.crop_pct, size, interpolation)
    if isinstance(crop, SquashCrop):
        return crop_squash(image_CHW, crop.crop_pct, size, interpolation)
    return crop_border(image_CHW, crop, size, interpolation)


def _apply(square_CSS: Tensor, steps: Sequence[Step], interpolation: Interpolation) -> Tensor:
    """Apply steps in order, converting between tensor and PIL only where necessary."""
    now: Tensor | Image.Image = square_CSS
    for step in steps:
        if step.name in COLOR_STEPS:
            now = COLOR_STEPS[step.name](_as_image(now), *step.values)
        elif step.name in AFFINE_STEPS:
            affine = AFFINE_STEPS[step.name]
            now = affine(_as_image(now), *step.values, interpolation=interpolation)
        elif step.name == "lowres":
            now = low_resolution(_as_tensor(now), *step.values, interpolation=interpolation)
        else:
            now = _SQUARE_STEPS[step.name](_as_tensor(now), *step.values)
    return _as_tensor(now)


def _as_image(now: Tensor | Image.Image) -> Image.Image:
    if isinstance(now, Image.Image):
        return now
    return Image.fromarray(now.permute(1, 2, 0).contiguous().numpy())


def _as_tensor(now: Tensor | Image.Image) -> Tensor:
    if isinstance(now, Image.Image):
        # a copy, since torch warns about the read-only memory of an image
        return torch.from_numpy(np.array(now)).permute(2, 0, 1)
    return now


class ViewRenderer:
    """Renderer with threads, which decodes each image once per batch for all sizes.

    The pixels depend on the request alone, not on the number of threads or the order. Their memory
    is used again once nothing refers to it any more.

    Args:
        read: Thread-safe function from an index of a request to the stored image.
        sizes: Sides to render, in pixels, of requests without sizes.
        threads: Threads that decode and render.
        table: Version of the table that images are decoded by.
        on_odd: Called with the index of an image whose pixels are probably not the intended ones,
            and a note about it.
        image_memory: Bytes of decoded images that are kept for later requests.
        values: Values of the pixels; levels from 0 to 255 by default.
    """

    def __init__(
        self,
        read: Read,
        sizes: Sequence[int],
        *,
        threads: int,
        table: int = DECODING,
        on_odd: Callable[[int, str], None] | None = None,
        image_memory: int = 0,
        values: PixelValues | None = None,
    ) -> None:
        self._decode = DecodedImages(Decoder(read, table, on_odd), image_memory)
        self._sizes = tuple(sorted(set(sizes)))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._memory, self._values = BatchMemory(), values or Levels()
        self._beginning = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; unfinished batches are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._memory.close()

    def forget_images(self) -> None:
        """Release the decoded images: later indices stand for other ones."""
        self._decode.forget()

    def batches(self, requests: Iterable[BatchRequest]) -> Iterator[RenderedBatch]:
        """Render requests in order, some ahead of the consumer."""
        pending: deque[tuple[RenderedBatch, list[Future[None]]]] = deque()
        for request in requests:
            pending.append(self._start(request))
            if len(pending) > _AHEAD:
                yield _finish(*pending.popleft())
        while pending:
            yield _finish(*pending.popleft())

    def _start(self, request: BatchRequest) -> tuple[RenderedBatch, list[Future[None]]]:
        sizes = _checked_sizes(request, self._sizes)
        batch, drawn = RenderedBatch(request, {}, values=self._values), Drawn(request)
        starts = range(0, len(request.indices), _IMAGES_PER_TASK)
        tasks = [self._pool.submit(self._fill, batch, sizes, drawn, start) for start in starts]
        if not tasks:
            _allocate(batch, sizes, self._memory.empty)
        return batch, tasks

    def _fill(self, batch: RenderedBatch, sizes: Sequence[int], drawn: Drawn, start: int) -> None:
        """Render some images of a batch, whose memory is taken when its first images are."""
        with self._beginning:
            if not batch.pixels:
                _allocate(batch, sizes, self._memory.empty)
        fill(batch, drawn, self._decode, start, start + _IMAGES_PER_TASK)


class Decoder:
    """Reader and decoder of the images of requests.

    Args:
        read: Thread-safe function from an index of a request to the stored image.
        table: Version of the table that images are decoded by.
        on_odd: As for :class:`ViewRenderer`.
    """

    def __init__(
        self, read: Read, table: int, on_odd: Callable[[int, str], None] | None = None
    ) -> None:
        self._read, self._table, self._on_odd = read, table, on_odd

    def __call__(self, index: int) -> Tensor:
        """Return the pixels of an image, uint8 (3, H, W).

        Raises:
            UnreadableImage: It cannot be decoded; ``where`` is its index.
        """
        on_odd = None if self._on_odd is None else partial(self._on_odd, index)
        try:
            return decode(self._read(index), self._table, on_odd)
        except UnreadableImage as error:
            raise error.at(index) from error


class DecodedImages:
    """Decoded images by index, kept up to a number of bytes; images beyond are decoded again.

    Args:
        decode: Decoder of an image.
        most_bytes: Bytes of decoded images that are kept.
    """

    def __init__(self, decode: Decode, most_bytes: int) -> None:
        self._decode = decode
        self._kept: dict[int, Tensor] = {}
        self._most_bytes = self._left = most_bytes
        self._lock = threading.Lock()

    def __call__(self, index: int) -> Tensor:
        """Return the pixels of an image, uint8 (3, H, W); they are shared and never written to."""
        image = self._kept.get(index)
        if image is None:
            image = self._decode(index)
            with self._lock:  # the bytes that are left are counted by several threads
                if image.nbytes <= self._left and index not in self._kept:
                    self._kept[index] = image
                    self._left -= image.nbytes
        return image

    def forget(self) -> None:
        """Release the images that are kept."""
        with self._lock:
            self._kept, self._left = {}, self._most_bytes


def empty_batch(request: BatchRequest, sizes: Sequence[int]) -> RenderedBatch:
    """Return a batch to be filled: at every size of the request, or else at these sizes."""
    batch = RenderedBatch(request, {})
    _allocate(batch, _checked_sizes(request, sizes), np.empty)
    return batch


def _checked_sizes(request: BatchRequest, sizes: Sequence[int]) -> Sequence[int]:
    sizes = request.sizes or sizes
    request.view.check_sizes(sizes)
    return sizes


def _allocate(
    batch: RenderedBatch,
    sizes: Sequence[int],
    empty: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]],
) -> None:
    count, dtype = len(batch.request.indices), batch.values.dtype
    batch.pixels = {size: empty((count, 3, size, size), dtype) for size in sizes}


class Drawn:
    """The unit floats of a batch: of its images and of their partners."""

    def __init__(self, request: BatchRequest) -> None:
        self.own = view_floats(request.view, request.hashes)
        self.partners = (
            None
            if request.partner_hashes is None
            else view_floats(request.view, request.partner_hashes)
        )


def fill(batch: RenderedBatch, drawn: Drawn, decode: Decode, start: int, stop: int) -> None:
    """Render some neighboring images of a batch; a pair among them is decoded once."""
    pictures = _Pictures(batch, decode)
    for position in range(start, min(stop, len(batch.request.indices))):
        try:
            if batch.request.indices[position] != _PADDING:
                _fill_one(batch, drawn, pictures, position)
                continue
        except UnreadableImage as error:
            batch.failures[position] = error
        for pixels in batch.pixels.values():
            pixels[position] = 0


def _fill_one(batch: RenderedBatch, drawn: Drawn, pictures: _Pictures, position: int) -> None:
    request = batch.request
    index = int(request.indices[position])
    how, own = pictures.of(index, drawn.own, position)
    other: dict[int, Tensor] = {}
    if drawn.partners is not None and request.partners is not None and how.mix is not None:
        partner = int(request.partners[position])
        if partner != index:
            _, other = pictures.of(partner, drawn.partners, position)
    for size, pixels in batch.pixels.items():
        interpolation = request.view.interpolation
        out = finish(own[size], how, interpolation, other.get(size))
        # rows of one task alone, so threads need no lock
        batch.values.write(out.numpy(), pixels[position])


class _Pictures:
    """Squares of the images that one task has decoded; kept only where they may be mixed."""

    def __init__(self, batch: RenderedBatch, decode: Decode) -> None:
        self._batch, self._decode = batch, decode
        self._kept: dict[int, tuple[Parameters, dict[int, Tensor]]] = {}

    def of(
        self, index: int, floats: list[NDArray[np.float64]], position: int
    ) -> tuple[Parameters, dict[int, Tensor]]:
        """Return the parameters of an image and its square at every size."""
        if index in self._kept:
            return self._kept[index]
        view = self._batch.request.view
        image = self._decode(index)
        how = parameters(view, [f[position].tolist() for f in floats], *image.shape[1:])
        try:
            found = (
                how,
                {s: picture(image, how, s, view.interpolation) for s in self._batch.pixels},
            )
        except UnreadableImage as error:
            raise error.at(index) from error
        if self._batch.request.partners is not None:
            self._kept[index] = found
        return found


def _finish(batch: RenderedBatch, tasks: list[Future[None]]) -> RenderedBatch:
    for task in tasks:
        task.result()
    return batch
