"""Outputs in files of numpy: ``.npz`` with names of images, and a single array as ``.npy``.

Arrays of an ``.npz``:

=========== ============================================================================
name        is
=========== ============================================================================
keys        names of the images, (N,); without it, images are identified by position
logits, log_probs or probabilities: outputs, (N, C) or (V, N, C), or K instead of C
class_ids   indices of the K classes that are stored, of the same shape; absent if all are
class_names names of the C classes, (C,)
=========== ============================================================================

Files are never unpickled. Shapes: V views, N rows, C classes, K stored classes.
"""

from __future__ import annotations

import hashlib
import zipfile
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.errors import DataError, UsageError
from logitcache.exchange.outputs import VALUES, OutputFile, OutputRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.exchange.outputs import (
        ExportedOutputs,
        ExportedRows,
        ReadSettings,
        Values,
        WriteSettings,
    )

__all__ = ["array_outputs", "open_npy", "open_npz", "read_lines", "write_npz"]

_AT_ONCE = 2**20


def open_npz(path: Path, settings: ReadSettings) -> OutputFile:
    """Open an ``.npz`` file; its arrays are read into memory.

    Raises:
        DataError: It cannot be read, or arrays have shapes that do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    present = [name for name in VALUES if name in arrays]
    if len(present) != 1:
        raise DataError(
            "the file has no array of outputs, or several",
            where=path,
            expected=f"one of {', '.join(VALUES)}",
            got=", ".join(arrays) or "no array",
        )
    names = arrays.get("class_names")
    keys = read_lines(settings.keys) if settings.keys else _texts(arrays.get("keys", ()))
    return array_outputs(
        "npz",
        path,
        arrays[present[0]],
        arrays.get("class_ids"),
        keys,
        present[0],
        None if names is None else tuple(_texts(names)),
    )


def open_npy(path: Path, settings: ReadSettings) -> OutputFile:
    """Open a single array, (N, C) or (V, N, C), which is mapped into memory.

    Raises:
        UsageError: The user has not stated what the numbers are.
        DataError: It cannot be read, or has another shape.
    """
    if settings.values is None:
        raise UsageError(
            "an .npy file does not state what its numbers are",
            where=path,
            expected=f"--values {' or '.join(VALUES)}",
        )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from None
    keys = read_lines(settings.keys) if settings.keys else []
    return array_outputs("npy", path, array, None, keys, settings.values, None)


def array_outputs(
    format_: str,
    path: Path,
    values: NDArray[Any],
    class_ids: NDArray[Any] | None,
    keys: Sequence[str],
    kind: Values,
    class_names: tuple[str, ...] | None,
) -> OutputFile:
    """Return outputs in arrays as a file of outputs, after checking their shapes.

    Raises:
        DataError: Shapes or data types do not fit.
    """
    _check_arrays(path, values, class_ids, keys, kind, class_names)
    values_VNK = values if values.ndim == 3 else values[None]
    ids_VNK = class_ids if class_ids is None or class_ids.ndim == 3 else class_ids[None]
    width = values_VNK.shape[2]
    return OutputFile(
        format=format_,
        path=path,
        keys=keys,
        rows=values_VNK.shape[1],
        views=len(values_VNK),
        values=kind,
        top_k=None if ids_VNK is None else width,
        num_classes=width if ids_VNK is None else len(class_names or ()) or None,
        class_names=class_names,
        digest=_digest(path),
        read=partial(_read, values_VNK, ids_VNK),
    )


def _check_arrays(
    path: Path,
    values: NDArray[Any],
    class_ids: NDArray[Any] | None,
    keys: Sequence[str],
    kind: Values,
    class_names: tuple[str, ...] | None,
) -> None:
    """Raise an error if shapes or data types do not fit."""
    faults = {
        f"an array of {values.dtype}": values.dtype.kind != "f",
        f"outputs of the shape {values.shape}": values.ndim not in (2, 3) or 0 in values.shape,
        "keys of another number of images": bool(len(keys)) and len(keys) != values.shape[-2],
        f"{len(class_names or ())} class names": class_ids is None
        and class_names is not None
        and len(class_names) != values.shape[-1],
        "raw logits of some classes alone": class_ids is not None and kind == "logits",
        "class_ids of another shape": class_ids is not None
        and (class_ids.shape != values.shape or class_ids.dtype.kind not in "iu"),
    }
    found = [text for text, holds in faults.items() if holds]
    if found:
        raise DataError(
            "the arrays of outputs cannot be used",
            where=path,
            expected="floating-point numbers of shape (images, classes) or (views, images, "
            "classes), and a key for each image",
            got=found[0],
        )


def _read(
    values_VNK: NDArray[Any],
    ids_VNK: NDArray[Any] | None,
    view: int,
    rows_N: NDArray[np.int64],
) -> OutputRows:
    ids = None if ids_VNK is None else ids_VNK[view][rows_N].astype(np.int64)
    return OutputRows(np.asarray(values_VNK[view][rows_N]), ids)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        UsageError: It cannot be read.
    """
    try:
        return path.read_text("utf-8-sig").splitlines()  # editors of Windows write a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "a list of names cannot be read",
            where=path,
            expected="a text file in UTF-8 with one name per line",
            got=error,
        ) from None


def _texts(array: Any) -> list[str]:
    return [str(text) for text in np.asarray(array, dtype=np.str_).reshape(-1)]


def _digest(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_AT_ONCE):
            sha256.update(block)
    return sha256.hexdigest()


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        "a file of outputs cannot be read",
        where=path,
        expected="arrays of numbers or texts, without pickled objects",
        got=error,
    )


def write_npz(outputs: ExportedOutputs, out: Path, settings: WriteSettings) -> None:
    """Write the arrays ``keys``, ``views``, ``class_names``, ``log_probs`` and ``class_ids``.

    Outputs are written row by row, one array after the other.
    """
    small: Mapping[str, list[str]] = {
        "keys": settings.named(outputs.keys),
        "views": list(outputs.views),
        "class_names": list(outputs.class_names),
    }
    width = outputs.top_k or outputs.num_classes
    shape = (len(outputs.views), len(outputs.keys), width)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, texts in small.items():
            if texts:
                with archive.open(_member(name), "w") as file:
                    np.lib.format.write_array(file, np.array(texts, np.str_), allow_pickle=False)
        _write_rows(archive, "log_probs", shape, "<f4", (r.log_probs for r in outputs.rows()))
        if outputs.top_k is not None:
            _write_rows(archive, "class_ids", shape, "<i4", _ids(outputs.rows()))


def _ids(rows: Iterator[ExportedRows]) -> Iterator[NDArray[Any]]:
    for some in rows:
        assert some.class_ids is not None
        yield some.class_ids


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member of an archive with a fixed time, so that equal outputs are equal files."""
    return zipfile.ZipInfo(f"{name}.npy")


def _write_rows(
    archive: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    parts: Iterator[NDArray[Any]],
) -> None:
    """Write an array of known shape, part by part."""
    with archive.open(_member(name), "w", force_zip64=True) as file:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())
