"""Encoding of feature maps: reduction, then quantization.

:class:`FeatureEncoding` has all that reading needs; ``feature_choice.py`` creates it from a
configuration. Reductions run where the output is captured (``teachers/reduce.py``), coding here.

Shapes: N rows, D channels, L tokens, P positions of patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from logitcache.encoding.arrays import ArraySpec, Encoded
from logitcache.encoding.intervals import between, float16_above, whole_rows
from logitcache.encoding.principal_components import Principal, parse_principal
from logitcache.errors import CacheError, FeatureOverflow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["FeatureEncoding", "Layout", "Reduction", "Values", "parse_features"]

Layout = Literal["NCHW", "NLC", "vector"]
Reduction = Literal["none", "mean", "energy"]
Values = Literal["float16", "bfloat16", "int8"]
ScaleAxes = Literal["channels", "positions"]

_INNER_BYTES = 2**20
_FEWEST_INNER, _MOST_INNER = 4, 4096
_MOST_NUMBERS = 2**28  # of a row
_BFLOAT16_NAN = 0x7FC0


@dataclass(frozen=True)
class FeatureEncoding:
    """Encoding of one tap.

    Attributes:
        layout: Layout of the stored rows.
        shape: Shape of one stored row: (D, H, W), (L, D) or (D,).
        values: Data type of the stored numbers.
        scale_axes: Axes that share a scale of int8: ``channels`` (a scale for each position) or
            ``positions`` (one for each channel).
        grid: Side of the square grid of positions, before some were dropped.
        prefix_tokens: Number of leading tokens of stored rows that are not patches.
        kept: Number of patch tokens that are stored, drawn for each row; None for all.
        reduction: Reduction of the output of the tap.
        standardized: Whether channels have mean 0 and standard deviation 1 over the positions.
        pool: Side of the grid that positions were averaged to; None if they were not.
        principal: Directions along which channels are stored; None for the channels themselves.
        sparse: Whether most numbers are zero, so that they are compressed.
    """

    layout: Layout
    shape: tuple[int, ...]
    values: Values = "float16"
    scale_axes: ScaleAxes = "channels"
    grid: int | None = None
    prefix_tokens: int = 0
    kept: int | None = None
    reduction: Reduction = "none"
    standardized: bool = False
    pool: int | None = None
    principal: Principal | None = None
    sparse: bool = False

    @property
    def patches(self) -> int:
        """Number of positions, before some were dropped: P."""
        if self.grid is not None:
            return self.grid**2
        if self.layout == "vector":
            return 1
        if self.layout == "NCHW":
            return self.shape[1] * self.shape[2]
        return self.shape[0] - self.prefix_tokens

    def specs(self) -> dict[str, ArraySpec]:
        """Return the arrays of the group by name."""
        dtype, fill = {
            "float16": ("float16", float("nan")),
            "bfloat16": ("uint16", _BFLOAT16_NAN),
            "int8": ("int8", 0),
        }[self.values]
        row_bytes = int(np.prod(self.shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        # about a megabyte, a power of two from 4 to 4096 rows
        inner = 1 << max(0, (_INNER_BYTES // max(1, row_bytes)).bit_length() - 1)
        inner = min(max(inner, _FEWEST_INNER), _MOST_INNER)
        codec: Literal["shuffled", "raw"] = "shuffled" if self.sparse else "raw"
        specs = {"values": ArraySpec(self.shape, dtype, fill, codec, inner)}
        if self.values == "int8":
            specs["scale"] = ArraySpec(self._scale_shape, "float16", float("nan"), "raw", inner)
        return specs

    @property
    def _scale_shape(self) -> tuple[int, ...]:
        return tuple(
            size for axis, size in enumerate(self.shape, start=1) if axis not in self._shared
        )

    @property
    def _shared(self) -> tuple[int, ...]:
        """Axes of (N, ...) values that share a scale."""
        channels = {"NCHW": (1,), "NLC": (2,), "vector": (1,)}[self.layout]
        positions = {"NCHW": (2, 3), "NLC": (1,), "vector": ()}[self.layout]
        return channels if self.scale_axes == "channels" else positions

    def encode(self, values_N: NDArray[np.float32]) -> Encoded:
        """Encode rows (N, ...).

        Raises:
            FeatureOverflow: A number is too large for the data type.
        """
        if self.values == "float16":
            with np.errstate(over="ignore"):
                stored = values_N.astype(np.float16)
            return {"values": _checked(stored, values_N, "a feature")}
        if self.values == "bfloat16":
            return {"values": _bfloat16(values_N)}
        exact = np.abs(values_N).max(axis=self._shared, keepdims=True) / np.float32(127)
        # rounded up, so that no level is beyond 127; 1 for zeros, which any scale would fit
        scale = np.where(exact == 0, np.float16(1), float16_above(exact))
        scale = _checked(scale, exact, "the scale of features")
        levels = np.rint(values_N / scale.astype(np.float32))
        return {
            "values": np.clip(levels, -127, 127).astype(np.int8),
            "scale": scale.reshape(len(values_N), *self._scale_shape),
        }

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Decode rows: float32 (N, ...)."""
        stored = arrays["values"]
        if self.values == "bfloat16":
            return _from_bfloat16(stored)
        values: NDArray[np.float32] = stored.astype(np.float32)
        if self.values == "int8":
            # in place, since astype has made a copy
            values *= np.expand_dims(arrays["scale"].astype(np.float32), self._shared)
        return values

    def fault_of(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """Return None: any stored numbers can be decoded."""

    def consistent(
        self,
        arrays: Mapping[str, NDArray[Any]],
        values_N: NDArray[np.float32],
        eps_N: NDArray[np.float32],
    ) -> NDArray[np.bool_]:
        """Return which stored rows may be the encoding of features within eps of other ones.

        Args:
            arrays: The stored rows.
            values_N: The recomputed rows (N, ...), reduced as the stored ones were.
            eps_N: Largest difference of each number, of the same shape.
        """
        stored = arrays["values"]
        low, high = values_N - eps_N, values_N + eps_N
        with np.errstate(over="ignore"):  # a bound may be beyond the range of float16
            if self.values == "float16":
                within = between(low.astype(np.float16), stored, high.astype(np.float16))
                return whole_rows(within & np.isfinite(stored))
            if self.values == "bfloat16":
                least, most = _from_bfloat16(_bfloat16(low)), _from_bfloat16(_bfloat16(high))
                found = _from_bfloat16(stored)
                return whole_rows(between(least, found, most) & np.isfinite(found))
            scaled = self._scale_within(arrays["scale"], values_N, eps_N)
        scale = np.expand_dims(arrays["scale"].astype(np.float32), self._shared)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            least, most = (np.clip(np.rint(bound / scale), -127, 127) for bound in (low, high))
        return scaled & whole_rows(between(least, stored, most))

    def _scale_within(
        self, scale: NDArray[Any], values_N: NDArray[np.float32], eps_N: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Return in which rows every scale may be that of features within eps."""
        size = np.abs(values_N)
        smallest = np.maximum(size - eps_N, 0).max(axis=self._shared) / np.float32(127)
        largest = (size + eps_N).max(axis=self._shared) / np.float32(127)
        within = between(float16_above(smallest), scale, float16_above(largest))
        may_be_zero = (smallest == 0) & (scale == 1)
        return whole_rows((within & (scale > 0) & np.isfinite(scale)) | may_be_zero)

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as JSON values."""
        values: dict[str, Any] = {
            "layout": self.layout,
            "shape": list(self.shape),
            "values": self.values,
            "grid": self.grid,
            "prefix_tokens": self.prefix_tokens,
            "kept_tokens": self.kept,
            "reduction": self.reduction,
            "standardised": self.standardized,
            "pool": self.pool,
            "sparse": self.sparse,
        }
        if self.values == "int8":
            values["scale_axes"] = self.scale_axes
        if self.principal is not None:
            values["principal"] = self.principal.to_json()
        return values


class _Stored(BaseModel):
    """The parameters as they are read: bounded before anything is allocated for them."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    layout: Layout
    shape: Annotated[list[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=1, max_length=3)]
    values: Values
    scale_axes: ScaleAxes = "channels"
    grid: Annotated[int, Field(ge=1, le=2**14)] | None
    prefix_tokens: Annotated[int, Field(ge=0, le=2**14)]
    kept_tokens: Annotated[int, Field(ge=1, le=2**20)] | None
    reduction: Reduction
    standardised: bool
    pool: Annotated[int, Field(ge=1, le=2**14)] | None
    sparse: bool
    principal: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        axes = {"NCHW": 3, "NLC": 2, "vector": 1}[self.layout]
        numbers = int(np.prod(self.shape, dtype=np.int64))
        if len(self.shape) != axes or numbers > _MOST_NUMBERS:
            raise ValueError(f"shape {self.shape} is not possible for layout {self.layout}")
        if self.layout == "NLC" and self.kept_tokens is not None:
            few = self.kept_tokens + self.prefix_tokens == self.shape[0]
            if self.grid is None or not few or self.kept_tokens > self.grid**2:
                raise ValueError("kept_tokens contradicts shape or grid")
        elif self.kept_tokens is not None:
            raise ValueError(f"kept_tokens is not possible for layout {self.layout}")
        return self


def parse_features(values: Mapping[str, Any], where: str) -> FeatureEncoding:
    """Parse the encoding in the attributes of a group.

    Raises:
        CacheError: This version does not know such an encoding.
    """
    try:
        stored = _Stored.model_validate(values)
        channels = stored.shape[0] if stored.layout == "NCHW" else stored.shape[-1]
        principal = (
            None if stored.principal is None else parse_principal(stored.principal, channels)
        )
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise CacheError(
            "the encoding of a group is invalid", where=where, got=detail[:200]
        ) from None
    return FeatureEncoding(
        layout=stored.layout,
        shape=tuple(stored.shape),
        values=stored.values,
        scale_axes=stored.scale_axes,
        grid=stored.grid,
        prefix_tokens=stored.prefix_tokens,
        kept=stored.kept_tokens,
        reduction=stored.reduction,
        standardized=stored.standardised,
        pool=stored.pool,
        principal=principal,
        sparse=stored.sparse,
    )


def _checked(
    stored: NDArray[np.float16], values: NDArray[np.float32], what: str
) -> NDArray[np.float16]:
    if np.isinf(stored).any():
        raise FeatureOverflow(
            f"{what} does not fit into float16",
            expected="at most 65504",
            got=float(np.abs(values).max()),
            hint="set values: bfloat16 for this tap, which has the range of float32",
        )
    return stored


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper halves of float32, rounded half to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    # a carry into the exponent is correct: it rounds up to the next power of two
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _from_bfloat16(stored: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return float32 with these upper halves."""
    return (stored.astype(np.uint32) << 16).view(np.float32)
