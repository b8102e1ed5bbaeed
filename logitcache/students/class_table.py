"""Class tables: files with one vector for each class, such as text embeddings of their names.

Shapes: C classes, D channels.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from logitcache.errors import UsageError, first_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["ClassTable", "read_class_table"]

_FORMS = (
    ".safetensors or .npz with a vector (D,) under the name of each class, or .npy with a row "
    "(C, D) for each"
)


@dataclass(frozen=True)
class ClassTable:
    """Vectors of classes.

    Attributes:
        vectors: float32 (C, D).
        names: Names of the classes in the order of the rows; None where the file has none.
        path: The file.
    """

    vectors: Tensor
    names: tuple[str, ...] | None
    path: Path

    def rows_of(self, names: Sequence[str] | None, classes: int) -> list[int]:
        """Return the rows of the classes of a student, in the order of its outputs.

        Args:
            names: Names of its classes; None if they are not known.
            classes: Number of its classes.

        Raises:
            UsageError: The table lacks one of them, or has rows without names for another number.
        """
        if self.names is None or names is None:
            if len(self.vectors) != classes:
                raise UsageError(
                    "the class table has another number of rows than there are classes",
                    where=self.path,
                    expected=f"{classes} rows, in the order of the classes",
                    got=f"{len(self.vectors)} rows",
                    hint="give a table with the names of the classes (.npz or .safetensors)",
                )
            return list(range(classes))
        lacking = [name for name in names if name not in self.names]
        if lacking:
            raise UsageError(
                f"the class table lacks {len(lacking)} of the {len(names)} classes",
                where=self.path,
                expected=first_of(lacking),
                got=first_of(list(self.names)),
                hint="add a vector for each of them, under the name that the images have",
            )
        return [self.names.index(name) for name in names]


def read_class_table(path: Path) -> ClassTable:
    """Read a class table; the format follows from the ending of its name.

    Args:
        path: A file with one vector of D numbers for each class: ``.npz`` and ``.safetensors``
            under its name, ``.npy`` as rows of one array.

    Raises:
        UsageError: The file cannot be read, or does not have vectors of one length.
    """
    try:
        if path.suffix == ".safetensors":
            named = load_file(path)
        else:
            found = np.load(path, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return ClassTable(_vectors(path, found), None, path)
            with found as archive:
                named = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
        raise _unreadable(path, str(error).partition("\n")[0] or type(error).__name__) from None
    shapes = {vector.shape for vector in named.values()}
    if len(shapes) != 1:
        raise _unreadable(path, f"arrays of the shapes {first_of(sorted(map(str, shapes)))}")
    return ClassTable(_vectors(path, np.stack(list(named.values()))), tuple(named), path)


def _vectors(path: Path, found: NDArray[np.generic]) -> Tensor:
    if found.ndim != 2 or found.dtype.kind != "f" or not np.isfinite(found).all():
        raise _unreadable(path, f"an array of {found.dtype} and shape {found.shape}")
    return torch.from_numpy(found.astype(np.float32))


def _unreadable(path: Path, got: str) -> UsageError:
    return UsageError(
        "this is not a class table",
        where=path,
        expected=f"{_FORMS}; finite floating-point numbers",
        got=got,
        hint="numpy.savez(FILE, **{name: vector}) writes one",
    )
