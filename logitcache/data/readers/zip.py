"""Zip files, read without extracting them.

Only what a member declares is read and unpacked, so a small file cannot become a large one. Members
that are encrypted, compressed by other methods than deflate, or that overlap are refused before
anything is computed.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from logitcache.data.image_files import (
    IMAGE_ENDINGS,
    FoundFile,
    ending_of,
    hidden_reason,
    member_parts,
    other_reason,
)
from logitcache.data.listing import Listing, list_found
from logitcache.data.readers.files import ListedSource
from logitcache.data.readers.paths import user_path
from logitcache.errors import DataError, UnreadableImage, first_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from logitcache.data.readers.reader import ReaderConfig

__all__ = ["ZipSource", "open_zip"]

_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADER = struct.Struct("<4s22xHH")
"""Header before the bytes of a member: its mark, and the lengths of two fields after it."""
_MARK = b"PK\x03\x04"
_MOST_BYTES = 1 << 30
"""Bytes of the largest image that is decoded (178 956 970 pixels), at 16 bits per channel."""
_DAMAGED = (
    zipfile.BadZipFile,
    NotImplementedError,  # a version or method of compression that zipfile does not have
    UnicodeDecodeError,
    struct.error,
    ValueError,
    OverflowError,
    LookupError,
)
"""Errors that zipfile raises for unexpected bytes."""


class ZipSource(ListedSource):
    """Image files inside of one zip file, read at their offsets.

    Args:
        path: The zip file.
        listing: Its images; ``place`` is their number among the members.
        members: All members.
    """

    def __init__(self, path: Path, listing: Listing, members: Sequence[zipfile.ZipInfo]) -> None:
        super().__init__(f"zip file {path}", listing)
        self._path = path
        images = [members[int(file.place)] for file in listing.files]
        self._offsets = np.array([image.header_offset for image in images], dtype=np.int64)
        self._packed = np.array([image.compress_size for image in images], dtype=np.int64)
        self._checksums = np.array([image.CRC for image in images], dtype=np.uint32)
        self._deflated = np.array(
            [image.compress_type == zipfile.ZIP_DEFLATED for image in images], dtype=np.bool_
        )

    def read(self, index: int) -> bytes:
        """Return the bytes of one member; no state is shared between threads.

        Raises:
            UnreadableImage: They are damaged.
        """
        content = self._unpack(self._stored(index), index)
        if content is None or zlib.crc32(content) != self._checksums[index]:
            raise UnreadableImage(
                "a member of the zip file is damaged",
                where=f"{self.keys[index]} in {self._path}",
                expected=f"{self.sizes[index]} bytes with the checksum of the zip file",
                hint="copy the zip file again",
            )
        return content

    def _stored(self, index: int) -> bytes:
        """Return the bytes of a member as they are stored."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(int(self._offsets[index]))
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return b""
            mark, name, extra = _HEADER.unpack(header)
            if mark != _MARK:
                return b""
            file.seek(name + extra, 1)
            return file.read(int(self._packed[index]))

    def _unpack(self, stored: bytes, index: int) -> bytes | None:
        size = int(self.sizes[index])
        if not self._deflated[index]:
            return stored if len(stored) == size else None
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflate.decompress(stored, size + 1)  # one more shows that it is longer
        except zlib.error:
            return None
        return content if len(content) == size else None


def open_zip(config: ReaderConfig, listing: int) -> ZipSource:
    """List a zip file.

    Raises:
        DataError: It is damaged, its images cannot be read one by one, or its folders cannot be
            classes.
    """
    path = user_path(config.name)
    members = _members(path)
    skipped: Counter[str] = Counter()
    found = list(_images(members, listing, skipped))
    _check_readable([members[int(file.place)] for file in found], path)
    listed = list_found(found, str(path), listing, config.class_folder, skipped, config.root or "")
    return ZipSource(path, listed, members)


def _members(path: Path) -> list[zipfile.ZipInfo]:
    """Return the members of a zip file; their bytes are inside of the file and do not overlap."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            end = archive.start_dir
    except _DAMAGED as error:
        raise _damaged(path, error) from None
    in_order = sorted(members, key=lambda member: member.header_offset)
    ends = [member.header_offset + _HEADER.size + member.compress_size for member in in_order]
    begins = [*(member.header_offset for member in in_order), end][1:]
    for member, stop, following in zip(in_order, ends, begins, strict=True):
        if member.header_offset < 0 or stop > following:
            raise _damaged(path, f"{member.filename} overlaps with what follows it")
    return members


def _damaged(path: Path, why: object) -> DataError:
    return DataError(
        "the zip file cannot be read",
        where=path,
        expected="a complete zip file",
        got=why,
        hint="copy it again, or extract the images",
    )


def _images(
    members: Sequence[zipfile.ZipInfo], version: int, skipped: Counter[str]
) -> Iterator[FoundFile]:
    """Yield the image files of a zip file."""
    names = [_name(member) for member in members]
    latest = {name: number for number, name in enumerate(names)}
    for number, (name, member) in enumerate(zip(names, members, strict=True)):
        parts = member_parts(name, version)
        reason = next(filter(None, map(hidden_reason, parts)), "") if version > 1 else ""
        if latest[name] != number:
            skipped["replaced by a later member of the same name"] += 1
        elif reason:
            skipped[reason] += 1
        elif stat.S_ISLNK(member.external_attr >> 16):
            skipped["links and other members without content"] += 1
        elif ending_of(name) in IMAGE_ENDINGS[version]:
            yield FoundFile(parts, member.file_size, number)
        else:
            skipped[other_reason(parts[-1] if parts else name)] += 1


def _name(member: zipfile.ZipInfo) -> str:
    """Return the name of a member with ``/``, which some programs of Windows do not write."""
    name = member.filename
    return name if "/" in name or member.create_system else name.replace("\\", "/")


def _check_readable(images: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Refuse images that are encrypted, compressed by another method, or too large."""
    refused = {
        "images of the zip file are encrypted": (
            "images without a password",
            [image for image in images if image.flag_bits & _ENCRYPTED],
        ),
        "images of the zip file are compressed by a method that is not read": (
            "stored or deflated members, as zip writes them by default",
            [image for image in images if image.compress_type not in _METHODS],
        ),
        "images of the zip file are too large": (
            f"at most {_MOST_BYTES} bytes for an image",
            [image for image in images if image.file_size > _MOST_BYTES],
        ),
    }
    for what, (expected, which) in refused.items():
        if which:
            raise DataError(
                f"{len(which)} {what}",
                where=path,
                expected=expected,
                got=first_of([image.filename for image in which]),
                hint="extract the images, or write the zip file again",
            )
