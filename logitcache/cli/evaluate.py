"""``logitcache evaluate``: accuracy of a network on a folder of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cli.layout import new_console, new_table, percent_text, print_line, print_unlisted
from logitcache.cli.options import gather, network_or_folder, print_json
from logitcache.cli.progress import ProgressLine
from logitcache.errors import first_of
from logitcache.training.evaluation.evaluate import EvaluateConfig, evaluate_network

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["run_evaluate"]


def run_evaluate(
    model: str, flags: Mapping[str, Any], sets: Sequence[str], *, as_json: bool
) -> None:
    """Evaluate a network and print its accuracy.

    Args:
        model: Folder of an exported network, or ``MODEL[@WEIGHTS]``.
        flags: Fields of an :class:`.EvaluateConfig` by dotted path.
        sets: ``a.b=value`` assignments to its fields.
        as_json: Whether to print one JSON document instead of a table.
    """
    values = gather({"network": network_or_folder(model)}, flags, sets)
    config = EvaluateConfig.parse(values, "evaluate")
    with ProgressLine("evaluate") as line:
        result = evaluate_network(config, on_progress=line.count)
    if as_json:
        print_json(result.to_json())
        return
    console = new_console()
    found = result.evaluation
    scores: dict[str, float | None] = {found.score_name: found.score}
    if found.top1 is not None:
        scores["top-5"] = found.top5
    table = new_table("network", "images", "classes", *scores, "loss")
    table.add_row(
        result.model,
        str(found.images),
        f"{result.classes_with_images} of {result.classes}",
        *map(percent_text, scores.values()),
        f"{found.loss:.3f}",
    )
    console.print(table)
    if result.unlabeled:
        print_line(console, f"{result.unlabeled} images have no label and are not counted")
    if result.skipped:
        count, names = len(result.skipped), first_of(result.skipped)
        print_line(console, f"{count} images could not be decoded and are not counted: {names}")
    print_unlisted(console, "data", result.unlisted)
    for note in result.notes:
        print_line(console, f"note: {note}")
