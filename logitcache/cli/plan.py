"""``logitcache plan``: estimate of size, time and fidelity of a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cache.format.card import read_facts
from logitcache.cache.store.open import locate
from logitcache.cli.echo import echo
from logitcache.cli.layout import (
    bytes_text,
    encoding_text,
    new_console,
    new_table,
    percent_text,
    print_line,
)
from logitcache.cli.options import gather, print_json, with_teacher_options
from logitcache.pipeline.settings import merged, read_yaml
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.estimate.estimate import estimate_cache
from logitcache.report.quantities import seconds_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from logitcache.precompute.estimate.estimate import (
        EncodingEstimate,
        Estimate,
        TeacherEstimate,
    )
    from logitcache.precompute.estimate.images import ImagesEstimate
    from logitcache.precompute.plan.pending import Lacking

__all__ = ["print_estimate", "run_plan"]

_NO_CACHE = "not written"  # an estimate needs no cache, but its configuration requires one


def run_plan(
    configs: Sequence[str],
    flags: Mapping[str, Any],
    sets: Sequence[str],
    features: Sequence[str],
    *,
    compiled: bool,
    as_json: bool,
) -> None:
    """Estimate size, time and fidelity of a cache and print them.

    Args:
        configs: YAML files; later ones override earlier ones.
        flags: Fields of a :class:`.PrecomputeConfig` by dotted path.
        sets: ``a.b=value`` assignments.
        features: ``NAME=TAP[,OPTION=VALUE…]`` of the layers whose features are cached.
        compiled: Whether to compile all teachers.
        as_json: Whether to print one JSON document instead of tables.
    """
    values: dict[str, Any] = {}
    for config in configs:
        values = merged(values, read_yaml(config))
    values = with_teacher_options(gather(values, flags, sets), features, compiled)
    cache = locate(str(values["cache"])) if values.get("cache") else None
    parsed = PrecomputeConfig.parse({"cache": _NO_CACHE, **values}, "plan")
    found = estimate_cache(parsed, cache)
    facts = parsed.card if cache is None else read_facts(cache).updated(parsed.card)
    missing = facts.missing_licenses(parsed.teachers)
    if as_json:
        print_json({**found.to_json(), "missing_licenses": missing})
        return
    print_estimate(found)
    if missing:
        echo(f"note: no license is stated for {', '.join(missing)} (--license, logitcache card)")


def print_estimate(found: Estimate) -> None:
    """Print the tables of an estimate."""
    console = new_console()
    console.print(
        f"{found.images} images x {found.views} views, in units of {found.unit_rows} images; "
        f"estimated from {found.shown} images; no cache is written"
    )
    for name, teacher in found.teachers.items():
        _print_teacher(console, name, teacher)
    _print_views(console, found)
    if found.images_in_cache is not None:
        _print_images(console, found.images_in_cache)
    _print_break_even(console, found)
    if found.lacking is not None:
        _print_lacking(console, found.lacking)


def _print_teacher(console: Console, name: str, teacher: TeacherEstimate) -> None:
    times = ", ".join(f"{1e3 * s:.3g} ms per image on {d}" for d, s in teacher.seconds.items())
    right = "" if teacher.accuracy is None else f", accuracy {percent_text(teacher.accuracy)}"
    console.print()
    kept = "features alone" if teacher.chosen is None else f"{teacher.num_classes} classes"
    console.print(f"{name}: {teacher.architecture}, {kept}{right}, {times}")
    if teacher.chosen is not None:
        _print_encodings(console, teacher, teacher.chosen)
    _print_taps(console, teacher)


def _print_encodings(console: Console, teacher: TeacherEstimate, chosen: EncodingEstimate) -> None:
    table = new_table("encoding", "bytes/row", "all views", "files", "RAM/view")
    temperatures = list(chosen.fidelity["temperatures"])
    for header in (*(f"KL T={t}" for t in temperatures), "top-1 kept", ""):
        table.add_column(header, justify="right")
    for row in teacher.encodings:
        losses = row.fidelity["temperatures"].values()
        table.add_row(
            encoding_text(row.encoding),
            f"{row.row_bytes:.1f}",
            bytes_text(row.bytes),
            str(row.files),
            bytes_text(row.memory),
            *(f"{loss['kl_truncation'] + loss['kl_coding']:.2g}" for loss in losses),
            percent_text(row.fidelity["top1"]),
            "<- chosen" if row.chosen else "",
        )
    console.print(table)


def _print_taps(console: Console, teacher: TeacherEstimate) -> None:
    table = new_table("layer", "encoding", "views", "bytes/row", "all views", "files", "RAM/view")
    for header in ("cosine", "error"):
        table.add_column(header, justify="right")
    for name, tap in teacher.taps.items():
        shape = " x ".join(str(size) for size in tap.encoding["shape"])
        table.add_row(
            name,
            f"{shape} {tap.encoding['values']}",
            str(tap.views),
            f"{tap.row_bytes:.0f}",
            bytes_text(tap.bytes),
            str(tap.files),
            bytes_text(tap.memory),
            f"{tap.fidelity['cosine']:.6f}",
            f"{tap.fidelity['error']:.2g}",
        )
    if teacher.taps:
        console.print(table)


def _print_views(console: Console, found: Estimate) -> None:
    console.print()
    console.print("whole cache with the chosen encodings, by number of views")
    table = new_table("views", "bytes", "files")
    for device in found.devices:
        table.add_column(f"time, {device}", justify="right")
        table.add_column(f"break-even (student epochs), {device}", justify="right")
    for row in found.by_views:
        cells = [
            cell
            for device in found.devices
            for cell in (
                seconds_text(60 * row.minutes[device]),
                str(row.break_even_epochs[device] or "never"),
            )
        ]
        views = f"{row.views} <-" if row.views == found.views else str(row.views)
        table.add_row(views, bytes_text(row.bytes), str(row.files), *cells)
    console.print(table)


def _print_images(console: Console, images: ImagesEstimate) -> None:
    """Print what images in the cache cost, and what a student gains by them."""
    each = " for each view" if images.by_view else ""
    console.print(
        f"images in the cache ({images.settings}): {bytes_text(images.bytes)}{each}, "
        f"{images.image_bytes:.0f} bytes each, of {images.original_bytes:.0f}; encoded in "
        f"{1e3 * images.pack:.2g} ms per image"
    )
    console.print(
        "a student needs no other files; decoding and rendering takes "
        f"{1e3 * images.show:.3g} ms per image, of originals {1e3 * images.show_original:.3g} ms"
    )


def _print_break_even(console: Console, found: Estimate) -> None:
    """Print a sentence about the break-even point of the requested cache."""
    requested = next(row for row in found.by_views if row.views == found.views)
    for name, device in found.devices.items():
        epochs = requested.break_even_epochs[name]
        teach, fetch = 1e3 * device.teach, 1e3 * found.fetch
        if epochs is None:
            console.print(
                f"{name}: the cache never breaks even: a forward pass of the teachers takes "
                f"{teach:.2g} ms per image, and reading their cached outputs takes {fetch:.2g} ms"
            )
            continue
        console.print(
            f"{name}: with {found.views} views the cache takes no more time than live teachers "
            f"after {epochs} student epochs, counted over all students: "
            f"({1e3 * device.decode:.2g} ms + {found.views} x {1e3 * device.store:.2g} ms) / "
            f"({teach:.2g} ms - {fetch:.2g} ms)"
        )


def _print_lacking(console: Console, lacking: Lacking) -> None:
    """Print how many images, views and rows an existing cache lacks."""
    images, views = lacking.images + lacking.new_images, lacking.views + lacking.new_views
    console.print()
    print_line(
        console,
        f"{lacking.cache} has {lacking.images} of the {images} images and {lacking.views} of "
        f"the {views} views",
    )
    table = new_table("teacher or layer")
    for header in ("rows to compute", "rows in all"):
        table.add_column(header, justify="right")
    table.add_column("")
    for name, group in lacking.groups.items():
        state = "new" if group.is_new else "" if group.rows else "complete"
        table.add_row(name, str(group.rows), str(group.total), state)
    console.print(table)
    for note in lacking.notes:
        print_line(console, f"note: {note}")
