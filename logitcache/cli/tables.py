"""Tables of results, printed to stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.cli.fidelity import print_fidelity
from logitcache.cli.layout import bytes_text as _bytes
from logitcache.cli.layout import encoding_text, print_report_command, print_unlisted
from logitcache.cli.layout import new_console as _console
from logitcache.cli.layout import new_table as _table
from logitcache.cli.layout import percent_text as _percent
from logitcache.cli.layout import print_line as _line
from logitcache.report.trained_on import reads_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from logitcache.cache.read.diagnose import Fault
    from logitcache.cache.verify.integrity import VerifyReport
    from logitcache.check.audit import TeacherAudit
    from logitcache.check.images import ImagesReport
    from logitcache.check.repair import RepairSummary
    from logitcache.precompute.build import Summary
    from logitcache.report.describe import CacheDescription, TeacherDescription
    from logitcache.training.run.result import TrainResult

__all__ = [
    "print_audits",
    "print_cache",
    "print_images",
    "print_precompute",
    "print_repair",
    "print_status",
    "print_train",
    "print_verify",
]

_MOST_FAULTS, _MOST_ORPHANS = 50, 5


def print_precompute(summary: Summary) -> None:
    """Print size and accuracy of what a precompute run cached."""
    console = _console()
    console.print(
        f"{summary.cache}: {summary.images} images x {summary.views} views, "
        f"revision {summary.revision}; {summary.computed} computed in {summary.seconds:.1f} s"
    )
    console.print(f"sha256 of the revision: {summary.revision_sha256}")
    if summary.unreadable:
        console.print(f"{summary.unreadable} images could not be decoded and have no targets")
    table = _table("teacher or layer", "accuracy", "stored", "float32", "size vs. float32")
    for name, size in summary.sizes.items():
        accuracy = next(iter(summary.accuracy.get(name, {}).values()), None)
        table.add_row(
            name,
            _percent(accuracy),
            _bytes(size.stored),
            _bytes(size.dense_float32),
            f"{size.stored / max(1, size.dense_float32):.2f}",
        )
    console.print(table)
    if summary.image_bytes is not None:
        each = summary.image_bytes / max(1, summary.images)
        console.print(f"images in the cache: {_bytes(summary.image_bytes)}, {each:.0f} bytes each")
    print_unlisted(console, "data", summary.unlisted)
    for note in summary.notes:
        console.print(f"note: {note}")


def print_train(result: TrainResult, settings: Mapping[str, Any]) -> None:
    """Print the result of a training run with these settings."""
    evaluation = result.evaluation
    score = evaluation.score_name if evaluation else "top-1"
    table = _table(
        "output", "images", "labels used", "steps", score, "loss", "images/s", "data wait"
    )
    table.add_row(
        result.out,
        str(result.set_images),
        str(result.labeled if reads_labels(settings) else 0),
        str(result.steps),
        _percent(evaluation.score if evaluation else None),
        f"{evaluation.loss:.3f}" if evaluation else "-",
        f"{result.images / max(1e-9, result.seconds):.0f}",
        f"{result.data_wait:.0%}",
    )
    console = _console()
    console.print(table)
    if result.without_partner:
        console.print(
            f"note: up to {result.without_partner} images per epoch were left out of views that "
            "mix images, because the data lack the image to mix in"
        )
    reasons = {
        "are not in the cache": result.left_out,
        "of the cache are not in the data": result.missing,
        "could not be decoded": result.unreadable,
        "were excluded": result.withdrawn,
    }
    for reason, count in reasons.items():
        if count:
            console.print(f"{count} images {reason} and were not used")
    print_unlisted(console, "data", result.unlisted)
    print_unlisted(console, "val", result.unlisted_val)
    for note in result.notes:
        console.print(f"note: {note}")
    print_report_command(console, result.out)


def print_cache(cache: CacheDescription) -> None:
    """Print images, views, teachers, sizes and encoding losses of a cache."""
    console = _console()
    state = f"revision {cache.revision}" if cache.revision else "not sealed"
    console.print(f"{cache.url}: format {cache.format}, {state}")
    if cache.revision_sha256:
        console.print(f"sha256 of the revision: {cache.revision_sha256}")
    if cache.signers:
        console.print(f"signed by {', '.join(cache.signers)} (not checked: verify --signed-by)")
    elif cache.signed_parent:
        console.print(f"not signed; revision {cache.signed_parent} is")
    console.print(
        f"{cache.images} images of {cache.data} in {cache.segments} segment(s), "
        f"units of {cache.unit_rows} rows, {len(cache.class_names)} classes"
    )
    if cache.images_in_cache is not None:
        found = cache.images_in_cache
        settings = f"{found.kind}:{found.side}, JPEG quality {found.quality}"
        console.print(f"it contains its images ({settings}): {_bytes(found.stored_bytes)}")
    if cache.unreadable or cache.withdrawn:
        console.print(
            f"{cache.unreadable or 0} images could not be decoded, {cache.withdrawn} are excluded"
        )
    views = _table("view", "operations", "seed", "draw")
    for view in cache.views[:8]:
        views.add_row(view.id, ", ".join(view.operations), str(view.seed), str(view.draw))
    console.print(views)
    if len(cache.views) > 8:
        console.print(f"… and {len(cache.views) - 8} more views")
    teachers = _table("teacher", "network", "pixels", "classes", "encoding", "views", "accuracy")
    for column in ("bytes", "size vs. dense"):
        teachers.add_column(column, justify="right")
    for teacher in cache.teachers:
        teachers.add_row(
            teacher.name, teacher.architecture, str(teacher.input_size), *_logits(teacher)
        )
    console.print(teachers)
    if any(teacher.features for teacher in cache.teachers):
        console.print(_taps(cache))
    print_fidelity(console, cache.teachers)
    print_report_command(console, cache.url)


def _logits(teacher: TeacherDescription) -> list[str]:
    """Return the cells of a teacher's row on its logits; without logits most are empty."""
    encoding = teacher.encoding
    if encoding is None:
        return ["", "features alone", str(teacher.views), "", "", ""]
    return [
        f"{teacher.num_classes}{' of its own' if teacher.class_names is not None else ''}",
        encoding_text(encoding),
        str(teacher.views),
        _percent(next(iter(teacher.accuracy.values()), None)),
        _bytes(teacher.stored_bytes),
        f"{teacher.stored_bytes / max(1, teacher.dense_bytes):.2f}",
    ]


def _taps(cache: CacheDescription) -> Table:
    """Return the table of the cached features of all teachers."""
    table = _table("layer", "layout", "shape", "encoding", "views")
    for column in ("bytes", "size vs. float32"):
        table.add_column(column, justify="right")
    for teacher in cache.teachers:
        for features in teacher.features:
            encoding = features.encoding
            table.add_row(
                f"{teacher.name}/{features.tap}",
                str(encoding["layout"]),
                " x ".join(map(str, encoding["shape"])),
                ", ".join(_kept(encoding)),
                str(features.views),
                _bytes(features.stored_bytes),
                f"{features.stored_bytes / max(1, features.raw_bytes):.2f}",
            )
    return table


def _kept(encoding: Mapping[str, Any]) -> list[str]:
    """Return descriptions of the stored values of a layer and of their reductions."""
    grid = encoding["grid"]
    reductions = {
        f"{encoding['reduction']} of positions": encoding["reduction"] == "mean",
        "energy of channels": encoding["reduction"] == "energy",
        f"pooled to {encoding['pool']} x {encoding['pool']}": encoding["pool"] is not None,
        f"{encoding['kept_tokens']} of {(grid or 0) ** 2} tokens": encoding["kept_tokens"],
        "standardized": encoding["standardised"],
        "principal components": encoding["principal"],
    }
    return [encoding["values"], *(text for text, applies in reductions.items() if applies)]


def print_status(cache: CacheDescription) -> None:
    """Print how many units of each group are computed, and what to do if some are missing."""
    table = _table("group", "units computed", "units in all")
    table.add_row("samples", str(cache.sample_units), str(cache.sample_units_needed))
    if cache.images_in_cache is not None:
        images = cache.images_in_cache
        table.add_row("images", str(images.units), str(images.needed))
    for teacher in cache.teachers:
        if teacher.encoding is not None:
            table.add_row(f"teachers/{teacher.name}", str(teacher.units), str(teacher.needed))
        for features in teacher.features:
            path = f"teachers/{teacher.name}/features/{features.tap}"
            table.add_row(path, str(features.units), str(features.needed))
    console = _console()
    console.print(table)
    if not cache.complete:
        console.print("incomplete: run the same precompute command again to compute the rest")
    elif cache.revision is None:
        console.print("complete, but not sealed: run the same precompute command again")
    else:
        console.print(f"complete, revision {cache.revision}, sha256 {cache.revision_sha256}")
    print_report_command(console, cache.url)


def print_verify(report: VerifyReport) -> None:
    """Print the result of a verification, each fault with its place and cause."""
    console = _console()
    rate = report.bytes / max(1e-9, report.seconds)
    what = "sizes and headers" if report.quick else "every byte"
    revision = f"revision {report.revision}" if report.revision else "not sealed"
    console.print(
        f"{report.url}: {revision}; {what} of {report.units} units, {report.objects} objects, "
        f"{_bytes(report.bytes)} in {report.seconds:.1f} s ({_bytes(rate)}/s)"
    )
    if report.revision_sha256:
        console.print(f"sha256 of the revision: {report.revision_sha256}")
    _print_faults(console, report.faults)
    for orphan in report.orphans[:_MOST_ORPHANS]:
        console.print(f"orphaned file: {orphan.key}: {orphan.why}")
    if len(report.orphans) > _MOST_ORPHANS:
        console.print(f"… and {len(report.orphans) - _MOST_ORPHANS} more orphaned files")
    state = f"{len(report.faults)} faults; run logitcache repair" if report.faults else "ok"
    console.print(f"bytes: {state}")


def print_images(report: ImagesReport) -> None:
    """Print how the data differ from the images that a cache was computed from."""
    console = _console()
    kinds = {
        "missing": report.missing,
        "with a different file size": report.resized,
        "replaced under the same name": report.replaced,
        "with a different class": report.relabeled,
        "added since, without cached outputs": report.added,
    }
    for what, keys in kinds.items():
        if keys:
            more = ", …" if len(keys) > 5 else ""
            _line(console, f"images: {len(keys)} {what}: {', '.join(keys[:5])}{more}")
    for start in report.relisted:
        _line(
            console,
            f"images: names or labels of the rows from {start} on were changed in the cache after "
            "it was computed",
        )
    print_unlisted(console, "data", report.left_out)
    _line(
        console,
        f"images: {'ok' if report.ok else 'not those of the cache'}; {report.images} in the cache, "
        f"{report.digested} compared by checksum, {report.unreadable} cannot be decoded, "
        f"{report.withdrawn} excluded",
    )


def print_audits(audits: Sequence[TeacherAudit]) -> None:
    """Print how closely cached rows match recomputed ones, on average and row by row.

    In parentheses: the same measure between two recomputations with different batch sizes, which
    is the difference that rounding alone explains.
    """
    console = _console()
    table = _table(
        "teacher", "same top-1", "KL", "same classes", "truncation KL", "quantization KL", ""
    )
    for audit in audits:
        of_logits = ["features alone", "", "", "", ""]
        if audit.agreement is not None:
            of_logits = [
                f"{audit.agreement:.1%} (rounding: {audit.agreement_floor:.1%})",
                f"{audit.kl:.1e} (rounding: {audit.kl_floor:.1e})",
                f"{audit.overlap:.1%} (rounding: {audit.overlap_floor:.1%})",
                f"{audit.truncation:.1e}",
                f"{audit.coding:.1e}",
            ]
        state = "ok" if audit.ok else f"{audit.mismatched} rows do not match"
        table.add_row(audit.teacher, *of_logits, state)
    console.print(table)
    for audit in audits:
        _print_audit(console, audit)


def _print_audit(console: Console, audit: TeacherAudit) -> None:
    """Print which rows were compared with a teacher and which of them do not match."""
    some = f" in {audit.views} of {audit.all_views} views" if audit.views < audit.all_views else ""
    found = (
        "every row"
        if audit.samples == audit.pairs
        else "if one row in 2000 were changed, this sample would find it with a probability of "
        f"{100 * audit.detection:.1f} %; --full compares all rows"
    )
    _line(
        console, f"{audit.teacher}: {audit.samples} of {audit.pairs} rows compared{some}: {found}"
    )
    if audit.taps:
        rows = ", ".join(f"{count} of {tap}" for tap, count in audit.taps.items())
        _line(console, f"{audit.teacher}: rows of features compared: {rows}")
    for mismatch in audit.mismatches:
        _line(
            console,
            f"{audit.teacher}: {mismatch.key} in view {mismatch.view}: "
            f"{', '.join(mismatch.arrays)} differ from the outputs of this teacher",
        )
    more = audit.mismatched - len(audit.mismatches)
    if more:
        _line(console, f"{audit.teacher}: … and {more} more rows that do not match")


def print_repair(summary: RepairSummary) -> None:
    """Print what a repair restored, and the damage that remains."""
    console = _console()
    console.print(
        f"{summary.cache}: {len(summary.found)} faults found; {summary.restored} documents "
        f"restored, {summary.recomputed} units recomputed, {summary.differing} of them with "
        "results that differ in some bits"
    )
    _print_faults(console, summary.remaining)
    for note in summary.notes:
        console.print(f"note: {note}")
    console.print(f"{len(summary.remaining)} faults remain" if summary.remaining else "ok")


def _print_faults(console: Console, faults: Sequence[Fault]) -> None:
    if not faults:
        return
    table = _table("damaged", "cause", "evidence")
    for fault in faults[:_MOST_FAULTS]:
        table.add_row(fault.place, str(fault.cause), fault.detail)
    console.print(table)
    if len(faults) > _MOST_FAULTS:
        console.print(f"… and {len(faults) - _MOST_FAULTS} more (--json lists all)")
