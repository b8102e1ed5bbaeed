"""What the stages of a pipeline would do, as a dry run finds out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from logitcache.data.readers import open_source
from logitcache.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from logitcache.data.readers import DataConfig
    from logitcache.encoding.features import FeatureEncoding
    from logitcache.encoding.kinds import Encoding
    from logitcache.pipeline.config import DataSetConfig
    from logitcache.views.spec import View

__all__ = [
    "CacheShape",
    "Earlier",
    "ImageCount",
    "StageOutline",
    "share_of_patches",
    "uncounted",
]


@dataclass(frozen=True)
class ImageCount:
    """Size of an image set.

    Attributes:
        images: Number of images.
        classes: Number of classes.
        counted: Whether the images exist; otherwise the numbers are those of ``data_set``.
    """

    images: int
    classes: int
    counted: bool


@dataclass(frozen=True)
class StageOutline:
    """What one stage would do.

    Attributes:
        name: Name of the stage.
        kind: Kind of the stage.
        what: The networks, in a few words.
        images: Number of images; None for a stage without images.
        views: Number of views in the cache; None for other stages.
        epochs: Number of epochs of a training; None for other stages.
        steps: Number of optimizer steps of a training; None for other stages.
        row_bytes: Bytes per image and view of each group of a cache, without compression of
            features.
        bytes: Bytes of the whole cache; None for other stages.
        flops: Floating-point operations of all forward and backward passes.
        notes: Notes for the user.
    """

    name: str
    kind: str
    what: str = ""
    images: int | None = None
    views: int | None = None
    epochs: float | None = None
    steps: int | None = None
    row_bytes: dict[str, float] = field(default_factory=dict)
    bytes: int | None = None
    flops: float | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the outline as JSON values."""
        return {**asdict(self), "notes": list(self.notes)}


@dataclass(frozen=True)
class CacheShape:
    """What a cache would contain.

    Attributes:
        images: Number of images.
        logits: Encoding of the outputs of each teacher, by name.
        features: Encoding of each layer, by ``<teacher>/<tap>``.
        views: The views.
    """

    images: ImageCount
    logits: Mapping[str, Encoding]
    features: Mapping[str, FeatureEncoding]
    views: tuple[View, ...]


@dataclass
class Earlier:
    """What the stages before one would have made.

    Attributes:
        data_set: Size of an image set that does not exist.
        data_sets: Sizes of image sets that do not exist, by name, instead of ``data_set``.
        networks: Trained networks, by what ``stage:NAME`` refers to.
        images: Image sets that stages would write, by what ``stage:NAME`` refers to.
        caches: Caches, by what ``stage:NAME`` refers to.
        results: Stand-ins for results of stages, by name of the stage.
        files: Files that terms of the loss and surgeries read, which stages would have written.
    """

    data_set: DataSetConfig | None = None
    data_sets: Mapping[str, DataSetConfig] = field(default_factory=dict)
    networks: dict[str, nn.Module] = field(default_factory=dict)
    images: dict[str, ImageCount] = field(default_factory=dict)
    caches: dict[str, CacheShape] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)

    def count(self, data: DataConfig) -> ImageCount:
        """Return the size of an image set.

        Raises:
            UsageError: It does not exist, and the pipeline does not have its size.
        """
        if data.parts is not None:
            parts = [self.count(part) for part in data.parts.values()]
            classes = max(part.classes for part in parts)
            return ImageCount(
                sum(part.images for part in parts), classes, all(part.counted for part in parts)
            )
        if data.name in self.images:
            return self.images[data.name]
        try:
            source = open_source(data)
        except (DataError, UsageError) as error:  # a name without a slash is an unknown set
            known = self.data_sets.get(data.name, self.data_set)
            if known is None:
                raise UsageError(
                    "the images do not exist, and the pipeline does not have their number",
                    where=f"data: {data.name}",
                    got=error.what,
                    hint="set it: --set 'data_set={images: N, classes: C}'",
                ) from None
            limited = known.images if data.limit is None else min(known.images, data.limit)
            return ImageCount(limited, known.classes, counted=False)
        return ImageCount(len(source.keys), len(source.class_names), counted=True)

    def cache(self, name: str, where: str) -> CacheShape:
        """Return a cache that an earlier stage would have made.

        Raises:
            UsageError: No earlier stage makes it.
        """
        if name not in self.caches:
            raise UsageError(
                "a dry run knows the caches of earlier stages only",
                where=f"{where}.cache",
                expected=" or ".join(self.caches) or "a cache of an earlier stage",
                got=name,
                hint="refer to a stage: cache: stage:NAME",
            )
        return self.caches[name]


def uncounted(images: ImageCount, data: DataConfig) -> tuple[str, ...]:
    """Return a note where the images of a stage do not exist."""
    if images.counted:
        return ()
    if data.parts is None:
        return (f"{data.name} does not exist here: its size is that of the file",)
    return (f"not all of {', '.join(data.parts)} exist here: sizes follow from those of the file",)


def share_of_patches(views: Sequence[View]) -> float:
    """Return the share of the patches that networks are run on, in the mean of the views."""
    drops = [view.dropping for view in views if view.dropping is not None]
    return 1 - sum(drop.dropped / drop.grid**2 for drop in drops) / len(views)
