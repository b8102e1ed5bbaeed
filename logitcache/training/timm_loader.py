"""The training loader of timm's train.py, made from a cache: images in its views, and its teacher.

The script builds its loader by ``timm.data.create_loader`` and its teacher, by name, through
``timm.create_model``. :class:`CacheForTimm` has what both return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from logitcache.errors import DataError, DataMismatch, UsageError, first_of
from logitcache.targets.images.image_source import contains_images
from logitcache.targets.loader import loader
from logitcache.views.operations import operation_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from logitcache.targets.cache_targets import Cache
    from logitcache.targets.cached_teacher import CachedTeacher, FollowedBatches
    from logitcache.targets.loader import Loader
    from logitcache.views.spec import View

__all__ = ["CacheForTimm", "CachedTimmLoader", "not_in_views"]

_MOST_VALUES = 4  # of a list in a line of the report
_VIEW_ARGUMENTS = {
    "no_aug": "--no-aug",
    "train_crop_mode": "--train-crop-mode",
    "scale": "--scale",
    "ratio": "--ratio",
    "hflip": "--hflip",
    "vflip": "--vflip",
    "color_jitter": "--color-jitter",
    "color_jitter_prob": "--color-jitter-prob",
    "grayscale_prob": "--grayscale-prob",
    "gaussian_blur_prob": "--gaussian-blur-prob",
    "auto_augment": "--aa",
    "re_prob": "--reprob",
    "interpolation": "--train-interpolation",
}
"""Arguments of ``create_loader`` that change pixels, and the script's flags for them."""

_REFUSED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_aug_splits": ("--aug-splits", bool),
    "num_aug_repeats": ("--aug-repeats", bool),
    "collate_fn": ("--mixup, --cutmix", lambda value: value is not None),
    "input_size_choices": ("--train-img-sizes", lambda value: value is not None),
    "num_batches": ("--train-batches-per-epoch", lambda value: value is not None),
    "tf_preprocessing": ("tf_preprocessing", bool),
}
"""Arguments that no view of a cache can replace: the flags, and whether a value uses them."""


class CachedTimmLoader:
    """Batches ``(images, labels)`` of a cache, with the attributes of timm's training loader.

    Args:
        batches: Batches that the cached teacher answers for.
        dataset: The training set of the script, which is not read.
        dtype: Type of the images.

    Attributes:
        dataset: The training set of the script.
        batch_sampler: None: the epoch is set by ``sampler``.
        mixup_enabled: False; the script sets it at the end of mixup.
    """

    def __init__(self, batches: FollowedBatches, dataset: Any, dtype: torch.dtype) -> None:
        self._batches = batches
        self._dtype = dtype
        self.dataset = dataset
        self.batch_sampler = None
        self.mixup_enabled = False

    @property
    def sampler(self) -> Any:
        """The object whose ``set_epoch`` selects the epoch."""
        return self._batches.sampler

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._batches:
            yield images.to(self._dtype), labels


class CacheForTimm:
    """A cache as the training set and the teacher of timm's train.py.

    Args:
        cache: An open cache.
        teacher: The cached teacher.
        data: Images; None for those in the cache, or else the training folder of the script.
        views: Views of the cache to train on; all by default.
        on_report: Called with each line of the report on what is taken from the cache.

    Attributes:
        train_loader: The training loader, once the script has built it.
    """

    def __init__(
        self,
        cache: Cache,
        teacher: CachedTeacher,
        *,
        data: str | None,
        views: Sequence[str],
        on_report: Callable[[str], object],
    ) -> None:
        self.train_loader: Loader | None = None
        self._cache = cache
        self._teacher = teacher
        self._data = data
        self._views = views
        self._report = on_report

    def teacher(self, num_classes: int | None) -> CachedTeacher:
        """Return the teacher of a script whose student has that many classes.

        Raises:
            UsageError: The teacher has another number of classes.
        """
        own = self._teacher.num_classes
        if num_classes is not None and num_classes != own:
            raise UsageError(
                "the student's number of classes differs from the teacher's",
                where=f"{self._cache.url}, teacher {self._teacher.name!r}",
                expected=f"{own} classes",
                got=f"{num_classes} classes",
                hint=f"give the script --num-classes {own}",
            )
        return self._teacher

    def loader(
        self,
        dataset: Any,
        input_size: Any,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        img_dtype: torch.dtype | None = None,
        num_workers: int = 1,
        **arguments: Any,
    ) -> CachedTimmLoader:
        """Return the training loader; the arguments are those of ``timm.data.create_loader``.

        Raises:
            UsageError: An argument asks for images that are not in the cache.
            DataMismatch: The classes of the script have other numbers than those of the cache.
            DataError: Some images have no label.
        """
        _refuse(arguments)
        ranks = distributed.get_world_size() if arguments.get("distributed") else 1
        found = self.train_loader = loader(
            self._cache,
            self._images(dataset),
            batch_size=batch_size * ranks,
            size=_square(input_size),
            teachers=[self._teacher.name],
            views=self._views,
            mean=tuple(mean),
            std=tuple(std),
            seed=int(arguments.get("batch_choice_seed") or 0),
            drop_last=True,
            threads=max(1, num_workers),
            device=device,
        )
        _check_classes(found, dataset)
        views = [found.view(epoch) for epoch in range(found.state_dict()["views"])]
        _check_unmixed(views)
        self._describe(found, views, arguments)
        return CachedTimmLoader(
            self._teacher.follow(found), dataset, torch.float32 if img_dtype is None else img_dtype
        )

    def _images(self, dataset: Any) -> str | None:
        """Return the given images; None for those in the cache, if it has any and none are given.

        Raises:
            UsageError: There are none, and the script reads no folder.
        """
        if self._data is not None or contains_images(self._cache):
            return self._data
        return _folder_of(dataset)

    def _describe(self, found: Loader, views: Sequence[View], arguments: Mapping[str, Any]) -> None:
        """Report what is taken from the cache."""
        operations = ", ".join(_text(operation_to_json(o)) for o in views[0].operations)
        self._report(f"images: {len(found.rows)} of {found.rows.source.description}")
        self._report(f"views: {len(views)} of the cache, one an epoch, for example {operations}")
        replaced = [
            f"{flag} {_text(arguments[name])}"
            for name, flag in _VIEW_ARGUMENTS.items()
            if name in arguments
        ]
        if replaced:
            self._report(f"not used, as the cache has the views: {', '.join(replaced)}")
        self._report(f"teacher: {self._teacher.name!r} of the cache; no network is built for it")


def not_in_views(flag: str) -> UsageError:
    """Return the error for a flag that the views of a cache cannot replace."""
    return UsageError(
        "the script asks for other images than the views of the cache",
        where=flag,
        expected="one image of one size and one label a row, as the teacher was shown it",
        hint="remove the flag; the cache has the augmentation, and precompute can add views",
    )


def _refuse(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that no view of a cache can replace.

    Raises:
        UsageError: One is used.
    """
    for name, (flag, is_used) in _REFUSED.items():
        if is_used(arguments.get(name)):
            raise not_in_views(flag)


def _square(input_size: Any) -> int:
    """Return the side of the images of an input size, which is (3, S, S), (S, S) or S.

    Raises:
        UsageError: It is not a square of three channels.
    """
    sides = [input_size] if isinstance(input_size, int) else list(input_size)
    channels = sides.pop(0) if len(sides) == 3 else 3
    if channels != 3 or len(set(sides)) != 1:
        raise UsageError(
            "views of a cache are squares of three channels",
            where="--input-size, --img-size, --in-chans",
            got=input_size,
        )
    return int(sides[0])


def _folder_of(dataset: Any) -> str:
    """Return the folder or tar that a data set of timm reads.

    Raises:
        UsageError: It reads something else.
    """
    root = getattr(getattr(dataset, "reader", None), "root", None)
    if root is None:
        raise UsageError(
            "the training set of the script is no folder",
            where="--dataset",
            expected="a folder or a tar file in --data-dir",
            got=type(getattr(dataset, "reader", dataset)).__name__,
            hint="give the images of the cache before the two dashes: --data IMAGES",
        )
    return str(root)


def _check_classes(found: Loader, dataset: Any) -> None:
    """Check that all images have labels, and that the script numbers the classes as the cache does.

    Raises:
        DataError: Some images have no label, or they have label sets.
        DataMismatch: The classes have other numbers.
    """
    rows = found.rows
    if rows.has_label_sets:
        raise DataError(
            "timm's script takes one label for each image, and these have label sets",
            where=rows.source.description,
            hint="use logitcache train, or logitcache.CachedTeacher in a script of your own",
        )
    if rows.labeled < len(rows):
        raise DataError(
            "timm's script needs a label of every image",
            where=rows.source.description,
            got=f"{len(rows) - rows.labeled} of {len(rows)} images without a label",
            hint="use logitcache train, whose objectives may do without labels",
        )
    numbers = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if not numbers:
        return
    names = sorted(numbers, key=numbers.__getitem__)
    if names != list(rows.class_names):
        raise DataMismatch(
            "the script numbers the classes in another order than the cache",
            expected=first_of(list(rows.class_names)),
            got=first_of(names),
            hint="write the names of the classes in the order of the cache into a file, one a "
            "line, and give the script --class-map FILE",
        )


def _check_unmixed(views: Sequence[View]) -> None:
    """Refuse views that mix images, whose labels the script cannot take.

    Raises:
        UsageError: One does.
    """
    mixed = [view.id for view in views if view.mixing is not None]
    if mixed:
        raise UsageError(
            "timm's script takes one label for each image, and some views mix images",
            got=first_of(mixed),
            hint="choose views without mixing: --use-views; or use logitcache train",
        )


def _text(value: Any) -> str:
    """Return an argument or an operation in a line of the report."""
    if isinstance(value, dict):
        values = {name: inner for name, inner in value.items() if name != "op"}
        inside = ", ".join(f"{name} {_text(inner)}" for name, inner in values.items())
        return f"{value['op']} ({inside})"
    if isinstance(value, list | tuple) and len(value) > _MOST_VALUES:
        return f"of {len(value)}"
    if isinstance(value, list | tuple):
        return " ".join(_text(inner) for inner in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
