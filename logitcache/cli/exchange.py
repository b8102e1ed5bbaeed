"""Commands that read and write teacher outputs in the formats of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from logitcache.cli.commands import Commands
from logitcache.cli.echo import echo
from logitcache.cli.flags import (
    Budget,
    Creator,
    Data,
    Encoding,
    Images,
    Json,
    License,
    MaxKl,
    OnBadImage,
    Revision,
    Sets,
    Threads,
    TopK,
    UnitRows,
    settings_of,
)

if TYPE_CHECKING:
    from logitcache.exchange.importing import ImportSummary

__all__ = ["exchange_app"]

exchange_app = Commands()

_SHARE = "Share"


@exchange_app.command("import", rich_help_panel=_SHARE)
def import_command(
    outputs: Annotated[
        str,
        typer.Argument(
            help="Folder of record files of TinyViT, or a file .npz, .npy or .parquet with outputs."
        ),
    ],
    cache: Annotated[str, typer.Option(help="New cache, or one of the same images.")],
    teacher_name: Annotated[
        str, typer.Option("--teacher", metavar="NAME", help="Name of the teacher in the cache.")
    ],
    data: Data = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="tinyvit|npz|npy|parquet",
            help="Format of the outputs; recognized by default.",
        ),
    ] = None,
    values: Annotated[
        str | None,
        typer.Option(
            metavar="logits|log_probs|probabilities",
            help="What the numbers of an .npy file are; other formats state it.",
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Names of the images in the order of the outputs, one path relative to the data "
            "root per line; by default those in the outputs, or positions in an ImageFolder.",
        ),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Names of the classes in the order of the outputs, one per line; by default "
            "the sorted classes of the images.",
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            help="Number of classes, if it follows neither from the outputs nor from the images."
        ),
    ] = None,
    subset: Annotated[
        bool | None, typer.Option("--subset", help="Leave out images without outputs.")
    ] = None,
    images: Images = None,
    encoding: Encoding = None,
    top_k: TopK = None,
    budget: Budget = None,
    max_kl: MaxKl = None,
    unit_rows: UnitRows = None,
    threads: Threads = None,
    on_bad_image: OnBadImage = None,
    license_: License = None,
    creator: Creator = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Write teacher outputs of another program into a cache.

    The views that the teacher was given are not known: students see random
    views of their own. What else is not known is listed. Every image is read
    once. The same command continues a run that was interrupted.
    """
    flags = settings_of(locals())
    from logitcache.cli.interrupt import StopRequest
    from logitcache.cli.options import gather
    from logitcache.cli.progress import ProgressLine
    from logitcache.exchange.config import ImportConfig
    from logitcache.exchange.importing import import_outputs

    config = ImportConfig.parse(gather(None, flags, sets or []), "import")
    with StopRequest() as stop, ProgressLine("import", quiet=as_json) as line:
        summary = import_outputs(
            config,
            on_progress=lambda progress: line.units(progress.images, progress.total),
            should_stop=stop,
        )
    _print_import(summary, as_json=as_json)


@exchange_app.command("export", rich_help_panel=_SHARE)
def export_command(
    cache: Annotated[str, typer.Argument(help="Folder or URL of a sealed cache.")],
    out: Annotated[Path, typer.Argument(help="New file; for tinyvit a new folder.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="tinyvit|npz|parquet", help="Format of the outputs.")
    ],
    teacher: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Teacher; may be left out if the cache has one."),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID|N|N-M",
            help="Views to write: ids, numbers from 0 or ranges; all by default; repeatable.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Number of most probable classes to write; by default those of the cache, and "
            "100 for tinyvit."
        ),
    ] = None,
    positions: Annotated[
        bool,
        typer.Option(
            "--positions",
            help="Identify images by their position in an ImageFolder instead of their path.",
        ),
    ] = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Write the probabilities of a teacher in a format of other programs.

    Views become epochs of record files of TinyViT, the first axis of .npz
    arrays, or a column of a parquet table. Recipes of views and features have
    no place in these formats.
    """
    from logitcache.cli.layout import bytes_text
    from logitcache.cli.options import print_json
    from logitcache.cli.progress import ProgressLine
    from logitcache.exchange.exporting import export_outputs

    with ProgressLine("export", quiet=as_json) as line:
        summary = export_outputs(
            cache,
            out,
            format=format_,
            teacher=teacher,
            views=view or [],
            top_k=top_k,
            positions=positions,
            revision=revision,
            on_progress=line.units,
        )
    if as_json:
        print_json(summary.to_json())
        return
    classes = "all classes" if summary.top_k is None else f"top {summary.top_k}"
    echo(
        f"{summary.out}: {summary.images} images, {summary.views} views, {classes} of teacher "
        f"{summary.teacher}; {bytes_text(summary.bytes)}"
    )
    if summary.left_out:
        echo(f"note: {summary.left_out} images without outputs are left out")
    for note in summary.notes:
        echo(f"note: {note}")


def _print_import(summary: ImportSummary, *, as_json: bool) -> None:
    from logitcache.cli.options import print_json

    if as_json:
        print_json(summary.to_json())
        return
    for note in summary.notes:
        echo(f"note: {note}")
    if summary.left_out:
        echo(f"note: {summary.left_out} images without outputs are left out")
    if summary.unused:
        echo(f"note: {summary.unused} outputs belong to no image")
    echo("not known from these outputs:")
    for unknown in summary.unknown:
        echo(f"  {unknown}")
    accuracy = "" if summary.accuracy is None else f", top-1 accuracy {summary.accuracy:.1%}"
    echo(
        f"{summary.cache}: teacher {summary.teacher}, {summary.images} images, {summary.views} "
        f"views, {summary.classes} classes{accuracy}"
    )
    echo(f"revision {summary.revision}, sha256 {summary.revision_sha256}")
