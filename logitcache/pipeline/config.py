"""Configuration of a pipeline: its stages and what they share."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from logitcache.config import Config

__all__ = ["PipelineConfig"]

_KINDS = ("train", "precompute", "fit_weights")


class StageConfig(Config):
    """One stage.

    Attributes:
        name: Names its folder, and what later stages call it.
        train: Fields of a :class:`~logitcache.training.config.TrainConfig`.
        precompute: Fields of a :class:`~logitcache.precompute.config.PrecomputeConfig`.
        fit_weights: Fields of a :class:`~logitcache.tools.fit_weights.FitWeightsConfig`.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    train: dict[str, Any] | None = None
    precompute: dict[str, Any] | None = None
    fit_weights: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in _KINDS) != 1:
            raise ValueError(f"a stage is one of {', '.join(_KINDS)}")
        return self

    @property
    def kind(self) -> str:
        """``train``, ``precompute`` or ``fit_weights``."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def settings(self) -> dict[str, Any]:
        """What the stage says."""
        settings: dict[str, Any] = getattr(self, self.kind)
        return settings


class PipelineConfig(Config):
    """A pipeline file.

    Attributes:
        name: What it is called.
        description: What it shows.
        out: Folder of all its outputs.
        seed: Of every training; ``logitcache run --seeds`` sets it.
        data: Images of every stage.
        val: Images every training is evaluated on.
        train: Settings shared by train stages.
        precompute: Settings shared by precompute stages.
        stages: In order.
    """

    name: str
    description: str = ""
    out: str
    seed: int = 0
    data: Any
    val: Any = None
    train: dict[str, Any] = Field(default_factory=dict)
    precompute: dict[str, Any] = Field(default_factory=dict)
    stages: list[StageConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages are called {name}")
        return self
