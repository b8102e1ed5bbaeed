"""Configuration of the encoding of features, and checks that a layer supports it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from logitcache.config import Config, Former
from logitcache.encoding.features import FeatureEncoding, Layout, Reduction, Values
from logitcache.errors import UsageError

__all__ = ["FeatureConfig", "feature_encoding"]


class FeatureConfig(Config):
    """Encoding of a tap.

    Attributes:
        values: ``float16``; ``bfloat16`` for a larger range; ``int8`` with scales.
        scale: Scales of int8: one for every ``token`` (position of a map) or every ``channel``.
        reduce: ``mean`` over positions, ``energy`` (mean square over channels), or ``none``.
        standardize: Whether each channel of a map gets mean 0 and standard deviation 1 over its
            positions (NFD).
        pool: Side of the grid to which maps, or patch tokens, are averaged.
        tokens: Number of positions that are stored, drawn for every image and view.
        prefix: Whether class token and registers are stored as well.
        principal: Number of principal directions of the channels to store, fitted on a sample.
        views: Number of the teacher's views to store, the first ones; all by default.
    """

    values: Values = "float16"
    scale: Literal["token", "channel"] = "token"
    reduce: Reduction = "none"
    standardize: bool = False
    former: ClassVar[Former] = Former(keys={"standardise": "standardize"})
    pool: Annotated[int, Field(ge=1)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    prefix: bool = True
    principal: Annotated[int, Field(ge=1)] | None = None
    views: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.reduce != "none" and self.tokens is not None:
            raise ValueError(
                f"reduce={self.reduce} leaves no tokens to select: set reduce or tokens"
            )
        if self.reduce == "mean" and (self.pool is not None or self.standardize):
            raise ValueError(
                "reduce=mean leaves no positions for pool or standardize: set one of them"
            )
        if self.principal is not None and (self.reduce == "energy" or self.standardize):
            raise ValueError(
                "principal cannot be combined with reduce=energy or standardize: set one"
            )
        return self


def feature_encoding(
    config: FeatureConfig,
    layout: Layout,
    shape: tuple[int, ...],
    *,
    grid: int | None,
    prefix_tokens: int,
    where: str,
    shown: tuple[int, int] | None = None,
) -> FeatureEncoding:
    """Return the encoding of a tap, without what is fitted on a sample.

    Args:
        config: Requested encoding.
        layout: Layout of the tap.
        shape: Shape of one of its rows.
        grid: Side of the square grid of its positions; None if they do not form one.
        prefix_tokens: Number of its leading tokens that are not patches.
        where: The tap, for error messages.
        shown: Patches along a side, and the number of those that the network is run on; None for
            all patches.

    Raises:
        UsageError: The tap does not support what is requested.
    """
    rows = _stored(config, _Rows(layout, shape, grid, prefix_tokens), shown, where)
    return FeatureEncoding(
        layout=rows.layout,
        shape=_projected(config, rows),
        values=config.values,
        scale_axes="positions" if config.scale == "channel" else "channels",
        grid=rows.grid,
        prefix_tokens=rows.prefix_tokens,
        kept=rows.kept,
        reduction=config.reduce,
        standardized=config.standardize,
        pool=config.pool,
    )


class _Rows(NamedTuple):
    """Layout and shape of rows between two reductions."""

    layout: Layout
    shape: tuple[int, ...]
    grid: int | None
    prefix_tokens: int
    kept: int | None = None

    @property
    def channels(self) -> int:
        return self.shape[0 if self.layout == "NCHW" else -1]


def _reduced(config: FeatureConfig, rows: _Rows) -> _Rows:
    """Return the rows after ``reduce``, ``prefix`` and ``pool``."""
    if rows.layout == "vector":
        return rows
    if config.reduce == "mean":
        return _Rows("vector", (rows.channels,), None, 0)
    grid = config.pool or rows.grid
    if config.reduce == "energy":
        assert grid is not None  # checked
        return _Rows("NCHW", (1, grid, grid), grid, 0)
    if rows.layout == "NCHW":
        shape = rows.shape if grid is None else (rows.channels, grid, grid)
        return _Rows("NCHW", shape, grid, 0)
    prefix = rows.prefix_tokens if config.prefix else 0
    patches = rows.shape[0] - rows.prefix_tokens if config.pool is None else config.pool**2
    return _Rows("NLC", (prefix + patches, rows.channels), grid, prefix)


def _subsampled(config: FeatureConfig, rows: _Rows, where: str) -> _Rows:
    """Return the rows after ``tokens``."""
    if config.tokens is None:
        return rows
    assert rows.grid is not None  # checked
    if config.tokens > rows.grid**2:
        raise UsageError(
            "more tokens are requested than the tap has positions",
            where=where,
            expected=f"at most {rows.grid**2}",
            got=config.tokens,
        )
    shape = (rows.prefix_tokens + config.tokens, rows.channels)
    kept = config.tokens if config.tokens < rows.grid**2 else None
    return _Rows("NLC", shape, rows.grid, rows.prefix_tokens, kept)


def _projected(config: FeatureConfig, rows: _Rows) -> tuple[int, ...]:
    """Return the shape after ``principal``."""
    if config.principal is None:
        return rows.shape
    if rows.layout == "NCHW":
        return (config.principal, *rows.shape[1:])
    return (*rows.shape[:-1], config.principal)


def _stored(config: FeatureConfig, rows: _Rows, shown: tuple[int, int] | None, where: str) -> _Rows:
    """Return the rows after all reductions but ``principal``."""
    _check_supported(config, rows, where)
    if shown is not None:
        return _of_shown(config, rows, shown, where)
    return _subsampled(config, _reduced(config, rows), where)


def _of_shown(config: FeatureConfig, rows: _Rows, shown: tuple[int, int], where: str) -> _Rows:
    """Return the rows of a network that is run on some of the patches, after ``reduce``.

    Raises:
        UsageError: The layer or a setting needs all patches.
    """
    grid, patches = shown
    whole = [n for n in ("pool", "tokens", "standardize") if getattr(config, n)]
    whole += ["reduce energy"] if config.reduce == "energy" else []
    if rows.layout == "NCHW" or (rows.layout == "NLC" and rows.grid != grid) or whole:
        raise UsageError(
            "these features cannot be cached in views that drop patches",
            where=where,
            expected=f"tokens of a grid of {grid} x {grid} patches, without {', '.join(whole)}"
            if whole
            else f"tokens of a grid of {grid} x {grid} patches, or a vector",
            got=f"{rows.layout} {rows.shape}",
            hint="choose a block of a vision transformer, or set patch_drop_rate: 0",
        )
    rows = _reduced(config, rows)
    if rows.layout == "vector":
        return rows
    return rows._replace(shape=(rows.prefix_tokens + patches, rows.channels), kept=patches)


def _check_supported(config: FeatureConfig, rows: _Rows, where: str) -> None:
    """Refuse settings that a tap of this layout does not support."""
    settings = {
        "reduce": config.reduce != "none",
        "pool": config.pool is not None,
        "tokens": config.tokens is not None,
        "standardize": config.standardize,
        "scale channel": config.values == "int8" and config.scale == "channel",
    }
    used = ", ".join(name for name, is_set in settings.items() if is_set)
    if rows.layout == "vector" and used:
        what = f"the output of this tap is a vector, which does not support {used}"
        raise UsageError(what, where=where)
    if config.standardize and rows.layout != "NCHW":
        what = "standardize requires a feature map, and the output of this tap are tokens"
        raise UsageError(what, where=where)
    square = config.pool is not None or config.reduce == "energy" or config.tokens is not None
    if square and rows.layout != "vector" and rows.grid is None:
        what = "pool, tokens and reduce=energy require positions that form a square grid"
        raise UsageError(what, where=where, got=f"rows of shape {rows.shape}")
    if config.pool is not None and rows.grid is not None and config.pool > rows.grid:
        raise UsageError(
            "pool is larger than the grid of positions of this tap",
            where=where,
            expected=f"at most {rows.grid}",
            got=config.pool,
        )
    if config.principal is not None and config.principal >= rows.channels:
        raise UsageError(
            "principal is not smaller than the number of channels of this tap",
            where=where,
            expected=f"fewer than {rows.channels}",
            got=config.principal,
        )
