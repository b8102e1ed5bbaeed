"""Golden vectors: recipes, words, parameters and pixels that never change within a version.

Their synthetic images can be computed in any language, so a machine without data can check whether
it renders the same views as every other machine.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.data.decode import decode
from logitcache.draws import Purpose, words
from logitcache.errors import UsageError
from logitcache.views.algorithm import address_of, parameters, view_floats
from logitcache.views.render import finish, picture
from logitcache.views.spec import parse_view

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from logitcache.views.parameters import Parameters
    from logitcache.views.spec import View

__all__ = ["Example", "VectorReport", "check_vectors", "golden_files", "synthetic_image", "vector"]

_KINDS = {
    "words": ("words", "crop_words"),
    "parameters": ("id", "parameters", "box", "flip"),
    "pixels": ("sha256",),
}


@dataclass(frozen=True)
class Example:
    """A synthetic image: hash of its key, rows and columns of pixels."""

    hash: int
    height: int
    width: int


@dataclass
class VectorReport:
    """Result of the golden vectors.

    Attributes:
        vectors: Number of vectors.
        words: Descriptions of the vectors with other words.
        parameters: Descriptions of those with the same words and other parameters.
        pixels: Descriptions of those with the same parameters and other pixels.
    """

    vectors: int = 0
    words: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    pixels: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether every vector is equal to the recorded one."""
        return not (self.words or self.parameters or self.pixels)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "sound": self.sound}


def golden_files() -> list[Path]:
    """Return the files of vectors that come with logitcache.

    Raises:
        UsageError: They are not installed.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "golden", package.parent / "tests" / "golden"):
        found = sorted(folder.glob("*-1.json"))
        if found:
            return found
    raise UsageError(
        "the golden vectors are not installed",
        where=package / "golden",
        hint="install logitcache again: pip install --force-reinstall logitcache",
    )


def check_vectors(files: Iterable[Path]) -> VectorReport:
    """Compute golden vectors on this machine and compare them with the recorded ones."""
    report = VectorReport()
    for path in files:
        for written in json.loads(path.read_text()):
            report.vectors += 1
            kind = _difference(written)
            if kind is not None:
                operations = [operation["op"] for operation in written["view"]["operations"]]
                where = f"{written['height']} x {written['width']}"
                getattr(report, kind).append(f"{written['id']} {', '.join(operations)}: {where}")
    return report


def synthetic_image(height: int, width: int) -> NDArray[np.uint8]:
    """Return pixels that any language can compute: (37 y + 91 x + 53 c + x y) mod 256."""
    y, x, c = np.ogrid[:height, :width, :3]
    values: NDArray[np.uint8] = ((37 * y + 91 * x + 53 * c + x * y) % 256).astype(np.uint8)
    return values


def vector(
    view: View, image: Example, partner: Example | None, sizes: Sequence[int]
) -> dict[str, Any]:
    """Compute the golden vector of a view of a synthetic image.

    Returns:
        ``words``: the first four of each operation in hex; ``parameters``; ``sha256`` of the
        square, uint8 (3, S, S) in C order, by size.
    """
    how, shown = _pictures(view, image, sizes)
    mixed = {} if partner is None else _pictures(view, partner, sizes)[1]
    digests = {}
    for size, own in shown.items():
        square = finish(own, how, view.interpolation, mixed.get(size)).numpy()
        digests[str(size)] = hashlib.sha256(np.ascontiguousarray(square).tobytes()).hexdigest()
    return {
        "words": _words(view, image.hash),
        "parameters": how.to_json(),
        "sha256": digests,
    }


def _pictures(
    view: View, image: Example, sizes: Sequence[int]
) -> tuple[Parameters, dict[int, Tensor]]:
    decoded = decode(synthetic_image(image.height, image.width))
    floats = view_floats(view, np.array([image.hash], dtype=np.uint64))
    how = parameters(view, [row[0].tolist() for row in floats], image.height, image.width)
    return how, {size: picture(decoded, how, size, view.interpolation) for size in sizes}


def _words(view: View, hash_: int) -> dict[str, list[str]]:
    found = {}
    for operation in view.operations:
        purpose, count = address_of(operation)
        if count:
            drawn = words(view.seed, [hash_], draw=view.draw, purpose=purpose, count=min(4, count))
            found[operation.name] = [f"{int(word):016x}" for word in drawn[0]]
    return found


def _difference(written: dict[str, Any]) -> str | None:
    """Return the first difference, ``words``, ``parameters`` or ``pixels``; None without one."""
    view = parse_view(written["view"], written["id"])
    image = Example(int(written["hash"], 16), written["height"], written["width"])
    partner = None
    if written.get("partner"):
        other = written["partner"]
        partner = Example(int(other["hash"], 16), other["height"], other["width"])
    now = {"id": view.id} | vector(view, image, partner, [int(size) for size in written["sha256"]])
    if "crop_words" in written:
        now |= _of_crop_and_flip(view, image, now["parameters"])
    for kind, names in _KINDS.items():
        if any(written[name] != now[name] for name in names if name in written):
            return kind
    return None


def _of_crop_and_flip(
    view: View, image: Example, drawn: dict[str, Any]
) -> dict[str, list[str] | list[int] | bool | None]:
    """Return words and parameters in the form of the first vectors, of crops and flips only."""
    found = words(view.seed, [image.hash], draw=view.draw, purpose=Purpose.CROP, count=4)[0]
    return {
        "crop_words": [f"{int(word):016x}" for word in found],
        "box": drawn["crop"] if isinstance(drawn["crop"], list) else None,
        "flip": ["flip"] in drawn["steps"],
    }
