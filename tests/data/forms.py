"""One image set in every form that a reader lists with the same keys, for tests."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["FORMS", "saved_dataset", "write_shards"]


def _files(images: Path) -> list[tuple[str, Path]]:
    return [(str(file.relative_to(images)), file) for file in sorted(images.rglob("*.jpg"))]


def _folder(images: Path, out: Path) -> dict[str, Any]:
    return {"name": str(images)}


def _tar(images: Path, out: Path) -> dict[str, Any]:
    with tarfile.open(out / "x.tar", "w") as tar:
        tar.add(images, ".")
    return {"name": str(out / "x.tar")}


def _tar_of_tars(images: Path, out: Path) -> dict[str, Any]:
    """Write a tar file per class into one, as ImageNet is distributed."""
    with tarfile.open(out / "imagenet.tar", "w") as tar:
        for folder in sorted(images.iterdir()):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for file in sorted(folder.iterdir()):
                    inner.add(file, file.name)
            member = tarfile.TarInfo(f"{folder.name}.tar")
            member.size = len(buffer.getvalue())
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    return {"name": str(out / "imagenet.tar")}


def _zip(images: Path, out: Path) -> dict[str, Any]:
    with zipfile.ZipFile(out / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in _files(images):
            archive.write(file, f"photos/{name}")
    return {"name": str(out / "x.zip"), "root": "photos"}


def _table(images: Path, out: Path) -> dict[str, Any]:
    with (out / "x.csv").open("w", newline="") as file:
        rows = [(name, name.partition("/")[0]) for name, _ in _files(images)]
        csv.writer(file).writerows([("path", "label"), *rows])
    return {"name": str(out / "x.csv"), "root": str(images)}


def _parquet(images: Path, out: Path) -> dict[str, Any]:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = [name for name, _ in _files(images)]
    columns = {"file_name": names, "label": [name.partition("/")[0] for name in names]}
    parquet.write_table(arrow.table(columns), out / "x.parquet")
    return {"name": str(out / "x.parquet"), "root": str(images)}


def write_shards(
    images: Path, pattern: str, count: int, member: Callable[[str], tuple[str, bytes]]
) -> None:
    """Write images and their labels into shards, in turn."""
    for shard in range(count):
        with tarfile.open(pattern.format(shard), "w") as tar:
            for name, file in _files(images)[shard::count]:
                ending, label = member(name.partition("/")[0])
                for path, content in ((name, file.read_bytes()), (f"{name[:-4]}.{ending}", label)):
                    info = tarfile.TarInfo(path)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def _webdataset(images: Path, out: Path) -> dict[str, Any]:
    write_shards(images, str(out / "x-{:04d}.tar"), 3, lambda name: ("cls", name.encode()))
    return {"name": str(out / "x-{0000..0002}.tar")}


def saved_dataset(images: Path, out: Path) -> Path:
    """Save a folder of class folders as a Hugging Face data set with one split."""
    datasets = pytest.importorskip("datasets")
    files = _files(images)
    names = sorted({name.partition("/")[0] for name, _ in files})
    columns = {
        "image": [str(file) for _, file in files],
        "label": [names.index(name.partition("/")[0]) for name, _ in files],
    }
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=names))
    train = datasets.Dataset.from_dict(columns, features)
    datasets.disable_progress_bars()
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
    "parquet": _parquet,
    "WebDataset": _webdataset,
    "datasets": _saved_dataset,
}
"""Functions that write a folder of class folders in another form and return its settings."""
