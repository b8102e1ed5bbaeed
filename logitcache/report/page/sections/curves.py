"""Training curves of all runs, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.report.page.axis import Axis
from logitcache.report.page.blocks import Paragraph, Section, Table
from logitcache.report.page.charts import Charts, Curves, Series
from logitcache.report.quantities import number_text, percent_text, percent_tick

if TYPE_CHECKING:
    from logitcache.report.page.contents import Contents, Network

__all__ = ["curves"]

_SCORES = ("top1", "mean_average_precision")
_MOST_PANELS = 24


def curves(contents: Contents) -> Section | None:
    """Return the training curves of all runs that have a log."""
    networks = [n for n in contents.networks if any(run.curve("loss") for run in n.runs)]
    if not networks:
        return None
    last_step = max(x for n in networks for run in n.runs for x, _ in run.curve("loss"))
    steps = Axis("step", 0.0, last_step or 1.0)
    charts = [_scores(networks, steps)] if _has_score_curves(networks) else []
    charts += [_losses(network, steps) for network in networks[:_MOST_PANELS]]
    text = (
        "Each chart has the runs of one network, one curve per seed. Losses of networks that are "
        "trained on different objectives cannot be compared with each other."
    )
    if len(networks) > _MOST_PANELS:
        text += f" The losses of {len(networks) - _MOST_PANELS} more networks are not drawn."
    return Section("Training curves", [Paragraph(text), Charts(charts)])


def _has_score_curves(networks: list[Network]) -> bool:
    """Return whether a run was evaluated more than once."""
    return any(len(run.curve(name)) > 1 for n in networks for run in n.runs for name in _SCORES)


def _scores(networks: list[Network], steps: Axis) -> Curves:
    series = [
        Series(network.name, points, number)
        for number, network in enumerate(networks)
        for run in network.runs
        for name in _SCORES
        if len(points := run.curve(name)) > 1
    ]
    axis = Axis.around("score", [y for one in series for _, y in one.points], text=percent_tick)
    rows = [[one.name, percent_text(max(y for _, y in one.points))] for one in series]
    return Curves(
        "Validation accuracy",
        "Accuracy on validation images over the steps of training.",
        steps,
        axis,
        series,
        table=Table("Best value of each run.", ["network", "best"], rows),
    )


def _losses(network: Network, steps: Axis) -> Curves:
    known = [(run, points) for run in network.runs if (points := run.curve("loss"))]
    series = [
        Series(run.origin.seed or "training loss", points, number)
        for number, (run, points) in enumerate(known)
    ]
    rows = [
        [one.name, number_text(one.points[0][1]), number_text(one.points[-1][1])] for one in series
    ]
    axis = Axis.around("loss", [y for one in series for _, y in one.points])
    return Curves(
        network.name,
        f"Training loss, mean over each epoch; trained on {network.trained_on}.",
        steps,
        axis,
        series,
        table=Table("Loss of each run.", ["run", "first epoch", "last epoch"], rows),
    )
