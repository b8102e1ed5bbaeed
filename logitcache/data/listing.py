"""Listings of folders and archives: image files, their classes, and the files that are left out.

The rules have versions, since a cache must find its images again by the rules of its creation:

=====================  ====================================  =======================================
                       listing 2                             listing 1 (logitcache 0.1)
=====================  ====================================  =======================================
image files            by ending, all that are decoded       .jpg, .jpeg, .png
class                  the first folder below the root       the folder that contains the file
hidden names           left out: ``.name``, ``__MACOSX``     listed
links                  a file that is listed once already    listed
                       is left out
tar inside of a tar    its name is part of the key           the key is that inside of the inner tar
=====================  ====================================  =======================================

Files that are left out are counted by reason. Ambiguous folders (of splits, next to images without
a class, or that would become one class) are an error that names them.
"""

from __future__ import annotations

import tarfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from logitcache.data.classes import class_name, sorted_classes
from logitcache.data.identity import normalize_key
from logitcache.data.image_files import (
    IMAGE_ENDINGS,
    TAR_ERRORS,
    FolderWalk,
    FoundFile,
    tar_members,
)
from logitcache.errors import DataError, first_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from logitcache.label_sets import LabelSets

__all__ = [
    "LISTING",
    "ClassFolder",
    "ListedFile",
    "Listing",
    "counted",
    "left_out_text",
    "list_folder",
    "list_found",
    "list_tar",
    "name_found",
    "scan_tar",
]

LISTING = 2
"""Version of the rules for new listings."""

_SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
)
_MOST_REASONS = 20


ClassFolder = Literal["auto", "first", "last"]
"""The folder above a file that names its class; ``auto`` is the first one if that is clear."""


class ListedFile(NamedTuple):
    """A file of a folder, or a member of an archive.

    Attributes:
        key: Name relative to the root, NFC and POSIX.
        folder: Name of the folder that names its class; empty without one.
        size: Size in bytes.
        place: Path of the file, offset of its bytes in a tar file, or number of a member of a zip
            file.
    """

    key: str
    folder: str
    size: int
    place: str | int


@dataclass
class Listing:
    """The images of a folder or an archive.

    Attributes:
        files: Files, ordered by key.
        labels: Class number of each file; -1 without classes, and for label sets.
        class_names: Names of the classes, in the order of their numbers.
        left_out: Numbers of files that are not listed, by reason.
        notes: Notes for the user on how folders became classes.
        label_sets: Classes of each file, where a file may have several; None otherwise.
    """

    files: list[ListedFile]
    labels: list[int]
    class_names: list[str]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    label_sets: LabelSets | None = None


def list_folder(root: Path, version: int = LISTING, class_folder: ClassFolder = "auto") -> Listing:
    """List the image files below a folder.

    Args:
        root: The folder; links to folders are followed.
        version: Version of the rules.
        class_folder: The folder above a file that names its class; always the last in version 1.

    Raises:
        DataError: There is no image, or the folders cannot be classes.
    """
    skipped: Counter[str] = Counter()
    found = FolderWalk(root, version, skipped)
    return list_found(found.files(), str(root), version, class_folder, skipped)


def list_tar(
    path: Path,
    version: int = LISTING,
    class_folder: ClassFolder = "auto",
    root: str | None = None,
) -> Listing:
    """List the image files of an uncompressed tar file, and of tar files in it.

    Args:
        path: The file.
        version: Version of the rules.
        class_folder: As for :func:`list_folder`.
        root: As for :func:`list_found`.

    Raises:
        DataError: It is not a tar file, there is no image in it, or its folders cannot be classes.
    """
    skipped: Counter[str] = Counter()
    found = scan_tar(path, version, skipped)
    return list_found(found, str(path), version, class_folder, skipped, root or "")


def scan_tar(path: Path, version: int, skipped: Counter[str]) -> list[FoundFile]:
    """Return the image files of an uncompressed tar file, and of tar files in it.

    Args:
        path: The file.
        version: Version of the rules.
        skipped: Counts the members that are left out, by reason.

    Raises:
        DataError: It is not a tar file.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            return list(tar_members(tar, version, skipped))
    except TAR_ERRORS as error:
        raise DataError(
            "the tar file cannot be read",
            where=path,
            expected="an uncompressed tar file",
            got=error,
        ) from None


def list_found(
    found: Iterable[FoundFile],
    where: str,
    version: int,
    class_folder: ClassFolder,
    skipped: Counter[str],
    archive_root: str | None = None,
) -> Listing:
    """Assign keys and classes to files, and refuse folders that cannot be classes.

    Args:
        found: The files.
        where: Folder or archive that contains them, for messages.
        version: Version of the rules.
        class_folder: As for :func:`list_folder`.
        skipped: Numbers of files that are left out, by reason.
        archive_root: Folder inside of an archive that names are relative to, empty for all of it;
            None if this is no archive.

    Raises:
        DataError: There is no image, or the folders cannot be classes.
    """
    rule = "last" if version == 1 else class_folder
    files = name_found(found, where, version, rule, skipped, archive_root)
    folders = {file.folder for file in files}
    if "" in folders and len(folders) > 1:
        raise _mixed(files, where)
    notes: list[str] = []
    if version > 1 and folders != {""}:
        _check_splits(folders, where, archive_root)
        _check_names(folders, where)
        notes = _check_depth(files, where, rule, archive_root)
    names = [] if folders == {""} else sorted_classes({class_name(folder) for folder in folders})
    number = {name: index for index, name in enumerate(names)}
    labels = [number.get(class_name(file.folder), -1) for file in files]
    return Listing(files, labels, names, counted(skipped), notes)


def name_found(
    found: Iterable[FoundFile],
    where: str,
    version: int,
    rule: ClassFolder,
    skipped: Counter[str],
    archive_root: str | None,
) -> list[ListedFile]:
    """Assign keys to files; see :func:`list_found`.

    Returns:
        The files, ordered by key.

    Raises:
        DataError: There is no image.
    """
    inside = _below_root(found, archive_root, skipped) if archive_root else found
    files = sorted(_listed(file, version, rule) for file in inside)
    if not files:
        raise _no_images(where, skipped)
    return files


def _below_root(
    found: Iterable[FoundFile], root: str, skipped: Counter[str]
) -> Iterator[FoundFile]:
    """Yield the files below a folder of an archive, by their names relative to it."""
    above = tuple(part for part in root.split("/") if part not in {"", "."})
    for file in found:
        if file.parts[: len(above)] == above and len(file.parts) > len(above):
            inner = max(0, file.inner - len(above))
            yield replace(file, parts=file.parts[len(above) :], inner=inner)
        else:
            skipped["images outside of the root"] += 1


def _point_at(where: str, folder: str, archive_root: str | None) -> str:
    """Return the settings that choose a folder below a folder, or inside of an archive."""
    if archive_root is None:
        return f"{where}/{folder}"
    return f"{where} --set data.root={'/'.join(filter(None, [archive_root, folder]))}"


def _listed(file: FoundFile, version: int, rule: ClassFolder) -> ListedFile:
    parts = file.parts
    own = parts[file.inner :]
    key = "/".join(own if version == 1 and file.inner else parts)
    # the name of an inner tar file counts as a folder only where its images are in none
    above = own[:-1] if len(own) > 1 else parts[:-1]
    if version == 1:
        above = tuple(part for part in above if part not in {"", "."})
    folder = (above[0] if rule != "last" else above[-1]) if above else ""
    return ListedFile(normalize_key(key), folder, file.size, file.place)


def counted(skipped: Counter[str]) -> dict[str, int]:
    """Return the reasons with a count, the most frequent first."""
    counts = [(reason, count) for reason, count in skipped.most_common() if count]
    rest = sum(count for _, count in counts[_MOST_REASONS:])
    return dict(counts[:_MOST_REASONS]) | ({"others": rest} if rest else {})


def left_out_text(left_out: Mapping[str, int]) -> str:
    """Return the numbers of files that are left out, as text: ``3 .heic files, 2 hidden names``."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())


def _no_images(where: str, skipped: Counter[str]) -> DataError:
    left_out = counted(skipped)
    endings = ", ".join(sorted(IMAGE_ENDINGS[LISTING]))
    return DataError(
        "no images found",
        where=where,
        expected=f"files that end in one of {endings}, in one folder per class or all in one "
        "folder without classes",
        got=left_out_text(left_out) or "no file at all",
    )


def _mixed(files: Sequence[ListedFile], where: str) -> DataError:
    stray = [file.key for file in files if not file.folder]
    classes = sorted({file.folder for file in files} - {""})
    return DataError(
        "some images are in class folders and some are not",
        where=where,
        expected="one folder per class, or no folder at all",
        got=f"{len(stray)} images outside of any folder ({first_of(stray)}) next to the folders "
        f"{first_of(classes)}",
        hint="move these images into class folders, or out of the data",
    )


def _check_splits(folders: set[str], where: str, archive_root: str | None) -> None:
    """Refuse ``train`` and ``val`` as classes: they are two sets of images."""
    if len(folders) < 2 or not {folder.lower() for folder in folders} <= _SPLITS:
        return
    names = sorted(folders)
    train = next((name for name in names if name.lower().startswith("train")), names[0])
    other = next(name for name in names if name != train)
    raise DataError(
        "the folder contains several sets of images instead of classes",
        where=where,
        expected="one folder per class",
        got=f"folders {first_of(names)}",
        hint=f"point at one of them: --data {where}/{train} --val {where}/{other}"
        if archive_root is None
        else f"point at one of them: --data {_point_at(where, train, archive_root)}",
    )


def _check_names(folders: set[str], where: str) -> None:
    """Refuse class folders whose names are the same text in two Unicode forms."""
    by_name = defaultdict(list)
    for folder in sorted(folders):
        by_name[class_name(folder)].append(folder)
    for name, same in by_name.items():
        if len(same) > 1:
            raise DataError(
                "two class folders have the same name in two Unicode forms",
                where=where,
                got=f"{name}: {', '.join(ascii(folder) for folder in same)}",
                hint="rename one of the folders, or merge them",
            )


def _check_depth(
    files: Sequence[ListedFile], where: str, rule: ClassFolder, archive_root: str | None
) -> list[str]:
    """Refuse folders inside of class folders that may be the classes; return notes about others."""
    inside: dict[str, set[str]] = defaultdict(set)
    for file in files:
        parts = file.key.split("/")[:-1]
        if len(parts) > 1:
            inside[parts[0] if rule != "last" else parts[-1]].add("/".join(parts))
    if rule == "last":
        merged = {name: sorted(paths) for name, paths in inside.items() if len(paths) > 1}
        if merged:
            name, paths = next(iter(sorted(merged.items())))
            raise DataError(
                f"{len(merged)} class names occur in several folders, which would become one class",
                where=where,
                got=f"{name}: {first_of(paths)}",
                hint="rename the folders, or let the first folder name the class "
                "(--set data.class_folder=first)",
            )
        return []
    several = {name: sorted(paths) for name, paths in inside.items() if len(paths) > 1}
    if not several:
        return []
    folders = {file.folder for file in files}
    name, paths = next(iter(sorted(several.items())))
    if rule == "auto" and len(folders) == 1:
        raise DataError(
            "all images would become one class",
            where=where,
            expected="one folder per class below the root",
            got=f"{name}, which contains {first_of(paths)}",
            hint=f"point at this folder: --data {_point_at(where, name, archive_root)}",
        )
    leaves = [path.rpartition("/")[2] for one in several.values() for path in one]
    if rule == "auto" and several.keys() == folders and len(leaves) == len(set(leaves)):
        raise DataError(
            "it is not clear which folders are the classes",
            where=where,
            got=f"{name} contains {first_of(paths)}",
            hint="choose whether the first or the last folder above an image names its class: "
            "--set data.class_folder=first, or last",
        )
    return [
        f"folders inside of class folders belong to their class: {first_of(paths)} are all {name!r}"
    ]
