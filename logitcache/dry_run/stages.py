"""Outlines of the kinds of stages, and of a whole pipeline."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from logitcache.cache.format.groups import OPTIONAL_ARRAYS
from logitcache.dry_run.networks import (
    forward_flops,
    image_shape,
    input_size,
    network_shape,
    shown,
)
from logitcache.dry_run.outline import (
    CacheShape,
    Earlier,
    StageOutline,
    share_of_patches,
    uncounted,
)
from logitcache.dry_run.tools import (
    outline_bits,
    outline_hints,
    outline_means,
    outline_prototypes,
    outline_synthesis,
    outline_weights,
)
from logitcache.dry_run.training import outline_training
from logitcache.encoding.choice import choose, fits_basis
from logitcache.encoding.dense import DenseEncoding
from logitcache.encoding.feature_choice import feature_encoding
from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig, num_classes_of
from logitcache.networks.taps import tap_shapes
from logitcache.pipeline.run import with_results
from logitcache.pipeline.stage_kinds import STAGE_KINDS
from logitcache.views.tokens import patches_shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from logitcache.encoding.features import FeatureEncoding
    from logitcache.encoding.kinds import Encoding
    from logitcache.pipeline.run import Pipeline, Stage
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.teachers.member import TeacherConfig
    from logitcache.training.evaluation.evaluate import EvaluateConfig
    from logitcache.views.spec import View

__all__ = ["OUTLINES", "outline_pipeline"]


class Outline(Protocol):
    """A function that finds out what a stage would do."""

    def __call__(self, config: Any, stage: Stage, output: str, earlier: Earlier) -> StageOutline:
        """Return the outline, and add what the stage would make to the earlier stages' results.

        Args:
            config: Configuration of the stage's component.
            stage: The stage.
            output: What ``stage:NAME`` refers to.
            earlier: What the stages before would have made; it is extended.
        """
        ...


def outline_pipeline(pipeline: Pipeline) -> list[StageOutline]:
    """Return what every stage of a pipeline would do.

    Configurations are parsed, networks are built without memory for weights, layers are looked up,
    and terms of the loss are fitted to the shapes of their features. Neither images nor weights
    have to exist.

    Raises:
        LogitcacheError: A stage cannot be run as it is configured.
    """
    earlier = Earlier(pipeline.config.data_set, pipeline.config.data_sets)
    for name, values in pipeline.config.networks.items():
        known = NetworkConfig.parse(values, f"networks.{name}")
        earlier.networks[name] = network_shape(known, {})
    found = []
    for unresolved in pipeline.stages:
        stage = with_results(unresolved, earlier.results.get)
        config = STAGE_KINDS[stage.kind].config_class().parse(stage.values, f"stages.{stage.name}")
        outline = OUTLINES.get(stage.kind, _resolved)
        with _located(f"stages.{stage.name}"):
            found.append(outline(config, stage, pipeline.output_of(stage), earlier))
    return found


@contextmanager
def _located(stage: str) -> Iterator[None]:
    """Name the stage in errors of its network or its terms, which know other places."""
    try:
        yield
    except UsageError as error:
        if not str(error.where).startswith(stage):
            error.where = stage if error.where is None else f"{stage}: {error.where}"
        raise


def _resolved(config: Any, stage: Stage, output: str, earlier: Earlier) -> StageOutline:
    return StageOutline(stage.name, stage.kind)


def _precompute(
    config: PrecomputeConfig, stage: Stage, output: str, earlier: Earlier
) -> StageOutline:
    if config.data is None:
        raise UsageError("a dry run needs data", where=f"stages.{stage.name}.data")
    images = earlier.count(config.data)
    views = config.views.views()
    passes = share_of_patches(views) * len(views) * images.images
    row_bytes: dict[str, float] = {}
    stored, flops, what, notes = 0.0, 0.0, [], []
    logits: dict[str, Encoding] = {}
    features: dict[str, FeatureEncoding] = {}
    for name, teacher in config.teachers.items():
        without_head = teacher.head == "none" and teacher.model not in earlier.networks
        network = network_shape(teacher, earlier.networks, 0 if without_head else None)
        size = input_size(network, teacher)
        what.append(f"{name} ({shown(network)}) at {size}")
        flops += forward_flops(network, image_shape(size)) * passes
        if teacher.head != "none":
            classes = _teacher_classes(teacher, network)
            logits[name] = _encoding(config, teacher, classes)
            row_bytes[name] = _logit_bytes(config, logits[name])
            stored += row_bytes[name] * len(views) * images.images
            if fits_basis(config.encoding, classes):
                notes.append(f"bytes of {name}: for dense logits; the encoding is fitted later")
        for tap, encoding in _features(teacher, network, size, views, name).items():
            features[f"{name}/{tap}"] = encoding
            own = sum(spec.row_bytes for spec in encoding.specs().values())
            row_bytes[f"{name}/features/{tap}"] = own
            stored += own * (teacher.features[tap].views or len(views)) * images.images
    earlier.caches[output] = CacheShape(images, logits, features, tuple(views))
    return StageOutline(
        stage.name,
        stage.kind,
        what="; ".join(what),
        images=images.images,
        views=len(views),
        row_bytes=row_bytes,
        bytes=round(stored),
        flops=flops,
        notes=(*notes, *uncounted(images, config.data)),
    )


def _teacher_classes(teacher: TeacherConfig, network: nn.Module) -> int:
    if teacher.class_map is None or isinstance(teacher.class_map, str):
        return num_classes_of(network)
    return len(teacher.class_map)


def _encoding(config: PrecomputeConfig, teacher: TeacherConfig, classes: int) -> Encoding:
    """Return the encoding of the logits of a teacher; dense where it is fitted to a sample."""
    if fits_basis(config.encoding, classes):
        return DenseEncoding(classes)
    return choose(config.encoding, classes, head=teacher.head)


def _logit_bytes(config: PrecomputeConfig, encoding: Encoding) -> float:
    """Return the bytes of the logits of one image and view, about as many after compression."""
    kept = {"lse": config.encoding.lse, "label_logp": config.encoding.label_log_probs}
    specs = [*encoding.specs().values(), *(OPTIONAL_ARRAYS[n] for n, on in kept.items() if on)]
    return encoding.compressed_share * sum(spec.row_bytes for spec in specs)


def _features(
    teacher: TeacherConfig, network: nn.Module, size: int, views: Sequence[View], name: str
) -> dict[str, FeatureEncoding]:
    return {
        tap: feature_encoding(
            teacher.features[tap],
            shape.layout,
            shape.shape,
            grid=shape.grid,
            prefix_tokens=shape.prefix_tokens,
            where=f"teacher {name!r}, tap {tap!r}",
            shown=patches_shown(views[: teacher.features[tap].views]),
        )
        for tap, shape in tap_shapes(network, teacher.features, size).items()
    }


def _evaluate(config: EvaluateConfig, stage: Stage, output: str, earlier: Earlier) -> StageOutline:
    network = network_shape(config.network, earlier.networks)
    return StageOutline(stage.name, stage.kind, what=shown(network))


OUTLINES: dict[str, Outline] = {
    "precompute": _precompute,
    "train": outline_training,
    "evaluate": _evaluate,
    "fit_weights": outline_weights,
    "pick_hints": outline_hints,
    "class_means": outline_means,
    "synthesize": outline_synthesis,
    "pick_bits": outline_bits,
    "learn_prototypes": outline_prototypes,
}
"""Functions by kind of stage; of other kinds the settings are parsed and nothing more."""
