"""Outline of a training stage: the student is fitted to the shapes of its targets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from logitcache.batch import DenseLogits
from logitcache.cache.read.view_selection import choose_views
from logitcache.dry_run.networks import (
    exported_shape,
    forward_flops,
    image_shape,
    input_size,
    shown,
    student_shape,
)
from logitcache.dry_run.outline import StageOutline, share_of_patches, uncounted
from logitcache.errors import UsageError, first_of, nearest
from logitcache.networks.taps import TappedNetwork
from logitcache.objectives.combine import build_objective
from logitcache.students.vector_head import vector_head
from logitcache.targets.decoding.batch_parts import example_logits
from logitcache.targets.decoding.feature_groups import example_features
from logitcache.targets.epochs.sampled_epoch import original_and_others
from logitcache.targets.selection import whole_groups
from logitcache.training.optimization.target_form import TargetForm, own_views
from logitcache.training.optimization.trainable_student import TrainableStudent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from logitcache.batch import Features, TeacherLogits
    from logitcache.dry_run.outline import CacheShape, Earlier, ImageCount
    from logitcache.objectives.term import Needs
    from logitcache.pipeline.run import Stage
    from logitcache.training.config import TrainConfig
    from logitcache.views.spec import View

__all__ = ["outline_training"]

_BACKWARD = 2
"""Forward passes that a backward pass costs."""


def outline_training(
    config: TrainConfig, stage: Stage, output: str, earlier: Earlier
) -> StageOutline:
    """Return the outline of a training stage; see :class:`.Outline`.

    Raises:
        UsageError: The student, its views or its terms do not fit each other or the cache.
    """
    where = f"stages.{stage.name}"
    cache = None if config.cache is None else earlier.cache(config.cache, where)
    images = _training_images(config, cache, earlier)
    needs = build_objective(config.terms).needs
    _check_needs(config, needs, cache, where)
    classes = _classes(config, cache, images)
    network = student_shape(config.student, earlier.networks, classes)
    size = config.final_size or input_size(network, config.student)
    views = _views(config, cache, where)
    features = {name: example_features(e) for name, e in cache.features.items()} if cache else {}
    part, row = network, image_shape(size)
    vectors = config.student.head_on
    if vectors is not None:  # the classifier alone is run
        _check_vectors(vectors, features, where)
        row = features[vectors].values.to("meta")
        part = vector_head(network, vectors, row)
    unread = [term for term in config.terms if not earlier.files.isdisjoint(term.term.reads)]
    fitted = build_objective([term for term in config.terms if term not in unread])
    if unread and needs.taps:  # layers are looked up all the same
        TappedNetwork(part, needs.taps, size=size, example=row)
    student = TrainableStudent(part, fitted, size=size, features=features, example=row)
    form = _form(config, cache, images, needs, features, classes).with_views(views)
    student.check_targets(form if vectors is None else replace(form, grids=()), classes, size)
    per_epoch = math.ceil(images.images / config.batch_size)
    steps = config.steps or per_epoch * (config.epochs or 1)
    epochs = config.epochs or steps / per_epoch
    passes = images.images * epochs * len(config.shown) * (1 + _BACKWARD)
    earlier.networks[output] = exported_shape(network, size)
    return StageOutline(
        stage.name,
        stage.kind,
        what=f"{shown(network)} at {size}",
        images=images.images,
        epochs=epochs,
        steps=steps,
        flops=forward_flops(part, row) * share_of_patches(views) * passes,
        notes=(
            *(() if config.data is None else uncounted(images, config.data)),
            *_missing_files(config.student.surgery.reads, earlier),
            *(
                f"{term.name} is not fitted to shapes: its file comes from a stage"
                for term in unread
            ),
        ),
    )


def _training_images(config: TrainConfig, cache: CacheShape | None, earlier: Earlier) -> ImageCount:
    """Return the size of the images that are shown: of some, only labeled ones."""
    if config.data is None:
        assert cache is not None  # checked by the configuration
        images = cache.images
    else:
        images = earlier.count(config.data)
    count = config.labels.count
    if count is not None and count > images.images:
        raise UsageError(
            "labels.count is larger than the number of images",
            where="labels.count",
            expected=f"at most {images.images}",
            got=count,
            hint="reduce labels.count, or remove it to use all labels",
        )
    if config.labels.images == "all" or count is None:
        return images
    return replace(images, images=min(images.images, count))


def _classes(config: TrainConfig, cache: CacheShape | None, images: ImageCount) -> int:
    """Return the number of classes of the student."""
    if cache is None:
        return images.classes
    if config.class_map is not None:
        return len({name for own in config.class_map.values() for name in own})
    return next((e.num_classes for e in cache.logits.values()), images.classes)


def _check_needs(config: TrainConfig, needs: Needs, cache: CacheShape | None, where: str) -> None:
    """Refuse terms of the loss whose targets or images would not be there."""
    logits = set(cache.logits) if cache else set()
    taps = set(cache.features) if cache else set()
    missing = [name for name in needs.teachers or () if name not in logits]
    missing += [name for name in needs.features if name not in taps]
    if missing or (needs.teachers is None and not logits):
        raise UsageError(
            "the cache would lack targets of the objectives",
            where=f"{where}.objectives",
            expected=", ".join([*sorted(logits), *sorted(taps)]) or "a cache with teachers",
            got=", ".join(missing) or "all teachers",
            hint=nearest(missing[0], [*logits, *taps]) if missing and (logits or taps) else None,
        )
    joined = config.data.parts if config.data is not None else None
    for name in needs.parts:
        if joined is not None and name not in joined:
            raise UsageError(
                f"no image is in a part {name!r}",
                where=f"{where}.objectives",
                hint=nearest(name, joined),
            )


def _missing_files(files: Sequence[str], earlier: Earlier) -> list[str]:
    """Return a note on each file of a surgery that neither exists nor is written by a stage."""
    return [
        f"{file} does not exist here: the run needs it"
        for file in files
        if file not in earlier.files and not Path(file).expanduser().is_file()
    ]


def _check_vectors(name: str, features: Mapping[str, Features], where: str) -> None:
    """Refuse a student on cached vectors that would not be there."""
    if name not in features:
        raise UsageError(
            "the cache would lack the vectors that the student is trained on",
            where=f"{where}.student.head_on",
            expected=first_of(list(features)) if features else "a cache with features",
            got=name,
            hint=nearest(name, features) if features else "precompute this layer",
        )


def _views(config: TrainConfig, cache: CacheShape | None, where: str) -> list[View]:
    """Return the views of the images of a stage.

    Raises:
        UsageError: The cache would not have them, or not those that are chosen or derived.
    """
    if cache is None:
        return own_views(config)
    by_id = {view.id: view for view in cache.views}
    chosen = choose_views(list(by_id), config.use_views, "use_views")
    views = whole_groups({i: by_id[i] for i in chosen}, config.show, list(by_id), where)
    if config.sampler is not None:
        original_and_others(list(views.values()), config.sampler, where)
    return list(views.values())


def _form(
    config: TrainConfig,
    cache: CacheShape | None,
    images: ImageCount,
    needs: Needs,
    features: Mapping[str, Features],
    classes: int,
) -> TargetForm:
    """Return what all batches of a stage have in common."""
    asked = cache.logits if cache else {}
    if needs.teachers is not None:
        asked = {name: asked[name] for name in needs.teachers}
    teachers: dict[str, TeacherLogits] = {n: example_logits(e) for n, e in asked.items()}
    if config.class_map is not None:  # merged classes, and one for those outside of the map
        equal = torch.full((1, classes + 1), -math.log(classes + 1))
        teachers = dict.fromkeys(asked, DenseLogits(equal[:, 1:], equal[:, 0]))
    return TargetForm(
        tuple(config.shown),
        labels=images.classes if config.class_map is None else classes,
        teachers=teachers,
        features=features,
    )
