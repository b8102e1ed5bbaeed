"""Commands on an existing cache: describe, verify, repair, exclude images.

Heavy imports happen inside them, so that help comes at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from logitcache.cli.commands import Commands
from logitcache.cli.echo import echo
from logitcache.cli.flags import (
    ClassMap,
    Device,
    Json,
    OnBadImage,
    Revision,
    Sets,
    SignedBy,
    Threads,
    VerifySets,
    settings_of,
)
from logitcache.cli.options import teachers as read_teachers

__all__ = ["LOOK", "maintain_app"]

maintain_app = Commands()

LOOK = "Inspect"
"""Help panel of the commands that change no cache."""
_MAINTAIN = "Maintain"

_Cache = Annotated[str, typer.Argument(help="Folder or URL of the cache.")]
_Keys = Annotated[list[str], typer.Argument(help="Paths of images, relative to the data root.")]
_Reason = Annotated[str, typer.Option(help="Reason for the exclusion, stored in the cache.")]
_Audited = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODEL[@WEIGHTS]",
        help="Recompute outputs of this teacher and compare a random sample of rows with the "
        "cached ones; needs --data; repeatable.",
    ),
]
_AuditedViews = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID|N|N-M",
        help="Compare rows of these views only: ids, numbers from 0 or ranges; repeatable.",
    ),
]


@maintain_app.command(rich_help_panel=LOOK)
def inspect(
    cache: _Cache,
    survey: Annotated[
        bool,
        typer.Option(
            "--survey",
            help="Read all teacher outputs and summarize predicted classes, entropy and accuracy.",
        ),
    ] = False,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="tcp://HOST:PORT", help="Address of a running dask scheduler for --survey."
        ),
    ] = None,
    class_map: ClassMap = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Describe a cache: images, views, teachers, layers, sizes and encoding losses.

    With --class-map, show which share of the teachers' probability its classes have.
    """
    from logitcache.cli.options import print_json
    from logitcache.cli.tables import print_cache
    from logitcache.report.describe import describe

    if class_map:
        from logitcache.cli.class_shares import run_class_shares

        run_class_shares(cache, class_map, revision=revision, as_json=as_json)
        return
    if survey:
        from logitcache.cli.survey import run_survey

        run_survey(cache, scheduler, revision=revision, as_json=as_json)
        return
    found = describe(cache, revision=revision)
    if as_json:
        print_json(found.to_json())
    else:
        print_cache(found)


@maintain_app.command(rich_help_panel=LOOK)
def status(cache: _Cache, as_json: Json = False) -> None:
    """Show how much of a cache is computed; the exit code is 3 if something is missing."""
    from logitcache.cli.options import print_json
    from logitcache.cli.tables import print_status
    from logitcache.report.describe import describe

    found = describe(cache)
    if as_json:
        print_json(found.to_json())
    else:
        print_status(found)
    if not found.complete or found.revision is None:
        raise typer.Exit(3)


@maintain_app.command(rich_help_panel=LOOK)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="Folder of an exported network, MODEL@WEIGHTS with the name of a timm model, or "
            "hf-hub:REPOSITORY."
        ),
    ],
    data: Annotated[str, typer.Option(help="Images with labels, as for train --val.")],
    class_map: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Class of the images for classes of the network: a file with the columns class of "
            "the network (name or WordNet id) and class of the images.",
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the input in pixels; the network's own by default.")
    ] = None,
    crop_pct: Annotated[
        float | None, typer.Option(help="Share of the shorter side that the center crop keeps.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per forward pass.")] = None,
    device: Device = None,
    threads: Threads = None,
    on_bad_image: OnBadImage = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of a network on labeled images; classes are matched by name."""
    flags = settings_of(locals())
    from logitcache.cli.evaluate import run_evaluate

    run_evaluate(model, flags, sets or [], as_json=as_json)


@maintain_app.command(rich_help_panel=_MAINTAIN)
def verify(
    cache: _Cache,
    quick: Annotated[
        bool, typer.Option("--quick", help="Check only sizes and headers of shards.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Images to compare with those the cache was computed from.")
    ] = None,
    teachers: _Audited = None,
    samples: Annotated[int, typer.Option(min=16, help="Rows to compare per teacher.")] = 256,
    full: Annotated[
        bool, typer.Option("--full", help="Compare every row of every view instead of a sample.")
    ] = False,
    views: _AuditedViews = None,
    revision: Revision = None,
    signed_by: SignedBy = None,
    device: Device = None,
    threads: Threads = None,
    sets: VerifySets = None,
    as_json: Json = False,
) -> None:
    """Check every byte of a cache against its checksums; the exit code is 4 if any differs."""
    from logitcache.cli.trust import run_verify

    run_verify(
        cache,
        {"data": data, "teachers": read_teachers(teachers or []), "threads": threads},
        sets or [],
        quick=quick,
        samples=None if full else samples,
        views=views or [],
        revision=revision,
        signed_by=signed_by,
        device=device or "auto",
        as_json=as_json,
    )


@maintain_app.command(rich_help_panel=_MAINTAIN)
def repair(
    cache: _Cache,
    data: Annotated[
        str | None,
        typer.Option(
            help="The images the cache was computed from; by default those that it contains."
        ),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL[@WEIGHTS]",
            help="Name and network of a teacher whose outputs are damaged; repeatable.",
        ),
    ] = None,
    device: Device = None,
    threads: Threads = None,
    sets: VerifySets = None,
    as_json: Json = False,
) -> None:
    """Recompute only the damaged parts of a cache, with the same images and weights."""
    flags = settings_of(locals())
    from logitcache.cli.trust import run_repair

    run_repair(flags, sets or [], as_json=as_json)


@maintain_app.command(rich_help_panel=_MAINTAIN)
def exclude(cache: _Cache, keys: _Keys, reason: _Reason = "", as_json: Json = False) -> None:
    """Exclude images from training without rewriting the cache."""
    from logitcache.cache.write.exclude import withdraw_images
    from logitcache.cli.options import print_json

    count = withdraw_images(cache, keys, reason)
    if as_json:
        print_json({"cache": cache, "withdrawn": count})
    else:
        echo(f"{cache}: {count} images are excluded")


@maintain_app.command(hidden=True)
def withdraw(cache: _Cache, keys: _Keys, reason: _Reason = "", as_json: Json = False) -> None:
    """Exclude images from training (deprecated name of exclude)."""
    echo("warning: logitcache withdraw is deprecated; use logitcache exclude", err=True)
    exclude(cache, keys, reason, as_json)


@maintain_app.command(rich_help_panel=_MAINTAIN)
def drop(
    cache: _Cache,
    teacher: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Teacher to drop, with its features; repeatable."),
    ] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME/TAP", help="Features of a teacher's layer to drop; repeatable."),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID|N|N-M",
            help="Views to drop, of all teachers: ids, numbers from 0 or ranges; repeatable.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Drop teachers, features or views from a cache.

    The new revision of the cache no longer lists them, and a later
    precompute can compute the same names again. The dropped outputs still
    take up space in the cache.
    """
    from dataclasses import asdict

    from logitcache.cache.write.drop import drop_from_cache
    from logitcache.cli.options import print_json

    dropped = drop_from_cache(
        cache,
        teachers=teacher or [],
        features=feature or [],
        views=view or [],
        on_wait=lambda wait: echo(f"drop: {wait}", err=True),
    )
    if as_json:
        print_json({"cache": cache, **asdict(dropped)})
        return
    names = [*dropped.teachers, *dropped.features, *(f"view {name}" for name in dropped.views)]
    echo(
        f"{cache}: dropped {', '.join(names)}; {len(dropped.left_teachers)} teachers and "
        f"{len(dropped.left_views)} views are left"
    )
