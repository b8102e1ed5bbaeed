"""Tables of a finished pipeline: one for each kind of stage, with means over the seeds."""

from __future__ import annotations

from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from logitcache.cli.layout import new_console, new_table
from logitcache.report.quantities import bytes_text, spread_text
from logitcache.report.trained_on import reads_labels, trained_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
            spread_text([next(iter(v["accuracy"].get(name, {}).values()), None) for v in values]),
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
            spread_text([value["single"][name] for value in values]),
            spread_text([value["accuracy"] for value in values]),
        )
        for name in values[0]["teachers"]
    ]


def _student_rows(stage: Stage, values: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    first = values[0]
    labels = first.get("labeled", first.get("labelled", 0))  # the latter in results of version 0.1
    return [
        (
            f"{stage.name} ({stage.values['student']['model']})",
            trained_on(stage.values),
            str(first["set_images"]),
            str(labels if reads_labels(stage.values) else 0),
            str(first["steps"]),
            _score([value["evaluation"] or {} for value in values]),
        )
    ]


def _score(evaluations: list[dict[str, Any]]) -> str:
    """Return the top-1 accuracy, or ``mAP`` and its value where labels are sets."""
    precision = [each.get("mean_average_precision") for each in evaluations]
    if any(value is not None for value in precision):
        return f"mAP {spread_text(precision)}"
    return spread_text([each.get("top1") for each in evaluations])


def _evaluation_rows(stage: Stage, values: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    found = [value["evaluation"] for value in values]
    scores = _score(found), spread_text([each["top5"] for each in found])
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


def _mean_and_spread(values: Sequence[float]) -> str:
    """Return the mean and, for several values, the standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
