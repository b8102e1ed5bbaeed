"""Batches of a training run: its loader, and how many batches, epochs and images a run has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from logitcache.errors import UsageError
from logitcache.targets.loader import Loader
from logitcache.targets.settings import LoaderSettings
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from logitcache.networks.build import InputSpec
    from logitcache.targets.images.image_rows import ImageRows
    from logitcache.targets.selection import Targets
    from logitcache.training.config import TrainConfig
    from logitcache.training.distributed import DistributedContext

__all__ = ["batches_in", "epochs_in", "images_in", "training_loader", "without_partner"]


def training_loader(
    config: TrainConfig,
    rows: ImageRows,
    targets: Targets | None,
    *,
    spec: InputSpec,
    ranks: DistributedContext,
    device: torch.device,
    smallest_batch: Callable[[], int],
) -> tuple[Loader, list[str]]:
    """Return the loader of the training images, and notes on it.

    Every process gets at least as many images of each batch as the student needs.

    Args:
        config: Settings of the run.
        rows: The images.
        targets: Cached targets; None for labels alone.
        spec: Input size and normalization of the student.
        ranks: The processes of the run.
        device: Device of the batches.
        smallest_batch: Returns the smallest number of images that the student can be trained on,
            by a forward pass; called only if a process would get a batch of one image.

    Raises:
        UsageError: No batch is large enough for batch norm.
    """
    settings = LoaderSettings(
        batch_size=config.batch_size,
        size=spec.size,
        mean=spec.mean,
        std=spec.std,
        seed=config.seed,
        least=0,
        on_bad_image=config.on_bad_image,
        threads=config.threads or ranks.processors,
        workers=config.workers,
        image_memory=config.image_memory,
        device=device,
        rank=ranks.rank,
        ranks=ranks.count,
        show=tuple(config.show),
        parts=rows.checked_parts(sorted({p for t in config.terms for p in t.term.all_needs.parts})),
        pixels=any(term.term.needs.pixels for term in config.terms),
        vectors=config.student.head_on,
    )
    views = None if targets else config.views or ViewsConfig()
    loader = Loader(rows, settings, targets=targets, views=views)
    smallest = min(  # of the last batches of all epochs, which may differ if images are mixed
        settings.images_of(loader.batches_of(epoch) - 1, loader.images_of(epoch))
        for epoch in range(config.epochs or epochs_in(loader, config.steps or 1))
    )
    # a batch with fewer images than processes is shown as a whole by each of them
    own = smallest // ranks.count if smallest >= ranks.count else smallest
    least = 1 if own > 1 else smallest_batch()
    if own >= least:
        return loader, []
    if min(config.batch_size, len(rows)) < least * ranks.count:
        raise UsageError(
            "the student's batch norm over a single position needs at least two images per process",
            where="batch_size",
            expected=f"batches of at least {least * ranks.count} images",
            got=f"batch_size {config.batch_size}, {len(rows)} images",
            hint="use larger batches, or larger images (student.size)",
        )
    note = "a last batch that is too small for batch norm is joined to the one before it"
    return Loader(rows, replace(settings, least=least), targets=targets, views=views), [note]


def batches_in(loader: Loader, epochs: int) -> int:
    """Return the number of batches in the first epochs."""
    return sum(loader.batches_of(epoch) for epoch in range(epochs))


def images_in(loader: Loader, batches: int) -> int:
    """Return the number of images in the first batches; an image counts once per epoch."""
    shown, epoch = 0, 0
    while batches > 0:
        images, count = loader.images_of(epoch), loader.batches_of(epoch)
        if batches >= count and not loader.settings.drop_last:
            shown += images
        else:
            shown += min(batches, count) * loader.settings.batch_size
        batches, epoch = batches - count, epoch + 1
    return shown


def epochs_in(loader: Loader, batches: int) -> int:
    """Return the number of epochs that the first batches belong to; the last may be incomplete."""
    epoch = 0
    while batches > 0:
        batches -= loader.batches_of(epoch)
        epoch += 1
    return epoch


def without_partner(loader: Loader, epochs: int) -> int:
    """Return the largest number of images of an epoch that lack their mixing partner."""
    return len(loader.rows) - min(loader.images_of(epoch) for epoch in range(epochs))
