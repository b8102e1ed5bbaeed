"""Class maps: which classes of a teacher are which class of a student.

A class map names, for each class of the student, the classes of the teacher that have the same
meaning; several are merged. Classes of the teacher that it does not name are outside of it. It is
applied when targets are read, so one cache serves students with different classes.

Shapes: C classes of the teacher, S classes of the student.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from logitcache.data.classes import class_name
from logitcache.data.readers.paths import user_path
from logitcache.errors import DataError, UsageError, first_of, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "EVERY_TEACHER",
    "ClassLens",
    "ClassMap",
    "ClassMaps",
    "class_maps",
    "map_classes",
]

EVERY_TEACHER = "*"
"""Stands for every teacher without a class map of its own."""

ClassMap: TypeAlias = dict[str, list[str]]
"""For each class of the student, the classes of the teacher that it consists of."""
ClassMaps: TypeAlias = (
    str
    | os.PathLike[str]
    | Mapping[str, str | os.PathLike[str] | Mapping[str, str | Sequence[str]]]
)
"""A file for all teachers; or for each teacher a file, or classes by class of the student."""

_WORDNET_ID = re.compile(r"n\d{8}")
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ClassLens:
    """The class of a student for each class of a teacher.

    Attributes:
        targets: Index of the student's class, int64 (C,); S for classes outside of the map.
        classes: Number of classes of the student, S.
    """

    targets: NDArray[np.int64]
    classes: int

    @property
    def outside(self) -> NDArray[np.bool_]:
        """Which classes of the teacher are outside of the map, bool (C,)."""
        found: NDArray[np.bool_] = self.targets == self.classes
        return found


def class_maps(value: ClassMaps) -> dict[str, ClassMap]:
    """Return the class maps of teachers by name; :data:`EVERY_TEACHER` is the name for all others.

    Args:
        value: A file for all teachers; or, by name of the teacher, a file or the classes of the
            teacher by class of the student.

    Raises:
        DataError: A file cannot be read.
        UsageError: A class is mapped twice, or a map is empty.
    """
    if isinstance(value, str | os.PathLike):
        return {EVERY_TEACHER: _read(user_path(os.fspath(value)))}
    if not isinstance(value, Mapping):
        raise UsageError(
            "a class map cannot be understood",
            expected="a file with two columns; or for each teacher such a file, or the classes of "
            "the teacher by class of the student",
            got=type(value).__name__,
        )
    return {str(teacher): _one_map(str(teacher), given) for teacher, given in value.items()}


def map_classes(
    class_map: Mapping[str, Sequence[str]],
    own_names: Sequence[str],
    names: Sequence[str],
    where: str,
) -> ClassLens:
    """Return the class of a student for each class of a list.

    Classes of the list are found by name. Classes of ImageNet are also found by WordNet id where
    the list has their words, and by one of their words where it has their ids.

    Args:
        class_map: Classes of the list by class of the student.
        own_names: The list: names of the classes of a teacher, or of labels.
        names: Names of the classes of the student in order.
        where: What the map is for, for messages: ``class_map of teacher 'cnn'``.

    Raises:
        UsageError: A name is not in either list or means several classes, or a class is mapped
            twice.
    """
    numbers = {class_name(name): number for number, name in enumerate(names)}
    finder = _Finder(own_names, where)
    targets = np.full(len(own_names), len(names), dtype=np.int64)
    for name, members in class_map.items():
        if class_name(name) not in numbers:
            raise UsageError(
                f"a class map leads to {name!r}, which is not a class of the student",
                where=where,
                expected=f"classes among {first_of(names)}",
                hint=nearest(name, names),
            )
        for member in members:
            own = finder.find(member)
            if targets[own] != len(names):
                raise _twice(f"{own_names[own]!r} ({member!r})", names[targets[own]], name, where)
            targets[own] = numbers[class_name(name)]
    return ClassLens(targets, len(names))


class _Finder:
    """Search for classes of a list by name, WordNet id or word."""

    def __init__(self, names: Sequence[str], where: str) -> None:
        self._names, self._where = names, where
        self._exact = {class_name(name): number for number, name in enumerate(names)}
        self._words: dict[str, list[int]] | None = None

    def find(self, name: str) -> int:
        """Return the index of a class.

        Raises:
            UsageError: No class has this name, or several have.
        """
        exact = self._exact.get(class_name(name))
        if exact is not None:
            return exact
        found = self._by_word(class_name(name))
        if not found:
            raise UsageError(
                f"a class map names {name!r}, which is not a class of the teacher",
                where=self._where,
                expected=f"classes among {first_of(self._names)}",
                hint=nearest(name, self._names),
            )
        if len(found) > 1:
            raise UsageError(
                f"{name!r} is the name of several classes of the teacher",
                where=self._where,
                expected="a name of one class",
                got=first_of([self._names[number] for number in found]),
                hint="give one of these names",
            )
        return found[0]

    def _by_word(self, name: str) -> list[int]:
        """Return the classes that have a WordNet id or a word in common with a name."""
        if _WORDNET_ID.fullmatch(name):
            (words,) = _words_of([name])
            return sorted({self._exact[word] for word in words if word in self._exact})
        if self._words is None:
            self._words = defaultdict(list)
            for number, words in enumerate(_words_of(self._names)):
                for word in words:
                    self._words[word].append(number)
        return self._words.get(name, [])


def _words_of(names: Sequence[str]) -> list[list[str]]:
    """Return the words of each WordNet id; none for other names."""
    if not any(map(_WORDNET_ID.fullmatch, names)):
        return [[] for _ in names]
    from timm.data import ImageNetInfo  # imports torch, which plain names do not need

    info = ImageNetInfo()
    found = []
    for name in names:
        try:
            found.append(info.label_name_to_description(name).split(", "))
        except KeyError:
            found.append([])
    return found


def _one_map(
    teacher: str, given: str | os.PathLike[str] | Mapping[str, str | Sequence[str]]
) -> ClassMap:
    if isinstance(given, str | os.PathLike):
        return _read(user_path(os.fspath(given)))
    where = f"class_map of {teacher}"
    if not isinstance(given, Mapping):
        raise UsageError(
            "a class map cannot be understood",
            where=where,
            expected="a file with two columns, or the classes of the teacher by class of the "
            "student, for example {cat: [tabby, lynx]}",
            got=given,
        )
    pairs = [
        (str(member), str(name))
        for name, members in given.items()
        for member in ([members] if isinstance(members, str) else members)
    ]
    return _grouped(pairs, where)


def _read(path: Path) -> ClassMap:
    """Read a file with two columns: a class of the teacher, and a class of the student or none."""
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise DataError(
                "a class map is too large",
                where=path,
                expected=f"at most {_MOST_BYTES} bytes",
                got=f"{size} bytes",
            )
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "a class map cannot be read",
            where=path,
            expected="a text file in UTF-8 with two columns, separated by a comma or a tab",
            got=error,
        ) from None
    lines = csv.reader(text.splitlines(), delimiter="\t" if "\t" in text else ",")
    pairs = []
    for values in lines:
        if not "".join(values).strip():
            continue
        member, *rest = (value.strip() for value in values)
        if len(rest) != 1 or not member:
            raise DataError(
                "a line of a class map does not have two columns",
                where=f"{path}, line {lines.line_num}",
                expected="a class of the teacher and a class of the student, for example "
                "n02123045,cat; the second one is empty for a class that is left out",
                got=",".join(values)[:200],
            )
        pairs.append((member, rest[0]))
    return _grouped(pairs, str(path))


def _grouped(pairs: Sequence[tuple[str, str]], where: str) -> ClassMap:
    """Return the classes of the teacher by class of the student; left-out ones have no class."""
    seen: dict[str, str] = {}
    found: ClassMap = {}
    for member, name in pairs:
        key = class_name(member)
        if key in seen:
            raise _twice(repr(member), seen[key], name, where)
        seen[key] = name
        if name:
            found.setdefault(class_name(name), []).append(key)
    if not found:
        raise UsageError(
            "a class map has no class of the student, so nothing would be left of the targets",
            where=where,
            expected="at least one class of the teacher with a class of the student",
            got=f"{len(pairs)} classes that are left out" if pairs else "an empty map",
        )
    return found


def _twice(member: str, first: str, second: str, where: str) -> UsageError:
    return UsageError(
        f"class {member} of the teacher is mapped twice",
        where=where,
        expected="one class of the student for each class of the teacher",
        got=" and ".join(repr(name) if name else "left out" for name in (first, second)),
    )
