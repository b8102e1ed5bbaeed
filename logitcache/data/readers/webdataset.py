"""WebDataset shards: tar files in which files of one name up to the first dot are one sample.

Keys are the names of the images in the shards, so a folder and its shards have the same keys, and
the number of shards does not matter.
"""

from __future__ import annotations

import tarfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from logitcache.data.image_files import (
    IMAGE_ENDINGS,
    TAR_ERRORS,
    FoundFile,
    ending_of,
    hidden_reason,
    member_parts,
    other_reason,
    scan_members,
)
from logitcache.data.listing import Listing, counted, left_out_text, list_found, name_found
from logitcache.data.readers.columns import LABELS, find_column, parse_fields
from logitcache.data.readers.files import ListedSource
from logitcache.data.readers.label_values import LabelValues, column_names
from logitcache.data.readers.shards import find_shards
from logitcache.errors import DataError, first_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from logitcache.data.readers.reader import ReaderConfig

    Label = str | list[str] | None
    LabelReader = Callable[[bytes, str], tuple[Label, ...] | None]

__all__ = ["WebDatasetSource", "open_webdataset"]

_MOST_LABEL_BYTES = 1 << 20
_MOST_CHARACTERS = 1000
_LABEL_REASONS = {
    "json": ".json files without a label (data.label_column names another field)",
    "txt": ".txt files (data.label_column=txt reads labels from them)",
}
"""Reasons for members that may have labels, but are left out, by ending."""


class _Image(NamedTuple):
    """An image of a shard."""

    sample: str
    extension: str
    parts: tuple[str, ...]
    shard: int
    begin: int
    size: int


@dataclass
class _Samples:
    """What all shards contain.

    Attributes:
        images: Images, in the order of the shards.
        labels: Labels of each sample, by kind of the members that have the labels.
        skipped: Numbers of members that are left out, by reason.
    """

    images: list[_Image] = field(default_factory=list)
    labels: dict[str, dict[str, tuple[Label, ...]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    skipped: Counter[str] = field(default_factory=Counter)


class WebDatasetSource(ListedSource):
    """Images inside of several uncompressed tar files, read at their offsets.

    Args:
        description: Description of the set.
        listing: The images; ``place`` is their number.
        shards: Paths of the tar files.
        images: Shard and offset of each image, by its number.
    """

    def __init__(
        self, description: str, listing: Listing, shards: Sequence[Path], images: Sequence[_Image]
    ) -> None:
        super().__init__(description, listing)
        self._shards = list(shards)
        listed = [images[int(file.place)] for file in listing.files]
        self._shard = np.array([image.shard for image in listed], dtype=np.int32)
        self._begin = np.array([image.begin for image in listed], dtype=np.int64)

    def read(self, index: int) -> bytes:
        """Return the bytes of one image; no state is shared between threads."""
        with self._shards[int(self._shard[index])].open("rb", buffering=0) as file:
            file.seek(int(self._begin[index]))
            return file.read(int(self.sizes[index]))


def open_webdataset(config: ReaderConfig, listing: int) -> WebDatasetSource:
    """List WebDataset shards.

    Labels are the content of ``.cls`` members, or else a field of ``.json`` members, or those that
    ``label_column`` names; without any, the folders of the names are the classes.

    Raises:
        UsageError: The pattern of the shards cannot be expanded.
        DataError: Shards are missing, damaged or overlap, labels cannot be read, or there are no
            images.
    """
    pattern = config.name.removeprefix("wds/")
    shards = find_shards(pattern)
    samples, readers = _Samples(), _label_readers(column_names(config))
    for number, shard in enumerate(shards):
        _scan(shard, number, listing, readers, samples)
    images = _chosen(samples, config.image_column, pattern)
    _check_overlap(images, shards, pattern)
    listed = _listing(images, samples, readers, config, pattern, listing)
    return WebDatasetSource(f"shards {pattern}", listed, shards, images)


def _listing(
    images: Sequence[_Image],
    samples: _Samples,
    readers: Mapping[str, LabelReader],
    config: ReaderConfig,
    pattern: str,
    version: int,
) -> Listing:
    """Assign keys and classes to the images."""
    found = [FoundFile(image.parts, image.size, number) for number, image in enumerate(images)]
    skipped, root = samples.skipped, config.root or ""
    labels = next((samples.labels[kind] for kind in readers if kind in samples.labels), None)
    if labels is None:
        if config.label_column is not None:
            named = ", ".join(map(str, column_names(config)))
            raise DataError(
                f"no sample of the shards has a label {named!r}",
                where=pattern,
                expected=f".{named} files, or .json files with this field",
                got=left_out_text(counted(skipped)) or "images alone",
            )
        return list_found(found, pattern, version, config.class_folder, skipped, root)
    files = name_found(found, pattern, version, "first", skipped, root)
    columns = column_names(config)
    of = [images[int(file.place)].sample for file in files]
    values = LabelValues(
        [labels.get(sample, (None,) * len(columns)) for sample in of],
        [name or "label" for name in columns],
        config,
        lambda at: f"{of[at]} in {pattern}",
    )
    numbered = values.numbered(pattern, "the shards", config.class_list)
    return Listing(
        files,
        numbered.labels,
        numbered.class_names,
        counted(skipped),
        numbered.notes,
        numbered.sets,
    )


def _scan(
    shard: Path, number: int, version: int, readers: Mapping[str, LabelReader], samples: _Samples
) -> None:
    """Add the members of a shard to the samples."""
    try:
        with tarfile.open(shard, "r:") as tar:
            members = scan_members(tar)
    except TAR_ERRORS as error:
        raise DataError(
            "a shard cannot be read",
            where=shard,
            expected="an uncompressed tar file",
            got=error,
        ) from None
    with shard.open("rb") as file:
        for member in members:
            parts = member_parts(member.name, version)
            reason = next(filter(None, map(hidden_reason, parts)), "")
            if not member.is_file or not parts:
                reason = "links and other members without content"
            if reason:
                samples.skipped[reason] += 1
                continue
            base, _, extension = parts[-1].partition(".")
            sample = "/".join([*parts[:-1], base])
            if ending_of(parts[-1]) in IMAGE_ENDINGS[version]:
                at = (parts, number, member.begin, member.size)
                samples.images.append(_Image(sample, extension.lower(), *at))
                continue
            kind = ending_of(parts[-1])[1:]
            label = None
            if kind in readers:
                file.seek(member.begin)
                content = file.read(min(member.size, _MOST_LABEL_BYTES + 1))
                label = readers[kind](content, f"{member.name} in {shard}")
            if label is None:
                samples.skipped[_LABEL_REASONS.get(kind) or other_reason(parts[-1])] += 1
            else:
                samples.labels[kind][sample] = label


def _label_readers(columns: Sequence[str | None]) -> dict[str, LabelReader]:
    """Return what reads labels, by the ending of members, those that are preferred first."""
    if columns[0] in {"cls", "txt"} and len(columns) == 1:
        return {str(columns[0]): _text_label}
    readers: dict[str, LabelReader] = {} if columns[0] is not None else {"cls": _text_label}
    return readers | {"json": partial(_json_labels, columns)}


def _text_label(content: bytes, where: str) -> tuple[str]:
    """Return the content of a member."""
    try:
        text = content.decode().strip()
    except UnicodeDecodeError as error:
        raise _bad_label(where, error) from None
    if len(text) > _MOST_CHARACTERS or not text.isprintable():
        raise _bad_label(where, f"{len(text)} characters: {text[:50]}")
    return (text,)


def _json_labels(
    columns: Sequence[str | None], content: bytes, where: str
) -> tuple[Label, ...] | None:
    """Return fields of a JSON document; None if it has no such field."""
    try:
        document = parse_fields(content)
    except ValueError as error:
        raise _bad_label(where, error) from None
    if any(column is not None and column not in document for column in columns):
        return None
    fields = list(document)
    at = [find_column(fields, LABELS, column, where) for column in columns]
    found = [fields[position] for position in at if position is not None]
    return tuple(_json_label(name, document[name], where, len(found)) for name in found) or None


def _json_label(field: str, value: Any, where: str, fields: int) -> Label:
    """Return the value of a field as text, or as a list of texts."""
    each = value if isinstance(value, list) else [value]
    for one in each:
        flag = fields > 1 and isinstance(one, bool | float)
        if not flag and (isinstance(one, bool) or not isinstance(one, str | int | None)):
            raise _bad_label(where, f"{field}: a value of type {type(one).__name__}")
    texts = ["" if one is None else str(one).strip() for one in each]
    return texts if isinstance(value, list) else (None if value is None else texts[0])


def _bad_label(where: str, got: object) -> DataError:
    return DataError(
        "a label of the shards cannot be read",
        where=where,
        expected="name or number of a class in UTF-8, as the whole file or a field of JSON, which "
        "may be a list of them",
        got=got,
        hint="choose other labels: --set data.label_column=cls, txt, or a field of .json files",
    )


def _chosen(samples: _Samples, extension: str | None, pattern: str) -> list[_Image]:
    """Return one image of each sample."""
    if extension is not None:
        wanted = extension.lower().removeprefix(".")
        others = Counter(image.extension for image in samples.images if image.extension != wanted)
        samples.skipped.update({f".{other} files": count for other, count in others.items()})
        chosen = [image for image in samples.images if image.extension == wanted]
        if others and not chosen:
            raise DataError(
                f"no sample of the shards has an image .{wanted}",
                where=pattern,
                expected=f"an image .{wanted} in each sample, as image_column says",
                got=first_of([f".{other}" for other in sorted(others)]),
                hint=f"choose another extension: --set data.image_column={min(others)}",
            )
        return chosen
    extensions: dict[str, set[str]] = defaultdict(set)
    for image in samples.images:
        extensions[image.sample].add(image.extension)
    several = {sample: found for sample, found in extensions.items() if len(found) > 1}
    if several:
        sample, found = next(iter(several.items()))
        raise DataError(
            f"{len(several)} samples of the shards have several images",
            where=pattern,
            expected="one image for each sample",
            got=f"{sample} has {first_of([f'.{one}' for one in sorted(found)])}",
            hint=f"choose an extension: --set data.image_column={min(found)}",
        )
    return samples.images


def _check_overlap(images: Sequence[_Image], shards: Sequence[Path], pattern: str) -> None:
    """Refuse samples that occur twice, in two shards or in one."""
    first: dict[str, int] = {}
    twice = []
    for image in images:
        if image.sample in first:
            names = [shards[first[image.sample]].name, shards[image.shard].name]
            twice.append(f"{image.sample} in {' and '.join(dict.fromkeys(names))}")
        first.setdefault(image.sample, image.shard)
    if twice:
        raise DataError(
            f"{len(twice)} samples of the shards occur twice",
            where=pattern,
            expected="shards that do not overlap",
            got=first_of(twice),
            hint="leave out the shards that repeat others: a row is found by its key",
        )
