"""Configuration of a pipeline: its stages and what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, create_model, field_validator, model_validator

from logitcache.config import Config
from logitcache.pipeline.repeat import expanded
from logitcache.pipeline.stage_kinds import STAGE_KINDS

__all__ = ["DataSetConfig", "PaperConfig", "PipelineConfig"]

_Values = dict[str, Any]

if TYPE_CHECKING:
    _OneOfKinds = Config
    _SharedByKinds = Config
else:
    # a field for every kind of stage, so that one that is misspelled is an unknown option
    _OneOfKinds = create_model(
        "_OneOfKinds", __base__=Config, **dict.fromkeys(STAGE_KINDS, (_Values | None, None))
    )
    _SharedByKinds = create_model(
        "_SharedByKinds",
        __base__=Config,
        **{kind: (_Values, Field(default_factory=dict)) for kind in STAGE_KINDS},
    )


class StageConfig(_OneOfKinds):
    """One stage of a pipeline.

    Attributes:
        name: Name of the stage and of its folder, by which later stages refer to it.
        precompute: Fields of a :class:`~logitcache.precompute.config.PrecomputeConfig`.
        train: Fields of a :class:`~logitcache.training.config.TrainConfig`.
        fit_weights: Fields of a :class:`~logitcache.tools.fit_weights.FitWeightsConfig`.
        pick_hints: Fields of a :class:`~logitcache.tools.pick_hints.PickHintsConfig`.
        class_means: Fields of a :class:`~logitcache.tools.class_means.ClassMeansConfig`.
        pick_bits: Fields of a :class:`~logitcache.tools.pick_bits.PickBitsConfig`.
        synthesize: Fields of a :class:`~logitcache.tools.synthesize.SynthesizeConfig`.
        learn_prototypes: Fields of a
            :class:`~logitcache.tools.learn_prototypes.LearnPrototypesConfig`.
        evaluate: Fields of a :class:`~logitcache.training.evaluation.evaluate.EvaluateConfig`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in STAGE_KINDS) != 1:
            raise ValueError(f"a stage needs exactly one of {', '.join(STAGE_KINDS)}")
        return self

    @property
    def kind(self) -> str:
        """Kind of the stage, a key of :data:`.STAGE_KINDS`."""
        return next(kind for kind in STAGE_KINDS if getattr(self, kind) is not None)

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of the configuration of the stage, with references not yet resolved."""
        settings: dict[str, Any] = getattr(self, self.kind)
        return settings


class PaperConfig(Config):
    """What a pipeline follows, for the output of a dry run.

    Attributes:
        title: Title or short name of the paper.
        reference: Venue, or identifier on arXiv.
        result: Published result of this setting; ``unknown`` if it was not available.
        source: Where the result and the settings were read.
        differs: How the pipeline differs from what was published, one sentence each.
        unknown: Settings that were not available, and are chosen here, one sentence each.
    """

    title: str
    reference: str
    result: str
    source: str
    differs: list[str] = Field(default_factory=list)
    unknown: list[str] = Field(default_factory=list)


class DataSetConfig(Config):
    """Size of an image set that a dry run computes with where ``data`` does not exist.

    Attributes:
        images: Number of training images.
        classes: Number of classes.
    """

    images: int = Field(ge=1)
    classes: int = Field(ge=2)


class PipelineConfig(_SharedByKinds):
    """A pipeline file.

    Attributes:
        name: Name of the pipeline.
        description: One line about the purpose of the pipeline.
        out: Folder of all outputs.
        seed: Random seed of every training run; ``logitcache run --seeds`` sets it.
        data: Images of every stage.
        val: Validation images.
        data_set: Size of ``data``, for a dry run without the images.
        data_sets: Sizes of other image sets, by name, for a dry run without them.
        networks: Networks of timm that a dry run takes for networks that only files or functions of
            the user know, by name: fields of a :class:`~logitcache.networks.build.NetworkConfig`.
        paper: The paper that the pipeline follows, for a dry run.
        precompute: Settings shared by precompute stages.
        train: Settings shared by train stages.
        fit_weights: Settings shared by fit_weights stages.
        pick_hints: Settings shared by pick_hints stages.
        class_means: Settings shared by class_means stages.
        pick_bits: Settings shared by pick_bits stages.
        synthesize: Settings shared by synthesize stages.
        learn_prototypes: Settings shared by learn_prototypes stages.
        evaluate: Settings shared by evaluate stages.
        stages: The stages, in order; or blocks ``{name, repeat, stages}`` of stages that are run
            several times, see :mod:`logitcache.pipeline.repeat`.
    """

    name: str
    description: str = ""
    out: str
    seed: int = 0
    data: Any
    val: Any = None
    data_set: DataSetConfig | None = None
    data_sets: dict[str, DataSetConfig] = Field(default_factory=dict)
    networks: dict[str, _Values] = Field(default_factory=dict)
    paper: PaperConfig | None = None
    stages: list[StageConfig] = Field(min_length=1)

    @field_validator("stages", mode="before")
    @classmethod
    def _written_out(cls, value: object) -> object:
        return expanded(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages have the name {name!r}")
        return self
