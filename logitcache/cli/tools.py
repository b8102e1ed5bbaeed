"""``logitcache tools``: commands that derive settings from a cache."""

from __future__ import annotations

from typing import Annotated

import typer

from logitcache.cli.echo import echo
from logitcache.cli.flags import Json

__all__ = ["tools_app"]

tools_app = typer.Typer(no_args_is_help=True)


@tools_app.callback()  # typer would turn an app with a single command into that command
def _several() -> None:
    """Derive settings of a training run from a cache."""


@tools_app.command("fit-weights")
def fit_weights(
    cache: Annotated[
        str, typer.Option(help="Folder or URL of a cache with teacher outputs and labels.")
    ],
    out: Annotated[str, typer.Option(help="YAML file to write the weights to.")] = "weights.yaml",
    teacher: Annotated[
        list[str] | None, typer.Option(help="Name of a teacher; all by default; repeatable.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(help="Maximum number of images to fit the weights on; 10000 by default."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the sample of images and of the search.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the weights of a teacher ensemble to the highest accuracy on labeled images."""
    from logitcache.cli.options import gather, print_json
    from logitcache.tools.fit_weights import FitWeightsConfig
    from logitcache.tools.fit_weights import fit_weights as fit

    flags = {"cache": cache, "out": out, "teachers": teacher, "rows": rows, "seed": seed}
    fitted = fit(FitWeightsConfig.parse(gather(None, flags, []), "tools fit-weights"))
    if as_json:
        print_json(fitted.to_json())
        return
    for name, weight in fitted.teachers.items():
        echo(f"{name}: weight {weight:.4f}, accuracy alone {fitted.single[name]:.1%}")
    echo(
        f"ensemble: accuracy {fitted.accuracy:.1%}, with equal weights {fitted.uniform:.1%}, on "
        f"{fitted.rows} images"
    )
    weights = ", ".join(f"{name}: {weight:.4f}" for name, weight in fitted.teachers.items())
    echo(f"written to {out}; to use them: objectives: [soft: {{teachers: {{{weights}}}}}]")
