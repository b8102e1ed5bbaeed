"""Parts of the root manifest: images in the cache, and measured losses."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

__all__ = [
    "Count",
    "FeatureFidelityRecord",
    "FidelityRecord",
    "ImagesRecord",
    "LossRecord",
    "Record",
    "SquaresRecord",
    "StoredRecords",
]

Count = Annotated[int, Field(ge=0, le=2**40)]
"""Number of rows."""


class Record(BaseModel):
    """A part of the manifest: immutable; what a newer version added is kept and ignored."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class ImagesRecord(Record):
    """How the images in a cache were encoded.

    Attributes:
        kind: ``packed``: every image was decoded, resized and encoded once as JPEG.
        side: Largest length of the shorter side in pixels.
        quality: JPEG quality.
        unit_rows: Rows per unit of the images.
    """

    kind: Literal["packed"]
    side: int = Field(ge=1, le=4096)
    quality: int = Field(ge=1, le=100)
    unit_rows: int = Field(ge=1, le=65536)


class SquaresRecord(Record):
    """How the rendered views in a cache were encoded.

    Attributes:
        side: Side of every square in pixels.
        quality: JPEG quality.
        unit_rows: Rows per unit of the squares of a view.
    """

    side: int = Field(ge=1, le=4096)
    quality: int = Field(ge=1, le=100)
    unit_rows: int = Field(ge=1, le=65536)


class StoredRecords(TypedDict, total=False):
    """What a cache contains of its images, by field of the manifest; empty for nothing."""

    images: ImagesRecord
    squares: SquaresRecord


class LossRecord(Record):
    """Encoding loss at one temperature; see :class:`logitcache.encoding.fidelity.Loss`.

    Attributes:
        kl_truncation: KL divergence by leaving classes out, in nats.
        kl_coding: KL divergence by rounding, in nats.
        gradient_error: Relative error of the gradient of the loss.
    """

    kl_truncation: FiniteFloat
    kl_coding: FiniteFloat
    gradient_error: FiniteFloat


class FidelityRecord(Record):
    """Measured encoding loss of a teacher's outputs on a sample of their rows.

    Attributes:
        rows: Number of rows of the sample.
        top1: Share of them whose most probable class is kept.
        temperatures: Encoding loss by temperature, as text.
    """

    rows: Count
    top1: FiniteFloat
    temperatures: dict[str, LossRecord] = Field(max_length=64)


class FeatureFidelityRecord(Record):
    """Measured encoding loss of the features of a tap.

    See :class:`logitcache.encoding.feature_fidelity.FeatureFidelity`.
    """

    rows: Count
    reduction: FiniteFloat | None
    coding: FiniteFloat
    error: FiniteFloat
    cosine: FiniteFloat
    gradient: FiniteFloat
