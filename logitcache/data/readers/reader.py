"""What a reader of image sets is: a function from settings to a source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from logitcache.config import Config
from logitcache.data.listing import ClassFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from logitcache.data.source import Source

__all__ = ["Reader", "ReaderConfig"]


class ReaderConfig(Config):
    """Settings of an image set that its reader uses.

    Attributes:
        name: A folder, a ``.tar`` or ``.zip`` file, a table of paths and classes (``.csv``,
            ``.tsv``, ``.jsonl`` or ``.parquet``), WebDataset shards (``x-{000..099}.tar``, or
            ``wds/<folder>`` for all tar files of a folder), a Hugging Face data set (a folder of
            ``save_to_disk``, or ``hfds/<name>``), ``digits``, ``torch/<set>:<folder>``, or
            ``joined`` for several sets as one (``parts``).
        split: ``train`` or ``val``, for sets that have splits: tables with a column of splits,
            Hugging Face data sets, ``digits``, ``torch/``. ``train`` by default, and ``val`` for
            the images that a training is evaluated on.
        class_folder: The folder above an image that names its class: ``first`` below the root, or
            the ``last``; ``auto`` is the first one, and an error where that is not clear.
        root: Folder that the paths of a table are relative to; the folder of the table by default.
            For archives and shards, the folder inside of them that keys are relative to.
        path_column: Column of the paths in a table; by default one with a usual name, such as
            ``path``, ``file_name`` or ``image``. In a Hugging Face data set, a column of keys; by
            default keys are class and file name, or else the number of the row.
        image_column: Column of the images in a Hugging Face data set, or extension of the images in
            shards; by default the only one.
        label_column: Column of the classes; by default one with a usual name, such as ``label`` or
            ``class``, and no labels without one. For shards, ``cls`` or ``txt`` for the content of
            such files, or a field of ``.json`` files; by default ``cls``, or else a field with a
            usual name, or else class folders. Lists are several classes of an image; and so is a
            list of columns here: names of classes, or columns of 0 and 1, a class each.
        label_separator: Character between the names of several classes in a text, such as ``;`` or
            ``|``. An empty text is an image without labels; the character alone is no class.
        split_column: Column of the splits in a table; by default ``split``, if there is one.
        class_list: Text file with the name of one class per line; labels are names in it, or
            numbers from 0 in its order. By default the classes are the labels themselves.
    """

    name: str
    split: Literal["train", "val"] = "train"
    class_folder: ClassFolder = "auto"
    root: str | None = None
    path_column: str | None = None
    label_column: str | Annotated[list[str], Field(min_length=1)] | None = None
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    image_column: str | None = None
    split_column: str | None = None
    class_list: str | None = None


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of image set.

    Attributes:
        open_set: Function that lists the images of a configuration by a version of the rules.
        form: What such a set is, for messages: ``an uncompressed .tar file``.
        splits: Whether the set may have the splits ``train`` and ``val``.
        settings: Optional settings that it uses.
    """

    open_set: Callable[[ReaderConfig, int], Source]
    form: str
    splits: bool = False
    settings: frozenset[str] = frozenset()
