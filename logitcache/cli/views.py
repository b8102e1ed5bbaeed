"""``logitcache views``: parameters, pixels and reproducibility of views."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitcache.cli.commands import Commands
from logitcache.cli.echo import echo
from logitcache.cli.flags import IMAGES, Json

if TYPE_CHECKING:
    from logitcache.report.gallery import Gallery

__all__ = ["views_app"]

views_app = Commands(
    help="Inspect augmented views: parameters, pixels, and reproducibility on this machine.",
    no_args_is_help=True,
)

_Data = Annotated[str, typer.Option(help=IMAGES)]
_Cache = Annotated[
    str | None, typer.Option(help="Show the views of this cache, mixed with the same images.")
]
_Key = Annotated[list[str] | None, typer.Option(help="Path of an image in the data; repeatable.")]
_View = Annotated[
    list[str] | None, typer.Option(help="Id of a view, or its number from 0; repeatable.")
]
_Config = Annotated[
    Path | None, typer.Option(help="YAML file of view settings, instead of --cache.")
]
_Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A=VALUE", help="Set any view setting; repeatable."),
]


@views_app.command()
def show(
    data: _Data,
    cache: _Cache = None,
    key: _Key = None,
    row: Annotated[list[int] | None, typer.Option(help="Row of an image; repeatable.")] = None,
    view: _View = None,
    config: _Config = None,
    sets: _Sets = None,
    as_json: Json = False,
) -> None:
    """Print the random parameters of an image's views: crop, operations, mixing.

    Positions and sizes in operations are fractions of the side of the view.
    """
    from logitcache.cli.options import print_json

    gallery = _gallery(data, cache, key, row, view, config, sets, images=1)
    shown = gallery.parameters()
    if as_json:
        print_json({"images": shown})
        return
    for image in shown:
        echo(f"{image['key']}: row {image['row']}, {image['height']} x {image['width']}")
        for drawn in image["views"]:
            echo(f"  view {drawn['number']} ({drawn['view']}): draw {drawn['draw']}")
            for name, value in _described(drawn):
                echo(f"    {name + ':':<9}{value}")


@views_app.command()
def sheet(
    data: _Data,
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    cache: _Cache = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="Teacher whose five most likely classes are printed next to each view."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=64, help="Number of images.")] = 4,
    size: Annotated[int, typer.Option(min=8, max=1024, help="Side of a view in pixels.")] = 128,
    key: _Key = None,
    view: _View = None,
    config: _Config = None,
    sets: _Sets = None,
) -> None:
    """Render views of a few images into one PNG file.

    Next to each view are the operations that were drawn for the image, the
    image that is mixed in, and the most probable classes of a teacher; the
    label and a wrong first class are marked.
    """
    from logitcache.report.contact_sheet import draw_sheet

    gallery = _gallery(data, cache, key, None, view, config, sets, images=images)
    draw_sheet(gallery, out, size=size, teacher=teacher)
    echo(f"{out}: {len(gallery.positions)} images x {len(gallery.views)} views")


@views_app.command()
def check(
    cache: Annotated[
        str | None,
        typer.Option(help="Also render the view fingerprints of this cache; needs --data."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Images of the cache.")] = None,
    tolerate_pixel_drift: Annotated[
        int, typer.Option(min=0, max=255, help="Largest allowed pixel difference, 0 to 255.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Check that this machine renders reference views exactly; the exit code is 4 if not."""
    from logitcache.cli.options import print_json
    from logitcache.report.gallery import check_machine

    document = check_machine(cache, data, tolerate_pixel_drift)
    golden = document["golden"]
    if as_json:
        print_json(document)
    else:
        echo(", ".join(f"{name} {value}" for name, value in document["versions"].items()))
        for kind in ("words", "parameters", "pixels"):
            for where in golden[kind]:
                echo(f"different {kind}: {where}")
        state = "all reproduced" if golden["sound"] else "NOT all reproduced"
        echo(f"{golden['vectors']} reference vectors: {state}")
        probes = document["probes"]
        if probes is not None:
            echo(
                f"{probes['checked']} view fingerprints of {cache}: {probes['drifted']} with "
                f"different pixels, "
                f"{probes['skipped']} skipped, {probes['seconds']:.2f} s"
            )
    if not golden["sound"]:
        raise typer.Exit(4)


def _gallery(
    data: str,
    cache: str | None,
    keys: list[str] | None,
    rows: list[int] | None,
    views: list[str] | None,
    config: Path | None,
    sets: list[str] | None,
    *,
    images: int,
) -> Gallery:
    from logitcache.cli.options import gather
    from logitcache.report.gallery import open_gallery

    values = gather(None if config is None else str(config), {}, sets or [])
    return open_gallery(
        data, cache, values, keys=keys or [], rows=rows or [], wanted=views or [], images=images
    )


def _described(drawn: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the names and texts of the parameters of a view."""
    found = drawn["parameters"]
    crop = found["crop"]
    parts = [("crop", str(crop) if isinstance(crop, list) else _call(list(crop.values())))]
    parts += [("step", _call(step)) for step in found["steps"]]
    if found["mix"] is not None:
        mix, partner = found["mix"], drawn["partner"]
        kind = "blend" if mix["box"] is None else f"box {_numbers(mix['box'])}"
        parts.append(("mix", f"{kind}, own share {mix['lam']:.6g}, with {partner}"))
    parts += [("then", _call(step)) for step in found["after"]]
    return parts


def _call(step: list[Any]) -> str:
    return f"{step[0]}({_numbers(step[1:])})"


def _numbers(values: list[Any]) -> str:
    return ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in values)
