"""Record files of TinyViT: fixed-size records of the K most probable classes.

Source: microsoft/Cream, folder TinyViT. Each epoch has a folder ``logits_top{K}_epoch{E}``, and in
it a text file of keys and a file of records for each process: an int32 seed of the augmentation, K
int16 class indices and K float16 probabilities at T = 1. A key is the name of an image, or its
position in an ``ImageFolder``. Nothing else is recorded.

Shapes: N rows, K stored classes.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.errors import DataError, UsageError, first_of
from logitcache.exchange.outputs import OutputFile, OutputRows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import BinaryIO, TextIO

    from numpy.typing import NDArray

    from logitcache.exchange.outputs import (
        ExportedOutputs,
        ExportedRows,
        ReadSettings,
        WriteSettings,
    )

__all__ = ["is_tinyvit", "open_tinyvit", "write_tinyvit"]

_FOLDER = re.compile(r"logits_top(\d+)_epoch(\d+)")
_RANK = re.compile(r"rank(\d+)-values\.bin")
_MOST_CLASSES = 2**15  # of int16
_AT_ONCE = 2**20


def record_dtype(top_k: int) -> np.dtype[Any]:
    """Return the data type of a record of K classes."""
    return np.dtype([("seed", "<i4"), ("ids", "<u2", (top_k,)), ("probs", "<f2", (top_k,))])


def is_tinyvit(path: Path) -> bool:
    """Return whether a folder has record files, or folders of epochs that have them."""
    return bool(_epochs(path))


def open_tinyvit(path: Path, settings: ReadSettings) -> OutputFile:
    """Open the records of one epoch or several; each is a view.

    Raises:
        UsageError: There are no record files.
        DataError: They are incomplete, or epochs have different images or numbers of classes.
    """
    folders = _epochs(path)
    if not folders:
        raise UsageError(
            "no record files of TinyViT were found",
            where=path,
            expected="folders logits_top{K}_epoch{E} with rank{R}-keys.txt and rank{R}-values.bin",
        )
    epochs = [_Epoch.of(folder) for folder in folders]
    first = epochs[0]
    for epoch in epochs[1:]:
        if epoch.top_k != first.top_k or epoch.places.keys() != first.places.keys():
            raise DataError(
                "the epochs of these record files do not fit together",
                where=epoch.folder,
                expected=f"the {len(first.places)} keys of {first.folder.name}, and top "
                f"{first.top_k}",
                got=f"{len(epoch.places)} keys, top {epoch.top_k}",
                hint="import one epoch: give its folder",
            )
    keys = list(first.places)
    return OutputFile(
        format="tinyvit",
        path=path,
        keys=keys,
        rows=len(keys),
        views=len(epochs),
        values="probabilities",
        top_k=first.top_k,
        num_classes=None,
        class_names=None,
        digest=_digest(epochs),
        read=partial(_read, epochs, keys),
    )


def _epochs(path: Path) -> list[Path]:
    """Return the folder of each epoch, in order."""
    if not path.is_dir():
        return []
    if any(_RANK.fullmatch(name) for name in _names(path)):
        return [path]
    numbered = [(int(found[2]), path / found[0]) for found in map(_match, _names(path)) if found]
    return [folder for _, folder in sorted(numbered)]


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def _match(name: str) -> re.Match[str] | None:
    return _FOLDER.fullmatch(name)


@dataclass(frozen=True)
class _Epoch:
    """The record files of one epoch.

    Attributes:
        folder: Their folder.
        top_k: Number of classes of a record, K.
        files: Files of records, by process.
        places: File and position of each image, by key.
    """

    folder: Path
    top_k: int
    files: tuple[Path, ...]
    places: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, folder: Path) -> _Epoch:
        """Read the keys of an epoch; of a key that several processes have, the first one counts.

        Raises:
            DataError: A file is missing, or its size does not fit the number of keys.
        """
        ranks = sorted(int(found[1]) for found in map(_RANK.fullmatch, _names(folder)) if found)
        files = tuple(folder / f"rank{rank}-values.bin" for rank in ranks)
        lists = [_keys(file) for file in files]
        top_k = _top_k(folder, files, lists)
        places: dict[str, tuple[int, int]] = {}
        for number, keys in enumerate(lists):
            for position, key in enumerate(keys):
                places.setdefault(key, (number, position))
        return cls(folder, top_k, files, places)

    @cached_property
    def records(self) -> list[NDArray[Any]]:
        """The records of each process, mapped into memory."""
        dtype = record_dtype(self.top_k)
        return [
            np.memmap(file, dtype, mode="r") if file.stat().st_size else np.empty(0, dtype)
            for file in self.files
        ]


def _keys(values: Path) -> list[str]:
    file = values.with_name(values.name.replace("-values.bin", "-keys.txt"))
    try:
        return [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the keys of a file of records cannot be read",
            where=file,
            expected="a text file with one key per line",
            got=error,
        ) from None


def _top_k(folder: Path, files: Sequence[Path], lists: Sequence[Sequence[str]]) -> int:
    """Return K, which the name of the folder or the sizes of the files tell."""
    named = _match(folder.name)
    counts = [(file.stat().st_size, len(keys)) for file, keys in zip(files, lists, strict=True)]
    size, keys = next((c for c in counts if c[1]), (0, 0))
    top_k = int(named[1]) if named else (size // max(1, keys) - 4) // 4
    for file, (size, rows) in zip(files, counts, strict=True):
        if top_k < 1 or size != rows * (4 * top_k + 4):
            raise DataError(
                "a file of records does not have the size that its keys require",
                where=file,
                expected=f"{rows} records of {4 * max(top_k, 1) + 4} bytes (top {max(top_k, 1)})",
                got=f"{size} bytes",
                hint="copy the file again; the folder has to be named logits_top{K}_epoch{E}",
            )
    return top_k


def _digest(epochs: Sequence[_Epoch]) -> str:
    """Return the SHA-256 over names, keys and records."""
    sha256 = hashlib.sha256()
    for epoch in epochs:
        for file in epoch.files:
            for part in (file.with_name(file.name.replace("values.bin", "keys.txt")), file):
                sha256.update(f"{part.name}\0{part.stat().st_size}\0".encode())
                with part.open("rb") as content:
                    while block := content.read(_AT_ONCE):
                        sha256.update(block)
    return sha256.hexdigest()


def _read(
    epochs: Sequence[_Epoch], keys: Sequence[str], view: int, rows_N: NDArray[np.int64]
) -> OutputRows:
    epoch = epochs[view]
    found = np.empty(len(rows_N), record_dtype(epoch.top_k))
    for place, row in enumerate(rows_N.tolist()):
        number, position = epoch.places[keys[row]]
        found[place] = epoch.records[number][position]
    return OutputRows(found["probs"], found["ids"].astype(np.int64))


def write_tinyvit(outputs: ExportedOutputs, out: Path, settings: WriteSettings) -> None:
    """Write a folder for each view, as if views were epochs.

    Args:
        outputs: The outputs, with a number of stored classes.
        out: A new folder.
        settings: Whether keys are names or positions.

    Raises:
        UsageError: There are more classes than class indices of 16 bits.
    """
    top_k = outputs.top_k
    assert top_k is not None
    if outputs.num_classes > _MOST_CLASSES:
        raise UsageError(
            "records of TinyViT have class indices of 16 bits",
            where=f"teacher {outputs.teacher}",
            expected=f"at most {_MOST_CLASSES} classes",
            got=f"{outputs.num_classes} classes",
            hint="choose another format: --format npz or parquet",
        )
    with ExitStack() as stack:
        files: dict[int, tuple[TextIO, BinaryIO]] = {}
        for rows in outputs.rows():
            if rows.view not in files:
                folder = out / f"logits_top{top_k}_epoch{rows.view}"
                folder.mkdir(parents=True)
                files[rows.view] = (
                    stack.enter_context((folder / "rank0-keys.txt").open("w", newline="\n")),
                    stack.enter_context((folder / "rank0-values.bin").open("wb")),
                )
            keys, values = files[rows.view]
            names = settings.named(rows.keys)
            _check_names(names)
            keys.writelines(f"{name}\n" for name in names)
            values.write(_records(rows, top_k).tobytes())


def _check_names(names: Sequence[str]) -> None:
    """Raise an error for keys that TinyViT would read as others: it strips white space."""
    changed = [name for name in names if name != name.strip()]
    if changed:
        raise UsageError(
            "names of images begin or end with white space, which TinyViT strips",
            got=first_of([repr(name) for name in changed]),
            hint="rename these files, or write positions: --keys positions",
        )


def _records(rows: ExportedRows, top_k: int) -> NDArray[Any]:
    records = np.zeros(len(rows.keys), record_dtype(top_k))
    records["seed"] = rows.view
    assert rows.class_ids is not None
    records["ids"] = rows.class_ids
    records["probs"] = half_probabilities(rows.log_probs)
    return records


def half_probabilities(log_probs_NK: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return probabilities as float16, to nearest; rounded down where their sum would exceed 1.

    Readers subtract the sum from 1, and a negative rest is no probability.
    """
    probs = np.exp(log_probs_NK.astype(np.float64))
    nearest = probs.astype(np.float16)
    below = np.where(nearest > probs, np.nextafter(nearest, np.float16(0)), nearest)
    over_N1 = nearest.sum(axis=1, dtype=np.float64, keepdims=True) > 1
    found: NDArray[np.float16] = np.where(over_N1, below, nearest).astype(np.float16)
    return found
