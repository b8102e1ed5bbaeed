"""Views that mix images in timm's train.py: the flags that turn mixing on, and the labels.

Without its flags of mixup, the script has a loss for class indices, which is not defined for labels
of mixed images. With them, it has the loss for soft labels, and a ``Mixup`` of timm in the loader
or in the loop, whose place :class:`CachedMixing` takes: the images of the cache are mixed already.

Shapes: B batch, C classes, S side of the images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.errors import UsageError
from logitcache.objectives.label import indicators

if TYPE_CHECKING:
    from torch import Tensor

    from logitcache.batch import TargetBatch
    from logitcache.views.operations import Mixing

__all__ = ["CachedMixing", "mixing_flags", "soft_labels"]


class CachedMixing:
    """Takes the place of timm's ``Mixup`` and ``FastCollateMixup``; leaves batches as they are.

    Args:
        label_smoothing: Label smoothing s, as timm's classes have it.
        mixing: All other arguments of these classes, which the views replace.

    Attributes:
        label_smoothing: Label smoothing of the soft labels.
    """

    def __init__(self, *, label_smoothing: float = 0.1, **mixing: Any) -> None:
        del mixing
        self.label_smoothing = label_smoothing

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch of mixed images (B, 3, S, S) and soft labels (B, C) as it is."""
        return images, labels

    @property
    def mixup_enabled(self) -> bool:
        """True: views that mix images do so in every epoch."""
        return True

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        """Refuse to turn mixing off.

        Raises:
            UsageError: It is turned off.
        """
        if not enabled:
            raise always_mixed()


def always_mixed() -> UsageError:
    """Return the error for a flag that ends mixing after some epochs."""
    return UsageError(
        "the views of the cache mix images in every epoch",
        where="--mixup-off-epoch",
        expected="0, or no such flag",
        hint="remove the flag; for epochs without mixing, train twice: on views with mixing, then "
        "with --initial-checkpoint on views without (--use-views)",
    )


def mixing_flags(mixing: Mixing) -> list[str]:
    """Return the script's flags of mixup and cutmix with the values of a view."""
    flags = ["--mixup", f"{mixing.mixup_alpha:g}", "--cutmix", f"{mixing.cutmix_alpha:g}"]
    if mixing.cutmix_minmax is not None:
        flags += ["--cutmix-minmax", *(f"{value:g}" for value in mixing.cutmix_minmax)]
    probability, switch = f"{mixing.p:g}", f"{mixing.switch:g}"
    flags += ["--mixup-prob", probability, "--mixup-switch-prob", switch]
    return [*flags, "--mixup-mode", "elem"]


def soft_labels(targets: TargetBatch, classes: int, smoothing: float) -> Tensor:
    """Return the labels of images as timm's mixup does: float32 (B, C), rows with the sum 1.

    The target of a class is (1 - smoothing) times the share of the images of this class, plus
    smoothing / C.

    Args:
        targets: A batch, of which all images have labels.
        classes: Number of classes, C.
        smoothing: Label smoothing, 0 to 1.
    """
    return (1 - smoothing) * indicators(targets, classes) + smoothing / classes
