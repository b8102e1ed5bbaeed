"""The classes of a student that is trained from a cache, and how labels and teachers lead to them.

By default they are the classes of the images. Teachers that are stored with classes of their own
are mapped to them; a class map for the classes of the images merges or leaves out these, for labels
and teachers alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.data.class_map import EVERY_TEACHER, ClassLens, class_maps, map_classes
from logitcache.data.classes import class_positions, sorted_classes
from logitcache.errors import UsageError, first_of, nearest
from logitcache.targets.classes.class_lens import LogitsLens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache
    from logitcache.data.class_map import ClassMap, ClassMaps

__all__ = ["ClassSpace"]


@dataclass(frozen=True)
class ClassSpace:
    """The classes of a student, and the classes of labels and teachers that they consist of.

    Attributes:
        names: Names of the classes in order; empty if they are those of the cache.
        lenses: The class of the student for each class of a teacher, by name of the teacher;
            teachers that are not listed have the classes of the student.
        labels: The same for each class of the images; None if these are the student's classes.
        data_names: Names of the classes of the images.
    """

    names: tuple[str, ...] = ()
    lenses: Mapping[str, ClassLens] = field(default_factory=dict)
    labels: ClassLens | None = None
    data_names: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, cache: Cache, teachers: Sequence[str], class_map: ClassMaps | None = None
    ) -> ClassSpace:
        """Return the classes of a student of some teachers.

        Args:
            cache: The cache.
            teachers: Names of the teachers.
            class_map: Class maps, see :func:`.class_maps`; None for none.

        Raises:
            DataError: A file cannot be read.
            UsageError: A map names an unknown teacher or class, or a class twice; or a teacher with
                classes of its own lacks classes of the images, and has no map.
        """
        return _Builder(cache, teachers, {} if class_map is None else class_maps(class_map)).build()

    @cached_property
    def logits_lenses(self) -> dict[str, LogitsLens]:
        """The functions that map the outputs of teachers, by name."""
        return {name: LogitsLens(lens) for name, lens in self.lenses.items()}

    @cached_property
    def label_table(self) -> NDArray[np.int32] | None:
        """The student's class of each class of the images, int32 (len(data_names) + 1,).

        -1 for classes outside of the map, and in the last entry, which a label of -1 takes.
        """
        if self.labels is None:
            return None
        targets = np.where(self.labels.outside, -1, self.labels.targets)
        return np.append(targets, -1).astype(np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


class _Builder:
    """The classes of a student, from the class maps of teachers."""

    def __init__(self, cache: Cache, teachers: Sequence[str], maps: Mapping[str, ClassMap]) -> None:
        self._cache, self._maps = cache, maps
        self._data = tuple(cache.class_names)
        for name in maps:
            if name != EVERY_TEACHER and name not in cache.teachers:
                raise UsageError(
                    f"a class map is for an unknown teacher {name!r}",
                    where="class_map",
                    hint=nearest(name, [*cache.teachers, EVERY_TEACHER]),
                )
        self._teachers = list(teachers)
        self._own = {
            name: names
            for name in self._teachers
            if (names := cache.teacher(name).class_names) is not None
        }

    def build(self) -> ClassSpace:
        if not self._maps and (not self._own or not self._data):
            return ClassSpace()
        shared = self._map_of_images()
        if shared is None and self._data:
            names = self._data
        else:
            maps = [shared] if shared is not None else map(self._map_of, self._teachers)
            names = tuple(sorted_classes({name for each in maps for name in each or ()}))
        lenses = {name: self._own_lens(name, own, names) for name, own in self._own.items()}
        labels = None
        if shared is not None:
            labels = map_classes(shared, self._data, names, self._where(EVERY_TEACHER))
            lenses |= {name: labels for name in self._teachers if name not in self._own}
        for name, lens in lenses.items():
            if self._cache.teacher(name).encoding.head == "sigmoid":
                self._check_independent(name, lens, names)
        return ClassSpace(names, lenses, labels, self._data)

    def _map_of(self, teacher: str) -> ClassMap | None:
        return self._maps.get(teacher, self._maps.get(EVERY_TEACHER))

    def _map_of_images(self) -> ClassMap | None:
        """Return the map of the classes of the images, None if there is none.

        It is that of the teachers with these classes, and without any teacher that of all others.
        """
        sharing = [name for name in self._teachers if name not in self._own]
        found = {name: each for name in sharing if (each := self._map_of(name)) is not None}
        if not self._teachers and EVERY_TEACHER in self._maps:
            found = {EVERY_TEACHER: self._maps[EVERY_TEACHER]}
        if not found:
            return None
        if not self._data:
            raise UsageError(
                "the classes of these teachers have no names, so they cannot be mapped",
                where=self._where(next(iter(found))),
                got=first_of(list(found)),
                hint="precompute the teacher with its class names: --set teachers.NAME.class_map="
                "own",
            )
        first = next(iter(found.values()))
        if any(each != first for each in found.values()):
            raise UsageError(
                "teachers with the classes of the images have different class maps",
                where=self._cache.url,
                expected="one map, which labels are mapped by, too",
                got=first_of(list(found)),
                hint="give them the same map",
            )
        return first

    def _own_lens(self, teacher: str, own: Sequence[str], names: Sequence[str]) -> ClassLens:
        """Return the lens of a teacher with classes of its own; by name without a map."""
        chosen = self._map_of(teacher)
        if chosen is None:
            missing = [
                name
                for name, found in zip(names, class_positions(names, own), strict=True)
                if found is None
            ]
            if missing:
                raise UsageError(
                    f"teacher {teacher!r} has classes of its own, and none of these names",
                    where=self._cache.url,
                    expected=f"classes among {first_of(own)}",
                    got=first_of(missing),
                    hint="map its classes to those of the student: --class-map FILE, with the "
                    "columns class of the teacher and class of the student",
                )
            chosen = {name: [name] for name in names}
        return map_classes(chosen, own, names, self._where(teacher))

    def _check_independent(self, teacher: str, lens: ClassLens, names: Sequence[str]) -> None:
        """Check that each class of the student is one class of a teacher with head: sigmoid.

        Raises:
            UsageError: The probability of any of several classes does not follow from theirs, and
                that of no class is unknown.
        """
        counts = np.bincount(lens.targets, minlength=lens.classes + 1)[:-1]
        counted = dict(zip(names, counts.tolist(), strict=True))
        several = [f"{name} with {count}" for name, count in counted.items() if count > 1]
        lacking = [name for name, count in counted.items() if count == 0]
        if several or lacking:
            raise UsageError(
                "classes of a teacher with head: sigmoid cannot be merged"
                if several
                else "a teacher with head: sigmoid lacks classes of the student",
                where=f"teacher {teacher!r}, {self._where(teacher)}",
                expected="one class of the teacher for each class of the student",
                got=first_of(several) or f"none for {first_of(lacking)}",
                hint="leave out all but one of them in the class map"
                if several
                else "leave these classes out of the class map",
            )

    def _where(self, teacher: str) -> str:
        given = teacher if teacher in self._maps else EVERY_TEACHER
        return f"class_map of {given}, {self._cache.url}"
