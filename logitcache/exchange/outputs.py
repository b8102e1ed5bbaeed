"""Teacher outputs in files of other programs: what all formats have in common.

Shapes: N rows, C classes, K stored classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from logitcache.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "VALUES",
    "ExportedOutputs",
    "ExportedRows",
    "OutputFile",
    "OutputRows",
    "ReadSettings",
    "Values",
    "WriteSettings",
    "logits_of",
]

Values = Literal["logits", "log_probs", "probabilities"]
"""What the numbers of a file are: raw logits, or log-probabilities or probabilities at T = 1."""

VALUES: tuple[Values, ...] = ("logits", "log_probs", "probabilities")
_LOWEST = float(np.log(2.0**-25))  # half of the smallest probability that float16 has
_MOST_EXCESS = 0.02  # sums of rounded probabilities; those of float16 exceed 1 by some 1e-4


@dataclass(frozen=True)
class ReadSettings:
    """What a user states about a file of outputs.

    Attributes:
        values: What the numbers are, where the file does not tell.
        keys: Text file with the names of the images, one per line, where the file has none.
    """

    values: Values | None = None
    keys: Path | None = None


@dataclass(frozen=True)
class WriteSettings:
    """How outputs are written.

    Attributes:
        positions: Position of each image in an ``ImageFolder``, by key, which replaces its name;
            None to write names.
    """

    positions: Mapping[str, int] | None = None

    def named(self, keys: Sequence[str]) -> list[str]:
        """Return names of images as they are written."""
        if self.positions is None:
            return list(keys)
        return [str(self.positions[key]) for key in keys]


@dataclass(frozen=True)
class OutputRows:
    """Outputs of some images in one view.

    Attributes:
        values: Numbers of the stored classes, (N, K), or of all classes, (N, C).
        class_ids: Indices of the stored classes, int64 (N, K); None where all are stored in order.
    """

    values: NDArray[np.floating]
    class_ids: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class OutputFile:
    """Outputs of one teacher, in one file or folder of another program.

    Attributes:
        format: Name of the format.
        path: The file or folder.
        keys: Names of the images; empty where rows are identified by their position alone.
        rows: Number of images.
        views: Number of outputs of each image.
        values: What the numbers are.
        top_k: Number of stored classes, K; None where all are stored.
        num_classes: Number of classes, C; None where the file does not tell.
        class_names: Names of the classes in order; None where the file does not tell.
        digest: SHA-256 of the content.
        read: Returns the outputs of some rows, int64 (N,), in the view with a number from 0.
    """

    format: str
    path: Path
    keys: Sequence[str]
    rows: int
    views: int
    values: Values
    top_k: int | None
    num_classes: int | None
    class_names: tuple[str, ...] | None
    digest: str
    read: Callable[[int, NDArray[np.int64]], OutputRows]


@dataclass(frozen=True)
class ExportedRows:
    """Some rows of a cache in one view.

    Attributes:
        view: Number of the view, from 0.
        keys: Names of the images.
        log_probs: Log-probabilities at T = 1, float32 (N, K), or of all classes, (N, C).
        class_ids: Indices of the K most probable classes, the most probable first, int64 (N, K);
            None where all are stored in order.
    """

    view: int
    keys: list[str]
    log_probs: NDArray[np.float32]
    class_ids: NDArray[np.int64] | None


@dataclass(frozen=True)
class ExportedOutputs:
    """Outputs of one teacher of a cache, to be written in another format.

    Attributes:
        teacher: Name of the teacher.
        revision: SHA-256 of the revision of the cache.
        views: Ids of the views.
        keys: Names of the images, in the order of the rows of a view.
        num_classes: Number of classes, C.
        top_k: Number of classes that are written, K; None for all.
        class_names: Names of the classes in order; empty without names.
        rows: Yields all rows, view by view.
    """

    teacher: str
    revision: str
    views: tuple[str, ...]
    keys: Sequence[str]
    num_classes: int
    top_k: int | None
    class_names: tuple[str, ...]
    rows: Callable[[], Iterator[ExportedRows]]


def logits_of(
    file: OutputFile, rows: OutputRows, num_classes: int, names: Sequence[str]
) -> NDArray[np.float32]:
    """Return outputs as logits of all classes, float32 (N, C).

    Where K classes are stored, the others share the remaining probability evenly. A probability of
    0 counts as 2^-25, half of the smallest one that float16 has.

    Args:
        file: The file, for its kind of numbers and for messages.
        rows: Outputs of some images.
        num_classes: C.
        names: Names of these images, for messages.

    Raises:
        DataError: The numbers are not of this kind, or a class is out of range.
    """
    values = rows.values.astype(np.float64)
    if file.values == "logits":
        _refuse(file, names, ~np.isfinite(values).all(axis=1), "logits that are not finite")
        return values.astype(np.float32)
    probs = np.exp(values) if file.values == "log_probs" else values
    sums_N = _checked_sums(file, names, probs, is_whole=rows.class_ids is None)
    with np.errstate(divide="ignore"):
        logs = values if file.values == "log_probs" else np.log(probs)
        rest_N = np.log(np.maximum(1.0 - sums_N, 0.0))
    if rows.class_ids is None:
        return np.maximum(logs, _LOWEST).astype(np.float32)
    ids = rows.class_ids
    _refuse(
        file, names, ((ids < 0) | (ids >= num_classes)).any(axis=1), f"a class of {num_classes}"
    )
    ordered = np.sort(ids, axis=1)
    _refuse(file, names, (np.diff(ordered, axis=1) == 0).any(axis=1), "a class twice")
    absent = max(1, num_classes - ids.shape[1])
    each_N1 = np.maximum(rest_N - np.log(absent), _LOWEST - np.log(absent))[:, None]
    found = np.repeat(each_N1, num_classes, axis=1)
    np.put_along_axis(found, ids, np.maximum(logs, each_N1), axis=1)
    return found.astype(np.float32)


def _checked_sums(
    file: OutputFile, names: Sequence[str], probs: NDArray[np.float64], *, is_whole: bool
) -> NDArray[np.float64]:
    """Return the sum of the probabilities of each row, (N,), after checking its range."""
    bad = ~np.isfinite(probs).all(axis=1) | (probs < 0).any(axis=1)
    _refuse(file, names, bad, "numbers that are not probabilities")
    sums_N: NDArray[np.float64] = probs.sum(axis=1)
    wrong = sums_N > 1 + _MOST_EXCESS
    if is_whole:
        wrong |= sums_N < 1 - _MOST_EXCESS
    _refuse(file, names, wrong, "probabilities with another sum than 1", sums_N)
    return sums_N


def _refuse(
    file: OutputFile,
    names: Sequence[str],
    bad_N: Any,
    what: str,
    numbers_N: NDArray[np.float64] | None = None,
) -> None:
    """Raise an error with the first of some bad rows."""
    if not bad_N.any():
        return
    first = int(np.flatnonzero(bad_N)[0])
    got = "" if numbers_N is None else f": {numbers_N[first]:.4g}"
    raise DataError(
        f"the outputs of an image cannot be used: {what}",
        where=f"{file.path}, {names[first]}",
        expected=f"finite {file.values.replace('_', '-')} of different classes in range",
        got=f"{what}{got}",
        hint="check what the numbers are (--values logits, log_probs or probabilities), and the "
        "number of classes",
    )
