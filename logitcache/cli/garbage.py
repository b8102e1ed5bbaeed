"""``logitcache gc``: remove what no kept revision of a cache needs."""

from __future__ import annotations

from typing import Annotated

import typer

from logitcache.cli.commands import Commands
from logitcache.cli.echo import echo
from logitcache.cli.flags import Json

__all__ = ["garbage_app"]

garbage_app = Commands()

_HOUR = 3600.0


@garbage_app.command(rich_help_panel="Maintain")
def gc(
    cache: Annotated[str, typer.Argument(help="Folder or URL of the cache.")],
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the objects; by default, they are listed.")
    ] = False,
    keep: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of the latest revisions to keep.")
    ] = 1,
    grace: Annotated[
        float,
        typer.Option(min=0, metavar="HOURS", help="Spare objects that are younger than this."),
    ] = 24.0,
    as_json: Json = False,
) -> None:
    """List or delete what no kept revision of a cache needs.

    These are dropped teachers, features and views, and old revisions. With
    --delete, the command is refused while a run is at work on the cache.
    """
    from logitcache.cli.layout import bytes_text
    from logitcache.cli.options import print_json
    from logitcache.share.garbage import collect_garbage

    report = collect_garbage(
        cache,
        remove=delete,
        keep=keep,
        grace_seconds=grace * _HOUR,
        on_wait=lambda wait: echo(f"gc: {wait}", err=True),
    )
    if as_json:
        print_json(report.to_json())
        return
    for found in () if delete else report.objects:
        echo(f"{bytes_text(found.bytes):>9}  {found.key}")
    done = "deleted" if delete else "can be deleted with --delete"
    kept = ", ".join(str(number) for number in report.kept) or "none"
    echo(f"{cache}: {len(report.objects)} objects, {bytes_text(report.bytes)}, {done}")
    echo(
        f"revisions kept: {kept}; {report.young} objects are younger than {grace:g} hours; "
        f"{report.other} other files are left alone"
    )
