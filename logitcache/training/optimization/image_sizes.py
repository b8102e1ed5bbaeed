"""Image sizes that grow over the epochs of a training run.

A size is used for whole epochs, so that a resumed run sees the same pixels as an uninterrupted one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from logitcache.training.config import SizeConfig

__all__ = ["ImageSizes"]

_MULTIPLE = 32  # the stride of most convolutional networks, and a multiple of patches of 8 and 16


class ImageSizes:
    """The side of the training images in each epoch.

    With n sizes from the smallest to the final one, the epochs before the final part are divided
    equally among the first n - 1 of them; all others, and at least the last epoch, have the final
    size.

    Args:
        sizes: All sizes in pixels, ascending; a single one for a constant size.
        epochs: Number of epochs of the run.
        final: Share of the epochs with the final size, at the end of the run.
    """

    def __init__(self, sizes: list[int], epochs: int, final: float = 0.0) -> None:
        self.sizes = sizes
        self._growing = min(epochs * (1.0 - final), epochs - 1)
        self._epochs = epochs

    @classmethod
    def of(
        cls, config: SizeConfig | None, network: nn.Module, *, end: int, epochs: int
    ) -> ImageSizes:
        """Return the sizes of a configuration.

        Args:
            config: The configuration; None for a constant size.
            network: The student.
            end: Size at which the student is evaluated, in pixels.
            epochs: Number of epochs of the run.

        Raises:
            UsageError: The first size cannot be reached from the last one in whole steps.
        """
        if config is None:
            return cls([end], epochs)
        multiple = config.multiple or _multiple_of(network)
        steps, rest = divmod(end - config.start, multiple)
        if steps < 0 or rest:
            below = list(range(end, 0, -multiple))[1:4]
            raise UsageError(
                "the image size cannot grow from start to end in steps of this length",
                where="size.start",
                expected=f"{end} minus a multiple of {multiple}"
                + (f", such as {', '.join(map(str, below))}" if below else ""),
                got=config.start,
                hint="choose another start, or set size.multiple to a multiple of the network's "
                "patch or stride",
            )
        return cls(list(range(config.start, end + 1, multiple)), epochs, config.final)

    @property
    def grows(self) -> bool:
        """Whether there is more than one size."""
        return len(self.sizes) > 1

    def at(self, epoch: int) -> int:
        """Return the size of an epoch, in pixels.

        Args:
            epoch: Index of the epoch, from 0.
        """
        if epoch >= self._growing:
            return self.sizes[-1]
        return self.sizes[int(epoch / self._growing * (len(self.sizes) - 1))]

    def note(self) -> str:
        """Return a sentence with the first epoch of each size."""
        first: dict[int, int] = {}
        for epoch in range(self._epochs):
            first.setdefault(self.at(epoch), epoch)
        parts = ", ".join(f"{size} pixels from epoch {epoch}" for size, epoch in first.items())
        return f"the size of the training images grows: {parts}"


def _multiple_of(network: nn.Module) -> int:
    """Return 32, or the side of the network's patches if that does not divide 32."""
    embed: Any = getattr(network, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    side = int(patch[0]) if isinstance(patch, tuple) else _MULTIPLE
    return _MULTIPLE if _MULTIPLE % side == 0 else side
