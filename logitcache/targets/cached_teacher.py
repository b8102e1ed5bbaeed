"""A teacher as a module that returns cached outputs, for scripts that call ``teacher(images)``.

Shapes: B batch, C classes, S side of the images, n pixels of an image that are compared.
"""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from logitcache.batch import SigmoidLogits, SparseLogits, TargetBatch
from logitcache.encoding.tail import quadratic
from logitcache.errors import UsageError, first_of, nearest
from logitcache.targets.classes.class_space import ClassSpace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from logitcache.batch import TeacherLogits
    from logitcache.cache.read.reader import Cache
    from logitcache.data.class_map import ClassMaps

__all__ = ["CachedTeacher", "FollowedBatches", "dense_logits"]

_COMPARED_PIXELS = 16  # of every image and channel
_TOLERANCE = 0.02  # of the range of the values; bfloat16 rounds to 0.002 of it


class CachedTeacher(nn.Module):
    """A module that returns the cached outputs of a teacher for the images of the current batch.

    It takes the place of a network in a script that calls ``teacher(images)``. The images have to
    come from a batch with targets, of :func:`.loader` or :class:`.CachedDataset`, and
    :meth:`follow` yields the batches as the script expects them::

        teacher = CachedTeacher(cache)
        for images, labels in teacher.follow(batches):
            loss = distillation_loss(student(images), teacher(images), labels)

    Cached outputs belong to the pixels of the batch, so other images are refused: another number
    of images, another order, or pixels that were changed after the loader (flipped, mixed, erased).
    Images may be moved to a device, cast, and normalized again. It has no parameters and no
    gradient.

    Logits cannot have the mass outside of a class map, so a teacher whose outputs are mapped to
    other classes is refused, with one exception: with ``head: sigmoid`` classes are independent,
    and those of the map are returned.

    Args:
        cache: An open cache.
        teacher: Name of the teacher; may be left out if the cache has a single one.
        temperature: Temperature T of the script's loss, for sparse targets only: the classes that
            are not stored get equal logits, so that their mass at T is the stored one.
        class_map: The class map of the batches, if they have one; see :func:`.loader`.
        check_images: Whether images are compared with those of the batch; if not, only their number
            is. Needed for a teacher that is called with images of another size.

    Attributes:
        name: Name of the teacher.
        num_classes: Number of classes, C; with a class map that of the student.
        temperature: Temperature T at which the mass of the classes that are not stored is right.

    Raises:
        UsageError: There is no such teacher, the cache has several and none is named, its outputs
            are mapped to other classes, or the temperature is not positive.
    """

    def __init__(
        self,
        cache: Cache,
        teacher: str | None = None,
        *,
        temperature: float = 1.0,
        class_map: ClassMaps | None = None,
        check_images: bool = True,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise UsageError("the temperature has to be positive", got=temperature)
        self.name = _chosen(cache, teacher)
        self.num_classes = _num_classes(cache, self.name, class_map)
        self.temperature = temperature
        self._checks_images = check_images
        self._bound: _Bound | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, which has no current batch."""
        return {**self.__dict__, "_bound": None}

    def follow(self, batches: Iterable[Any]) -> FollowedBatches:
        """Return batches of images and labels, each of which becomes the current batch.

        Nothing may fetch batches in advance between this iterable and the calls of the teacher.

        Args:
            batches: Batches ``(images, targets)``: a :class:`.Loader`, or a ``DataLoader`` of a
                :class:`.CachedDataset` with its ``collate`` function.
        """
        return FollowedBatches(self, batches)

    def bind(self, images: Tensor, targets: TargetBatch) -> None:
        """Make a batch the current one.

        Args:
            images: Images (B, 3, S, S).
            targets: Targets of these images.

        Raises:
            UsageError: The targets do not have this teacher, or have another number of rows or of
                classes.
        """
        if self.name not in targets.teachers:
            raise UsageError(
                f"the targets of the batch have no outputs of teacher {self.name!r}",
                got=first_of(list(targets.teachers)) or "no teacher",
                hint="create the loader with this teacher: teachers=[...]",
            )
        if len(images) != len(targets):
            raise UsageError(
                "images and targets of a batch differ in number",
                expected=f"{len(targets)} images",
                got=len(images),
            )
        logits = targets.teachers[self.name]
        mapped = not isinstance(logits, SparseLogits) and logits.outside is not None
        if mapped:
            raise _mapped_elsewhere(self.name, self.num_classes, logits.num_classes)
        if logits.num_classes != self.num_classes:
            raise UsageError(
                "the targets of the batch have other classes than the cached teacher",
                where=f"teacher {self.name!r}",
                expected=f"{self.num_classes} classes",
                got=f"{logits.num_classes} classes",
                hint="give the loader and CachedTeacher the same class_map",
            )
        self._bound = _Bound(images, targets)

    def unbind(self) -> None:
        """Forget the current batch; until the next one, calls are refused."""
        self._bound = None

    def targets(self, images: Tensor) -> TargetBatch:
        """Return the targets of the images, as objectives take them, on the device of the images.

        Args:
            images: The images of the current batch (B, 3, S, S).

        Raises:
            UsageError: There is no current batch, or these are not its images.
        """
        if self._bound is None:
            raise UsageError(
                "a cached teacher was called without a current batch",
                where=f"teacher {self.name!r}",
                hint="iterate over teacher.follow(batches), or call teacher.bind(images, targets) "
                "for every batch",
            )
        self._bound.check(images, pixels=self._checks_images)
        return self._bound.targets.to(images.device)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the images, up to a constant of each row: float32 (B, C).

        They are log-probabilities at T = 1, and log-odds with ``head: sigmoid``. With sparse
        targets, see ``temperature``.

        Args:
            images: The images of the current batch (B, 3, S, S).

        Raises:
            UsageError: There is no current batch, or these are not its images.
        """
        return dense_logits(self.targets(images).teachers[self.name], self.temperature)


class FollowedBatches:
    """Batches of images and labels that a :class:`CachedTeacher` answers for.

    Has all other attributes of the batches themselves: ``set_epoch``, ``state_dict``, ``sampler``.

    Args:
        teacher: The teacher.
        batches: Batches of images and targets.
    """

    def __init__(self, teacher: CachedTeacher, batches: Iterable[Any]) -> None:
        self._teacher = teacher
        self._batches = batches

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # before __init__, while a copy is made
            raise AttributeError(name)
        return getattr(self._batches, name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # a DataLoader has a length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._batches:
            images, targets = _checked(batch)
            self._teacher.bind(images, targets)
            sets = targets.label_sets
            yield images, targets.labels if sets is None else sets
        self._teacher.unbind()


class _Bound:
    """The current batch: its targets, and what is needed to recognize its images."""

    def __init__(self, images: Tensor, targets: TargetBatch) -> None:
        self.targets = targets
        self._images = weakref.ref(images)  # while it exists, its memory has no other use
        self._memory = _memory(images)
        self._shape = images.shape
        self._pixels = _some_pixels(images)

    def check(self, images: Tensor, *, pixels: bool) -> None:
        """Refuse images that are not those of the batch.

        Raises:
            UsageError: The number or, with ``pixels``, the size or the pixels differ.
        """
        if len(images) != len(self.targets):
            raise UsageError(
                "a cached teacher was called with another number of images than the batch has",
                expected=f"{len(self.targets)} images",
                got=len(images),
                hint="call it with all images of the current batch at once",
            )
        unchanged = self._images() is not None and _memory(images) == self._memory
        if not pixels or unchanged:
            return
        if images.shape != self._shape:
            raise UsageError(
                "a cached teacher was called with images of another shape than the batch has",
                expected=tuple(self._shape),
                got=tuple(images.shape),
                hint="call it with the images of the current batch; or set check_images=False if "
                "they were only resized",
            )
        if not _is_affine(self._pixels.to(images.device), _some_pixels(images)):
            raise UsageError(
                "a cached teacher was called with other images than those of the current batch",
                expected="the pixels of the batch, which the cached outputs belong to",
                got="images that were changed, reordered, or come from another batch",
                hint="remove augmentation after the loader (flips, mixup, cutmix, erasing): "
                "the views of the cache have it",
            )


def dense_logits(teacher: TeacherLogits, temperature: float = 1.0) -> Tensor:
    """Return logits of all classes, up to a constant of each row: float32 (B, C).

    Those of teachers with ``head: sigmoid`` are the log-odds. Those of sparse targets are
    log-probabilities of the stored classes, and equal values for all others, so that
    softmax(logits / T) has the mass of :func:`.spread_tail` there.

    Args:
        teacher: Sparse or dense targets.
        temperature: T > 0; without effect on dense targets.
    """
    if isinstance(teacher, SigmoidLogits):
        return teacher.logits
    if not isinstance(teacher, SparseLogits):
        return teacher.log_probs
    b = 1.0 / temperature
    used_BK = teacher.log_probs > -torch.inf
    absent_B = (teacher.num_classes - used_BK.sum(1)).clamp(min=1).to(teacher.log_probs.dtype)
    through_0, through_quarter, through_1 = quadratic(b)
    log_absent_B = absent_B.log()
    log_mass_B = (
        through_0 * log_absent_B
        + through_quarter * teacher.tail[:, 1]
        + through_1 * teacher.tail[:, 0]
    )
    each_B1 = (temperature * (log_mass_B - log_absent_B))[:, None]
    # one column more takes the unused entries, whose class ids repeat others
    logits = each_B1.repeat(1, teacher.num_classes + 1)
    ids_BK = teacher.class_ids.masked_fill(~used_BK, teacher.num_classes)
    return logits.scatter_(1, ids_BK, teacher.log_probs)[:, :-1]


def _chosen(cache: Cache, teacher: str | None) -> str:
    """Return the name of a teacher with logits.

    Raises:
        UsageError: There is none of this name, or several and none is named.
    """
    names = list(cache.teachers)
    if teacher is None and len(names) == 1:
        return names[0]
    if teacher in names:
        return teacher
    if teacher is None:
        raise UsageError(
            "the cache has several teachers" if names else "no teacher of this cache has logits",
            where=cache.url,
            got=first_of(names) or f"features: {first_of(list(cache.features))}",
            hint=f"name one of them: CachedTeacher(cache, {names[0]!r})"
            if names
            else "train with objectives on features: logitcache train, or logitcache.loader",
        )
    raise UsageError(
        f"the cache has no logits of a teacher {teacher!r}",
        where=cache.url,
        hint=nearest(teacher, names),
    )


def _num_classes(cache: Cache, name: str, class_map: ClassMaps | None) -> int:
    """Return the number of classes of a teacher in batches.

    Raises:
        UsageError: Its outputs are mapped to other classes, and are no independent log-odds.
    """
    group = cache.teachers[name]
    lens = ClassSpace.of(cache, [name], class_map).lenses.get(name)
    if lens is None:
        return group.num_classes
    if group.encoding.head != "sigmoid":
        raise _mapped_elsewhere(name, group.num_classes, lens.classes)
    return lens.classes


def _mapped_elsewhere(name: str, own: int, mapped: int) -> UsageError:
    return UsageError(
        "outputs are mapped to other classes; logits cannot have the mass outside",
        where=f"teacher {name!r}",
        expected=f"{own} classes, as in the cache",
        got=f"{mapped} classes of the student",
        hint="use an objective of logitcache on the targets; or remove class_map from the loader; "
        "a teacher that was computed with class_map: own is always mapped to the classes of the "
        "images",
    )


def _checked(batch: Any) -> tuple[Tensor, TargetBatch]:
    """Return the images and targets of a batch.

    Raises:
        UsageError: The batch has no targets, or labels of images that are mixed.
    """
    pair = isinstance(batch, list | tuple) and len(batch) == 2
    if not (pair and isinstance(batch[0], Tensor) and isinstance(batch[1], TargetBatch)):
        raise UsageError(
            "these batches have no cached targets",
            expected="batches (images, targets) of logitcache.loader, or of a DataLoader over a "
            "logitcache.CachedDataset with collate_fn=data.collate",
            got=type(batch[1]).__name__ if pair else type(batch).__name__,
        )
    images, targets = batch
    if targets.lam is not None:
        raise UsageError(
            "this view mixes images, so a batch has two labels for each image",
            expected="a view without mixing",
            hint="choose other views (views=[...]); or iterate over (images, targets), call "
            "teacher.bind(images, targets), and use targets.lam and targets.partner_labels",
        )
    return images, targets


def _memory(images: Tensor) -> tuple[Any, ...]:
    """Return where the values of a tensor are, and the number of changes in place so far."""
    return images.data_ptr(), images.stride(), images.dtype, images.shape, images._version


@lru_cache(maxsize=8)
def _places(pixels: int) -> Tensor:
    """Return the places of the pixels that are compared, int64 (n,); not symmetric to flips."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(pixels, (_COMPARED_PIXELS,), generator=generator)


def _some_pixels(images: Tensor) -> Tensor:
    """Return some pixels of every image and channel, float32 (B, 3, n)."""
    flat = images.detach().flatten(2)
    return flat[:, :, _places(flat.shape[2]).to(images.device)].float()


def _is_affine(one: Tensor, other: Tensor) -> bool:
    """Return whether each channel of other values is a rising linear function of the first ones."""
    x = one.transpose(0, 1).flatten(1)
    y = other.transpose(0, 1).flatten(1)
    x = x - x.mean(1, keepdim=True)
    y = y - y.mean(1, keepdim=True)
    slope = (x * y).sum(1, keepdim=True) / x.square().sum(1, keepdim=True).clamp(min=1e-12)
    rest = (y - slope * x).abs().amax(1)
    return bool(((slope[:, 0] >= 0) & (rest <= _TOLERANCE * (y.amax(1) - y.amin(1)))).all())
