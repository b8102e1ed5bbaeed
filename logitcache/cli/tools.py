"""``logitcache tools``: commands that derive settings from a cache."""

from __future__ import annotations

from typing import Annotated

import typer

from logitcache.cli.echo import echo

__all__ = ["tools_app"]

tools_app = typer.Typer(help="Tools that derive settings from a cache.", no_args_is_help=True)


@tools_app.callback()
def _several() -> None:
    """Tools that derive settings from a cache."""


@tools_app.command("fit-weights")
def fit_weights(
    cache: Annotated[str, typer.Option(help="Cache with teacher outputs and labels.")],
    out: Annotated[str, typer.Option(help="YAML file for the weights.")] = "weights.yaml",
    teacher: Annotated[
        list[str] | None, typer.Option(help="Name of a teacher; all by default; repeatable.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Maximum number of images to fit on.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the sample and the search.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find how much each teacher should count: the mixture that is right most often."""
    from logitcache.cli.options import print_json
    from logitcache.tools.fit_weights import FitWeightsConfig
    from logitcache.tools.fit_weights import fit_weights as fit

    asked = {"teachers": teacher or None, "rows": rows, "seed": seed}
    given = {name: value for name, value in asked.items() if value is not None}
    fitted = fit(FitWeightsConfig.parse({"cache": cache, "out": out, **given}, "tools fit-weights"))
    if as_json:
        print_json(fitted.to_json())
        return
    for name, weight in fitted.teachers.items():
        echo(f"{name}: weight {weight:.4f}, alone {fitted.single[name]:.1%}")
    echo(f"mixture {fitted.accuracy:.1%}, all alike {fitted.uniform:.1%}, on {fitted.rows} images")
    weights = ", ".join(f"{name}: {weight:.4f}" for name, weight in fitted.teachers.items())
    echo(f"{out}: use as objectives: [soft: {{teachers: {{{weights}}}}}]")
