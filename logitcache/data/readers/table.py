"""Listing of CSV and TSV files: a column of paths, and columns of classes and splits.

Keys are the paths relative to the root, so a table, the folder of its images and a tar file of them
have the same keys.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from logitcache.data.classes import class_name, sorted_classes
from logitcache.data.identity import normalize_key
from logitcache.data.listing import ListedFile, Listing
from logitcache.data.readers.files import FileSource
from logitcache.errors import DataError, UsageError, first_of, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["open_table"]

# names of columns, without case, that are recognized if no other column has such a name
_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img_path")
_LABELS = ("label", "class", "class_name", "category", "target")
_SPLIT = ("split",)
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class _Row(NamedTuple):
    line: int
    path: str
    label: str
    split: str


def open_table(config: ReaderConfig, listing: int) -> FileSource:
    """List the images of a CSV or TSV file with a header.

    Classes are numbered over the rows of all splits, so training and validation images have the
    same numbers. Rows with an empty class are images without a label.

    Raises:
        UsageError: There is no such column, or several may be meant.
        DataError: The table cannot be read, images are missing or listed twice, or there are none.
    """
    del listing  # the rules are those of folders: what a table lists is never left out
    path = Path(config.name).expanduser()
    root = path.parent if config.root is None else Path(config.root).expanduser()
    rows = _read(path, config)
    names = sorted_classes({row.label for row in rows if row.label})
    chosen = _of_split(rows, config.split, path)
    files = _files(chosen, path, root)
    number = {name: index for index, name in enumerate(names)}
    left_out = {"rows of other splits": len(rows) - len(chosen)} if len(rows) > len(chosen) else {}
    unlabeled = sum(not file.folder for file in files)
    notes = [f"{unlabeled} images of the table have no label"] if names and unlabeled else []
    labels = [number.get(file.folder, -1) for file in files]
    return FileSource(root, Listing(files, labels, names, left_out, notes), f"table {path}")


def _read(path: Path, config: ReaderConfig) -> list[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
            header = [name.strip() for name in next(reader, [])]
            at = _positions(header, config, path)
            rows = [_row(reader.line_num, values, header, at, path) for values in reader if values]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "the table of images cannot be read",
            where=path,
            expected="a CSV or TSV file in UTF-8 with a header",
            got=error,
        ) from None
    if not rows:
        raise DataError("the table has no images", where=path, expected="a header and rows")
    return rows


def _positions(header: Sequence[str], config: ReaderConfig, path: Path) -> list[int | None]:
    """Return the positions of the columns of paths, classes and splits; None for no column."""
    columns = (config.path_column, config.label_column, config.split_column)
    usual = zip(("path", "label", "split"), columns, (_PATHS, _LABELS, _SPLIT), strict=True)
    return [_position(header, *one, path) for one in usual]


def _position(
    header: Sequence[str], kind: str, name: str | None, usual: Sequence[str], path: Path
) -> int | None:
    if name is not None:
        if header.count(name) != 1:
            raise UsageError(
                f"the table has no column {name!r}"
                if name not in header
                else f"the table has several columns {name!r}",
                where=path,
                expected=f"one of {', '.join(header)}",
                hint=nearest(name, header),
            )
        return header.index(name)
    found = [position for position, own in enumerate(header) if own.lower() in usual]
    if len(found) > 1 or (kind == "path" and not found):
        raise UsageError(
            f"the column of the {kind}s of the images is not clear",
            where=path,
            expected=f"one column with a name such as {', '.join(usual[:4])}",
            got=f"columns {', '.join(header)}",
            hint=f"name it: --set data.{kind}_column=NAME",
        )
    return found[0] if found else None


def _row(
    line: int, values: Sequence[str], header: Sequence[str], at: Sequence[int | None], path: Path
) -> _Row:
    if len(values) != len(header):
        raise DataError(
            "a row of the table has another number of values than its header",
            where=f"{path}, line {line}",
            expected=f"{len(header)} values",
            got=f"{len(values)} values",
        )
    name, label, split = ("" if one is None else values[one].strip() for one in at)
    return _Row(line, name, class_name(label), split if at[2] is not None else "-")


def _of_split(rows: Sequence[_Row], split: str, path: Path) -> list[_Row]:
    """Return the rows of a split; all rows of a table without splits."""
    if rows[0].split == "-":
        return list(rows)
    chosen = [row for row in rows if row.split.lower() in _SPLITS[split]]
    if not chosen:
        counts = Counter(row.split for row in rows)
        raise DataError(
            f"the table has no rows of the split {split!r}",
            where=path,
            expected=f"{' or '.join(_SPLITS[split])} in its column of splits",
            got=", ".join(f"{count} of {name!r}" for name, count in counts.most_common(5)),
            hint="choose another split (--set data.split=val) or another column of splits",
        )
    return chosen


def _files(rows: Iterable[_Row], path: Path, root: Path) -> list[ListedFile]:
    """Return the files of rows, ordered by key."""
    files: dict[str, ListedFile] = {}
    missing, twice = [], []
    for row in rows:
        key = _key(row, path, root)
        place = root / row.path.replace("\\", "/")
        if not place.is_file():
            missing.append(f"{row.path} (line {row.line})")
        elif key in files:
            twice.append(f"{row.path} (line {row.line})")
        else:
            files[key] = ListedFile(key, row.label, place.stat().st_size, str(place))
    if missing:
        raise DataError(
            "images of the table do not exist",
            where=path,
            expected=f"paths relative to {root}, or below it",
            got=first_of(missing),
            hint="name the folder that the paths are relative to: --set data.root=FOLDER",
        )
    if twice:
        raise DataError(
            "the table lists images twice",
            where=path,
            expected="one row per image",
            got=first_of(twice),
        )
    return [files[key] for key in sorted(files)]


def _key(row: _Row, path: Path, root: Path) -> str:
    name = row.path.replace("\\", "/")
    if not name:
        raise DataError("a row of the table has no path", where=f"{path}, line {row.line}")
    if PurePosixPath(name).is_absolute():
        try:
            name = Path(name).relative_to(root.absolute()).as_posix()
        except ValueError:
            raise DataError(
                "an image of the table is not below its root",
                where=f"{path}, line {row.line}",
                expected=f"a path below {root.absolute()}",
                got=name,
                hint="name a folder that contains all images: --set data.root=FOLDER",
            ) from None
    return normalize_key(name)
