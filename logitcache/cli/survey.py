"""``logitcache inspect --survey``: summary of the teacher outputs of a cache."""

from __future__ import annotations

import contextlib
from statistics import mean
from typing import TYPE_CHECKING

from logitcache.cli.layout import new_console, new_table, percent_text
from logitcache.cli.options import print_json
from logitcache.cli.progress import ProgressLine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from logitcache.report.survey import Survey, TeacherSurvey

__all__ = ["print_survey", "run_survey"]

_MOST_VIEWS, _MOST_CLASSES = 8, 5


def run_survey(cache: str, scheduler: str | None, *, revision: str | None, as_json: bool) -> None:
    """Summarize all outputs of a cache, in this process or on the workers of a scheduler."""
    from logitcache.report.survey import survey

    with contextlib.ExitStack() as stack:
        if scheduler is not None:
            from logitcache.precompute.cluster.cluster import joined

            stack.enter_context(joined(scheduler))
        line = stack.enter_context(ProgressLine("survey"))
        found = survey(cache, revision=revision, on_view=line.views)
    if as_json:
        print_json(found.to_json())
    else:
        print_survey(found)


def print_survey(survey: Survey) -> None:
    """Print the tables of a survey."""
    console = new_console()
    console.print(f"{survey.url}: revision {survey.revision}, {survey.labeled} labeled images")
    teachers = new_table(
        "teacher", "accuracy", "entropy, nats", "10th to 90th percentile", "tail mass"
    )
    for teacher in survey.teachers:
        tails = [view.tail_mass for view in teacher.views if view.tail_mass is not None]
        low, _, high = teacher.entropy_quantiles.values()
        teachers.add_row(
            teacher.teacher,
            percent_text(_mean(view.accuracy for view in teacher.views)),
            f"{mean(view.entropy for view in teacher.views):.3f}",
            f"{low:.2f} to {high:.2f}",
            f"{mean(tails):.2g}" if tails else "-",
        )
    console.print(teachers)
    for pair, share in survey.agreement.items():
        console.print(
            f"{' and '.join(pair.split())} predict the same class for {percent_text(share)}"
        )
    views = new_table("view", *(teacher.teacher for teacher in survey.teachers))
    for view in list(dict.fromkeys(v.view for t in survey.teachers for v in t.views))[:_MOST_VIEWS]:
        views.add_row(view, *(_of_view(teacher, view) for teacher in survey.teachers))
    console.print(views)
    for teacher in survey.teachers:
        console.print(_classes(survey, teacher))


def _of_view(teacher: TeacherSurvey, view_id: str) -> str:
    """Return a teacher's accuracy and entropy in a view."""
    for view in teacher.views:
        if view.view == view_id:
            return f"{percent_text(view.accuracy)}, {view.entropy:.3f} nats"
    return "-"


def _classes(survey: Survey, teacher: TeacherSurvey) -> str:
    """Return a line on the classes that a teacher never predicts or predicts least accurately."""
    known = [(share, c) for c, share in enumerate(teacher.class_accuracy) if share is not None]
    worst = ", ".join(
        f"{survey.class_names[c]} {percent_text(share)}"
        for share, c in sorted(known)[:_MOST_CLASSES]
    )
    never = sum(count == 0 for count in teacher.predicted)
    line = f"{teacher.teacher}: {never} of {len(teacher.predicted)} classes are never predicted"
    return f"{line}; lowest accuracy: {worst}" if worst else line


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
