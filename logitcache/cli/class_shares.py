"""``logitcache inspect --class-map``: the teachers' probability in the classes of a student."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cli.layout import new_console, new_table, percent_text
from logitcache.cli.options import class_maps, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.report.class_shares import ClassShares, TeacherShares

__all__ = ["print_class_shares", "run_class_shares"]

_MOST_CLASSES = 20
_MUCH_OUTSIDE = 0.1  # of the probability


def run_class_shares(
    cache: str, files: Sequence[str], *, revision: str | None, as_json: bool
) -> None:
    """Measure and print what class maps, ``[TEACHER=]FILE``, do to the teachers of a cache."""
    from logitcache.report.class_shares import class_shares

    found = class_shares(cache, class_maps(files) or {}, revision=revision)
    if as_json:
        print_json(found.to_json())
    else:
        print_class_shares(found)


def print_class_shares(shares: ClassShares) -> None:
    """Print a table of the classes of the student for each teacher."""
    console = new_console()
    console.print(
        f"{shares.url}: {len(shares.class_names)} classes of a student; {shares.labeled} labeled "
        f"images, {shares.unlabeled} without a label in these classes"
    )
    for teacher in shares.teachers:
        console.print(_table(teacher))
        mass = teacher.outside.mass
        share = "are left out" if mass is None else f"have {percent_text(mass)}"
        line = f"{teacher.teacher}: {teacher.outside.classes} classes outside of the map {share}"
        largest = ", ".join(f"{one.name} {percent_text(one.mass)}" for one in teacher.largest)
        console.print(f"{line}; largest: {largest}" if largest else line)
    if any((teacher.outside.mass or 0) > _MUCH_OUTSIDE for teacher in shares.teachers):
        console.print(
            "By default (outside: auto of soft and split) this probability is left out for images "
            "with a label in these classes, and lowers the weight of all others; if these show the "
            "classes, too, use outside: renorm"
        )


def _table(teacher: TeacherShares) -> object:
    title = f"mean probability over {teacher.rows} rows"
    table = new_table(f"class of the student, {teacher.teacher}", "classes of the teacher", title)
    for one in teacher.classes[:_MOST_CLASSES]:
        table.add_row(one.name, str(one.classes), percent_text(one.mass))
    if len(teacher.classes) > _MOST_CLASSES:
        table.add_row(f"… and {len(teacher.classes) - _MOST_CLASSES} more", "", "")
    return table
