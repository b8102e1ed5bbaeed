"""Plan of a cache that is made from others: what it declares, and where each unit comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.groups import row_groups
from logitcache.cache.format.images import image_placement
from logitcache.cache.format.manifest import DerivationRecord, PartRecord, Segment
from logitcache.cache.format.names import (
    GROUP_FEATURES,
    HEADLESS,
    UNKNOWN_VIEWS,
    VISIBLE_PATCHES,
    tap_of,
    teacher_of,
)
from logitcache.cache.format.partners import mixed_views, partner_placement
from logitcache.cache.format.samples import sample_placement
from logitcache.cache.format.squares import square_placement, stored_views
from logitcache.errors import UsageError
from logitcache.share.image_facts import ImageFacts, image_facts
from logitcache.share.reencoding import converter, without_fidelity
from logitcache.share.rows import NO_ROW, RowPlan
from logitcache.share.view_plan import ViewPlan

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from logitcache.cache.format.group import Group
    from logitcache.cache.format.manifest import (
        DataRecord,
        Manifest,
        TeacherRecord,
    )
    from logitcache.cache.format.records import StoredRecords
    from logitcache.share.source import SourceCache

__all__ = ["CachePlan", "make_plan"]

_DECLARED = {
    *GROUP_FEATURES, HEADLESS, UNKNOWN_VIEWS, VISIBLE_PATCHES, "dropping", "dropped-views"
}  # fmt: skip
"""Features that the writer requires itself where they are needed, or that the new cache lacks."""


@dataclass(frozen=True)
class CachePlan:
    """What a cache that is made from others declares and contains.

    Attributes:
        sources: The caches that it is made from.
        rows: Its rows.
        segments: Its segments.
        data: Record of its images, without a fingerprint.
        views: Recipes by id.
        records: Records of its teachers.
        groups: Its groups by name.
        parts: Every view of samples, partners and groups, in the order in which it is written.
        requires: Features that its readers have to support besides those of its groups.
        stored: What it contains of its images.
        versions: Libraries that made the first source.
        derived_from: Record of the sources.
        facts: Facts about its images.
    """

    sources: tuple[SourceCache, ...]
    rows: RowPlan
    segments: tuple[Segment, ...]
    data: DataRecord
    views: dict[str, dict[str, Any]]
    records: dict[str, TeacherRecord]
    groups: dict[str, Group]
    parts: tuple[ViewPlan, ...]
    requires: tuple[str, ...]
    stored: StoredRecords
    versions: dict[str, str]
    derived_from: DerivationRecord
    facts: ImageFacts

    @property
    def accuracy(self) -> dict[str, dict[str, float]] | None:
        """Accuracy of each teacher by view as the sources have it; None where that is another one.

        It is known where all images are taken, and the view that it was measured on.
        """
        if not all(self.rows.is_complete(n, source) for n, source in enumerate(self.sources)):
            return None
        found = {}
        for name, record in self.records.items():
            theirs = [source.cache.manifest.teachers.get(name) for source in self.sources]
            if any(other is not None and other.accuracy != record.accuracy for other in theirs):
                return None
            found[name] = dict(record.accuracy)
        return found


def make_plan(
    sources: Sequence[SourceCache],
    rows: RowPlan,
    chosen: Sequence[Mapping[str, Group]],
    command: str,
    selection: Mapping[str, Any],
) -> CachePlan:
    """Plan a cache.

    Args:
        sources: Sealed caches, whose data and teachers of the same name are the same.
        rows: Rows of the new cache.
        chosen: For each source, the groups that are taken, with the views that are taken.
        command: Name of the command, for the record of the sources.
        selection: Options of it that select images, as JSON values.

    Raises:
        UsageError: A view that mixes images would lose some of the partners.
    """
    first = sources[0].cache.manifest
    groups = {
        name: _united([own[name] for own in chosen if name in own])
        for name in dict.fromkeys(name for own in chosen for name in own)
    }
    views = _views(sources, groups)
    samples = _samples(sources, rows)
    facts = image_facts(sources, rows, samples)
    plan = CachePlan(
        sources=tuple(sources),
        rows=rows,
        segments=_segments(sources, rows, facts),
        data=_data(sources),
        views=views,
        records=without_fidelity(_records(sources, groups), sources[0].cache.groups, groups),
        groups=groups,
        parts=tuple(_parts(sources, rows, chosen, groups, samples)),
        requires=_requires(sources),
        stored=_stored(sources, rows),
        versions=first.versions,
        derived_from=_derivation(sources, rows, groups, command, selection),
        facts=facts,
    )
    _refuse_divided_blocks(plan)
    return plan


def _data(sources: Sequence[SourceCache]) -> DataRecord:
    """Return the record of the images, with room for the most classes that any image has."""
    known = [source.cache.manifest.data for source in sources]
    width = max(data.label_width or 0 for data in known)
    # a field without a value stays unset, as in a cache that is computed
    room = {"label_width": width} if width else {}
    return known[0].model_copy(update={"fingerprint": None, **room})


def _stored(sources: Sequence[SourceCache], rows: RowPlan) -> StoredRecords:
    """Return what the new cache contains of its images: what all sources contain.

    Raises:
        UsageError: The sources do not contain images, or views, of one side and quality.
    """
    settings = {_stored_text(source.cache.manifest) for source in sources}
    if len(settings) > 1:
        raise UsageError(
            "the caches do not contain images of the same size and quality",
            where=", ".join(str(source) for source in sources),
            expected="images with the same settings in all of them, or in none",
            got="; ".join(sorted(settings)),
        )
    first = sources[0].cache.manifest
    manifests = [source.cache.manifest for source in sources]
    sizes = [one.images.unit_rows for one in manifests if one.images]
    sizes += [one.squares.unit_rows for one in manifests if one.squares]
    unit_rows = min([rows.unit_rows, *sizes])
    if first.images is not None:
        return {"images": first.images.model_copy(update={"unit_rows": unit_rows})}
    if first.squares is not None:
        return {"squares": first.squares.model_copy(update={"unit_rows": unit_rows})}
    return {}


def _stored_text(manifest: Manifest) -> str:
    if manifest.squares is not None:
        return f"views:{manifest.squares.side}, quality {manifest.squares.quality}"
    images = manifest.images
    return "none" if images is None else f"{images.kind}:{images.side}, quality {images.quality}"


def _derivation(
    sources: Sequence[SourceCache],
    rows: RowPlan,
    groups: Mapping[str, Group],
    command: str,
    selection: Mapping[str, Any],
) -> DerivationRecord:
    """Return the record of the sources: equal for equal caches that are made of the same ones."""
    parts = tuple(
        PartRecord(revision=source.pointer, images=int((rows.rows[number] != NO_ROW).sum()))
        for number, source in enumerate(sources)
    )
    views = sorted({view for group in groups.values() for view in group.view_ids})
    chosen = {**selection, "views": views, "groups": sorted(groups)}
    return DerivationRecord(command=command, parts=parts, selection=chosen)


def _united(groups: Sequence[Group]) -> Group:
    """Return a group with the views of all of these."""
    own = groups[0]
    with_rows = row_groups({own.name: own}).get(own.name)
    if with_rows is None:
        return own
    views = tuple(dict.fromkeys(view for part in groups for view in part.view_ids))
    return replace(with_rows, slots=views)


def _views(
    sources: Sequence[SourceCache], groups: Mapping[str, Group]
) -> dict[str, dict[str, Any]]:
    """Return the recipes of the views of some groups, as the sources order them."""
    seen = {view for group in groups.values() for view in group.view_ids}
    return {
        view_id: recipe
        for source in sources
        for view_id, recipe in source.cache.manifest.views.items()
        if view_id in seen
    }


def _united_manifest(sources: Sequence[SourceCache]) -> Manifest:
    manifests = [source.cache.manifest for source in sources]
    views = {view_id: recipe for m in manifests for view_id, recipe in m.views.items()}
    return manifests[0].changed(views=views)


def _requires(sources: Sequence[SourceCache]) -> tuple[str, ...]:
    named = (name for source in sources for name in source.cache.manifest.requires)
    return tuple(name for name in dict.fromkeys(named) if name not in _DECLARED)


def _segments(
    sources: Sequence[SourceCache], rows: RowPlan, facts: ImageFacts
) -> tuple[Segment, ...]:
    """Return the segments with digests of their keys and labels."""
    known = sources[0].cache.manifest.segments
    if rows.is_complete(0, sources[0]) and rows.segments == sources[0].segments:
        return known[: len(rows.segments)]
    return tuple(
        Segment(start=start, rows=count, listing_sha256=listing)
        for (start, count), listing in zip(rows.segments, facts.listings, strict=True)
    )


def _records(
    sources: Sequence[SourceCache],
    groups: Mapping[str, Group],
) -> dict[str, TeacherRecord]:
    """Return the records of the teachers, without the names of taps and tables."""
    found: dict[str, TeacherRecord] = {}
    for source in sources:
        for name, record in source.cache.manifest.teachers.items():
            if not any(teacher_of(group) == name for group in groups):
                continue
            taps = {**record.feature_fidelity, **found.get(name, record).feature_fidelity}
            kept = found.setdefault(name, record)
            if taps != kept.feature_fidelity:  # each source may have taps of its own
                found[name] = kept.model_copy(update={"feature_fidelity": taps})
    return {name: _record(name, record, groups) for name, record in found.items()}


def _record(
    name: str,
    record: TeacherRecord,
    groups: Mapping[str, Group],
) -> TeacherRecord:
    views = {view for n, g in groups.items() if teacher_of(n) == name for view in g.view_ids}
    taps = {tap_of(n) for n in groups if teacher_of(n) == name}
    fields: dict[str, Any] = {
        "accuracy": {view: value for view, value in record.accuracy.items() if view in views},
        "feature_fidelity": {
            tap: value for tap, value in record.feature_fidelity.items() if tap in taps
        },
    }
    left = {"features", "tables"}  # declared group by group
    kept = {n: getattr(record, n) for n in record.model_fields_set if n not in left}
    changed = {n: v for n, v in fields.items() if n in kept and kept[n] != v}
    return type(record)(**{**kept, **changed})


def _samples(sources: Sequence[SourceCache], rows: RowPlan) -> ViewPlan:
    """Return the samples."""
    manifest = sources[0].cache.manifest.changed(unit_rows=rows.unit_rows, data=_data(sources))
    theirs = {n: sample_placement(source.cache.manifest) for n, source in enumerate(sources)}
    return ViewPlan(sample_placement(manifest), theirs)


def _parts(
    sources: Sequence[SourceCache],
    rows: RowPlan,
    chosen: Sequence[Mapping[str, Group]],
    groups: Mapping[str, Group],
    samples: ViewPlan,
) -> list[ViewPlan]:
    """Return every view of samples, partners and groups."""
    blocks = [source.cache.unit_rows for source in sources]
    parts = [samples]
    stored = _stored(sources, rows)
    if "images" in stored:
        known = [source.cache.manifest.images for source in sources]
        placements = {n: image_placement(one) for n, one in enumerate(known) if one is not None}
        parts.insert(0, ViewPlan(image_placement(stored["images"]), placements))
    seen = {view for group in groups.values() for view in group.view_ids}
    for view_id in mixed_views(_united_manifest(sources), seen):
        having = [n for n, own in enumerate(chosen) if _have(own.values(), view_id)]
        placements = {n: partner_placement(view_id, blocks[n]) for n in having}
        parts.append(ViewPlan(partner_placement(view_id, rows.unit_rows), placements, mixes=True))
    if "squares" in stored:
        manifest = _united_manifest(sources).changed(squares=stored["squares"])
        parts = [*_squares(sources, chosen, manifest, seen), *parts]
    for name, group in groups.items():
        parts += _parts_of(name, group, sources, rows, chosen)
    return parts


def _squares(
    sources: Sequence[SourceCache],
    chosen: Sequence[Mapping[str, Group]],
    manifest: Manifest,
    seen: Collection[str],
) -> list[ViewPlan]:
    """Return the squares of every view that is stored."""
    parts = []
    for view_id in stored_views(manifest, seen):
        placements = {
            number: square_placement(view_id, source.cache.manifest)
            for number, source in enumerate(sources)
            if view_id
            in stored_views(
                source.cache.manifest, {v for g in chosen[number].values() for v in g.view_ids}
            )
        }
        parts.append(ViewPlan(square_placement(view_id, manifest), placements))
    return parts


def _parts_of(
    name: str,
    group: Group,
    sources: Sequence[SourceCache],
    rows: RowPlan,
    chosen: Sequence[Mapping[str, Group]],
) -> list[ViewPlan]:
    """Return every view of a group."""
    parts = []
    for view in group.ledger_views:
        having = [n for n, own in enumerate(chosen) if name in own]
        having = [n for n in having if view in chosen[n][name].ledger_views]
        original = {n: sources[n].cache.groups[name] for n in having}
        first = all(
            rows.is_complete(n, sources[n])
            and {view} == {g.ledger_views[0] for g in (theirs, group)}
            for n, theirs in original.items()
        )
        parts.append(
            ViewPlan(
                group.placement(view),
                {n: theirs.placement(view) for n, theirs in original.items()},
                measured=first,
                by_class=not row_groups({name: group}),
                convert=converter(next(iter(original.values())), group),
            )
        )
    return parts


def _have(groups: Iterable[Group], view_id: str) -> bool:
    return any(view_id in group.view_ids for group in groups)


def _refuse_divided_blocks(plan: CachePlan) -> None:
    """Raise an error if a block of a view that mixes images would have other rows.

    Its images were mixed in pairs within a block, and what a teacher returned for a pair is not
    what it would return for another one.
    """
    for part in plan.parts:
        if not part.mixes:
            continue
        for unit in part.units(plan.rows):
            if part.whole_unit(plan.sources, plan.rows, unit) is None:
                view_id = part.placement.view
                number = list(plan.views).index(view_id)
                raise UsageError(
                    "a view that mixes images can be taken only with whole blocks of images",
                    where=f"view {number}, {view_id}",
                    expected=f"the same {plan.rows.unit_rows} images in every block as in a source",
                    got=f"other images in block {unit}",
                    hint="leave out the views that mix images, or take all images",
                )
