"""Accuracy of all networks: single seeds, means with intervals, and controls."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING

from logitcache.report.page.axis import Axis
from logitcache.report.page.blocks import Paragraph, Section, Table
from logitcache.report.page.charts import Charts, IntervalRow, Intervals
from logitcache.report.page.intervals import interval_of_mean, interval_of_share
from logitcache.report.quantities import percent_text, percent_tick, spread_text

if TYPE_CHECKING:
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import Contents, Network

__all__ = ["accuracy"]


def accuracy(contents: Contents) -> Section | None:
    """Return the accuracy of all networks that were evaluated."""
    networks = [network for network in contents.networks if network.scores]
    if not networks:
        return None
    rows = [_row(network, number) for number, network in enumerate(networks)]
    ends = [end for row in rows for end in (row.low, row.high, *row.values)]
    axis = Axis("accuracy", max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02), percent_tick)
    names = sorted({_score_name(network) for network in networks})
    chart = Intervals(
        f"Results ({' or '.join(names)})",
        f"Rings are single runs, the dot is their mean. The line is {_meaning(networks)}.",
        axis,
        rows,
    )
    blocks: list[Block] = [Charts([chart]), _table(networks)]
    control = _controls(networks)
    if control:
        blocks.insert(0, Paragraph(control))
    return Section("Accuracy", blocks)


def _meaning(networks: list[Network]) -> str:
    """Return what the intervals are."""
    counts = {min(2, len(network.scores)) for network in networks}
    over_seeds = "the 95 % confidence interval of the mean over seeds"
    over_images = "the 95 % interval for the number of images it was evaluated on"
    if counts == {1}:
        return over_images
    return (
        over_seeds if counts == {2} else f"{over_seeds}; for a network with one run, {over_images}"
    )


def _row(network: Network, number: int) -> IntervalRow:
    scores = network.scores
    if len(scores) > 1:
        low, high = interval_of_mean(scores)
    else:
        low, high = interval_of_share(scores[0], _images(network))
    return IntervalRow(
        network.name,
        scores,
        mean(scores),
        max(0.0, low),
        min(1.0, high),
        spread_text(scores),
        number,
    )


def _images(network: Network) -> int:
    """Return the number of images that the network was evaluated on."""
    results = [run.result for run in network.runs if run.score is not None]
    evaluation = results[0].evaluation if results[0] is not None else None
    return max(1, evaluation.images if evaluation is not None else 1)


def _score_name(network: Network) -> str:
    results = [run.result for run in network.runs if run.score is not None]
    evaluation = results[0].evaluation if results[0] is not None else None
    return evaluation.score_name if evaluation is not None else "top-1"


def _table(networks: list[Network]) -> Table:
    several = any(len(network.scores) > 1 for network in networks)
    rows = []
    for network in networks:
        results = [run.result for run in network.runs if run.result is not None]
        single = ", ".join(percent_text(score) for score in network.scores)
        rows.append(
            [
                network.name,
                network.model,
                network.trained_on,
                *([spread_text(network.scores), single] if several else [single]),
                ", ".join(dict.fromkeys(str(result.steps) for result in results)),
                ", ".join(dict.fromkeys(str(result.set_images) for result in results)),
                ", ".join(dict.fromkeys(str(result.parameters) for result in results)),
            ]
        )
    scores = ["mean ± sd", "single runs"] if several else [_score_name(networks[0])]
    sizes = ["steps", "training images", "parameters"]
    spread = ", with the standard deviation over seeds" if several else ""
    return Table(
        f"Results on held-out images ({_images(networks[0])}){spread}.",
        ["network", "architecture", "trained on", *scores, *sizes],
        rows,
        text_columns=(1, 2),
    )


def _controls(networks: list[Network]) -> str:
    """Return a sentence on the controls: labels alone, and shuffled targets."""
    students = [n for n in networks if n.uses_cache and not n.is_shuffled]
    labels = [n for n in networks if n.runs[0].settings and not n.uses_cache]
    shuffled = [n for n in networks if n.is_shuffled]
    parts = []
    same = {network.model for network in students}
    for kind, found in (("from labels alone", labels), ("from shuffled targets", shuffled)):
        of_students = [network for network in found if network.model in same]
        if of_students:
            names = ", ".join(f"{n.name} ({spread_text(n.scores)})" for n in of_students)
            parts.append(f"{kind}: {names}")
    if not parts:
        return ""
    return f"Controls with the architecture of the students, {'; '.join(parts)}."
