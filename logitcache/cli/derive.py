"""Commands that make a cache from others, without images and teachers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from logitcache.cli.commands import Commands
from logitcache.cli.echo import echo
from logitcache.cli.flags import Json, Revision

if TYPE_CHECKING:
    from logitcache.share.comparing import CacheDifference
    from logitcache.share.slicing import DerivedSummary

__all__ = ["derive_app"]

derive_app = Commands()

_SHARE = "Share"

_Destination = Annotated[
    str, typer.Argument(help="Folder or URL of the new cache: empty, or begun by this command.")
]


@derive_app.command("slice", rich_help_panel=_SHARE)
def slice_command(
    source: Annotated[str, typer.Argument(help="Folder or URL of a cache; it is only read.")],
    destination: _Destination,
    view: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID|N|N-M",
            help="Views to take: ids, numbers from 0 or ranges; all by default; repeatable.",
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Teacher to take, with its features; all by default; repeatable.",
        ),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME/TAP", help="Features to take; all by default; repeatable."),
    ] = None,
    without_features: Annotated[
        bool, typer.Option("--without-features", help="Leave out all features.")
    ] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Take images of this class; repeatable."),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take the images in this file, one path relative to the data root per line.",
        ),
    ] = None,
    match: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Take images whose path matches a pattern such as 'cats/*'; repeatable.",
        ),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            metavar="P|P-Q",
            help="Take a random share of the images, from 0 to 1, by the hash of their paths: "
            "0.1, or 0.1-0.2 for another tenth.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1, help="Largest number of classes to store of each teacher: encodes outputs again."
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            min=4, max=8, help="Largest number of bits of a sparse code: encodes outputs again."
        ),
    ] = None,
    without_excluded: Annotated[
        bool,
        typer.Option("--without-excluded", help="Leave out images excluded from training."),
    ] = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Write a part of a cache as a cache of its own.

    Units whose images are all taken are copied as bytes. The source is only
    read. The same command continues a run that was interrupted.
    """
    from logitcache.cli.progress import ProgressLine
    from logitcache.share.row_selection import RowSelection, parse_share, read_keys
    from logitcache.share.slicing import slice_cache

    rows = RowSelection(
        tuple(classes or ()),
        None if keys is None else read_keys(keys),
        tuple(match or ()),
        None if share is None else parse_share(share),
        excluded=not without_excluded,
    )
    with ProgressLine("slice", quiet=as_json) as line:
        summary = slice_cache(
            source,
            destination,
            views=view or [],
            teachers=teacher or [],
            features=[] if without_features else feature,
            rows=rows,
            top_k=top_k,
            bits=bits,
            revision=revision,
            on_progress=lambda progress: line.units(*progress),
            on_wait=lambda wait: echo(f"slice: {wait}", err=True),
        )
    _print(summary, as_json=as_json)


@derive_app.command(rich_help_panel=_SHARE)
def merge(
    caches: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE… DESTINATION",
            help="Folders or URLs of two caches or more, and of the new cache.",
        ),
    ],
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add the images of each cache as a further segment, as if they had been added "
            "later, and copy all units as bytes; by default, images are ordered by hash.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the images, views, teachers and features of several caches as one.

    Caches that contradict each other are refused before anything is written.
    The sources are only read. The same command continues a run that was
    interrupted.
    """
    from logitcache.cli.progress import ProgressLine
    from logitcache.share.merging import merge_caches

    with ProgressLine("merge", quiet=as_json) as line:
        summary = merge_caches(
            caches[:-1],
            caches[-1],
            append=append,
            on_progress=lambda progress: line.units(*progress),
            on_wait=lambda wait: echo(f"merge: {wait}", err=True),
        )
    _print(summary, as_json=as_json)


@derive_app.command(rich_help_panel=_SHARE)
def diff(
    first: Annotated[str, typer.Argument(help="Folder or URL of a cache.")],
    second: Annotated[str, typer.Argument(help="Folder or URL of another cache.")],
    as_json: Json = False,
) -> None:
    """Compare two caches; the exit code is 4 if they differ.

    Data, images, views, teachers and encodings are compared field by field,
    and outputs where both caches have them, with the noise floor of their
    encodings.
    """
    from logitcache.cli.options import print_json
    from logitcache.share.comparing import compare_caches

    found = compare_caches(first, second)
    if as_json:
        print_json(found.to_json())
    else:
        _print_difference(found)
    if not found.is_same:
        raise typer.Exit(4)


def _print_difference(found: CacheDifference) -> None:
    shared, *alone = found.images
    echo(f"images: {shared} in both, {alone[0]} in the first only, {alone[1]} in the second only")
    for what, sides in (("views", found.views), ("outputs", found.groups)):
        for place, names in zip(("first", "second"), sides, strict=True):
            if names:
                echo(f"{what} in the {place} only: {', '.join(names)}")
    for text in found.fields:
        echo(text)
    for value in found.values:
        if value.differing:
            mean = "unknown" if value.mean is None else f"{value.mean:.2g}"
            noise = "unknown" if value.noise is None else f"{value.noise:.2g}"
            echo(
                f"{value.group}, view {value.view}: {value.differing} of {value.rows} rows differ, "
                f"{value.measure} {mean}, noise floor {noise}"
            )
    same = sum(not value.differing for value in found.values)
    echo(f"{same} of {len(found.values)} shared views have equal values")
    echo("the caches are the same" if found.is_same else "the caches differ")


def _print(summary: DerivedSummary, *, as_json: bool) -> None:
    from logitcache.cli.layout import bytes_text
    from logitcache.cli.options import print_json

    if as_json:
        print_json(summary.to_json())
        return
    for note in summary.notes:
        echo(f"note: {note}")
    echo(
        f"{summary.destination}: {summary.images} images, {summary.views} views, "
        f"teachers {', '.join(summary.teachers)}"
    )
    echo(
        f"{summary.copied} units copied, {summary.encoded} units encoded; "
        f"{bytes_text(summary.bytes_read)} read, {bytes_text(summary.bytes_written)} written"
    )
    echo(f"revision sha256 {summary.revision_sha256}")
