"""Configuration of ``train``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_serializer, field_validator, model_validator

from logitcache.config import Bytes, Config, Former, is_plain
from logitcache.data.class_map import class_maps
from logitcache.data.readers import DataConfig, has_splits
from logitcache.errors import redacted
from logitcache.objectives.aliases import long_forms
from logitcache.objectives.combine import ObjectiveConfig
from logitcache.students.build import StudentConfig
from logitcache.targets.epochs.sampled_epoch import CHOSEN
from logitcache.targets.view_group import BASE, Show, ViewName, shown_views
from logitcache.targets.view_scores import SamplerConfig
from logitcache.views.operations import CROP_SHARE
from logitcache.views.spec import ViewsConfig

__all__ = ["LabelsConfig", "OptimizerConfig", "ScheduleConfig", "SizeConfig", "TrainConfig"]

_Positive = Annotated[int, Field(ge=1)]


class LabelsConfig(Config):
    """Labels that the student is trained with.

    Attributes:
        count: Number of images whose label is used, drawn at random; all by default.
        seed: Random seed of that draw; the seed of the run by default.
        images: ``all``, or ``labeled`` to train only on images whose label is used.
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
        name: Name of the optimizer, one of ``timm.optim.list_optimizers()``.
        lr: Peak learning rate.
        weight_decay: Weight decay; not applied to biases and normalization layers.
        clip_grad: Maximum norm of the gradient; no clipping by default.
        layer_decay: Factor of the learning rate from each layer to the one before it, as in timm;
            the last layer has the learning rate ``lr``. All layers have it by default.
        kwargs: Further arguments of the optimizer.
    """

    name: str = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)


class ScheduleConfig(Config):
    """A timm learning-rate schedule, stepped with every batch.

    Attributes:
        name: Name of the schedule in timm: ``cosine``, ``poly``, ``tanh``, ``multistep`` or
            ``constant``.
        warmup: Share of all steps over which the learning rate rises.
        min_lr: Learning rate at the end; not for ``multistep``.
        milestones: For ``multistep``: shares of all steps after which the learning rate is
            multiplied by ``decay``, such as ``[0.6, 0.8]``.
        decay: For ``multistep``: the factor.
    """

    name: str = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    min_lr: float = Field(default=0.0, ge=0)
    milestones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=list)
    decay: float = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _has_milestones(self) -> Self:
        if (self.name == "multistep") != bool(self.milestones):
            raise ValueError(
                "the schedule multistep needs milestones, for example [0.6, 0.8]"
                if self.name == "multistep"
                else f"the schedule {self.name} has no milestones: remove them, or use multistep"
            )
        return self


class SizeConfig(Config):
    """Image sizes that grow over the epochs, from ``start`` to ``end``.

    The sizes are ``end`` and those below it in steps of ``multiple``, down to ``start``. The first
    ``1 - final`` of the epochs are divided equally among the sizes below ``end``; all other epochs,
    and at least the last one, have the size ``end``, at which the student is evaluated. A run that
    is resumed with more epochs divides them again, as it does with the learning rate.

    Attributes:
        start: Side of the images in the first epoch, in pixels.
        end: Side in the last epochs, in evaluation and of the exported network; the student's own
            by default.
        multiple: Difference between consecutive sizes, in pixels; 32 by default, or the side of the
            network's patches if that does not divide 32.
        final: Share of the epochs with the size ``end``.
    """

    start: _Positive
    end: _Positive | None = None
    multiple: _Positive | None = None
    final: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.end is not None and self.end < self.start:
            raise ValueError(f"end ({self.end}) is smaller than start ({self.start})")
        return self


class TrainConfig(Config):
    """Configuration of one training run.

    Attributes:
        out: Folder for checkpoints, training log, result and exported network.
        data: Training images; with a cache, the images it was computed from, by default those that
            it contains.
        val: Validation images; the split ``val`` by default if the dataset has splits. Their
            classes are mapped by name.
        class_names: Names of the network's classes in order, if neither images nor cache have
            names.
        cache: Folder or URL of the cache with the targets; without one, the student is trained on
            labels alone.
        student: The network, and changes of it before training.
        objectives: Terms of the loss; by default ``soft`` with a cache and ``label`` without one.
        labels: Labels that the student is trained with.
        on_bad_image: ``error``, or ``skip`` to leave out training and validation images that cannot
            be decoded; the result has their number.
        views: Augmentation of the images without a cache, or with one whose teachers saw views
            that are not known, since their outputs were imported.
        class_map: Class of the student for classes of the teachers: a file with two columns, or by
            name of the teacher (``*`` for all) a file or the classes of the teacher by class of the
            student. The run stores the content of files.
        revision: sha256 of the required revision of the cache, or its first 12 or more digits.
        signed_by: File with the public key that has to have signed the current revision of the
            cache, see docs/sharing.md.
        show: The views of a batch: ``base``, and views derived from it, such as ``rot90(1)``; or a
            view of the student with the targets of another one, ``{student: lowres(4), targets:
            base}``. A batch has ``batch_size`` images for each of them.
        val_view: View that validation images are shown in: ``base`` for the center crop, or one
            derived from it, such as ``lowres(4)`` for a student that has seen no others.
        use_views: Views of the cache, by id, number from 0, or range such as ``0-3``; by default
            all views that the teachers of the objectives have.
        sampler: Choice of a view of the cache for every image, which is shown next to the original
            view; the views of a batch are then ``chosen`` and ``base``. By default an epoch shows
            one view of the cache.
        shuffle_targets: Whether every image gets the targets of another one, as a control
            experiment.
        counterparts: Whether the images are counterparts of those that the cache was computed from:
            others with the same keys, such as restyled ones. The student is shown these, in the
            same views, with the targets of the teachers for the others.
        subset: Whether images of the cache may be missing.
        tolerate_pixel_drift: Largest accepted difference between pixel values, 0 to 255, of the
            view fingerprints in the cache and on this machine.
        epochs: Number of epochs; an epoch shows every image once.
        steps: Number of steps (batches), instead of epochs.
        batch_size: Number of images per batch, of all processes together.
        accumulate: Number of parts that each process divides its batch into, to save memory: their
            gradients are added before the optimizer takes its step. Batch norm sees each part.
        size: Image sizes that grow over the epochs; by default all epochs have the size of the
            student. Cached targets do not depend on it.
        optimizer: The optimizer.
        schedule: The learning-rate schedule.
        ema: Decay of an exponential moving average of the weights, which is evaluated and exported
            instead of the weights; no average by default. At step s the decay is at most
            1 - s^(-2/3), so 0.99 is reached at step 1000.
        crop_pct: Share of the shorter side that the center crop of evaluation keeps; the network's
            own by default.
        precision: Mixed precision of accelerate: ``no``, ``bf16`` or ``fp16``.
        channels_last: Whether convolutions run in this memory format, which is faster if the device
            has kernels for it.
        compile: Whether the student is compiled by ``torch.compile``; its first steps take longer.
        device: ``auto`` for an accelerator if there is one, or ``cpu``.
        seed: Random seed of initial weights, data order and dropout.
        eval_every: Number of epochs between evaluations; the last epoch is always evaluated.
        checkpoint_every: Number of epochs between checkpoints.
        log_with: Trackers that receive the values of the training log: ``tensorboard``, ``wandb``,
            ``mlflow``; TensorBoard by default if it is installed, ``[]`` for none.
        project: Project of wandb, or experiment of MLflow.
        onnx: Whether the network is also exported as ONNX.
        license: License of the exported weights, by its identifier on the Hugging Face Hub; for the
            model card.
        target_memory: Maximum memory for targets in each process, such as ``2GB``.
        local_copy: Folder for local copies of shards of a remote cache; the user's cache folder by
            default.
        local_copy_bytes: Maximum size of that folder; 0 for no copies.
        threads: Number of threads that decode images in each process; all processors by default.
        workers: Number of child processes that decode training images instead.
        image_memory: Maximum memory for decoded training images in each process, such as ``4GB``:
            images that fit are decoded in the first epoch only. Not with ``workers``.
    """

    out: str
    data: DataConfig | None = None
    val: DataConfig | None = None
    class_names: list[str] | None = Field(default=None, min_length=1)
    cache: str | None = None
    class_map: dict[str, dict[str, list[str]]] | None = None
    revision: str | None = None
    signed_by: str | None = None
    student: StudentConfig
    objectives: list[ObjectiveConfig] = Field(default_factory=list)
    labels: LabelsConfig = LabelsConfig()
    on_bad_image: Literal["error", "skip"] = "error"
    views: ViewsConfig | None = None
    show: Show = Field(default_factory=lambda: list(shown_views([BASE])))
    val_view: ViewName = BASE
    use_views: list[str] = Field(default_factory=list)
    sampler: SamplerConfig | None = None
    shuffle_targets: bool = False
    counterparts: bool = False
    subset: bool = False
    tolerate_pixel_drift: int = Field(default=0, ge=0, le=255)
    epochs: _Positive | None = None
    steps: _Positive | None = None
    batch_size: _Positive = 128
    accumulate: _Positive = 1
    size: SizeConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    crop_pct: Annotated[float, CROP_SHARE] | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    compile: bool = False
    device: Literal["auto", "cpu"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)
    eval_every: _Positive = 1
    checkpoint_every: _Positive = 1
    log_with: list[Literal["tensorboard", "wandb", "mlflow"]] | None = None
    project: str = Field(default="logitcache", min_length=1)
    onnx: bool = False
    license: str | None = None
    target_memory: Annotated[Bytes, Field(ge=1)] = 2**30
    local_copy: str | None = None
    local_copy_bytes: Annotated[Bytes, Field(ge=0)] = 10 * 2**30
    threads: _Positive | None = None
    workers: int = Field(default=0, ge=0)
    image_memory: Annotated[Bytes, Field(ge=0)] = 0

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

    @field_validator("class_map", mode="before")
    @classmethod
    def _with_content(cls, value: Any) -> object:
        """Read the files of class maps, so that a run that is resumed has the same classes."""
        return None if value is None else class_maps(value)

    @field_validator("log_with", mode="before")
    @classmethod
    def _separated(cls, value: object) -> object:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("show", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("use_views", mode="before")
    @classmethod
    def _as_names(cls, value: object) -> object:
        if isinstance(value, str | int):
            return [str(value)]
        return [str(name) for name in value] if isinstance(value, list) else value

    @field_validator("val", mode="before")
    @classmethod
    def _held_out(cls, value: object) -> object:
        """Choose the validation split if the dataset has splits and none is named."""
        named = {"name": value} if isinstance(value, str) else value
        if not isinstance(named, dict) or not has_splits(str(named.get("name"))):
            return named
        return {"split": "val", **named}

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Self:
        if self.data is None and self.cache is None and is_plain(info):
            raise ValueError("data is missing: give training images, or a cache that contains them")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, not both")
        if self.size and self.size.end and self.student.size not in (None, self.size.end):
            raise ValueError(
                f"size.end ({self.size.end}) differs from student.size ({self.student.size}): "
                "remove one of them"
            )
        if self.cache is None and self.use_views:
            raise ValueError("use_views chooses among the views of a cache: give a cache")
        if self.cache is None and self.class_map is not None:
            raise ValueError("class_map maps the classes of a cache: give a cache")
        if self.cache is None and self.revision is not None:
            raise ValueError("revision is that of a cache: give a cache, or remove revision")
        if self.cache is None and self.signed_by is not None:
            raise ValueError("signed_by is a key of a cache: give a cache, or remove signed_by")
        if self.counterparts and (self.cache is None or self.data is None):
            raise ValueError(
                "counterparts are images with the keys of a cache: give data and cache"
            )
        if self.cache is None and self.shuffle_targets:
            raise ValueError("there are no targets to shuffle: give a cache")
        return self

    @model_validator(mode="after")
    def _vectors_alone(self) -> Self:
        if self.student.head_on is None:
            return self
        if self.cache is None:
            raise ValueError("student.head_on trains on the vectors of a cache: give a cache")
        if self.size or self.channels_last or self.show != list(shown_views([BASE])):
            raise ValueError(
                "student.head_on trains on cached vectors, not on images: remove size, "
                "channels_last and show"
            )
        if any(term.term.needs.pixels for term in self.terms):
            raise ValueError(
                "student.head_on trains on cached vectors, not on images: remove the terms "
                "against pixels"
            )
        return self

    @model_validator(mode="after")
    def _sampled(self) -> Self:
        if self.sampler is None:
            return self
        if self.cache is None:
            raise ValueError("sampler chooses among the views of a cache: give a cache")
        if self.show != list(shown_views([BASE])) or self.on_bad_image != "error":
            raise ValueError(
                "sampler shows a chosen view next to the original one: remove show, and "
                "on_bad_image: skip"
            )
        if self.student.head_on is not None:
            raise ValueError("sampler shows images: remove student.head_on")
        return self

    @model_validator(mode="after")
    def _terms_fit(self) -> Self:
        for term in self.terms:
            if self.accumulate > 1 and term.term.needs_whole_batch:
                raise ValueError(
                    f"{term.name} compares the images of a batch, so a batch cannot be divided: "
                    "remove accumulate"
                )
            if self.batch_size == 1 and term.term.needs_whole_batch:
                raise ValueError(
                    f"{term.name} compares the images of a batch: batch_size has to be 2 or more"
                )
            if self.compile and term.term.needs.taps:
                raise ValueError(
                    f"{term.name} captures activations of the student, which a compiled network "
                    "does not return: remove compile"
                )
            unknown = sorted(set(term.term.views or ()) - set(self.shown))
            if unknown:
                raise ValueError(
                    f"{term.name}.views: {unknown[0]} is not among the views of a batch: "
                    f"{', '.join(self.shown)}"
                )
        return self

    @property
    def shown(self) -> list[str]:
        """Names of the views in which a batch has each of its images."""
        return [view.student for view in self.show] if self.sampler is None else [CHOSEN, BASE]

    @property
    def final_size(self) -> int | None:
        """Side of the images in evaluation, in pixels; None for the network's own."""
        return (self.size.end if self.size else None) or self.student.size

    @property
    def terms(self) -> list[ObjectiveConfig]:
        """The objectives, with the default filled in."""
        default = "label" if self.cache is None else "soft"
        return self.objectives or [ObjectiveConfig.model_validate(default)]
