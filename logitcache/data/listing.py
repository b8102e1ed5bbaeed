"""Listing the images of a folder or a tar file: which files, which class, and what is left out.

The rules have versions, since a cache must find its images again by the rules it was made with:

=====================  ====================================  =======================================
                       listing 2                             listing 1 (logitcache 0.1)
=====================  ====================================  =======================================
image files            by ending, all that are decoded       .jpg, .jpeg, .png
class                  the first folder below the root       the folder that holds the file
hidden names           left out: ``.name``, ``__MACOSX``     listed
links                  a file that is listed once already    listed
                       is left out
tar inside of a tar    its name is part of the key           the key is that inside of the inner tar
=====================  ====================================  =======================================

A file that is left out is counted by the reason. What a listing cannot mean (folders of splits,
images next to class folders, folders that would become one class) is an error that names folders.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from logitcache.data.classes import class_name, sorted_classes
from logitcache.data.identity import normalise_key
from logitcache.errors import DataError, first_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "LISTING",
    "ClassFolder",
    "ListedFile",
    "Listing",
    "left_out_text",
    "list_folder",
    "list_tar",
]

LISTING = 2
"""Version of the rules for what is listed anew."""

_ENDINGS = {
    2: frozenset(
        f".{ending}"
        for ending in (
            *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "gif", "bmp", "tif", "tiff"),
            *("webp", "ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpc", "jpf", "jpx", "j2c"),
            *("avif", "avifs"),
        )
    ),
    1: frozenset({".jpg", ".jpeg", ".png"}),
}
_SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
)
_METADATA = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet", "labels.csv"})
_MACOS = "__MACOSX"
_SEPARATOR = os.sep
_MOST_REASONS = 20


ClassFolder = Literal["auto", "first", "last"]
"""Which folder above a file names its class; ``auto`` is the first one where that is plain."""


class ListedFile(NamedTuple):
    """A file of a folder, or a member of a tar file.

    Attributes:
        key: Its name relative to the root, NFC and POSIX.
        folder: Name of the folder its class is named after; empty without one.
        size: Its bytes.
        place: Its path, or where its bytes begin in the tar file.
    """

    key: str
    folder: str
    size: int
    place: str | int


@dataclass
class Listing:
    """The images of a folder or a tar file.

    Attributes:
        files: Ordered by key.
        labels: Number of the class of each; -1 without classes.
        class_names: Names of the classes, in the order of their numbers.
        left_out: How many files are not listed, by the reason.
        notes: What the user should know about how folders became classes.
    """

    files: list[ListedFile]
    labels: list[int]
    class_names: list[str]
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def list_folder(root: Path, version: int = LISTING, class_folder: ClassFolder = "auto") -> Listing:
    """List the image files below a folder.

    Args:
        root: The folder; links to folders are followed.
        version: Of the rules.
        class_folder: Which folder above a file names its class; version 1 knows the last alone.

    Raises:
        DataError: There is no image, or the folders cannot be classes.
    """
    skipped: Counter[str] = Counter()
    found = _Walk(root, version, skipped)
    rule = "last" if version == 1 else class_folder
    return _listing(found.files(), str(root), version, rule, skipped)


def list_tar(path: Path, version: int = LISTING, class_folder: ClassFolder = "auto") -> Listing:
    """List the image files of an uncompressed tar file, and of tar files in it.

    Args:
        path: The file.
        version: Of the rules.
        class_folder: As for :func:`list_folder`.

    Raises:
        DataError: It is no tar file, there is no image in it, or its folders cannot be classes.
    """
    skipped: Counter[str] = Counter()
    rule = "last" if version == 1 else class_folder
    try:
        with tarfile.open(path, "r:") as tar:
            members = list(_members(tar, version, skipped))
    except tarfile.TarError as error:
        raise DataError("not a readable tar file", where=path, got=error) from None
    return _listing(members, str(path), version, rule, skipped)


@dataclass(frozen=True)
class _Found:
    """A file before its class is known: its name by folders, and where it is."""

    parts: tuple[str, ...]
    size: int
    place: str | int
    inner: int = 0  # leading parts that are the name of a tar file inside of a tar file


class _Walk:
    """Walks a folder; what is reached through links comes after all that is not."""

    def __init__(self, root: Path, version: int, skipped: Counter[str]) -> None:
        self._root, self._version, self._skipped = root, version, skipped
        self._endings = _ENDINGS[version]
        self._real_folders: set[str] = set()
        self._links: list[tuple[os.DirEntry[str], tuple[str, ...]]] = []

    def files(self) -> list[_Found]:
        """Return all files that are listed."""
        found = list(self._below(str(self._root), (), os.path.realpath(self._root)))
        real = {self._real_path(file) for file in found} if self._links else set()
        while self._links:
            entry, above = self._links.pop(0)
            found += self._linked(entry, above, real)
        return found

    def _real_path(self, file: _Found) -> str:
        return _SEPARATOR.join([os.path.realpath(self._root), *file.parts])

    def _below(self, folder: str, above: tuple[str, ...], real: str) -> Iterator[_Found]:
        """Yield the files below a folder that are no links; remember the links."""
        self._real_folders.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except PermissionError as error:
            raise DataError(
                "a folder cannot be read", where=folder, got=error.strerror,
                hint="change its permissions, or move it out of the images",
            ) from None  # fmt: skip
        for entry in entries:
            if self._is_hidden(entry.name):
                continue
            if entry.is_symlink():
                self._links.append((entry, above))
            elif entry.is_dir(follow_symlinks=False):
                parts = (*above, entry.name)
                yield from self._below(entry.path, parts, f"{real}{_SEPARATOR}{entry.name}")
            else:
                yield from self._file(entry, above)

    def _linked(
        self, entry: os.DirEntry[str], above: tuple[str, ...], real: set[str]
    ) -> Iterator[_Found]:
        """Yield what a link leads to, unless it is listed already."""
        target = os.path.realpath(entry.path)
        try:
            is_folder = entry.is_dir()
            entry.stat()
        except OSError:  # a circle, or no such file
            self._skipped["broken links"] += 1
            return
        if is_folder:
            if target in self._real_folders:
                self._skipped["links to folders that are listed"] += 1
                return
            for file in self._below(entry.path, (*above, entry.name), target):
                own = _SEPARATOR.join([target, *file.parts[len(above) + 1 :]])
                if own not in real or self._version == 1:
                    real.add(own)
                    yield file
                else:
                    self._skipped["links to files that are listed"] += 1
        elif target in real and self._version > 1:
            self._skipped["links to files that are listed"] += 1
        else:
            real.add(target)
            yield from self._file(entry, above)

    def _is_hidden(self, name: str) -> bool:
        if self._version == 1:
            return False
        reason = _hidden(name)
        if reason:
            self._skipped[reason] += 1
        return bool(reason)

    def _file(self, entry: os.DirEntry[str], above: tuple[str, ...]) -> Iterator[_Found]:
        if not entry.is_file():
            self._skipped["neither files nor folders"] += 1
        elif _ending(entry.name) not in self._endings:
            self._skipped[_reason(entry.name)] += 1
        else:
            yield _Found((*above, entry.name), entry.stat().st_size, entry.path)


def _hidden(name: str) -> str:
    """Return why a name is left out; empty if it is not."""
    if name == _MACOS:
        return f"{_MACOS} folders"
    return "hidden names" if name.startswith(".") and name != ".." else ""


def _ending(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _reason(name: str) -> str:
    """Return as what a file that is no image is counted."""
    if name in _METADATA:
        return f"{name} (labels are not read from it)"
    ending = _ending(name)
    return f"{ending} files" if ending else "files without an ending"


class _Member(NamedTuple):
    """What is needed of a member of a tar file: a ``TarInfo`` takes a kilobyte."""

    name: str
    size: int
    begin: int
    is_file: bool
    links_to: str | None


def _scan(tar: tarfile.TarFile) -> list[_Member]:
    members = []
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # they would all stay in memory
        if not info.isdir():
            is_file = info.isfile() and not info.issparse()
            links_to = info.linkname if info.islnk() else None
            members.append(_Member(info.name, info.size, info.offset_data, is_file, links_to))
    return members


def _members(
    tar: tarfile.TarFile,
    version: int,
    skipped: Counter[str],
    offset: int = 0,
    above: tuple[str, ...] = (),
) -> Iterator[_Found]:
    """Yield the image files of a tar file; those of a tar file inside of it by its name."""
    members = _scan(tar)
    latest = {member.name: member for member in members}  # as extraction would leave it
    for member in members:
        if version > 1 and latest[member.name] is not member:
            skipped["replaced by a later member of the same name"] += 1
            continue
        parts = _parts(member.name, version)
        reason = next(filter(None, map(_hidden, parts)), "") if version > 1 else ""
        content = _content(member, latest, version)
        if reason:
            skipped[reason] += 1
        elif content is None:
            skipped["links, and what is no file"] += 1
        elif _ending(member.name) == ".tar" and not above:
            yield from _nested(tar, content, version, skipped, parts)
        elif _ending(member.name) in _ENDINGS[version]:
            yield _Found((*above, *parts), content.size, offset + content.begin, len(above))
        else:
            skipped[_reason(posixpath.basename(member.name))] += 1


def _parts(name: str, version: int) -> tuple[str, ...]:
    """Return the folders and the file of a member; a leading ``./`` is none of them."""
    parts = tuple(part for part in name.split("/") if version == 1 or part not in {"", "."})
    # an absolute name stays one, to be refused as a key
    return ("", *parts) if version > 1 and name.startswith("/") else parts


def _content(member: _Member, latest: Mapping[str, _Member], version: int) -> _Member | None:
    """Return the member whose bytes a member has; None if it has none."""
    if member.is_file:
        return member
    if member.links_to is None or version == 1:
        return None
    target = latest.get(member.links_to)  # how tar stores a second name of the same file
    return target if target is not None and target.is_file else None


def _nested(
    tar: tarfile.TarFile,
    member: _Member,
    version: int,
    skipped: Counter[str],
    parts: tuple[str, ...],
) -> Iterator[_Found]:
    """Yield the image files of a tar file inside of a tar file."""
    above = (*parts[:-1], parts[-1][: -len(".tar")])
    info = tarfile.TarInfo(member.name)
    info.size, info.offset_data = member.size, member.begin
    with tarfile.open(fileobj=tar.extractfile(info), mode="r:") as inner:
        yield from _members(inner, version, skipped, member.begin, above)


def _listing(
    found: Iterable[_Found],
    where: str,
    version: int,
    rule: ClassFolder,
    skipped: Counter[str],
) -> Listing:
    """Give files keys and classes, and refuse folders that cannot be classes."""
    files = sorted(_listed(file, version, rule) for file in found)
    if not files:
        raise _no_images(where, skipped)
    folders = {file.folder for file in files}
    if "" in folders and len(folders) > 1:
        raise _mixed(files, where)
    notes: list[str] = []
    if version > 1 and folders != {""}:
        _check_splits(folders, where)
        _check_names(folders, where)
        notes = _check_depth(files, where, rule)
    names = [] if folders == {""} else sorted_classes({class_name(folder) for folder in folders})
    number = {name: index for index, name in enumerate(names)}
    labels = [number.get(class_name(file.folder), -1) for file in files]
    return Listing(files, labels, names, _counted(skipped), notes)


def _listed(file: _Found, version: int, rule: ClassFolder) -> ListedFile:
    parts = file.parts
    own = parts[file.inner :]
    key = "/".join(own if version == 1 and file.inner else parts)
    # a tar file inside of a tar file is a folder of its own only where its images are in none
    above = own[:-1] if len(own) > 1 else parts[:-1]
    if version == 1:
        above = tuple(part for part in above if part not in {"", "."})
    folder = (above[0] if rule != "last" else above[-1]) if above else ""
    return ListedFile(normalise_key(key), folder, file.size, file.place)


def _counted(skipped: Counter[str]) -> dict[str, int]:
    """Return the reasons with a count, the most frequent first."""
    counts = [(reason, count) for reason, count in skipped.most_common() if count]
    rest = sum(count for _, count in counts[_MOST_REASONS:])
    return dict(counts[:_MOST_REASONS]) | ({"others": rest} if rest else {})


def left_out_text(left_out: Mapping[str, int]) -> str:
    """Return what is left out in words: ``3 .heic files, 2 hidden names``."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())


def _no_images(where: str, skipped: Counter[str]) -> DataError:
    left_out = _counted(skipped)
    endings = ", ".join(sorted(_ENDINGS[LISTING]))
    return DataError(
        "no image in it",
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
        hint="move them into a class folder, or out of the images",
    )


def _check_splits(folders: set[str], where: str) -> None:
    """Refuse ``train`` and ``val`` as classes: they are two sets of images."""
    if len(folders) < 2 or not {folder.lower() for folder in folders} <= _SPLITS:
        return
    names = sorted(folders)
    train = next((name for name in names if name.lower().startswith("train")), names[0])
    other = next(name for name in names if name != train)
    raise DataError(
        "this folder holds several sets of images, not classes",
        where=where,
        got=f"folders {first_of(names)}",
        hint=f"point at one of them: --data {where}/{train} --val {where}/{other}",
    )


def _check_names(folders: set[str], where: str) -> None:
    """Refuse class folders whose names are the same text, written in two ways."""
    by_name = defaultdict(list)
    for folder in sorted(folders):
        by_name[class_name(folder)].append(folder)
    for name, same in by_name.items():
        if len(same) > 1:
            raise DataError(
                "two class folders have the same name in two Unicode forms",
                where=where,
                got=f"{name}: {', '.join(ascii(folder) for folder in same)}",
                hint="rename or join them",
            )


def _check_depth(files: Sequence[ListedFile], where: str, rule: ClassFolder) -> list[str]:
    """Look at folders inside of class folders: refuse them where they look like the classes."""
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
            got=f"{name}, which holds {first_of(paths)}",
            hint=f"point at {where}/{name}",
        )
    leaves = [path.rpartition("/")[2] for one in several.values() for path in one]
    if rule == "auto" and several.keys() == folders and len(leaves) == len(set(leaves)):
        raise DataError(
            "it is not clear which folders are the classes",
            where=where,
            got=f"{name} holds {first_of(paths)}",
            hint="say whether the first or the last folder above an image names its class: "
            "--set data.class_folder=first, or last",
        )
    return [
        f"folders inside of class folders belong to their class: {first_of(paths)} are all {name!r}"
    ]
