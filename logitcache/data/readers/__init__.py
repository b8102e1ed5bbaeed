"""Image sets by name: a table of readers, a file each, and the function that opens a set.

Listing is done in :mod:`logitcache.data.listing`; reading is done here, because timm's data set
returns the *next* image where one cannot be decoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias

from pydantic import Field, model_validator

from logitcache.data.classes import RelabeledSource
from logitcache.data.identity import key_hash
from logitcache.data.joined import JoinedSource, UnlabeledSource
from logitcache.data.listing import LISTING
from logitcache.data.readers.adapters import as_source
from logitcache.data.readers.arrays import open_digits
from logitcache.data.readers.files import open_folder
from logitcache.data.readers.hugging_face import open_by_name, open_saved
from logitcache.data.readers.json_lines import open_json_lines
from logitcache.data.readers.parquet import open_parquet
from logitcache.data.readers.paths import holds, user_path
from logitcache.data.readers.reader import Reader, ReaderConfig
from logitcache.data.readers.table import open_delimited
from logitcache.data.readers.tar import open_tar
from logitcache.data.readers.torchvision import open_torchvision
from logitcache.data.readers.webdataset import open_webdataset
from logitcache.data.readers.zip import open_zip
from logitcache.data.subset import SubsetSource, of_classes
from logitcache.errors import DataError, UsageError, redacted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch.utils.data import Dataset

    from logitcache.data.source import Source

    ImageSet: TypeAlias = "str | DataConfig | Source | Dataset[Any]"
    """What the verbs of Python take as images; Hugging Face data sets, too, which have no types."""

__all__ = [
    "READERS",
    "DataConfig",
    "ImageSet",
    "has_splits",
    "open_source",
    "open_source_for",
]

_FOLDER = Reader(open_folder, "a folder")
_TABLES = "a .csv, .tsv, .jsonl or .parquet table of paths"
_LABELS = frozenset({"label_column", "label_separator", "class_list"})
_COLUMNS = frozenset({"root", "path_column", "split_column"}) | _LABELS
_SHARDS = "WebDataset shards x-{000..099}.tar or wds/<folder>"
_SHARD_SETTINGS = frozenset({"root", "image_column"}) | _LABELS
_SAVED = "a folder of Hugging Face datasets (save_to_disk)"
_HUGGING_FACE = frozenset({"path_column", "image_column"}) | _LABELS
_JOINED = "joined"


def _open_joined(config: ReaderConfig, listing: int) -> Source:
    """Return several image sets as one."""
    parts: dict[str, DataConfig] = getattr(config, "parts", None) or {}
    return JoinedSource({name: open_source(p, listing=listing) for name, p in parts.items()})


READERS: dict[str, Reader] = {
    ".tar": Reader(open_tar, "an uncompressed .tar file", settings=frozenset({"root"})),
    ".zip": Reader(open_zip, "a .zip file", settings=frozenset({"root"})),
    ".csv": Reader(open_delimited, _TABLES, splits=True, settings=_COLUMNS),
    ".tsv": Reader(open_delimited, _TABLES, splits=True, settings=_COLUMNS),
    ".jsonl": Reader(open_json_lines, _TABLES, splits=True, settings=_COLUMNS),
    ".parquet": Reader(open_parquet, _TABLES, splits=True, settings=_COLUMNS),
    "wds/": Reader(open_webdataset, _SHARDS, settings=_SHARD_SETTINGS),
    "{}.tar": Reader(open_webdataset, _SHARDS, settings=_SHARD_SETTINGS),
    "hfds/": Reader(open_by_name, "hfds/<name>", splits=True, settings=_HUGGING_FACE),
    "/state.json": Reader(open_saved, _SAVED, splits=True, settings=_HUGGING_FACE),
    "/dataset_dict.json": Reader(open_saved, _SAVED, splits=True, settings=_HUGGING_FACE),
    "digits": Reader(open_digits, "digits", splits=True),
    "torch/": Reader(open_torchvision, "torch/<set>:<folder>", splits=True),
    _JOINED: Reader(_open_joined, "joined, with parts", settings=frozenset({"parts"})),
}
"""Readers by name of the set (``digits``), by the start of its name (``torch/``), by the ending of
its file (``.tar``) or of a pattern with braces (``{}.tar``), or by a file that its folder contains
(``/state.json``).

A new reader is one entry here. Folders need no entry.
"""
_OPTIONAL = frozenset().union(*(reader.settings for reader in READERS.values()))


class DataConfig(ReaderConfig):
    """Settings of an image set.

    Attributes:
        classes: Names of the classes to use, in this order; images of other classes, and those
            without a label, are left out. All by default.
        limit: Number of images to use, chosen by the hash of their keys; all by default.
        unlabeled: Whether labels are not read, as if the images had none.
        parts: Image sets of a ``joined`` set, by name; keys of images begin with the name.
    """

    classes: Annotated[list[str], Field(min_length=2)] | None = None
    limit: int | None = Field(default=None, ge=1)
    unlabeled: bool = False
    parts: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], DataConfig] | None = Field(
        default=None, min_length=1
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("parts") is not None:
            return {"name": _JOINED, **value}
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _settings_of_its_reader(self) -> Self:
        reader = _reader_of(self.name)
        for field in sorted(_OPTIONAL - reader.settings) if reader else ():
            if getattr(self, field) is not None:
                forms = _forms(r for r in READERS.values() if field in r.settings)
                raise ValueError(f"{field} can only be set for {forms}")
        if self.name == _JOINED and self.parts is None:
            raise ValueError("a joined set needs parts: {NAME: SET, NAME: SET}")
        return self


def has_splits(name: str) -> bool:
    """Return whether the image set of this name may have the splits ``train`` and ``val``."""
    reader = _reader_of(name)
    return reader is not None and reader.splits


def open_source(data: ImageSet | None, *, listing: int = LISTING) -> Source:
    """List a set of images.

    Args:
        data: A configuration or just its name, or an object from Python: a source, or a map-style
            data set, see :mod:`logitcache.data.readers.adapters`.
        listing: Version of the rules by which files are listed; see
            :mod:`logitcache.data.listing`.

    Raises:
        UsageError: There is no image set of this name, or the object is none.
        DataError: The folder or file does not exist, has no images, or its folders cannot be
            classes.
    """
    if data is None:
        hint = "give it as a flag, with --set, or in the file; in Python, pass data"
        raise UsageError("option 'data' is missing", hint=hint)
    if not isinstance(data, str | DataConfig):
        return as_source(data)
    config = DataConfig(name=data) if isinstance(data, str) else data
    source = _list(config, listing)
    if config.classes is not None:
        source = of_classes(source, config.classes)
    if config.unlabeled:
        source = UnlabeledSource(source)
    if config.limit is None or config.limit >= len(source.keys):
        return source
    by_hash = sorted(range(len(source.keys)), key=lambda index: key_hash(source.keys[index]))
    return SubsetSource(source, sorted(by_hash[: config.limit]))


def open_source_for(
    data: ImageSet | None,
    class_names: Sequence[str],
    whose: str,
    *,
    listing: int = LISTING,
) -> Source:
    """List images by the rules and class numbers of a cache or another set.

    Args:
        data: As for :func:`open_source`.
        class_names: Class names of the cache or set; labels stay as they are if it is empty.
        whose: Owner of the class names, for messages: ``the cache``.
        listing: As for :func:`open_source`.

    Raises:
        DataMismatch: There are images of classes that are not in the list.
    """
    source = open_source(data, listing=listing)
    if not class_names or list(source.class_names) == list(class_names):
        return source
    return RelabeledSource(source, class_names, whose)


def _list(config: DataConfig, listing: int) -> Source:
    path = user_path(config.name)
    if _named(config.name) is None and not holds(path.exists):
        raise _missing(config.name)
    reader = _reader_of(config.name)
    if reader is None:
        raise _not_an_image_set(path)
    return reader.open_set(config, listing)


def _reader_of(name: str) -> Reader | None:
    """Return the reader of a set, which need not exist yet; None where none is known."""
    path = user_path(name)
    by_path = _FOLDER if holds(path.is_dir) else READERS.get(path.suffix.lower())
    return _named(name) or by_path


def _named(name: str) -> Reader | None:
    """Return the reader of a set that is neither a file by its ending nor a plain folder."""
    return next((reader for key, reader in READERS.items() if _fits(key, name)), None)


def _fits(key: str, name: str) -> bool:
    if key.startswith("{}"):
        return "{" in name and name.lower().endswith(key[2:]) and not holds(Path(name).exists)
    if key.startswith("/"):
        return holds((user_path(name) / key[1:]).is_file)
    return name == key or (key.endswith("/") and name.startswith(key))


def _forms(readers: Iterable[Reader]) -> str:
    """Return the forms that readers read, for messages."""
    *forms, last = dict.fromkeys(reader.form for reader in readers)
    return f"{', '.join(forms)} or {last}" if forms else last


_PACKED = (".gz", ".tgz", ".xz", ".bz2", ".zst", ".7z", ".rar")
_NOT_READ = {
    **dict.fromkeys((".json", ".arrow", ".feather"), "this kind of table is not read"),
    **dict.fromkeys(_PACKED[:5], "compressed files have no random access"),
    **dict.fromkeys(_PACKED[5:], "of archives, only tar and zip files are read"),
    **dict.fromkeys((".h5", ".hdf5", ".lmdb", ".npz", ".npy"), "arrays are not read"),
}
_PREFIXES = ("hfids/", "tfds/")


def _not_an_image_set(path: Path) -> DataError:
    """Return the error for a file that is not a tar file, by its ending."""
    ending = path.suffix.lower()
    why = _NOT_READ.get(ending, "no reader has this ending")
    return DataError(
        "the file is not an image set",
        where=path,
        expected=_forms([_FOLDER, *READERS.values()]),
        got=why,
        hint="unpack it" if ending in _PACKED else "put the images into one folder per class",
    )


def _missing(name: str) -> DataError | UsageError:
    """Return the error for a name that is neither a path nor a known set."""
    expected = _forms([_FOLDER, *READERS.values()])
    if "://" in name:
        scheme = name.partition("://")[0]
        hint = "copy the images to this machine; "
        hint += f"of {scheme}:// URLs, caches and WebDataset shards (wds/URL.tar) are read"
        return UsageError(
            "images cannot be read from a URL", where=redacted(name), expected=expected, hint=hint
        )
    if name.startswith(_PREFIXES):
        return UsageError(
            f"data sets of {name.partition('/')[0]}/ are not supported",
            where=name,
            expected=expected,
            hint="export the images into one folder per class",
        )
    if any(sign in name for sign in "/\\."):
        what = "the folder or file of images does not exist"
        return DataError(what, where=name, hint="check the path")
    return UsageError("unknown image set", where=name, expected=expected)
