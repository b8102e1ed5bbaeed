"""The lock of a teacher in a manifest: its fields and their limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, Strict

__all__ = ["Lock", "LockedFields"]

_MOST_LEVELS = 16
_MOST_PARTS = 2**22  # a class map has one part for each class
_Text = Annotated[str, Field(max_length=1024)]
_Class = Annotated[int, Strict(), Field(ge=0, lt=2**26)]
_Mean = Annotated[float, Field(allow_inf_nan=False)]
_Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Flag = Annotated[bool, Strict()]


class _Input(BaseModel):
    size: Annotated[int, Strict(), Field(ge=1, le=4096)] | None = None
    mean: tuple[_Mean, _Mean, _Mean] | None = None
    std: tuple[_Deviation, _Deviation, _Deviation] | None = None


class LockedFields(BaseModel):
    """Fields of a lock that are read; the other ones are only compared.

    Attributes:
        architecture: Name of the architecture; empty where the lock does not have it.
        weights_sha256: Digest of the weights; empty where the lock does not have it.
        input: ``size``, the side of the input images in pixels; ``mean`` and ``std`` by channel.
        precision: Data type of the forward pass.
        class_map: Indices of the outputs that are stored, in order; None for all of them.
        arguments: Further arguments of the architecture, ``kwargs`` in the lock.
        channels_last: Whether images are in this memory format.
        compile: Whether the network is compiled.
        head: ``none`` for a teacher whose features alone are cached, without logits; ``sigmoid``
            for one whose classes are independent of each other.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    architecture: _Text = ""
    weights_sha256: _Text = ""
    input: _Input = _Input()
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    class_map: Annotated[list[_Class], Field(max_length=2**20)] | None = None
    arguments: dict[str, Any] = Field(
        default_factory=dict, validation_alias=AliasChoices("kwargs"), max_length=1024
    )
    channels_last: _Flag = False
    compile: _Flag = False
    head: Literal["softmax", "sigmoid", "none"] = "softmax"


def _checked(lock: dict[str, Any]) -> dict[str, Any]:
    LockedFields.model_validate(lock)
    level: list[Any] = [lock]  # level by level: recursion could exhaust the stack
    parts = 0
    for _ in range(_MOST_LEVELS):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict | list):
                inner += value.values() if isinstance(value, dict) else value
        parts += len(inner)
        if not inner:
            return lock
        if parts > _MOST_PARTS:
            break
        level = inner
    raise ValueError(f"a lock has more than {_MOST_LEVELS} levels or {_MOST_PARTS} values")


Lock = Annotated[dict[str, Any], AfterValidator(_checked)]
"""A lock as it is stored, whose known fields are valid."""
