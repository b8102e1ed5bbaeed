"""Image files in folders and tar files, before classes are assigned."""

from __future__ import annotations

import os
import posixpath
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from logitcache.errors import DataError

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = [
    "IMAGE_ENDINGS",
    "TAR_ERRORS",
    "FolderWalk",
    "FoundFile",
    "Member",
    "ending_of",
    "hidden_reason",
    "member_parts",
    "other_reason",
    "scan_members",
    "tar_members",
]

IMAGE_ENDINGS = {
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
"""Endings of image files, by version of the rules of listing."""

_METADATA = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet", "labels.csv"})
MACOS = "__MACOSX"
_SEPARATOR = os.sep


@dataclass(frozen=True)
class FoundFile:
    """A file whose class is not known yet: folders and name, size, and path or offset."""

    parts: tuple[str, ...]
    size: int
    place: str | int
    inner: int = 0  # leading parts that are the name of a tar file inside of a tar file


class FolderWalk:
    """Walk over a folder; files that are reached through links come after all others."""

    def __init__(self, root: Path, version: int, skipped: Counter[str]) -> None:
        self._root, self._version, self._skipped = root, version, skipped
        self._endings = IMAGE_ENDINGS[version]
        self._real_folders: set[str] = set()
        self._links: list[tuple[os.DirEntry[str], tuple[str, ...]]] = []

    def files(self) -> list[FoundFile]:
        """Return all files that are listed."""
        root = os.path.realpath(self._root)
        found = list(self._below(str(self._root), (), root))
        real = {_SEPARATOR.join([root, *file.parts]) for file in found} if self._links else set()
        while self._links:
            entry, above = self._links.pop(0)
            found += self._linked(entry, above, real)
        return found

    def _below(self, folder: str, above: tuple[str, ...], real: str) -> Iterator[FoundFile]:
        """Yield the files below a folder that are not links; collect the links."""
        self._real_folders.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except PermissionError as error:
            raise DataError(
                "a folder cannot be read", where=folder, got=error.strerror,
                hint="change its permissions, or move it out of the folder of images",
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
    ) -> Iterator[FoundFile]:
        """Yield the files that a link leads to, unless they are listed already."""
        target = os.path.realpath(entry.path)
        try:
            is_folder = entry.is_dir()
            entry.stat()
        except OSError:  # a circle of links, or no such file
            self._skipped["broken links"] += 1
            return
        if is_folder:
            if target in self._real_folders:
                self._skipped["links to folders that are listed already"] += 1
                return
            for file in self._below(entry.path, (*above, entry.name), target):
                own = _SEPARATOR.join([target, *file.parts[len(above) + 1 :]])
                if own not in real or self._version == 1:
                    real.add(own)
                    yield file
                else:
                    self._skipped["links to files that are listed already"] += 1
        elif target in real and self._version > 1:
            self._skipped["links to files that are listed already"] += 1
        else:
            real.add(target)
            yield from self._file(entry, above)

    def _is_hidden(self, name: str) -> bool:
        if self._version == 1:
            return False
        reason = hidden_reason(name)
        if reason:
            self._skipped[reason] += 1
        return bool(reason)

    def _file(self, entry: os.DirEntry[str], above: tuple[str, ...]) -> Iterator[FoundFile]:
        if not entry.is_file():
            self._skipped["neither files nor folders"] += 1
        elif ending_of(entry.name) not in self._endings:
            self._skipped[other_reason(entry.name)] += 1
        else:
            yield FoundFile((*above, entry.name), entry.stat().st_size, entry.path)


def hidden_reason(name: str) -> str:
    """Return the reason why a name is left out; empty if it is not."""
    if name == MACOS:
        return f"{MACOS} folders"
    return "hidden names" if name.startswith(".") and name != ".." else ""


def ending_of(name: str) -> str:
    """Return the ending of a file name in lower case, with its dot; empty without one."""
    return posixpath.splitext(name)[1].lower()


def other_reason(name: str) -> str:
    """Return the reason under which a file that is not an image is counted."""
    if name in _METADATA:
        return f"{name} (to read labels from it, give it as the data)"
    ending = ending_of(name)
    if ending == ".cls":
        return ".cls files (labels of WebDataset shards, whose name begins with wds/)"
    return f"{ending} files" if ending else "files without an ending"


TAR_ERRORS = (
    tarfile.TarError,
    OSError,
    ValueError,
    OverflowError,
    EOFError,
    RecursionError,
    MemoryError,
)
"""Errors of tarfile for damaged headers: sizes of any number of bytes are read and skipped."""


class Member(NamedTuple):
    """Fields of a member of a tar file that are used; a ``TarInfo`` takes a kilobyte."""

    name: str
    size: int
    begin: int
    is_file: bool
    links_to: str | None


def scan_members(tar: tarfile.TarFile) -> list[Member]:
    """Return the members of a tar file that are no folders.

    Raises:
        Exception: One of :data:`TAR_ERRORS`: the file is damaged.
    """
    members = []
    before = -1
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # they would all stay in memory
        if info.size < 0 or info.offset <= before:  # a negative size leads back, for ever
            raise tarfile.ReadError(f"{info.name} has a size of {info.size} bytes")
        before = info.offset
        if not info.isdir():
            is_file = info.isfile() and not info.issparse()
            links_to = info.linkname if info.islnk() else None
            members.append(Member(info.name, info.size, info.offset_data, is_file, links_to))
    return members


def tar_members(
    tar: tarfile.TarFile,
    version: int,
    skipped: Counter[str],
    offset: int = 0,
    above: tuple[str, ...] = (),
) -> Iterator[FoundFile]:
    """Yield the image files of a tar file; those of a tar file inside of it by its name."""
    members = scan_members(tar)
    latest = {member.name: member for member in members}  # the one that remains after extraction
    for member in members:
        if version > 1 and latest[member.name] is not member:
            skipped["replaced by a later member of the same name"] += 1
            continue
        parts = member_parts(member.name, version)
        reason = next(filter(None, map(hidden_reason, parts)), "") if version > 1 else ""
        content = _content(member, latest, version)
        if reason:
            skipped[reason] += 1
        elif content is None:
            skipped["links and other members without content"] += 1
        elif ending_of(member.name) == ".tar" and not above:
            yield from _nested(tar, content, version, skipped, parts)
        elif ending_of(member.name) in IMAGE_ENDINGS[version]:
            yield FoundFile((*above, *parts), content.size, offset + content.begin, len(above))
        else:
            skipped[other_reason(posixpath.basename(member.name))] += 1


def member_parts(name: str, version: int) -> tuple[str, ...]:
    """Return the folders and the file name of a member, without a leading ``./``."""
    parts = tuple(part for part in name.split("/") if version == 1 or part not in {"", "."})
    # an absolute name stays absolute, so that it is refused as a key
    return ("", *parts) if version > 1 and name.startswith("/") else parts


def _content(member: Member, latest: Mapping[str, Member], version: int) -> Member | None:
    """Return the member whose bytes a member has; None if it has none."""
    if member.is_file:
        return member
    if member.links_to is None or version == 1:
        return None
    target = latest.get(member.links_to)  # how tar stores a second name of the same file
    return target if target is not None and target.is_file else None


def _nested(
    tar: tarfile.TarFile,
    member: Member,
    version: int,
    skipped: Counter[str],
    parts: tuple[str, ...],
) -> Iterator[FoundFile]:
    """Yield the image files of a tar file inside of a tar file."""
    above = (*parts[:-1], parts[-1][: -len(".tar")])
    info = tarfile.TarInfo(member.name)
    info.size, info.offset_data = member.size, member.begin
    with tarfile.open(fileobj=tar.extractfile(info), mode="r:") as inner:
        yield from tar_members(inner, version, skipped, member.begin, above)
