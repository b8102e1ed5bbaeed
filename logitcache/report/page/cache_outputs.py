"""Outputs of one cache for a report: a sample of rows, and images to look at; each is read once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from logitcache.cache.read.reader import open_cache
from logitcache.report.output_sample import DEFAULT_ROWS, OutputSample, sample_outputs
from logitcache.report.page.pictures import Shown, render_views, show_rows
from logitcache.targets.images.image_source import contains_images

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from logitcache.cache.read.reader import Cache
    from logitcache.data.readers import ImageSet

__all__ = ["CacheOutputs", "ReportSettings"]


@dataclass(frozen=True)
class ReportSettings:
    """What a report reads.

    Attributes:
        rows: Number of rows of a cache whose outputs are read, counted once for each view.
        images: Number of images of each list.
        data: Images of the caches, as for ``--data``; by default those in the caches, or those of
            the runs.
        on_progress: Called with the number of units that are read and of all units to read.
    """

    rows: int = DEFAULT_ROWS
    images: int = 6
    data: str | None = None
    on_progress: Callable[[int, int], None] | None = None


class CacheOutputs:
    """Outputs of one cache.

    Args:
        url: The cache.
        settings: What is read.
    """

    def __init__(self, url: str, settings: ReportSettings) -> None:
        self._url = url
        self._settings = settings

    @cached_property
    def cache(self) -> Cache:
        """The cache, opened.

        Raises:
            CacheError: It is not sealed.
        """
        return open_cache(self._url)

    @cached_property
    def sample(self) -> OutputSample | None:
        """A sample of its outputs; None without logits.

        Raises:
            CacheDamaged: A unit is not the one that was committed.
        """
        settings = self._settings
        return sample_outputs(self.cache, most=settings.rows, on_progress=settings.on_progress)

    def shown(
        self, wanted: Sequence[tuple[int, str]], data: ImageSet | None, *, size: int
    ) -> dict[tuple[int, str], Shown]:
        """Return images in views with the outputs of all teachers.

        Args:
            wanted: Rows and ids of views.
            data: The images; None for those in the cache.
            size: Side in pixels.

        Raises:
            LogitcacheError: The images are not those of the cache.
        """
        has_images = data is not None or contains_images(self.cache)
        pngs = render_views(self.cache, data, wanted, size=size) if has_images else {}
        return show_rows(self.cache, wanted, pngs)
