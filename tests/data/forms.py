"""One image set in every form that a reader lists with the same keys, for tests.

A set is a folder of class folders, or a folder of images without classes.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from logitcache.data.classes import sorted_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["FORMS", "saved_dataset", "write_shards", "write_tar"]


class _File(NamedTuple):
    name: str
    label: str
    path: Path


def _files(images: Path) -> list[_File]:
    """Return the files of a set; the label is empty for an image without a class."""
    paths = sorted(path for path in images.rglob("*.*") if path.is_file())
    names = [path.relative_to(images).as_posix() for path in paths]
    labels = [name.partition("/")[0] if "/" in name else "" for name in names]
    return [_File(*file) for file in zip(names, labels, paths, strict=True)]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar file of members by name."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _folder(images: Path, out: Path) -> dict[str, Any]:
    return {"name": str(images)}


def _tar(images: Path, out: Path) -> dict[str, Any]:
    with tarfile.open(out / "x.tar", "w") as tar:
        tar.add(images, ".")
    return {"name": str(out / "x.tar")}


def _tar_of_tars(images: Path, out: Path) -> dict[str, Any]:
    """Write a tar file per class into one, as ImageNet is distributed."""
    files = _files(images)
    inner = {}
    for label in sorted({file.label for file in files} - {""}):
        below = len(label) + 1
        own = [(f.name[below:], f.path.read_bytes()) for f in files if f.label == label]
        inner[f"{label}.tar"] = write_tar(out / "inner.tar", own).read_bytes()
    flat = [(file.name, file.path.read_bytes()) for file in files if not file.label]
    return {"name": str(write_tar(out / "x.tar", [*inner.items(), *flat]))}


def _zip(images: Path, out: Path) -> dict[str, Any]:
    with zipfile.ZipFile(out / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in _files(images):
            archive.write(file.path, f"photos/{file.name}")
    return {"name": str(out / "x.zip"), "root": "photos"}


def _table(images: Path, out: Path) -> dict[str, Any]:
    with (out / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *(row[:2] for row in _files(images))])
    return {"name": str(out / "x.csv"), "root": str(images)}


def _json_lines(images: Path, out: Path) -> dict[str, Any]:
    """Write the ``metadata.jsonl`` of a folder, as Hugging Face's ImageFolder reads it."""
    rows = [{"file_name": file.name, "label": file.label or None} for file in _files(images)]
    (out / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"name": str(out / "metadata.jsonl"), "root": str(images)}


def _parquet(images: Path, out: Path) -> dict[str, Any]:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = _files(images)
    labels = arrow.array([file.label or None for file in files], arrow.string())
    columns = {"file_name": [file.name for file in files], "label": labels}
    parquet.write_table(arrow.table(columns), out / "x.parquet")
    return {"name": str(out / "x.parquet"), "root": str(images)}


def write_shards(
    images: Path, pattern: str, count: int, label: Callable[[str], tuple[str, bytes]]
) -> None:
    """Write images, and labels where there are classes, into shards in turn."""
    for shard in range(count):
        members: list[tuple[str, bytes]] = []
        for file in _files(images)[shard::count]:
            members.append((file.name, file.path.read_bytes()))
            if file.label:
                ending, content = label(file.label)
                members.append((f"{file.name.rpartition('.')[0]}.{ending}", content))
        write_tar(Path(pattern.format(shard)), members)


def _webdataset(images: Path, out: Path) -> dict[str, Any]:
    write_shards(images, str(out / "x-{:04d}.tar"), 3, lambda label: ("cls", label.encode()))
    return {"name": str(out / "x-{0000..0002}.tar")}


def saved_dataset(images: Path, out: Path) -> Path:
    """Save a set as a Hugging Face data set with one split."""
    datasets = pytest.importorskip("datasets")
    files = _files(images)
    columns: dict[str, list[Any]] = {"image": [str(file.path) for file in files]}
    features = datasets.Features(image=datasets.Image())
    names = sorted_classes({file.label for file in files} - {""})
    if names:
        columns["label"] = [names.index(file.label) for file in files]
        features["label"] = datasets.ClassLabel(names=names)
    datasets.disable_progress_bars()
    train = datasets.Dataset.from_dict(columns, features)
    datasets.DatasetDict(train=train).save_to_disk(out)
    return out


def _saved_dataset(images: Path, out: Path) -> dict[str, Any]:
    return {"name": str(saved_dataset(images, out / "saved"))}


FORMS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "folder": _folder,
    "tar": _tar,
    "tar of tars": _tar_of_tars,
    "zip": _zip,
    "csv": _table,
    "jsonl": _json_lines,
    "parquet": _parquet,
    "WebDataset": _webdataset,
    "datasets": _saved_dataset,
}
"""Functions that write a set in another form into a folder and return its settings."""
