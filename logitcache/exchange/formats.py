"""Table of the formats of teacher outputs, with how each is recognized, read and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.errors import UsageError, nearest
from logitcache.exchange.numpy_files import open_npy, open_npz, write_npz
from logitcache.exchange.parquet_table import open_parquet, write_parquet
from logitcache.exchange.tinyvit import is_tinyvit, open_tinyvit, write_tinyvit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitcache.exchange.outputs import (
        ExportedOutputs,
        OutputFile,
        ReadSettings,
        WriteSettings,
    )

__all__ = ["FORMATS", "Format", "open_outputs"]


@dataclass(frozen=True)
class Format:
    """A format of teacher outputs.

    Attributes:
        open: Opens a file or folder.
        fits: Whether a path is in this format, by its name or its files.
        write: Writes outputs to a new path; None where it cannot.
        top_k: Number of classes that are written by default; None for those of the cache.
    """

    open: Callable[[Path, ReadSettings], OutputFile]
    fits: Callable[[Path], bool]
    write: Callable[[ExportedOutputs, Path, WriteSettings], None] | None = None
    top_k: int | None = None


FORMATS: dict[str, Format] = {
    "tinyvit": Format(open_tinyvit, is_tinyvit, write_tinyvit, top_k=100),
    "npz": Format(open_npz, lambda path: path.suffix.lower() == ".npz", write_npz),
    "npy": Format(open_npy, lambda path: path.suffix.lower() == ".npy"),
    "parquet": Format(open_parquet, lambda path: path.suffix.lower() == ".parquet", write_parquet),
}
"""Formats by name."""


def open_outputs(path: Path, name: str | None, settings: ReadSettings) -> OutputFile:
    """Open a file or folder of outputs.

    Args:
        path: The file or folder.
        name: Its format; recognized by default.
        settings: What the user states about it.

    Raises:
        UsageError: It does not exist, or is in no known format.
        DataError: It is damaged.
    """
    if not path.exists():
        raise UsageError("there is no such file or folder of outputs", where=path)
    if name is not None and name not in FORMATS:
        raise UsageError(
            f"unknown format {name!r}",
            where="--format",
            expected=" or ".join(FORMATS),
            hint=nearest(name, FORMATS),
        )
    known = [name] if name else [n for n, one in FORMATS.items() if one.fits(path)]
    if not known:
        raise UsageError(
            "the format of these outputs is not known",
            where=path,
            expected="a folder of record files of TinyViT, or a file .npz, .npy or .parquet",
            hint="choose it with --format",
        )
    return FORMATS[known[0]].open(path, settings)
