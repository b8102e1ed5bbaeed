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
from logitcache.targets.selection import Targets
from logitcache.training.timm_train.mixing import CachedMixing, mixing_flags, soft_labels
from logitcache.views.operations import operation_to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from logitcache.batch import TargetBatch
    from logitcache.targets.cache_targets import Cache
    from logitcache.targets.cached_teacher import CachedTeacher
    from logitcache.targets.loader import Loader

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
    "collate_fn": (
        "collate_fn",
        lambda value: not (value is None or isinstance(value, CachedMixing)),
    ),
    "input_size_choices": ("--train-img-sizes", lambda value: value is not None),
    "num_batches": ("--train-batches-per-epoch", lambda value: value is not None),
    "tf_preprocessing": ("tf_preprocessing", bool),
}
"""Arguments that no view of a cache can replace: the flags, and whether a value uses them."""


class CachedTimmLoader:
    """Batches ``(images, labels)`` of a cache, with the attributes of timm's training loader.

    Labels are int64 (B,), or soft labels, float32 (B, C), where views mix images.

    Args:
        batches: Batches of images and targets.
        teacher: The cached teacher, which each batch is made the current one of.
        dataset: The training set of the script, which is not read.
        dtype: Type of the images.
        mixing: What takes the place of timm's mixup; None if no view mixes images.

    Attributes:
        dataset: The training set of the script.
        batch_sampler: None: the epoch is set by ``sampler``.
    """

    def __init__(
        self,
        batches: Loader,
        teacher: CachedTeacher,
        dataset: Any,
        dtype: torch.dtype,
        mixing: CachedMixing | None = None,
    ) -> None:
        self._batches = batches
        self._teacher = teacher
        self._dtype = dtype
        self._mixing = mixing
        self.dataset = dataset
        self.batch_sampler = None

    @property
    def sampler(self) -> Any:
        """The object whose ``set_epoch`` selects the epoch."""
        return self._batches.sampler

    @property
    def mixup_enabled(self) -> bool:
        """Whether labels are soft; the script sets it to False at the end of mixup."""
        return self._mixing is not None

    @mixup_enabled.setter
    def mixup_enabled(self, enabled: bool) -> None:
        if self._mixing is not None:
            self._mixing.mixup_enabled = enabled

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self._batches:
            self._teacher.bind(images, targets)
            yield images.to(self._dtype), self._labels(targets)
        self._teacher.unbind()

    def _labels(self, targets: TargetBatch) -> Tensor:
        if self._mixing is None:
            return targets.labels
        return soft_labels(targets, self._teacher.num_classes, self._mixing.label_smoothing)


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
        mixing: The mix of the first view that mixes images; None if none does.

    Raises:
        UsageError: The teacher has a sigmoid for each class, or there are no such views.
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
        self._mixing: CachedMixing | None = None
        _check_head(cache, teacher.name)
        chosen = Targets.of(cache, [teacher.name], views=views).views.values()
        self.mixing = next((view.mixing for view in chosen if view.mixing is not None), None)

    @property
    def flags(self) -> list[str]:
        """Arguments that the script needs for the views of the cache."""
        return [] if self.mixing is None else mixing_flags(self.mixing)

    def mix(self, **arguments: Any) -> CachedMixing:
        """Return what takes the place of timm's mixup; arguments are those of ``timm.data.Mixup``.

        Raises:
            UsageError: No view mixes images.
        """
        if self.mixing is None:
            raise not_in_views("--mixup, --cutmix")
        self._mixing = CachedMixing(**arguments)
        return self._mixing

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
        self._check_mixing()
        self._describe(found, arguments)
        dtype = torch.float32 if img_dtype is None else img_dtype
        return CachedTimmLoader(found, self._teacher, dataset, dtype, self._mixing)

    def _check_mixing(self) -> None:
        """Check that the script takes soft labels where views mix images.

        Raises:
            UsageError: It does not.
        """
        if self.mixing is not None and self._mixing is None:
            raise UsageError(
                "some views mix images, and the script takes one label for each image",
                expected="a script that builds timm.data.Mixup or FastCollateMixup with its flag "
                "--mixup or --cutmix, as timm's train.py does",
                hint="choose views without mixing: --use-views; or use logitcache train",
            )

    def _images(self, dataset: Any) -> str | None:
        """Return the given images; None for those in the cache, if it has any and none are given.

        Raises:
            UsageError: There are none, and the script reads no folder.
        """
        if self._data is not None or contains_images(self._cache):
            return self._data
        return _folder_of(dataset)

    def _describe(self, found: Loader, arguments: Mapping[str, Any]) -> None:
        """Report what is taken from the cache."""
        views = [found.view(epoch) for epoch in range(found.state_dict()["views"])]
        operations = ", ".join(_text(operation_to_json(o)) for o in views[0].operations)
        self._report(f"images: {len(found.rows)} of {found.rows.source.description}")
        self._report(f"views: {len(views)} of the cache, one an epoch, for example {operations}")
        if self._mixing is not None:
            self._report(
                f"mixing: that of the views, so the script has {' '.join(self.flags)}; "
                f"labels are soft, with smoothing {self._mixing.label_smoothing:g}"
            )
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
            "the training set of the script is not a folder",
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
            hint="use logitcache train, some of whose objectives need no labels",
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


def _check_head(cache: Cache, name: str) -> None:
    """Refuse a teacher whose outputs are no logits of a softmax, as the script's loss takes them.

    Raises:
        UsageError: It has a sigmoid for each class.
    """
    if cache.teachers[name].encoding.head == "sigmoid":
        raise UsageError(
            "timm's distillation is a divergence of softmax outputs, and this teacher has a "
            "sigmoid for each class",
            where=f"{cache.url}, teacher {name!r}",
            expected="a teacher with head: softmax",
            got="head: sigmoid",
            hint="use logitcache train, which has the binary divergence; if the network is only "
            "used for its most likely class, precompute it with head: softmax",
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
