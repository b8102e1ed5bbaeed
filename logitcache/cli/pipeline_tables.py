"""Tables of a finished pipeline: one for each kind of stage, with means over the seeds."""

from __future__ import annotations

from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from logitcache.cli.layout import bytes_text, new_console, new_table, percent_text
from logitcache.objectives.aliases import long_forms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from logitcache.pipeline.run import Stage, StageResult

    Rows = Callable[[Stage, list[dict[str, Any]]], list[tuple[str, ...]]]

__all__ = ["print_pipeline"]


def print_pipeline(runs: Sequence[Sequence[StageResult]]) -> None:
    """Print the results of all stages.

    Args:
        runs: The results of the stages in order, for every seed.
    """
    stages = [
        (results[0].stage, [result.values for result in results])
        for results in zip(*runs, strict=True)
    ]
    for kind in dict.fromkeys([*_TABLES, *(stage.kind for stage, _ in stages)]):
        columns, rows_of = _TABLES.get(kind, _OTHER)
        rows = [row for s, values in stages if s.kind == kind for row in rows_of(s, values)]
        if rows:
            shown = new_table(*columns)
            for row in rows:
                shown.add_row(*row)
            new_console().print(shown)


def _cache_rows(stage: Stage, values: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            stage.name,
            name,
            _spread([next(iter(v["accuracy"].get(name, {}).values()), None) for v in values]),
            str(values[0]["views"]),
            bytes_text(size["stored"]),
            bytes_text(size["dense_float32"]),
            f"{size['stored'] / max(1, size['dense_float32']):.2f}",
        )
        for name, size in values[0]["sizes"].items()
    ]


def _weight_rows(stage: Stage, values: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            stage.name,
            name,
            _mean_and_spread([value["teachers"][name] for value in values]),
            _spread([value["single"][name] for value in values]),
            _spread([value["accuracy"] for value in values]),
        )
        for name in values[0]["teachers"]
    ]


def _student_rows(stage: Stage, values: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    first = values[0]
    labels = first.get("labeled", first.get("labelled", 0))  # the latter in results of version 0.1
    uses_labels = not stage.values.get("cache") or any(
        {"label", "split"} & term.keys() for term in _terms(stage.values)
    )
    return [
        (
            f"{stage.name} ({stage.values['student']['model']})",
            _learns_from(stage.values),
            str(first["set_images"]),
            str(labels if uses_labels else 0),
            str(first["steps"]),
            _score([value["evaluation"] or {} for value in values]),
        )
    ]


def _score(evaluations: list[dict[str, Any]]) -> str:
    """Return the top-1 accuracy, or ``mAP`` and its value where labels are sets."""
    precision = [each.get("mean_average_precision") for each in evaluations]
    if any(value is not None for value in precision):
        return f"mAP {_spread(precision)}"
    return _spread([each.get("top1") for each in evaluations])


def _evaluation_rows(stage: Stage, values: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    found = [value["evaluation"] for value in values]
    scores = _score(found), _spread([each["top5"] for each in found])
    return [(stage.name, values[0]["model"], values[0]["data"], *scores)]


def _other_rows(stage: Stage, values: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    numbers = {k: v for k, v in values[0].items() if isinstance(v, int | float | str)}
    return [(stage.name, stage.kind, ", ".join(f"{k} {v}" for k, v in numbers.items()))]


_TABLES: dict[str, tuple[tuple[str, ...], Rows]] = {
    "precompute": (
        ("cache", "teacher", "accuracy", "views", "stored", "dense float32", "size vs. float32"),
        _cache_rows,
    ),
    "fit_weights": (
        ("weights", "teacher", "weight", "accuracy alone", "ensemble accuracy"),
        _weight_rows,
    ),
    "train": (
        ("network", "trained on", "images", "labels used", "steps", "top-1"),
        _student_rows,
    ),
    "evaluate": (("evaluation", "network", "data", "top-1", "top-5"), _evaluation_rows),
}
"""By kind of stage: columns, and the rows of a stage from its results, one per seed."""
_OTHER: tuple[tuple[str, ...], Rows] = (("stage", "kind", "result"), _other_rows)


def _learns_from(train: Mapping[str, Any]) -> str:
    """Return a description of the targets of a training run."""
    if not train.get("cache"):
        return "labels"
    parts = dict.fromkeys(_learns_from_term(term) for term in _terms(train))
    shuffled = ", shuffled" if train.get("shuffle_targets") else ""
    return " and ".join(parts) + shuffled


def _learns_from_term(term: Mapping[str, Any]) -> str:
    kind, settings = next(iter(term.items()))
    settings = settings or {}
    if kind == "label":
        return "labels"
    pairs = settings.get("pairs") or [settings]
    if all("teacher" in pair for pair in pairs):  # a term on features
        names = " + ".join(dict.fromkeys(str(pair["teacher"]) for pair in pairs))
        return f"{settings.get('form', 'features')} of {names}"
    teachers = settings.get("teachers")
    names = " + ".join(teachers) if isinstance(teachers, dict) else "all teachers"
    form = settings.get("form", "nkd") if kind == "split" else ""
    return f"{form} of cache of {names}" if form else f"cache of {names}"


def _terms(train: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objectives of a training run as mappings with one key."""
    default: Any = "soft" if train.get("cache") else "label"
    terms = train.get("objectives") or default
    listed = terms if isinstance(terms, list) else [terms]
    in_full: list[Any] = [term for entry in listed for term in long_forms(entry)]
    return [{term: {}} if isinstance(term, str) else term for term in in_full]


def _spread(values: Sequence[float | None]) -> str:
    """Return the mean and, for several values, the standard deviation, in percent."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return percent_text(known[0])
    return f"{100 * mean(known):.1f} ± {100 * stdev(known):.1f} %"


def _mean_and_spread(values: Sequence[float]) -> str:
    """Return the mean and, for several values, the standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
