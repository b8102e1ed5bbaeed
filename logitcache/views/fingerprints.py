"""View fingerprints: parameters and pixels of a few views, to be compared on another machine.

Parameters are computed by the same arithmetic on every machine; pixels depend on libraries. So a
fingerprint distinguishes the two: other parameters mean another algorithm, other pixels another
library or processor. The comparison needs no teacher and takes a second.

Shapes: S side of the square, P side of the patch.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field, Strict, ValidationError

from logitcache.data.decode import DECODING, decode
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.operations import MAX_SIDE, SIDE
from logitcache.views.recipe import ViewId
from logitcache.views.render import finish, picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.views.parameters import Parameters
    from logitcache.views.spec import View

    Stored = bytes | NDArray[np.uint8]

__all__ = [
    "AT_LEAST",
    "Fingerprint",
    "FingerprintImage",
    "choose_fingerprints",
    "fingerprint_difference",
    "make_fingerprint",
]

AT_LEAST = 64
_AT_MOST = 192  # about a second of rendering at 224 pixels
_PATCH = 48


_Row = Annotated[int, Strict(), Field(ge=0, le=2**40)]
_Place = Annotated[int, Strict(), Field(ge=0, le=MAX_SIDE)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    """A fingerprint as JSON values."""

    view: ViewId
    row: _Row
    partner: _Row | None
    size: Annotated[int, Strict(), SIDE]
    parameters: _Digest
    pixels: _Digest
    at: tuple[_Place, _Place]
    patch: Annotated[str, Field(max_length=4 * _PATCH**2)]


@dataclass(frozen=True)
class FingerprintImage:
    """An image: its row, its stored form, and the hash of its key."""

    row: int
    stored: Stored
    hash: int


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of one view of one image.

    Attributes:
        view_id: Id of the view.
        row: Row of the image.
        partner: Row of the image that is mixed in; None where there is none.
        size: S.
        parameters: SHA-256 of the parameters, including those of the partner, hexadecimal.
        pixels: SHA-256 of the square, uint8 (3, S, S) in C order, hexadecimal.
        top: First row of pixels of the patch.
        left: First column of pixels of the patch.
        patch: Patch of the square, uint8 (3, P, P); P is 48, or S if that is less.
    """

    view_id: str
    row: int
    partner: int | None
    size: int
    parameters: str
    pixels: str
    top: int
    left: int
    patch: NDArray[np.uint8]

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as JSON values; the patch as base64 of its bytes in C order."""
        return {
            "view": self.view_id,
            "row": self.row,
            "partner": self.partner,
            "size": self.size,
            "parameters": self.parameters,
            "pixels": self.pixels,
            "at": [self.top, self.left],
            "patch": base64.b64encode(self.patch.tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Fingerprint:
        """Parse a fingerprint.

        Raises:
            ValueError: It is malformed.
        """
        try:
            record = _Record.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{place}: {first['msg']}") from None
        side = min(_PATCH, record.size)
        patch = np.frombuffer(base64.b64decode(record.patch, validate=True), dtype=np.uint8)
        top, left = record.at
        if max(top, left) > record.size - side:
            raise ValueError(
                f"a patch at {top}, {left} is outside of a square of {record.size} pixels"
            )
        return cls(
            view_id=record.view,
            row=record.row,
            partner=record.partner,
            size=record.size,
            parameters=record.parameters,
            pixels=record.pixels,
            top=top,
            left=left,
            patch=patch.reshape(3, side, side),
        )


def choose_fingerprints(
    view_ids: Sequence[str], segments: Iterable[NDArray[np.signedinteger]]
) -> list[tuple[str, int]]:
    """Choose the rows and views of fingerprints: at least 64, spread over views and segments.

    Args:
        view_ids: The views.
        segments: Readable rows of each segment.

    Returns:
        (view id, row), each once.
    """
    pairs = [(view_id, rows) for rows in segments for view_id in view_ids if len(rows)]
    pairs = pairs[:: max(1, -(-len(pairs) // _AT_MOST))]
    each = -(-AT_LEAST // max(1, len(pairs)))
    chosen: dict[tuple[str, int], None] = {}
    for number, (view_id, rows) in enumerate(pairs):
        count = min(each, len(rows))
        for index in range(count):
            position = (index * len(rows) // count + number) % len(rows)
            chosen[view_id, int(rows[position])] = None
    return list(chosen)


def make_fingerprint(
    view: View,
    size: int,
    image: FingerprintImage,
    partner: FingerprintImage | None,
    table: int = DECODING,
) -> Fingerprint:
    """Render one fingerprint.

    Args:
        view: The view.
        size: S.
        image: The image.
        partner: The image that is mixed in; None where there is none.
        table: Version of the table that images are decoded by.
    """
    how, own = _picture(view, size, image, table)
    other_how, other = (None, None) if partner is None else _picture(view, size, partner, table)
    document = [how.to_json(), None if other_how is None else other_how.to_json()]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    square = np.ascontiguousarray(finish(own, how, view.interpolation, other).numpy())
    side = min(_PATCH, size)
    room = size - side + 1
    top, left = image.hash % room, (image.hash // room) % room
    return Fingerprint(
        view_id=view.id,
        row=image.row,
        partner=None if partner is None else partner.row,
        size=size,
        parameters=hashlib.sha256(text.encode()).hexdigest(),
        pixels=hashlib.sha256(square.tobytes()).hexdigest(),
        top=top,
        left=left,
        patch=square[:, top : top + side, left : left + side].copy(),
    )


def fingerprint_difference(before: Fingerprint, now: Fingerprint) -> int | None:
    """Return the largest difference of a level in the patch; None where parameters differ.

    At least 1 where the squares differ anywhere.
    """
    if before.parameters != now.parameters:
        return None
    if before.pixels == now.pixels:
        return 0
    # int16, since a difference of uint8 wraps around
    levels = np.abs(before.patch.astype(np.int16) - now.patch.astype(np.int16))
    return max(1, int(levels.max()))


def _picture(
    view: View, size: int, image: FingerprintImage, table: int
) -> tuple[Parameters, Tensor]:
    decoded = decode(image.stored, table)
    floats = view_floats(view, np.array([image.hash], dtype=np.uint64))
    how = parameters(view, [row[0].tolist() for row in floats], *decoded.shape[1:])
    with torch.inference_mode():
        return how, picture(decoded, how, size, view.interpolation)
