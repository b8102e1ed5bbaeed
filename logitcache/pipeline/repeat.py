"""Repeated stages of a pipeline: generations in which each one continues the one before.

A block of stages is written once and run several times::

    - name: generations
      repeat: 3
      initial: {student: start}
      stages:
        - name: cache
          precompute: {teachers: {ema: {model: "stage:student"}}}
        - name: student
          train: {student: {model: "stage:student"}, cache: "stage:cache"}

The stages of round r have the names ``cache-r`` and ``student-r``. A reference to a name of the
block is one to its latest stage so far: to the one of this round if it comes earlier in the block,
else to that of the round before. In the first round it is the stage in ``initial``, and behind the
block that of the last round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from logitcache.config import Config

__all__ = ["RepeatConfig", "expanded"]

_REFERENCE = "stage:"


class RepeatConfig(Config):
    """Stages that are run several times.

    Attributes:
        name: Name of the block, by which its settings are addressed.
        repeat: Number of rounds.
        initial: Earlier stages that names of the block stand for in the first round.
        stages: The stages of a round, in order.
    """

    name: str
    repeat: int = Field(ge=1)
    initial: dict[str, str] = Field(default_factory=dict)
    stages: list[dict[str, Any]] = Field(min_length=1)


def expanded(stages: list[Any]) -> list[Any]:
    """Return the stages of a pipeline with repeated blocks written out.

    Args:
        stages: Stages and blocks, as a YAML file has them.
    """
    latest: dict[str, str] = {}
    found: list[Any] = []
    for entry in stages:
        if not isinstance(entry, Mapping) or "repeat" not in entry:
            found.append(_renamed(entry, latest))
            continue
        block = RepeatConfig.model_validate(entry)
        latest |= block.initial
        for number in range(1, block.repeat + 1):
            for stage in block.stages:
                name = f"{stage.get('name')}-{number}"
                found.append({**_renamed(stage, latest), "name": name})
                latest[str(stage.get("name"))] = name
    return found


def _renamed(value: Any, latest: Mapping[str, str]) -> Any:
    """Return a value whose references, keys of mappings too, name the latest stages."""
    if isinstance(value, Mapping):
        return {_renamed(k, latest): _renamed(v, latest) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(item, latest) for item in value]
    if isinstance(value, str) and value.startswith(_REFERENCE):
        name, slash, path = value.removeprefix(_REFERENCE).partition("/")
        return f"{_REFERENCE}{latest.get(name, name)}{slash}{path}"
    return value
