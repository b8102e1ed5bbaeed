"""Recomputed outputs of a teacher for rows of a cache: pixels, logits and activations.

Shapes: N rows, S side of the square, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import tee
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from logitcache.cache.format.squares import stored_views
from logitcache.data.join import ImageJoin, check_content
from logitcache.encoding.feature_noise import magnitudes, relative_difference
from logitcache.encoding.features import FeatureEncoding
from logitcache.encoding.heads import HEADS
from logitcache.encoding.logits import non_finite_rows
from logitcache.errors import DataMismatch, NonFiniteLogits, UnreadableImage
from logitcache.platforms import available_processors
from logitcache.teachers.member import KeptTap
from logitcache.teachers.reduce import reduced
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import parse_view
from logitcache.views.stored import SquareNumbers
from logitcache.views.tokens import shown_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache
    from logitcache.data.source import Source
    from logitcache.teachers.member import Member
    from logitcache.views.operations import Drop
    from logitcache.views.render import RenderedBatch
    from logitcache.views.tokens import ShownPatches

    Run = tuple[str, NDArray[np.int64]]
    """A view and rows of it, ascending."""

__all__ = ["LOGITS", "Outputs", "Recomputation", "ShownImages", "ShownRows"]

LOGITS = "logits"
"""Name of the logits among the names of taps."""

_FORWARD_BYTES = 2**28  # of the activations of one forward pass


@dataclass(frozen=True)
class Outputs:
    """Outputs of a teacher for some rows.

    Attributes:
        log_probs: Log-probabilities, float64 (N, C); C is 0 without logits.
        lse: Logsumexp of the logits, float64 (N,); 0 without logits.
        scale: Largest absolute logit of each row, float64 (N,): rounding errors grow with it; 0
            without logits.
        taps: Activations before they are reduced, by tap.
        head: Head of the teacher; with ``sigmoid``, ``log_probs`` are the logits.
    """

    log_probs: NDArray[np.float64]
    lse: NDArray[np.float64]
    scale: NDArray[np.float64]
    taps: dict[str, NDArray[np.float32]]
    head: str = "softmax"

    @property
    def has_logits(self) -> bool:
        """Whether the teacher has logits."""
        return bool(self.log_probs.shape[1])

    def take(self, chosen: NDArray[np.int64] | slice) -> Outputs:
        """Return some of the rows."""
        taps = {tap: values[chosen] for tap, values in self.taps.items()}
        rows = (self.log_probs[chosen], self.lse[chosen], self.scale[chosen])
        return Outputs(*rows, taps, self.head)

    def moved(self, shares: Mapping[str, float], generator: np.random.Generator) -> Outputs:
        """Return the outputs with noise: logits and activations are moved up or down at random.

        Args:
            shares: Size of the noise by name, relative to the same sizes as :meth:`differences`.
            generator: Random generator of the signs.
        """
        log_probs_NC, lse_N = self.log_probs, np.zeros_like(self.lse)
        if self.has_logits:
            share_N1 = (shares[LOGITS] * self.scale)[:, None]
            moves_NC = share_N1 * generator.choice([-1.0, 1.0], self.log_probs.shape)
            log_probs_NC, lse_N = HEADS[self.head].normalize(self.log_probs + moves_NC)
        # scalars and signs of float32: the sum stays in float32 as the activations are
        taps = {
            tap: values
            + np.float32(shares[tap])
            * magnitudes(values)
            * generator.choice(np.array([-1, 1], np.float32), values.shape)
            for tap, values in self.taps.items()
        }
        return Outputs(log_probs_NC, self.lse + lse_N, self.scale, taps, self.head)

    def differences(self, other: Outputs) -> dict[str, NDArray[np.float64]]:
        """Return the largest difference of each row, relative to its size: (N,) by name.

        For log-probabilities and their logsumexp, if there are logits, it is relative to
        :attr:`scale`, for the activations of a tap to :func:`.magnitudes`.
        """
        found = {}
        if self.has_logits:
            moved_N = np.abs(self.log_probs - other.log_probs).max(axis=1)
            moved_N = np.maximum(moved_N, np.abs(self.lse - other.lse))
            tiny = np.finfo(np.float64).tiny
            found[LOGITS] = moved_N / np.maximum(self.scale, tiny)
        for tap, values in self.taps.items():
            found[tap] = relative_difference(values, other.taps[tap])
        return found


@dataclass(frozen=True)
class ShownImages:
    """Rendered rows, and what a teacher is run on of each.

    Attributes:
        pixels: Pixels, uint8 (N, 3, S, S).
        patches: Patches that the teacher is run on; None for all.
    """

    pixels: NDArray[np.uint8]
    patches: ShownPatches | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: slice | NDArray[np.int64]) -> ShownImages:
        """Return some of the rows."""
        patches = None if self.patches is None else self.patches.take(rows)
        # a copy, since torch takes no arrays with negative strides
        return ShownImages(np.ascontiguousarray(self.pixels[rows]), patches)

    def padded(self, rows: int) -> ShownImages:
        """Return the rows with more of zeros behind them, of which the last patches are shown."""
        pixels = np.concatenate(
            [self.pixels, np.zeros((rows, *self.pixels.shape[1:]), self.pixels.dtype)]
        )
        if self.patches is None:
            return ShownImages(pixels)
        last = self.patches.take(np.full(rows, len(self) - 1, dtype=np.int64)).indices
        indices = np.concatenate([self.patches.indices, last])
        return ShownImages(pixels, replace(self.patches, indices=indices))

    def changed(self) -> ShownImages:
        """Return the rows with every pixel changed by one level."""
        # the exclusive or cannot overflow
        return replace(self, pixels=self.pixels ^ np.uint8(1))


class Recomputation:
    """Forward passes of one teacher, in batches of one shape.

    Args:
        member: The teacher.
        taps: Taps whose activations are returned as well.
        batch: Images of a forward pass; fewer where activations are large.
    """

    def __init__(self, member: Member, taps: Sequence[str], batch: int) -> None:
        self._member = member
        self._shapes = member.tap_shapes(taps) if taps else {}
        self._kept = {
            tap: KeptTap(
                FeatureEncoding(shape.layout, shape.shape, prefix_tokens=shape.prefix_tokens)
            )
            for tap, shape in self._shapes.items()
        }
        row_bytes = 4 * sum(math.prod(shape.shape) for shape in self._shapes.values())
        self.batch = max(1, min(batch, _FORWARD_BYTES // max(1, row_bytes)))

    def outputs(self, shown: ShownImages) -> Outputs:
        """Return the outputs for some images.

        Raises:
            NonFiniteLogits: The teacher returned NaN or infinity.
        """
        return self._forwarded(shown, self.batch)

    def outputs_elsewhere(self, shown: ShownImages) -> Outputs:
        """Return the outputs at another batch composition: other neighbors, another batch size."""
        backwards = slice(None, None, -1)
        return self._forwarded(shown.take(backwards), self.batch // 2 + 1).take(backwards)

    def reduce(
        self,
        tap: str,
        values_N: NDArray[np.float32],
        encoding: FeatureEncoding,
        positions_Nn: NDArray[np.int64] | None,
    ) -> NDArray[np.float32]:
        """Reduce rows of a tap as they are stored; see :func:`.reduced`."""
        positions = None if positions_Nn is None else torch.from_numpy(positions_Nn)
        return reduced(torch.from_numpy(values_N), self._shapes[tap], encoding, positions).numpy()

    def _forwarded(self, shown: ShownImages, batch: int) -> Outputs:
        """Forward batches of one shape; the last one is padded with zeros."""
        # another shape may select other kernels, which round differently
        rows = len(shown)
        padded = shown.padded(-rows % batch)
        cut = [padded.take(slice(at, at + batch)) for at in range(0, len(padded), batch)]
        parts = [self._member.start(part.pixels, self._kept, part.patches) for part in cut]
        logits_NC = np.concatenate([logits() for logits, _ in parts])[:rows]
        if len(non_finite_rows(logits_NC)):
            raise NonFiniteLogits(
                f"teacher {self._member.name!r} returned NaN or infinity",
                expected="finite logits",
                hint="check the weights of the teacher, its precision and the device",
            )
        log_probs_NC, lse_N = logits_NC.astype(np.float64), np.zeros(rows)
        if self._member.has_logits:
            log_probs_NC, lse_N = HEADS[self._member.head].normalize(logits_NC)
        return Outputs(
            log_probs=log_probs_NC,
            lse=lse_N,
            scale=np.abs(logits_NC).max(axis=1, initial=0.0).astype(np.float64),
            taps={
                tap: np.concatenate([kept[tap]() for _, kept in parts])[:rows] for tap in self._kept
            },
            head=self._member.head,
        )


def _chunks(
    runs: Iterable[Run], size: int, patches_of: Callable[[str], object]
) -> Iterator[list[Run]]:
    """Split rows into chunks of a size; the last one, or one before other patches, may be smaller.

    Args:
        runs: Views and rows.
        size: Rows of a chunk.
        patches_of: Returns what has to be equal for the views of a chunk.
    """
    chunk: list[Run] = []
    room = size
    for view_id, rows in runs:
        if chunk and patches_of(chunk[-1][0]) != patches_of(view_id):
            yield chunk
            chunk, room = [], size
        left = rows
        while len(left):
            chunk.append((view_id, left[:room]))
            left = left[room:]
            room -= len(chunk[-1][1])
            if room == 0:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


class ShownRows:
    """Rows of views, rendered again as the teachers were given them.

    Rows whose partner was excluded since are left out: no student is trained on them, and whether
    they were mixed depends on when they were computed.

    Args:
        cache: The cache, for recipes, partners and the version of the decoding table.
        source: The images.
        size: S, the side of the square in pixels.
        threads: Threads that decode and render; all processors by default.
    """

    def __init__(self, cache: Cache, source: Source, size: int, threads: int | None = None) -> None:
        self._cache, self._size = cache, size
        self._threads = threads or available_processors()
        self._images = _Images(cache, source)

    def rows(self, view_id: str) -> NDArray[np.int64]:
        """Return the rows of a view, ascending."""
        readable = self._cache.samples.readable
        view = parse_view(self._cache.views[view_id], f"{self._cache.url}, view {view_id}")
        if not self._cache.withdrawn or view.mixing is None:
            return readable
        is_readable = np.zeros(self._cache.rows_end, dtype=np.bool_)
        is_readable[readable] = True
        return readable[is_readable[self._cache.partners(view_id)[readable]]]

    def images(self, view_id: str, rows_N: NDArray[np.int64]) -> ShownImages:
        """Return some rows of a view."""
        ((_, shown),) = self.chunks([(view_id, rows_N)], len(rows_N))
        return shown

    def chunks(self, runs: Iterable[Run], size: int) -> Iterator[tuple[list[Run], ShownImages]]:
        """Render rows chunk by chunk, some of them ahead.

        Args:
            runs: Views and rows.
            size: Rows of a chunk; the last one may have fewer.

        Yields:
            Views and rows of a chunk, and its images.

        Raises:
            DataMismatch: An image is missing or not the one that the cache was computed from.
        """
        images = self._images
        # the renderer takes requests ahead of the chunks that are yielded
        ahead, chunks = tee(_chunks(runs, size, self._drop_of))
        requests = (images.request(*run) for chunk in ahead for run in chunk)
        table = self._cache.decoding
        with ViewRenderer(
            images.read, [self._size], threads=self._threads, table=table
        ) as renderer:
            rendered = renderer.batches(requests)
            for chunk in chunks:
                batches = [next(rendered) for _ in chunk]
                for error in (e for b in batches for e in b.failures.values()):
                    raise images.named(error)
                yield chunk, _joined(batches, self._size)

    def _drop_of(self, view_id: str) -> Drop | None:
        return parse_view(self._cache.views[view_id], f"view {view_id}").dropping


def _joined(batches: Sequence[RenderedBatch], size: int) -> ShownImages:
    """Return the rows of several views that show equally many patches."""
    pixels = np.concatenate([batch.pixels[size] for batch in batches])
    shown = [shown_patches(batch.request.view, batch.request.hashes) for batch in batches]
    some = [patches for patches in shown if patches is not None]
    if not some:
        return ShownImages(pixels)
    indices = np.concatenate([patches.indices for patches in some])
    return ShownImages(pixels, replace(some[0], indices=indices))


class _Images:
    """Images of a cache by row, with their mixing partners.

    Args:
        cache: The cache.
        source: The images.
    """

    def __init__(self, cache: Cache, source: Source) -> None:
        samples = cache.samples
        rows = samples.readable
        self._cache, self._source, self._samples = cache, source, samples
        self._positions = np.full(cache.rows_end, -1, dtype=np.int64)
        joined = ImageJoin(source).find(samples.keys[rows], samples.hashes[rows])
        self._positions[rows] = joined.positions
        self._squares = cache.squares
        self._numbers = SquareNumbers(tuple(stored_views(cache.manifest)), cache.rows_end)
        self._partners_of = lru_cache(maxsize=2)(cache.unit_partners)

    def request(self, view_id: str, rows_N: NDArray[np.int64]) -> BatchRequest:
        """Return the request to render a view of some rows, mixed as it was for the teacher."""
        view = parse_view(self._cache.views[view_id], f"{self._cache.url}, view {view_id}")
        hashes = self._samples.hashes
        if view.mixing is None:
            return self._shown(BatchRequest(view, rows_N, hashes[rows_N]))
        partners_N = np.empty_like(rows_N)
        unit_rows = self._cache.unit_rows
        for unit in np.unique(rows_N // unit_rows):
            mine = rows_N // unit_rows == unit
            partners_N[mine] = self._partners_of(view_id, int(unit))[rows_N[mine] % unit_rows]
        return self._shown(
            BatchRequest(
                view, rows_N, hashes[rows_N], partners=partners_N, partner_hashes=hashes[partners_N]
            )
        )

    def _shown(self, request: BatchRequest) -> BatchRequest:
        return request if self._squares is None else self._numbers.request(request)

    def read(self, row: int) -> bytes | NDArray[np.uint8]:
        """Return the stored image of a row, or the square of a number."""
        if self._squares is not None:
            return self._squares.read(*self._numbers.split(row))
        position, key = int(self._positions[row]), self._samples.keys[row]
        if position < 0:
            raise DataMismatch(
                "an image of the cache is missing in the data",
                where=key,
                got=f"no image of this name in {self._source.description}",
                hint="point --data at the original images",
            )
        image = self._source.read(position)
        check_content(image, self._samples.digests[row], key)
        return image

    def named(self, error: UnreadableImage) -> UnreadableImage:
        """Return an error with the name of the image instead of its row."""
        row: Any = error.where
        row = row if self._squares is None else self._numbers.split(row)[1]
        return UnreadableImage(error.what, where=self._samples.keys[row], got=error.got)
