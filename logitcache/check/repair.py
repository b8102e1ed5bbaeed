"""Repair of a cache: recomputation of exactly the damaged units.

Documents with second copies are restored first, since they name the images and teachers. Then the
locks are compared, and only then is the commit of a damaged unit removed and the unit computed
again with the recorded batch, precision and settings. A unit with the same outputs gets its old
commit back, so on the machine that computed it a cache is restored to the byte; a unit that differs
in its last bits is sealed again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from logitcache.cache.format.data_arrays import DATA
from logitcache.cache.format.ledger import read_commits
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import (
    IMAGES,
    NO_VIEW,
    SAMPLES,
    SQUARES,
    TEACHERS,
    VIEWS,
    commit_key,
    table_name,
    teacher_group,
    teacher_of,
)
from logitcache.cache.format.partners import mixed_views
from logitcache.cache.format.table_group import CLASS_EMBEDDINGS
from logitcache.cache.read.diagnose import Cause, Fault
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.verify.inventory import expected_views
from logitcache.cache.verify.restore import restore_documents, write_root
from logitcache.cache.write.claims import MANIFEST, Claims
from logitcache.cache.write.writer import CacheWriter
from logitcache.config import Config
from logitcache.data.packing import packing_of
from logitcache.data.readers import DataConfig
from logitcache.errors import UsageError
from logitcache.networks.device import resolve_device
from logitcache.precompute.plan.layers import write_class_embeddings
from logitcache.precompute.plan.packing import images_as_stored
from logitcache.precompute.plan.plan import Plan
from logitcache.precompute.plan.rows import open_images, rows_of_cache
from logitcache.precompute.plan.teacher_lock import as_locked, check_lock
from logitcache.precompute.plan.worklist import Missing, worklist
from logitcache.precompute.run.compute import compute_plan, waiting
from logitcache.precompute.run.packing import ImagePacker
from logitcache.precompute.run.squares import store_again
from logitcache.teachers.ensemble import Ensemble
from logitcache.teachers.member import Precision, TeacherConfig
from logitcache.views.spec import ViewsConfig, parse_view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from logitcache.cache.format.ledger import Commit
    from logitcache.cache.store.base import Location
    from logitcache.cache.verify.integrity import VerifyProgress
    from logitcache.data.readers import ImageSet
    from logitcache.data.source import Source
    from logitcache.precompute.run.compute import Progress

__all__ = ["RepairConfig", "RepairSummary", "repair_cache"]

_Unit = tuple[str, str, int]


class RepairConfig(Config):
    """Settings of a repair.

    Attributes:
        cache: Folder or URL of the cache.
        data: The images that it was computed from; required unless they are passed from Python, or
            the cache contains them undamaged.
        teachers: Teachers of damaged units by name; size, arguments, class map and precision are
            those of the lock.
        device: ``auto``, or the name of a torch device.
        threads: Threads that decode; all processors by default.
    """

    cache: str
    data: DataConfig | None = None
    teachers: dict[str, TeacherConfig] = Field(default_factory=dict)
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class RepairSummary:
    """Result of a repair.

    Attributes:
        cache: Location of the cache.
        found: Damage that was found.
        restored: Number of documents that were restored.
        recomputed: Number of units that were computed again.
        differing: Number of those with other bits than before, which are sealed again.
        remaining: Damage that remains.
        notes: Notes for the user.
    """

    cache: str
    found: tuple[Fault, ...]
    restored: int
    recomputed: int
    differing: int
    remaining: tuple[Fault, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        found = [fault.to_json() for fault in self.found]
        remaining = [fault.to_json() for fault in self.remaining]
        return {**asdict(self), "found": found, "remaining": remaining, "notes": list(self.notes)}


def repair_cache(
    config: RepairConfig,
    *,
    data: ImageSet | None = None,
    on_verify: Callable[[VerifyProgress], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RepairSummary:
    """Repair everything that :func:`logitcache.cache.verify.integrity.verify` finds.

    Args:
        config: Settings.
        data: The images, instead of ``config.data``, as for :func:`.build_cache`.
        on_verify: Called while bytes are checked.
        on_progress: Called after every batch that is computed, and while another run is waited for.
        should_stop: Called after every batch; True stops the repair.

    Raises:
        DataMismatch: The images are not those of the cache.
        CacheError: A teacher is not the one of the cache.
        UsageError: The teacher of a damaged unit is not given.
    """
    images = config.data if data is None else data
    location = locate(config.cache, write=True)
    found, restored = _restore_documents(location, on_verify)
    units = _damaged_units(location, found)
    claims = Claims(location, on_wait=waiting(location, on_progress, should_stop))
    with claims.exclusive(MANIFEST):
        writer = CacheWriter.open(location)
        location.sweep()
        differing = _recompute(config, images, writer, units, claims, on_progress, should_stop)
        _seal_again(writer, units, found)
        claims.sweep()
    report = verify(config.cache, on_progress=on_verify)
    return RepairSummary(
        cache=str(location),
        found=found,
        restored=restored,
        recomputed=len(units),
        differing=len(differing),
        remaining=report.faults,
        notes=_notes(writer),
    )


def _restore_documents(
    location: Location, on_verify: Callable[[VerifyProgress], None] | None
) -> tuple[tuple[Fault, ...], int]:
    """Restore documents repeatedly: a restored document may reveal further faults."""
    found: dict[tuple[str, Cause], Fault] = {}
    restored = 0
    while True:
        report = verify(location, on_progress=on_verify)
        found |= {(fault.key, fault.cause): fault for fault in report.faults}
        repaired = restore_documents(location, report.faults)
        restored += len(repaired)
        if not repaired:
            return tuple(found.values()), restored


def _damaged_units(location: Location, faults: tuple[Fault, ...]) -> dict[_Unit, Commit | None]:
    """Return the units to compute again, with their commits where those are known."""
    wanted: set[_Unit] = {
        (fault.group, fault.view, fault.unit)
        for fault in faults
        if fault.recompute and fault.unit is not None
    }
    commits: dict[_Unit, Commit | None] = dict.fromkeys(sorted(wanted))
    for view in expected_views(location, read_manifest(location)).views:
        for commit in view.read()[0]:
            unit = (commit.group, commit.view, commit.unit)
            if unit in wanted:
                commits[unit] = commit
    return commits


def _recompute(
    config: RepairConfig,
    data: ImageSet | None,
    writer: CacheWriter,
    units: Mapping[_Unit, Commit | None],
    claims: Claims,
    on_progress: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> set[_Unit]:
    """Compute damaged units again; return those with another commit than before."""
    if not units:
        return set()
    damaged = sorted(unit for group, _, unit in units if group == IMAGES)
    if data is None and (writer.manifest.images or writer.manifest.squares):
        _require_intact_images(writer, units)
    source = open_images(data, writer.location)
    blocks = {unit: commit for (group, _, unit), commit in units.items() if group == SAMPLES}
    packs = packing_of(source)
    indices = rows_of_cache(writer, source, blocks)
    ensembles = _ensembles(config, writer, units)
    writer.recorded = {unit: commit for unit, commit in units.items() if commit is not None}
    # only after images and locks are checked: without its commit a unit counts as missing
    for group, view, unit in units:
        writer.location.delete(commit_key(group, view, unit))
    if packs is not None:
        packer = ImagePacker(writer, packs, indices, threads=config.threads or 1)
        for unit in damaged:
            packer.pack_unit(unit)
    for precision, ensemble in ensembles.items():
        shown = images_as_stored(source, writer, indices)
        plan = _plan(writer, shown, indices, ensemble, units)
        store_again(plan, units, threads=config.threads or 1)
        compute_plan(
            plan,
            ensemble,
            claims,
            precision=precision,
            threads=config.threads,
            skip_bad_images=True,
            on_progress=on_progress,
            should_stop=should_stop,
        )
        _rewrite_partners(plan, units)
        for member in ensemble.members.values():
            if (teacher_group(table_name(member.name, CLASS_EMBEDDINGS)), NO_VIEW, 0) in units:
                write_class_embeddings(writer, member)
    again = {
        (group, view, unit): commit
        for group, view, unit in units
        for commit in read_commits(writer.location, group, view, [unit]).values()
    }
    return {unit for unit, before in units.items() if before is not None and again[unit] != before}


def _require_intact_images(writer: CacheWriter, units: Mapping[_Unit, Commit | None]) -> None:
    """Raise an error if the images in the cache are needed and cannot be listed or read."""
    damaged = [group for group, _, _ in units if group in {SAMPLES, IMAGES, SQUARES}]
    if damaged:
        raise UsageError(
            f"{len(damaged)} units of the samples and images in the cache are damaged",
            where=writer.location,
            expected="the original images, which are encoded again",
            got="no images",
            hint="give them with --data, or copy these shards from another copy of the cache",
        )


def _rewrite_partners(plan: Plan, units: Mapping[_Unit, Commit | None]) -> None:
    """Write damaged partners again; they are drawn from the samples."""
    for group, view_id, unit in units:
        if group == VIEWS:
            view = parse_view(plan.writer.manifest.views[view_id], f"view {view_id}")
            plan.writer.write_partners(view_id, unit, plan.partners(view, plan.block(unit)))


def _ensembles(
    config: RepairConfig, writer: CacheWriter, units: Mapping[_Unit, Commit | None]
) -> dict[Precision, Ensemble]:
    """Build the teachers of damaged units by precision, perhaps none, and check their locks."""
    needed = {group.split("/")[1] for group, _, _ in units if group not in DATA}
    records = writer.manifest.teachers
    imported = [name for name in sorted(needed) if "imported" in records[name].lock]
    if imported:
        raise UsageError(
            "damaged outputs of a teacher cannot be computed again: they were imported",
            where=writer.location,
            got=", ".join(f"{name} ({records[name].source})" for name in imported),
            hint="copy the damaged files from another copy of the cache; or drop the teacher "
            f"(logitcache drop CACHE --teacher {imported[0]}) and import its file again",
        )
    unnamed = sorted(needed - config.teachers.keys())
    if unnamed:
        raise UsageError(
            f"units of {len(unnamed)} teachers are damaged, but these teachers are not given",
            where=writer.location,
            expected=", ".join(f"{name} ({records[name].source})" for name in unnamed),
            hint=" ".join(f"--teacher {name}=MODEL@WEIGHTS" for name in unnamed),
        )
    by_precision: dict[Precision, dict[str, TeacherConfig]] = {}
    for name in sorted(needed):
        locked = records[name].locked
        same = by_precision.setdefault(locked.precision or "float32", {})
        same[name] = as_locked(config.teachers[name], locked)
    device = resolve_device(config.device)
    ensembles = {
        precision: Ensemble(teachers, device=device, precision=precision)
        for precision, teachers in (by_precision or {"float32": {}}).items()
    }
    for ensemble in ensembles.values():
        for name, member in ensemble.members.items():
            check_lock(writer.location, name, records[name].lock, member.lock)
    return ensembles


def _plan(
    writer: CacheWriter,
    source: Source,
    indices: NDArray[np.int64],
    ensemble: Ensemble,
    units: Mapping[_Unit, Commit | None],
) -> Plan:
    """Plan exactly the damaged units of some teachers, and the damaged samples that remain."""
    groups = {n: g for n, g in writer.row_groups().items() if teacher_of(n) in ensemble.members}
    wanted: dict[str, dict[str, set[int]]] = {name: {} for name in groups}
    samples = writer.missing_units(SAMPLES, NO_VIEW, writer.manifest.unit_rows)
    for group, view_id, unit in units:
        name = group.removeprefix(f"{TEACHERS}/")
        if name in wanted:
            wanted[name].setdefault(view_id, set()).add(unit)
    damaged = {view for views in wanted.values() for view in views}
    order = [view for view in writer.manifest.views if view in damaged]
    recipes = dict(writer.manifest.views)
    if not order:
        # for samples alone images are only decoded; views of the cache may have unknown pixels
        view = ViewsConfig().eval_view()
        recipes[view.id], order = view.to_json(), [view.id]
    missing = {name: Missing(group.unit_rows, wanted[name]) for name, group in groups.items()}
    blocks = samples & {unit for group, _, unit in units if group == SAMPLES}
    mixed = mixed_views(writer.manifest, order)
    return Plan(
        writer=writer,
        source=source,
        indices=indices,
        views={view: parse_view(recipes[view], f"view {view}") for view in order},
        groups=groups,
        items=worklist(writer.manifest.unit_rows, order, blocks, missing, mixed),
        notes=[],
    )


def _seal_again(
    writer: CacheWriter, units: Mapping[_Unit, Commit | None], found: tuple[Fault, ...]
) -> None:
    """Seal the commits that were written again; does nothing where all are the same."""
    location, manifest = writer.location, writer.manifest
    if manifest.revision is None:
        return
    ledgers = [fault for fault in found if fault.cause == Cause.LEDGER]
    restore_documents(location, ledgers)  # its missing commits may exist now
    expected = expected_views(location, manifest)
    if all(fault.cause != Cause.REVISION for fault in expected.faults):
        touched = {(group, view) for group, view, _ in units}
        touched |= {(fault.group, fault.view) for fault in ledgers}
        views = [view for view in expected.views if (view.group, view.view) in touched]
        rewritten = [(view.group, view.view) for view in views if view.ledger and view.read()[1]]
        if rewritten:
            writer.reseal(rewritten)
        return
    # the revision cannot be reconstructed: all committed units are sealed in a new one
    write_root(location, manifest.changed(revision=None))
    writer.refresh()
    accuracy = {name: record.accuracy for name, record in manifest.teachers.items()}
    writer.seal(manifest.data.fingerprint or "", accuracy)


def _notes(writer: CacheWriter) -> tuple[str, ...]:
    missing = writer.missing()
    if not missing:
        return ()
    count = sum(missing.values())
    return (f"{count} units were never computed: run the precompute command to compute them",)
