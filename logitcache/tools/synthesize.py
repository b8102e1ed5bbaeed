"""Synthetic images made from others: warped, mixed with another one of the class, restyled.

They stand in for the images of a generator, which would be written to a folder in the same way. Of
each image two are drawn, the second of the same class; both are warped by a random affine map and a
smooth displacement, and averaged with random shares.

Shapes: H, W height and width of an image.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field, FiniteFloat
from torch.nn import functional

from logitcache.config import Config
from logitcache.data.decode import decode
from logitcache.data.identity import key_hash
from logitcache.data.png import encoded_png
from logitcache.data.readers import DataConfig, open_source
from logitcache.draws import Purpose, unit_floats, words
from logitcache.errors import DataError, UsageError
from logitcache.files import PARTIAL, make_folder
from logitcache.label_sets import label_sets_of
from logitcache.tools.result import ToolResult

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.data.source import Source

__all__ = ["SynthesizeConfig", "SyntheticImages", "synthesize"]

_WORDS = 24  # 2 choose images, 1 the share, 5 and 5 the affine maps; the displacement is cut short
_TURN, _SCALE = 0.25 * np.pi, 0.25  # of a warp of 1: radians, and share of the size
_COARSE = 3  # control points of the displacement along a side


class SynthesizeConfig(Config):
    """Settings of synthetic images.

    Attributes:
        data: The images that they are made from.
        out: Folder to write them to, as PNG: below a folder for each class, if they have classes.
        count: Number of images; by default one for each image, which keeps its key.
        warp: Strength of the warp, 0 for none; 1 is up to 45 degrees and a quarter of the size.
        mix: Largest share of the second image, 0 for none.
        tone: Values that black and white get, between 0 and 1 or beyond (``[1, 0]`` inverts), by a
            line; results are cut off at 0 and 1.
        noise: Standard deviation of noise that is added last, of values between 0 and 1.
        seed: Random seed.
    """

    data: DataConfig
    out: str
    count: Annotated[int, Field(ge=1)] | None = None
    warp: Annotated[float, Field(ge=0, le=1)] = 0.0
    mix: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    tone: tuple[FiniteFloat, FiniteFloat] = (0.0, 1.0)
    noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0


@dataclass(frozen=True)
class SyntheticImages(ToolResult):
    """A folder of synthetic images.

    Attributes:
        folder: The folder.
        images: Number of images.
        made_from: Number of images that they are made from.
        data: Description of these images.
    """

    folder: str
    images: int
    made_from: int
    data: str


def synthesize(config: SynthesizeConfig, *, replace: bool = False) -> SyntheticImages:
    """Write synthetic images to a new folder.

    Args:
        config: The images, and how they are changed.
        replace: Whether an existing folder is removed with all of its files, as the pipeline does
            with the folder of a stage.

    Raises:
        UsageError: The folder exists, is not empty, and is not to be replaced.
        DataError: Images are to be mixed, but have no labels or several.
        UnreadableImage: An image cannot be decoded.
    """
    out = Path(config.out)
    if not replace and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(
            "synthetic images are written to a new folder",
            where=out,
            expected="a folder that does not exist, or an empty one",
            got="an existing one, whose files would be removed" if out.is_dir() else "a file",
            hint="choose another folder with --out, or remove this one",
        )
    source = open_source(config.data)
    if label_sets_of(source) is not None:
        raise DataError(
            "images with several classes cannot be written to class folders",
            where=source.description,
            expected="at most one class per image",
        )
    if config.mix and not (np.asarray(source.labels) >= 0).all():
        raise DataError(
            "images are mixed within their class, but some have no label",
            where=source.description,
            hint="leave out mix, or give labeled images",
        )
    partial = out.with_name(f"{out.name}{PARTIAL}")
    make_folder(out.parent)
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    count = len(source.keys) if config.count is None else config.count
    for number in range(count):
        place, pixels = _image(config, source, number)
        (partial / place).parent.mkdir(parents=True, exist_ok=True)
        (partial / place).write_bytes(encoded_png(pixels))
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return SyntheticImages(str(out), count, len(source.keys), source.description)


def _image(config: SynthesizeConfig, source: Source, number: int) -> tuple[str, NDArray[np.uint8]]:
    """Return the path of a synthetic image below the folder, and its pixels (H, W, 3)."""
    labels = np.asarray(source.labels)
    own = f"{number:06d}" if config.count is not None else source.keys[number]
    drawn = words(
        config.seed, [key_hash(own)], draw=0, purpose=Purpose.SYNTHETIC_IMAGE, count=_WORDS
    )
    floats = unit_floats(drawn)[0]
    first = number if config.count is None else int(floats[0] * len(labels))
    image = _warped(_decoded(source, first), floats[3:13], config.warp)
    if config.mix:
        same = np.flatnonzero(labels == labels[first])
        second = _decoded(source, int(same[int(floats[1] * len(same))]))
        other = _warped(second, floats[13:23], config.warp)
        other = functional.interpolate(other[None], image.shape[1:], mode="bilinear")[0]
        share = config.mix * float(floats[2])
        image = (1 - share) * image + share * other
    black, white = config.tone
    image = black + (white - black) * image
    if config.noise:
        image = image + config.noise * _noise(config.seed, own, tuple(image.shape))
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    folder = source.class_names[labels[first]] if labels[first] >= 0 else ""
    name = own.replace("/", "_").rpartition(".")
    return str(Path(folder, f"{name[0] or name[2]}.png")), pixels


def _decoded(source: Source, index: int) -> Tensor:
    """Return an image as values between 0 and 1, float32 (3, H, W)."""
    return decode(source.read(index)).float() / 255


def _warped(image: Tensor, floats: NDArray[np.float64], strength: float) -> Tensor:
    """Return an image after a random affine map and a smooth displacement.

    Args:
        image: float32 (3, H, W).
        floats: Ten unit floats.
        strength: See :class:`SynthesizeConfig`.
    """
    if not strength:
        return image
    turn, wide, high, right, down, *bend = (strength * (2 * floats - 1)).tolist()
    cosine, sine = np.cos(_TURN * turn), np.sin(_TURN * turn)
    wide, high = 1 + _SCALE * wide, 1 + _SCALE * high
    matrix = torch.tensor(
        [[wide * cosine, -high * sine, _SCALE * right], [wide * sine, high * cosine, _SCALE * down]]
    )
    grid = functional.affine_grid(matrix[None].float(), [1, *image.shape], align_corners=False)
    # displacements at the middle and the sides of a coarse grid, smooth between them
    coarse = torch.zeros(1, 2, _COARSE, _COARSE)
    coarse[0, 0, 1, :] = torch.tensor([bend[0], bend[1], bend[2]]) * _SCALE
    coarse[0, 1, :, 1] = torch.tensor([bend[2], bend[3], bend[4]]) * _SCALE
    smooth = functional.interpolate(
        coarse, image.shape[1:], mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    return functional.grid_sample(
        image[None], grid + smooth, padding_mode="border", align_corners=False
    )[0]


def _noise(seed: int, key: str, shape: tuple[int, ...]) -> Tensor:
    """Return approximately normal noise: sums of four uniform numbers, scaled to variance one."""
    count = int(np.prod(shape))
    drawn = words(seed, [key_hash(key)], draw=1, purpose=Purpose.SYNTHETIC_IMAGE, count=4 * count)
    sums = unit_floats(drawn)[0].reshape(count, 4).sum(1) - 2
    return torch.from_numpy((sums * np.sqrt(3)).reshape(shape).astype(np.float32))
