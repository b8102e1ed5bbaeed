"""``logitcache report``: one page on caches, training runs and pipeline folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from logitcache.cli.commands import Commands
from logitcache.cli.echo import echo
from logitcache.cli.flags import Json
from logitcache.cli.maintain import LOOK

__all__ = ["report_app"]

report_app = Commands()

_PAGE = Path("report.html")


@report_app.command(rich_help_panel=LOOK)
def report(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Folders or URLs of caches, output folders of train, or output folders of run.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: report.html by default; Markdown is printed."),
    ] = None,
    form: Annotated[
        Literal["html", "md"],
        typer.Option("--format", help="A page for browsers, or Markdown for a pull request."),
    ] = "html",
    data: Annotated[
        str | None,
        typer.Option(
            help="Images of the caches, to be shown; by default those in the caches or of the runs."
        ),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(
            min=0,
            help="Images to read of each cache, counted once per view; 0 to read only metadata.",
        ),
    ] = 65536,
    images: Annotated[
        int, typer.Option(min=0, max=100, help="Images in each list of hard images.")
    ] = 6,
    as_json: Json = False,
) -> None:
    """Write one page with the results of caches, training runs and pipelines.

    The HTML page contains its charts and pictures and loads nothing. What
    cannot be read is listed on it; the exit code is then that of the first
    error.
    """
    from logitcache.cli.options import print_json
    from logitcache.cli.progress import ProgressLine
    from logitcache.files import write_file
    from logitcache.report.page.cache_outputs import ReportSettings
    from logitcache.report.page.report import make_report

    with ProgressLine("report") as progress:
        settings = ReportSettings(rows=rows, images=images, data=data, on_progress=progress.units)
        made = make_report(paths, form=form, settings=settings)
    file = out or (_PAGE if form == "html" else None)
    if file is not None:
        write_file(file, made.text)
    if as_json:
        print_json({"out": None if file is None else str(file), **made.to_json()})
    elif file is None:
        for line in made.text.removesuffix("\n").split("\n"):
            echo(line)
    else:
        echo(f"{file}: {_number(made.caches, 'cache')}, {_number(made.runs, 'training run')}")
    for where, error in made.problems:
        echo(f"note: {where}: {error.brief}", err=True)
    if made.problems:
        raise typer.Exit(made.problems[0][1].exit_code)


def _number(count: int, name: str) -> str:
    """Return a number with a noun in singular or plural."""
    return f"{count} {name}" + ("" if count == 1 else "s")
