"""Tables for people, on stdout."""

from __future__ import annotations

from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from logitcache.cli.fidelity import print_fidelity
from logitcache.cli.layout import bytes_text as _bytes
from logitcache.cli.layout import new_console as _console
from logitcache.cli.layout import new_table as _table
from logitcache.cli.layout import percent_text as _percent
from logitcache.cli.layout import print_line as _line
from logitcache.cli.layout import print_unlisted
from logitcache.objectives.aliases import long_forms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from logitcache.cache.read.diagnose import Fault
    from logitcache.cache.verify.integrity import VerifyReport
    from logitcache.check.audit import TeacherAudit
    from logitcache.check.images import ImagesReport
    from logitcache.check.repair import RepairSummary
    from logitcache.pipeline.run import StageResult
    from logitcache.precompute.build import Summary
    from logitcache.report.describe import CacheDescription
    from logitcache.training.result import TrainResult

__all__ = [
    "print_audits",
    "print_cache",
    "print_images",
    "print_pipeline",
    "print_precompute",
    "print_repair",
    "print_status",
    "print_train",
    "print_verify",
]

_MOST_FAULTS, _MOST_LITTER = 50, 5


def print_precompute(summary: Summary) -> None:
    """Show what stage 1 did."""
    console = _console()
    console.print(
        f"{summary.cache}: {summary.images} images x {summary.views} views, "
        f"revision {summary.revision}; {summary.computed} shown in {summary.seconds:.1f} s"
    )
    console.print(f"sha256 of the revision: {summary.revision_sha256}")
    if summary.unreadable:
        console.print(f"{summary.unreadable} images could not be decoded and have no targets")
    table = _table("teacher or tap", "accuracy", "stored", "float32", "ratio")
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
    print_unlisted(console, "data", summary.unlisted)
    for note in summary.notes:
        console.print(f"note: {note}")


def print_train(result: TrainResult) -> None:
    """Show what came of a training."""
    table = _table(
        "out", "images", "labels seen", "steps", "top-1", "loss", "images/s", "data wait"
    )
    evaluation = result.evaluation
    table.add_row(
        result.out,
        str(result.set_images),
        str(result.labeled),
        str(result.steps),
        _percent(evaluation.top1 if evaluation else None),
        f"{evaluation.loss:.3f}" if evaluation else "-",
        f"{result.images / max(1e-9, result.seconds):.0f}",
        f"{result.data_wait:.0%}",
    )
    console = _console()
    console.print(table)
    if result.without_partner:
        console.print(
            f"note: up to {result.without_partner} images were left out of views that mix images, "
            "because the one mixed in is not among those at hand"
        )
    reasons = {
        "are not in the cache": result.left_out,
        "of the cache are not in the data": result.missing,
        "could not be decoded": result.unreadable,
        "were withdrawn": result.withdrawn,
    }
    for reason, count in reasons.items():
        if count:
            console.print(f"{count} images {reason} and were not shown")
    print_unlisted(console, "data", result.unlisted)
    print_unlisted(console, "val", result.unlisted_val)
    for note in result.notes:
        console.print(f"note: {note}")


def print_cache(cache: CacheDescription) -> None:
    """Show what a cache holds."""
    console = _console()
    state = f"revision {cache.revision}" if cache.revision else "not sealed"
    console.print(f"{cache.url}: format {cache.format}, {state}")
    if cache.revision_sha256:
        console.print(f"sha256 of the revision: {cache.revision_sha256}")
    console.print(
        f"{cache.images} images of {cache.data} in {cache.segments} segment(s), "
        f"units of {cache.unit_rows} rows, {len(cache.class_names)} classes"
    )
    if cache.unreadable or cache.withdrawn:
        console.print(f"{cache.unreadable or 0} unreadable, {cache.withdrawn} withdrawn")
    views = _table("view", "operations", "seed", "draw")
    for view in cache.views[:8]:
        views.add_row(view.id, ", ".join(view.operations), str(view.seed), str(view.draw))
    console.print(views)
    if len(cache.views) > 8:
        console.print(f"… and {len(cache.views) - 8} more views")
    teachers = _table("teacher", "network", "pixels", "classes", "stored as", "views", "accuracy")
    for column in ("bytes", "of dense"):
        teachers.add_column(column, justify="right")
    for teacher in cache.teachers:
        encoding = teacher.encoding
        top = f"top {encoding['top_k']} " if encoding["kind"] == "sparse" else ""
        teachers.add_row(
            teacher.name,
            teacher.architecture,
            str(teacher.input_size),
            str(teacher.num_classes),
            f"{encoding['kind']} {top}{encoding['values']}",
            str(teacher.views),
            _percent(next(iter(teacher.accuracy.values()), None)),
            _bytes(teacher.stored_bytes),
            f"{teacher.stored_bytes / max(1, teacher.dense_bytes):.2f}",
        )
    console.print(teachers)
    if any(teacher.features for teacher in cache.teachers):
        console.print(_taps(cache))
    print_fidelity(console, cache.teachers)


def _taps(cache: CacheDescription) -> Table:
    """Tabulate the taps of all teachers."""
    table = _table("tap", "layout", "shape", "stored as", "views")
    for column in ("bytes", "of float32"):
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
    """Say what is kept of a tap, in words."""
    grid = encoding["grid"]
    said = {
        f"{encoding['reduction']} of positions": encoding["reduction"] == "mean",
        "energy of channels": encoding["reduction"] == "energy",
        f"pooled to {encoding['pool']} x {encoding['pool']}": encoding["pool"] is not None,
        f"{encoding['kept_tokens']} of {(grid or 0) ** 2} tokens": encoding["kept_tokens"],
        "standardized": encoding["standardised"],
        "principal directions": encoding["principal"],
    }
    return [encoding["values"], *(text for text, applies in said.items() if applies)]


def print_status(cache: CacheDescription) -> None:
    """Show what is committed and what is missing."""
    table = _table("group", "units", "of")
    table.add_row("samples", str(cache.sample_units), str(cache.sample_units_needed))
    for teacher in cache.teachers:
        table.add_row(f"teachers/{teacher.name}", str(teacher.units), str(teacher.needed))
        for features in teacher.features:
            path = f"teachers/{teacher.name}/features/{features.tap}"
            table.add_row(path, str(features.units), str(features.needed))
    console = _console()
    console.print(table)
    if not cache.complete:
        console.print("incomplete: run the same precompute command again to finish it")
    elif cache.revision is None:
        console.print("complete, but not sealed: run the same precompute command again")
    else:
        console.print(f"complete, revision {cache.revision}, sha256 {cache.revision_sha256}")


def print_pipeline(runs: Sequence[Sequence[StageResult]]) -> None:
    """Show what every stage of a pipeline came to, over its seeds."""
    console = _console()
    caches = _table("cache", "teacher", "accuracy", "views", "stored", "dense float32", "ratio")
    weights = _table("weights", "teacher", "weight", "alone", "mixture")
    students = _table("network", "learns from", "images", "labels seen", "steps", "top-1")
    for results in zip(*runs, strict=True):
        stage = results[0].stage
        values = [result.values for result in results]
        if stage.kind == "precompute":
            for name, size in values[0]["sizes"].items():
                caches.add_row(
                    stage.name,
                    name,
                    _spread([_first(value["accuracy"].get(name, {})) for value in values]),
                    str(values[0]["views"]),
                    _bytes(size["stored"]),
                    _bytes(size["dense_float32"]),
                    f"{size['stored'] / max(1, size['dense_float32']):.2f}",
                )
            continue
        if stage.kind == "fit_weights":
            for name in values[0]["teachers"]:
                weights.add_row(
                    stage.name,
                    name,
                    _mean_and_spread([value["teachers"][name] for value in values]),
                    _spread([value["single"][name] for value in values]),
                    _spread([value["accuracy"] for value in values]),
                )
            continue
        students.add_row(
            f"{stage.name} ({stage.values['student']['model']})",
            _learns_from(stage.values),
            str(values[0]["set_images"]),
            str(
                values[0].get("labeled", values[0].get("labelled", 0))
                if _uses_labels(stage.values)
                else 0
            ),
            str(values[0]["steps"]),
            _spread([(value["evaluation"] or {}).get("top1") for value in values]),
        )
    if caches.row_count:
        console.print(caches)
    if weights.row_count:
        console.print(weights)
    if students.row_count:
        console.print(students)


def _learns_from(train: Mapping[str, Any]) -> str:
    """Say in words what a training asks of its network."""
    if not train.get("cache"):
        return "labels"
    parts = dict.fromkeys(_learns_from_term(term) for term in _terms(train))
    shuffled = ", shuffled" if train.get("shuffle_targets") else ""
    return " and ".join(parts) + shuffled


def _learns_from_term(term: Mapping[str, Any]) -> str:
    kind, settings = next(iter(term.items()))
    settings = settings or {}
    if kind == "label":
        return "labels"
    if kind in {"match", "relation"}:
        pairs = settings.get("pairs") or [settings]
        names = " + ".join(dict.fromkeys(str(pair["teacher"]) for pair in pairs))
        return f"features of {names}" if kind == "match" else f"{settings['form']} of {names}"
    teachers = settings.get("teachers")
    names = " + ".join(teachers) if isinstance(teachers, dict) else "all teachers"
    form = settings.get("form", "nkd") if kind == "split" else ""
    return f"{form} of cache of {names}" if form else f"cache of {names}"


def _uses_labels(train: Mapping[str, Any]) -> bool:
    return not train.get("cache") or any({"label", "split"} & term.keys() for term in _terms(train))


def _terms(train: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objectives of a training as mappings with one key."""
    default: Any = "soft" if train.get("cache") else "label"
    terms = train.get("objectives") or default
    listed = terms if isinstance(terms, list) else [terms]
    in_full: list[Any] = [term for entry in listed for term in long_forms(entry)]
    return [{term: {}} if isinstance(term, str) else term for term in in_full]


def _first(values: Mapping[str, float]) -> float | None:
    return next(iter(values.values()), None)


def _spread(values: Sequence[float | None]) -> str:
    """Return the mean and, for several values, the standard deviation, in percent."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    if len(known) == 1:
        return _percent(known[0])
    return f"{100 * mean(known):.1f} ± {100 * stdev(known):.1f} %"


def _mean_and_spread(values: Sequence[float]) -> str:
    """Return the mean and, for several values, the standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def print_verify(report: VerifyReport) -> None:
    """Show what a verification found, each fault with its place and cause."""
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
    for litter in report.litter[:_MOST_LITTER]:
        console.print(f"litter: {litter.key}: {litter.why}")
    if len(report.litter) > _MOST_LITTER:
        console.print(f"… and {len(report.litter) - _MOST_LITTER} more files that nobody names")
    state = f"{len(report.faults)} faults: logitcache repair mends them" if report.faults else "ok"
    console.print(f"bytes: {state}")


def print_images(report: ImagesReport) -> None:
    """Show how the data differ from the images of a cache."""
    console = _console()
    kinds = {
        "missing": report.missing,
        "of another size": report.resized,
        "replaced under the same name": report.replaced,
        "of another class": report.relabeled,
        "added, without answers": report.added,
    }
    for what, keys in kinds.items():
        if keys:
            more = ", …" if len(keys) > 5 else ""
            _line(console, f"images: {len(keys)} {what}: {', '.join(keys[:5])}{more}")
    for start in report.relisted:
        _line(
            console,
            f"images: keys or labels of the rows from {start} on were changed after the cache was "
            "made",
        )
    print_unlisted(console, "data", report.left_out)
    _line(
        console,
        f"images: {'ok' if report.ok else 'not those of the cache'}; {report.images} of the cache, "
        f"{report.digested} digested, {report.unreadable} unreadable, {report.withdrawn} withdrawn",
    )


def print_audits(audits: Sequence[TeacherAudit]) -> None:
    """Show how many rows match what the teachers give, and how close all of them are on average."""
    console = _console()
    table = _table("teacher", "top-1 same", "KL", "ids same", "truncation", "coding", "")
    for audit in audits:
        table.add_row(
            audit.teacher,
            f"{audit.agreement:.1%} (floor {audit.agreement_floor:.1%})",
            f"{audit.kl:.1e} (floor {audit.kl_floor:.1e})",
            f"{audit.overlap:.1%} (floor {audit.overlap_floor:.1%})",
            f"{audit.truncation:.1e}",
            f"{audit.coding:.1e}",
            "ok" if audit.ok else f"{audit.mismatched} rows do not match",
        )
    console.print(table)
    for audit in audits:
        _print_audit(console, audit)


def _print_audit(console: Console, audit: TeacherAudit) -> None:
    """Show what one audit compared, how likely that is to find a fault, and what does not match."""
    some = f" in {audit.views} of {audit.all_views} views" if audit.views < audit.all_views else ""
    found = (
        "every row"
        if audit.samples == audit.pairs
        else "finds one changed row in 2000 with a probability of "
        f"{100 * audit.detection:.1f} %; --full compares all"
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
            f"{', '.join(mismatch.arrays)} not those of this teacher",
        )
    more = audit.mismatched - len(audit.mismatches)
    if more:
        _line(console, f"{audit.teacher}: … and {more} more rows that do not match")


def print_repair(summary: RepairSummary) -> None:
    """Show what a repair did, and what it could not."""
    console = _console()
    console.print(
        f"{summary.cache}: {len(summary.found)} faults found; {summary.restored} documents "
        f"restored, {summary.recomputed} units computed again, {summary.differing} of them "
        "with other bits"
    )
    _print_faults(console, summary.remaining)
    for note in summary.notes:
        console.print(f"note: {note}")
    console.print(f"{len(summary.remaining)} faults are left" if summary.remaining else "ok")


def _print_faults(console: Console, faults: Sequence[Fault]) -> None:
    if not faults:
        return
    table = _table("damaged", "cause", "evidence")
    for fault in faults[:_MOST_FAULTS]:
        table.add_row(fault.place, str(fault.cause), fault.detail)
    console.print(table)
    if len(faults) > _MOST_FAULTS:
        console.print(f"… and {len(faults) - _MOST_FAULTS} more (--json lists all)")
