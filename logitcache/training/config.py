"""Configuration of ``train``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from logitcache.config import Bytes, Config, Former
from logitcache.data.readers import DataConfig, has_splits
from logitcache.errors import redacted
from logitcache.objectives.aliases import long_forms
from logitcache.objectives.combine import ObjectiveConfig
from logitcache.students.build import StudentConfig
from logitcache.views.operations import CROP_SHARE
from logitcache.views.spec import ViewsConfig

__all__ = ["LabelsConfig", "OptimizerConfig", "ScheduleConfig", "TrainConfig"]

_Positive = Annotated[int, Field(ge=1)]


class LabelsConfig(Config):
    """How many labels the student may see.

    Attributes:
        count: Images that keep their label, drawn by the hash of their keys; all by default.
        seed: Of that draw; the run's own by default.
        images: ``all``, or ``labeled`` to show only images that keep their label.
    """

    count: _Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    images: Literal["all", "labeled"] = "all"
    former: ClassVar[Former] = Former(values={"images": {"labelled": "labeled"}})

    @model_validator(mode="before")
    @classmethod
    def _from_count(cls, value: object) -> object:
        return {"count": value} if isinstance(value, int) else value


class OptimizerConfig(Config):
    """A timm optimizer.

    Attributes:
        name: As ``timm.optim.list_optimizers`` has it.
        lr: Peak learning rate.
        weight_decay: Not applied to biases and norms.
        clip_grad: Largest norm of the gradient; None not to clip.
        kwargs: Further arguments.
    """

    name: str = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)


class ScheduleConfig(Config):
    """A timm learning-rate schedule, stepped with every batch.

    Attributes:
        name: ``cosine``, ``poly``, ``tanh`` or ``constant``, as timm has them.
        warmup: Share of all steps over which the rate rises.
        min_lr: Where it ends.
    """

    name: str = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    min_lr: float = Field(default=0.0, ge=0)


class TrainConfig(Config):
    """Everything about one training run.

    Attributes:
        out: Folder for checkpoints, journal, result and export.
        data: The images to train on; with a cache, the ones it was made from.
        val: The images to evaluate on; of a set that has splits, ``val`` by default.
            Their classes are mapped by name.
        class_names: Names of the network's classes in order, where neither images nor cache have
            any.
        cache: Where the targets are; None to learn from labels alone.
        student: The network, and what is done to it before it learns.
        objectives: Terms of the loss; ``soft`` with a cache and ``label`` without by default.
        labels: How many labels the student may see.
        on_bad_image: ``error``, or ``skip`` to leave out images, of training and validation, that
            cannot be decoded; how many is in the result.
        views: How images are shown where there is no cache.
        revision: sha256 of the revision that the cache must have, or its first 12 digits or more.
        show: Names of the views of a batch: ``base``, and views derived from it, as ``rot90(1)``; a
            batch has ``batch_size`` images for each of them.
        use_views: Which views of the cache, by id, number from 0, or range such as ``0-3``; by
            default all that the teachers of the objectives have.
        shuffle_targets: Whether every image gets another one's targets, as a control.
        subset: Whether images of the cache may be missing.
        tolerate_pixel_drift: Largest difference of a level, 0 to 255, between the cache's probes
            and what this machine makes of them.
        epochs: How long; an epoch shows every image once.
        steps: How long in batches, instead of epochs.
        batch_size: Images of a batch; of all processes together, if there are several.
        optimizer: How weights change.
        schedule: How the learning rate changes.
        ema: Decay of an average of the weights, which is evaluated and exported instead of them.
        crop_pct: Share of the shorter side that evaluation keeps; the network's own by default.
        precision: ``no``, ``bf16`` or ``fp16``, as accelerate has it.
        device: ``auto``, or ``cpu`` to leave an accelerator alone.
        seed: Of weights, order and dropout.
        eval_every: Epochs between evaluations; the last epoch is always evaluated.
        checkpoint_every: Epochs between checkpoints.
        onnx: Whether the export holds the network as ONNX too.
        license: Of the exported weights, as the Hugging Face Hub names it; for the model card.
        target_memory: Bytes that targets may take in memory, in each process, as ``2GB``.
        local_copy: Folder in which shards of a distant cache are kept; the user's cache folder by
            default.
        local_copy_bytes: What that folder may take; 0 to keep nothing.
        threads: Threads that decode, in each process; all processors by default.
        workers: Child processes that decode training images instead.
    """

    out: str
    data: DataConfig
    val: DataConfig | None = None
    class_names: list[str] | None = Field(default=None, min_length=1)
    cache: str | None = None
    revision: str | None = None
    student: StudentConfig
    objectives: list[ObjectiveConfig] = Field(default_factory=list)
    labels: LabelsConfig = LabelsConfig()
    on_bad_image: Literal["error", "skip"] = "error"
    views: ViewsConfig | None = None
    show: list[str] = Field(default=["base"], min_length=1)
    use_views: list[str] = Field(default_factory=list)
    shuffle_targets: bool = False
    subset: bool = False
    tolerate_pixel_drift: int = Field(default=0, ge=0, le=255)
    epochs: _Positive | None = None
    steps: _Positive | None = None
    batch_size: _Positive = 128
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    crop_pct: Annotated[float, CROP_SHARE] | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    device: Literal["auto", "cpu"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)
    eval_every: _Positive = 1
    checkpoint_every: _Positive = 1
    onnx: bool = False
    license: str | None = None
    target_memory: Annotated[Bytes, Field(ge=1)] = 2**30
    local_copy: str | None = None
    local_copy_bytes: Annotated[Bytes, Field(ge=0)] = 10 * 2**30
    threads: _Positive | None = None
    workers: int = Field(default=0, ge=0)

    @field_serializer("cache")
    def _without_secrets(self, url: str | None) -> str | None:
        return None if url is None else redacted(url)

    @field_validator("objectives", mode="before")
    @classmethod
    def _in_long_form(cls, value: object) -> object:
        """Accept a single term instead of a list, and the names of published losses."""
        entries = [value] if isinstance(value, str | dict) else value
        if not isinstance(entries, list):
            return entries
        return [term for entry in entries for term in long_forms(entry)]

    @field_validator("use_views", "show", mode="before")
    @classmethod
    def _as_names(cls, value: object) -> object:
        if isinstance(value, str | int):
            return [str(value)]
        return [str(name) for name in value] if isinstance(value, list) else value

    @field_validator("val", mode="before")
    @classmethod
    def _held_out(cls, value: object) -> object:
        """Evaluate on the split that is held out, where a set has splits and none is named."""
        named = {"name": value} if isinstance(value, str) else value
        if not isinstance(named, dict) or not has_splits(str(named.get("name"))):
            return named
        return {"split": "val", **named}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.cache is not None and self.views is not None:
            raise ValueError("a cache has its own views: drop views, or the cache")
        if self.cache is None and self.use_views:
            raise ValueError("there are no views to choose from: give a cache, or set views")
        if self.cache is None and self.revision is not None:
            raise ValueError("there is no cache that could have a revision: give one")
        if self.cache is None and self.shuffle_targets:
            raise ValueError("there are no targets to shuffle: give a cache")
        for term in self.terms:
            unknown = sorted(set(term.term.views or ()) - set(self.show))
            if unknown:
                raise ValueError(
                    f"{term.name}.views: {unknown[0]} is not among the views of a batch: "
                    f"{', '.join(self.show)}"
                )
        return self

    @property
    def terms(self) -> list[ObjectiveConfig]:
        """The objectives, with the default filled in."""
        default = "label" if self.cache is None else "soft"
        return self.objectives or [ObjectiveConfig.model_validate(default)]
