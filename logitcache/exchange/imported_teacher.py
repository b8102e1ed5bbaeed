"""A teacher whose outputs are imported: its classes, its encoding, and what is not known of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.arrays import packed_bytes
from logitcache.cache.format.groups import TeacherGroup
from logitcache.cache.format.manifest import TeacherRecord
from logitcache.cache.format.names import (
    canonical_json,
    check_new_name,
    group_unit_rows,
    sha256,
)
from logitcache.encoding.choice import choose, choose_on_sample, sample_rows
from logitcache.encoding.logits import log_softmax
from logitcache.errors import UsageError, first_of
from logitcache.exchange.numpy_files import read_lines
from logitcache.exchange.outputs import logits_of
from logitcache.precompute.environment import versions
from logitcache.precompute.plan.teacher_lock import check_lock
from logitcache.views.spec import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from logitcache.cache.write.writer import CacheWriter
    from logitcache.data.source import Source
    from logitcache.encoding.choice import EncodingConfig
    from logitcache.encoding.kinds import Encoding
    from logitcache.exchange.config import ImportConfig
    from logitcache.exchange.outputs import OutputFile

__all__ = ["ImportedTeacher", "declare_imported"]


@dataclass(frozen=True)
class ImportedTeacher:
    """A teacher whose outputs are in a file.

    Attributes:
        name: Its name in the cache.
        file: The file.
        num_classes: Number of classes, C.
        order: Index of the output of each class, int64 (C,), where outputs are in another order
            than the classes of the images; None where they are in the same order.
        class_names: Names of its classes, where they are not those of the images; None if they are.
        encoding_config: Settings of the encoding.
        notes: Notes for the user.
    """

    name: str
    file: OutputFile
    num_classes: int
    order: NDArray[np.int64] | None
    class_names: tuple[str, ...] | None
    encoding_config: EncodingConfig
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: OutputFile, source: Source, config: ImportConfig) -> ImportedTeacher:
        """Return the teacher with its classes, mapped to those of the images by name.

        Raises:
            UsageError: It is not known which output belongs to which class.
        """
        listed = config.class_names
        stated = None if listed is None else tuple(read_lines(Path(listed)))
        own = tuple(source.class_names)
        names, notes = _names(file, own, stated, config.num_classes)
        classes = len(names) if names else config.num_classes or file.num_classes
        if classes is None:
            raise UsageError(
                "the number of classes is not known",
                where=file.path,
                expected="--num-classes N, or --class-names FILE with a name per line",
            )
        _check_classes(file, classes)
        if not names or names == own:
            return cls(config.teacher, file, classes, None, None, config.encoding, notes)
        if set(names) == set(own):
            order = np.array([names.index(one) for one in own], dtype=np.int64)
            return cls(config.teacher, file, classes, order, None, config.encoding, notes)
        return cls(config.teacher, file, classes, None, names, config.encoding, notes)

    @property
    def view_ids(self) -> tuple[str, ...]:
        """Ids of its views, whose pixels are not known."""
        return tuple(self.recipes)

    @property
    def recipes(self) -> dict[str, dict[str, Any]]:
        """Recipes of its views by id."""
        views = [View.unknown(number) for number in range(1, self.file.views + 1)]
        return {view.id: view.to_json() for view in views}

    @property
    def lock(self) -> dict[str, Any]:
        """What its outputs are determined by: the content of the file, and the order of classes."""
        imported = {
            "format": self.file.format,
            "sha256": self.file.digest,
            "values": self.file.values,
            "classes": self.num_classes,
        }
        order = {} if self.order is None else {"class_map": self.order.tolist()}
        return {"imported": imported, **order}

    @property
    def has_all_classes(self) -> bool:
        """Whether the file has an output for every class."""
        return self.file.top_k is None

    @property
    def unknown(self) -> tuple[str, ...]:
        """What the file does not tell, in words."""
        found = [
            "the views that the teacher was given: students see random views of their own",
            "the architecture and the weights of the teacher",
            "features of its layers",
        ]
        if self.file.values != "logits":
            found.append("the logsumexp of its logits: logits are known up to a constant")
        if not self.has_all_classes:
            found.append(
                f"the probability of each class but {self.file.top_k}: the others share what is "
                "left evenly"
            )
        return tuple(found)

    @cached_property
    def encoding(self) -> Encoding:
        """Encoding of a new group of its outputs."""
        config = self.encoding_config
        if config.is_fitted:
            count = min(self.file.rows, sample_rows(config, self.num_classes))
            rows = np.linspace(0, self.file.rows - 1, count).astype(np.int64)
            logits = self.logits(0, rows, [f"row {row}" for row in rows.tolist()])
            where = f"teacher {self.name!r}"
            return choose_on_sample(config, log_softmax(logits)[0], packed_bytes, where).encoding
        if config.kind == "auto" and config.top_k is None and not self.has_all_classes:
            config = config.model_copy(update={"top_k": self.file.top_k})
        return choose(config, self.num_classes)

    def logits(
        self, view: int, rows_N: NDArray[np.int64], names: Sequence[str]
    ) -> NDArray[np.float32]:
        """Return outputs as logits of the classes as they are stored, float32 (N, C).

        Args:
            view: Number of the view, from 0.
            rows_N: Rows of the file.
            names: Names of the images, for messages.

        Raises:
            DataError: The numbers cannot be used.
        """
        logits = logits_of(self.file, self.file.read(view, rows_N), self.num_classes, names)
        return logits if self.order is None else logits[:, self.order]


def _names(
    file: OutputFile,
    own: tuple[str, ...],
    stated: tuple[str, ...] | None,
    num_classes: int | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the outputs in order, and notes; no names where there are none at all.

    Raises:
        UsageError: Their order is not known, or names are repeated.
    """
    names = stated or file.class_names
    if names:
        if len(set(names)) < len(names):
            what = "two classes have the same name"
            raise UsageError(what, where="--class-names", got=first_of(_repeated(names)))
        return names, ()
    count = num_classes or file.num_classes or len(own)
    if not own:
        return (), ()
    if count == len(own) and list(own) == sorted(own):
        return own, (
            "outputs were assigned to classes in the order of their names, as folders are "
            f"numbered: {first_of(list(own))}; state another order with --class-names",
        )
    raise UsageError(
        "it is not known which output belongs to which class",
        where=file.path,
        expected="--class-names FILE with the names of the classes in the order of the outputs",
        got=f"{count} outputs, and {len(own)} classes of the images: {first_of(list(own))}",
    )


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for number, name in enumerate(names) if name in names[:number]]


def _check_classes(file: OutputFile, classes: int) -> None:
    width = file.top_k or file.num_classes or classes
    if classes < 2 or width > classes or (file.top_k is None and width != classes):
        raise UsageError(
            "the number of classes is not that of the outputs",
            where=file.path,
            expected=f"{'at least ' if file.top_k else ''}{width} classes, and at least 2",
            got=f"{classes} classes",
            hint="check --class-names and --num-classes",
        )


def declare_imported(writer: CacheWriter, teacher: ImportedTeacher) -> TeacherGroup:
    """Declare an imported teacher and its views, or check a declared one; return its group.

    Raises:
        CacheError: The cache has another teacher of this name.
    """
    known = writer.manifest.teachers.get(teacher.name)
    if known is not None:
        check_lock(writer.location, teacher.name, known.lock, teacher.lock)
        return writer.teachers()[teacher.name]
    check_new_name(teacher.name, "teacher", [*writer.manifest.teachers, teacher.name])
    encoding = teacher.encoding
    data, config = writer.manifest.data, teacher.encoding_config
    one_label = bool(data.class_names) and data.label_width is None and not teacher.class_names
    wanted = {
        "lse": config.lse and teacher.file.values == "logits",
        "label_logp": config.label_log_probs and one_label and teacher.has_all_classes,
    }
    row_bytes = sum(spec.row_bytes for spec in encoding.specs().values())
    group = TeacherGroup(
        teacher=teacher.name,
        num_classes=teacher.num_classes,
        encoding=encoding,
        optional=tuple(array for array, kept in wanted.items() if kept),
        unit_rows=group_unit_rows(writer.manifest.unit_rows, row_bytes),
        slots=teacher.view_ids,
        lock_sha256=sha256(canonical_json(teacher.lock)),
        class_names_sha256=sha256(canonical_json(list(data.class_names))),
        class_names=teacher.class_names,
    )
    writer.add_views(teacher.recipes)
    record = TeacherRecord(
        lock=teacher.lock,
        canonical_batch=1,
        source=f"imported from {teacher.file.format} {teacher.file.path.name}",
        versions=versions(),
    )
    writer.add_teacher(record, group)
    return group
