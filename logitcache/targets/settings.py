"""Settings of a loader, and the share of this process in every batch."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Self

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import distributed

from logitcache.errors import UsageError
from logitcache.targets.view_group import BASE, ShownView, shown_views
from logitcache.views.operations import MAX_SIDE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["LoaderSettings", "check_state"]

_LEAST = {"batch_size": 1, "size": 1, "threads": 1, "workers": 0, "least": 0, "image_memory": 0}


@dataclass(frozen=True)
class LoaderSettings:
    """Settings of the batches of a loader.

    Attributes:
        batch_size: Number of images per batch, of all processes together.
        size: Side of the square images in pixels.
        mean: Mean to subtract, per channel, for pixel values in [0, 1].
        std: Standard deviation to divide by, per channel, for pixel values in [0, 1].
        seed: Random seed of the order of images and views.
        drop_last: Whether a last, smaller batch is left out.
        least: Smallest number of images that each process needs of the last batch. A smaller batch
            is joined to the one before it. 0 to join nothing.
        on_bad_image: ``error``, or ``skip`` to leave out images that cannot be decoded.
        threads: Number of threads that decode and render; all processors by default.
        workers: Number of child processes that decode and render instead.
        image_memory: Bytes of decoded images that threads keep for later epochs.
        device: Device of the batches; the CPU by default.
        rank: Index of this process; each process gets its slice of every batch. None to take it
            from ``torch.distributed``, or else from the environment variable ``RANK``.
        ranks: Number of processes; None to take it from the same place (``WORLD_SIZE``).
        show: The views of a batch, see :mod:`.view_group`. A batch then has ``batch_size`` images
            for each of them.
        pixels: Whether targets have the images of their views, too.
        parts: Parts of a joined image set, or first folders of keys, whose rows targets name.
        vectors: Cached features that batches have in place of images, as ``<teacher>/<tap>``; no
            image is then read.

    Raises:
        UsageError: A value is out of range, only one of rank and ranks is given, or image_memory
            is given for child processes.
    """

    batch_size: int
    size: int
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    seed: int = 0
    drop_last: bool = False
    least: int = 1
    on_bad_image: Literal["error", "skip"] = "error"
    threads: int | None = None
    workers: int = 0
    image_memory: int = 0
    device: torch.device | None = None
    rank: int | None = None
    ranks: int | None = None
    show: tuple[ShownView, ...] = shown_views([BASE])
    pixels: bool = False
    parts: tuple[str, ...] = ()
    vectors: str | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(
                    f"{name} of a loader is too small", expected=f"{least} or more", got=value
                )
        if self.size > MAX_SIDE:
            raise UsageError(
                "size of a loader is too large",
                expected=f"at most {MAX_SIDE} pixels",
                got=self.size,
            )
        if self.workers and self.image_memory:
            raise UsageError(
                "image_memory is for threads: child processes share no decoded images",
                got=f"{self.workers} workers",
                hint="remove image_memory or workers",
            )
        if self.on_bad_image not in ("error", "skip"):
            raise UsageError(
                "unknown value of on_bad_image", expected="error or skip", got=self.on_bad_image
            )
        if (self.rank is None) != (self.ranks is None):
            raise UsageError(
                "only one of rank and ranks is given",
                expected="both, or neither to take them from torch.distributed or the environment",
                got=f"rank {self.rank}, ranks {self.ranks}",
            )
        if self.rank is not None and self.ranks is not None:
            _check_place(self.rank, self.ranks)

    @property
    def decodes_on_device(self) -> bool:
        """Whether targets are decoded on the device where that is possible, to copy fewer bytes."""
        return self.device is not None and self.device.type == "cuda"

    def placed(self) -> Self:
        """Return these settings with the rank of this process and the number of processes.

        Raises:
            UsageError: The rank in the environment is out of range.
        """
        if self.rank is not None:
            return self
        rank, ranks = _place()
        _check_place(rank, ranks)
        return replace(self, rank=rank, ranks=ranks)

    def check_images(self, images: int, where: str) -> None:
        """Check that there are images for every process.

        Args:
            images: Number of images.
            where: Their source, for the message.

        Raises:
            UsageError: There are too few.
        """
        if self.least > 0 and images < self.least * (self.ranks or 1):
            raise UsageError(
                "there are too few images for this number of processes",
                where=where,
                expected=f"at least {self.least} for each of {self.ranks} processes",
                got=f"{images} images",
                hint="start fewer processes",
            )

    def batches(self, images: int) -> int:
        """Return the number of batches of an epoch with that many images."""
        whole, rest = divmod(images, self.batch_size)
        return whole + (rest > 0 and not self.drop_last and not self._joins(whole, rest))

    def images_of(self, batch: int, images: int) -> int:
        """Return the number of images of one batch, of all processes together.

        Args:
            batch: Index of the batch in its epoch.
            images: Number of images of the epoch.
        """
        if batch < self.batches(images) - 1 or self.drop_last:
            return self.batch_size
        return images - batch * self.batch_size

    def _joins(self, whole: int, rest: int) -> bool:
        ranks = self.placed().ranks
        assert ranks is not None
        return whole > 0 and rest < self.least * ranks


def check_state(state: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Check that the saved state of a loader belongs to one with the same batches.

    Args:
        state: The saved state.
        own: The settings that define the batches of this loader.

    Raises:
        UsageError: It does not.
    """
    differing = [name for name in own if state.get(name) != own[name]]
    if differing:
        raise UsageError(
            "the saved state belongs to a loader with different batches",
            expected=", ".join(f"{name} {own[name]}" for name in differing),
            got=", ".join(f"{name} {state.get(name)}" for name in differing),
            hint="create the loader with the same arguments as when the state was saved",
        )


def _place() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    rank, ranks = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or ranks is None:
        return 0, 1
    try:
        return int(rank), int(ranks)
    except ValueError:
        raise UsageError(
            "RANK and WORLD_SIZE have to be integers",
            where="environment variables",
            got=f"RANK={rank}, WORLD_SIZE={ranks}",
            hint="unset both, or pass rank and ranks to the loader",
        ) from None


def _check_place(rank: int, ranks: int) -> None:
    if ranks < 1:
        raise UsageError(
            "the number of processes (ranks) is too small", expected="1 or more", got=ranks
        )
    if not 0 <= rank < ranks:
        raise UsageError("the rank is out of range", expected=f"0 to {ranks - 1}", got=rank)
