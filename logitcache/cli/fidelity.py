"""Tables of encoding losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cli.layout import new_table as _table
from logitcache.cli.layout import percent_text as _percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from logitcache.report.describe import TeacherDescription

__all__ = ["print_fidelity"]


def print_fidelity(console: Console, teachers: Sequence[TeacherDescription]) -> None:
    """Print the measured losses of the encodings of teacher outputs and features."""
    table = _table(
        "fidelity", "rows", "top-1 kept", "T", "truncation KL", "quantization KL", "gradient"
    )
    for teacher in teachers:
        if teacher.fidelity is None:
            continue
        first = (teacher.name, str(teacher.fidelity["rows"]), _percent(teacher.fidelity["top1"]))
        for temperature, loss in teacher.fidelity["temperatures"].items():
            table.add_row(
                *first,
                temperature,
                f"{loss['kl_truncation']:.2g}",
                f"{loss['kl_coding']:.1g}",
                f"{loss['gradient_error']:.1%}",
            )
            first = ("", "", "")
    _print_tap_fidelity(console, teachers)
    if table.row_count:
        console.print(table)
        console.print(
            "T: temperature; KL: divergence in nats from the exact outputs; gradient: relative "
            "error of the gradient of the distillation loss"
        )


def _print_tap_fidelity(console: Console, teachers: Sequence[TeacherDescription]) -> None:
    table = _table("layer", "rows", "cosine", "coding error", "reduction error", "gradient")
    for teacher in teachers:
        for tap in teacher.features:
            if tap.fidelity is not None:
                reduced = tap.fidelity["reduction"]
                table.add_row(
                    f"{teacher.name}, {tap.tap}",
                    str(tap.fidelity["rows"]),
                    f"{tap.fidelity['cosine']:.6f}",
                    f"{tap.fidelity['coding']:.2g}",
                    "-" if reduced is None else f"{reduced:.2g}",
                    f"{tap.fidelity['gradient']:.2g}",
                )
    if table.row_count:
        console.print(table)
