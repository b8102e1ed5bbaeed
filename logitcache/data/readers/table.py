"""Tables of images: a column of paths, and columns of classes and splits.

Keys are the paths relative to the root, so a table, the folder of its images and a tar file of them
have the same keys.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from logitcache.data.identity import normalize_key
from logitcache.data.listing import ListedFile, Listing
from logitcache.data.readers.columns import LABELS, PATHS, SPLIT, find_column, without_label_notes
from logitcache.data.readers.files import FileSource
from logitcache.data.readers.label_values import LabelValues, column_names
from logitcache.data.readers.paths import holds, user_path
from logitcache.errors import DataError, first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["Columns", "Row", "Table", "find_columns", "open_delimited", "open_rows"]

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        number: Number of its line in the file, or of the row, from 1.
        path: Path of the image.
        labels: Values of its label columns.
        split: Name of its split; None if the table has no column of splits.
    """

    number: int
    path: str
    labels: tuple[Any, ...]
    split: str | None


class Columns(NamedTuple):
    """Positions of the columns of a table.

    Attributes:
        header: Names of all columns.
        path: Column of the paths.
        labels: Columns of the classes.
        split: Column of the splits, if there is one.
    """

    header: tuple[str, ...]
    path: int
    labels: tuple[int, ...]
    split: int | None

    @property
    def label_names(self) -> list[str]:
        """Names of the columns of the classes."""
        return [self.header[position] for position in self.labels]

    @property
    def unused(self) -> list[str]:
        """Names of the columns that have neither paths, classes nor splits."""
        used = {self.path, *self.labels, self.split}
        return [name for position, name in enumerate(self.header) if position not in used]


class Table(NamedTuple):
    """Rows of a table, and the names of its label columns and of those that are not used."""

    rows: list[Row]
    label_columns: list[str]
    unused: list[str]


def open_delimited(config: ReaderConfig, listing: int) -> FileSource:
    """List the images of a CSV or TSV file with a header; see :func:`open_rows`."""
    del listing  # the rules are those of folders: what a table lists is never left out
    return open_rows(config, _read_delimited, "line")


def open_rows(
    config: ReaderConfig, read: Callable[[Path, ReaderConfig], Table], unit: str
) -> FileSource:
    """List the images of a table.

    Classes are numbered over the rows of all splits, so training and validation images have the
    same numbers. Rows with an empty class are images without a label.

    Args:
        config: The table, and names of its columns.
        read: Function that reads its rows.
        unit: What the numbers of rows count, for messages: ``line`` or ``row``.

    Raises:
        UsageError: There is no such column, or several may be meant.
        DataError: The table cannot be read, images are missing or listed twice, a label is not in
            the list of classes, or there are no images.
    """
    path = user_path(config.name)
    root = path.parent if config.root is None else user_path(config.root)
    table = read(path, config)
    rows = table.rows
    if not rows:
        raise DataError("the table has no images", where=path, expected="a header and rows")
    chosen = _of_split(rows, config.split, path)
    files = _files(rows, chosen, path, root, unit)
    values = LabelValues(
        [row.labels for row in rows],
        table.label_columns,
        config,
        lambda at: f"{path}, {unit} {rows[at].number}",
    )
    numbered = values.numbered(path, "the table", config.class_list, files.values())
    left_out = {"rows of other splits": len(rows) - len(chosen)} if len(rows) > len(chosen) else {}
    notes = [] if table.label_columns else without_label_notes(table.unused, "the table")
    listing = Listing(
        list(files),
        numbered.labels,
        numbered.class_names,
        left_out,
        [*notes, *numbered.notes],
        numbered.sets,
    )
    return FileSource(root, listing, f"table {path}")


def find_columns(header: Sequence[str], config: ReaderConfig, path: Path) -> Columns:
    """Return the positions of the columns of paths, classes and splits."""
    at = find_column(header, PATHS, config.path_column, path)
    assert at is not None  # required
    labels = [find_column(header, LABELS, name, path) for name in column_names(config)]
    return Columns(
        tuple(header),
        at,
        tuple(label for label in labels if label is not None),
        find_column(header, SPLIT, config.split_column, path),
    )


def _read_delimited(path: Path, config: ReaderConfig) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
            header = [name.strip() for name in next(reader, [])]
            columns = find_columns(header, config, path)
            rows = [_row(reader.line_num, values, columns, path) for values in reader if values]
            return Table(rows, columns.label_names, columns.unused)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            "the table of images cannot be read",
            where=path,
            expected="a CSV or TSV file in UTF-8 with a header",
            got=error,
        ) from None


def _row(line: int, values: Sequence[str], columns: Columns, path: Path) -> Row:
    if len(values) != len(columns.header):
        raise DataError(
            "a row of the table has another number of values than its header",
            where=f"{path}, line {line}",
            expected=f"{len(columns.header)} values",
            got=f"{len(values)} values",
        )
    split = None if columns.split is None else values[columns.split].strip()
    return Row(line, values[columns.path].strip(), tuple(values[n] for n in columns.labels), split)


def _of_split(rows: Sequence[Row], split: str, path: Path) -> list[int]:
    """Return the positions of the rows of a split; all rows of a table without splits."""
    if rows[0].split is None:
        return list(range(len(rows)))
    chosen = [at for at, row in enumerate(rows) if (row.split or "").lower() in _SPLITS[split]]
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


def _files(
    rows: Sequence[Row], chosen: Iterable[int], path: Path, root: Path, unit: str
) -> dict[ListedFile, int]:
    """Return the files of chosen rows, ordered by key, with the positions of their rows."""
    files: dict[str, tuple[ListedFile, int]] = {}
    missing, twice = [], []
    for at in chosen:
        row = rows[at]
        key = _key(row, path, root, unit)
        place = root / row.path.replace("\\", "/")
        if not holds(place.is_file):
            missing.append(f"{row.path} ({unit} {row.number})")
        elif key in files:
            twice.append(f"{row.path} ({unit} {row.number})")
        else:
            files[key] = ListedFile(key, "", place.stat().st_size, str(place)), at
    if missing:
        raise DataError(
            f"{len(missing)} images of the table do not exist",
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
    return dict(files[key] for key in sorted(files))


def _key(row: Row, path: Path, root: Path, unit: str) -> str:
    name = row.path.replace("\\", "/")
    if not name:
        raise DataError("a row of the table has no path", where=f"{path}, {unit} {row.number}")
    if PurePosixPath(name).is_absolute():
        try:
            name = Path(name).relative_to(root.absolute()).as_posix()
        except ValueError:
            raise DataError(
                "an image of the table is not below its root",
                where=f"{path}, {unit} {row.number}",
                expected=f"a path below {root.absolute()}",
                got=name,
                hint="name a folder that contains all images: --set data.root=FOLDER",
            ) from None
    return normalize_key(name)
