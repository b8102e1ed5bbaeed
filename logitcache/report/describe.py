"""Description of a cache, sealed or not: contents and missing units."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.documents import numbers
from logitcache.cache.format.envelope import SIGNATURES, read_envelope
from logitcache.cache.format.group import needed_units
from logitcache.cache.format.groups import (
    FeatureGroup,
    TeacherGroup,
    group_bytes,
    read_group,
)
from logitcache.cache.format.images import image_bytes
from logitcache.cache.format.ledger import committed_units, read_commits
from logitcache.cache.format.manifest import RevisionPointer, check_revision, read_manifest
from logitcache.cache.format.names import (
    IMAGES,
    NO_VIEW,
    SAMPLES,
    SQUARES,
    Status,
    feature_name,
    revision_key,
    sha256,
)
from logitcache.cache.format.samples import sample_placement
from logitcache.cache.format.squares import square_bytes, stored_views
from logitcache.cache.read.exclusions import read_withdrawn
from logitcache.cache.read.objects import CommittedObjects
from logitcache.cache.store.open import locate
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from logitcache.cache.format.groups import Group
    from logitcache.cache.format.manifest import Manifest
    from logitcache.cache.store.base import Location

__all__ = [
    "CacheDescription",
    "FeatureDescription",
    "ImagesDescription",
    "TeacherDescription",
    "ViewDescription",
    "describe",
]

_FLOAT32 = 4


@dataclass(frozen=True)
class ViewDescription:
    """Description of one view.

    Attributes:
        id: Id of the view.
        operations: Names of its operations.
        draw: Number of the draw.
        seed: Seed of its draws.
    """

    id: str
    operations: list[str]
    draw: int
    seed: int


@dataclass(frozen=True)
class ImagesDescription:
    """Description of the images, or of their views, in a cache.

    Attributes:
        kind: ``packed`` or ``views``.
        side: Largest length of the shorter side in pixels; side of the squares.
        quality: JPEG quality.
        units: Number of committed units.
        needed: Number of all units.
        stored_bytes: Bytes of the encoded images and of what describes them.
    """

    kind: str
    side: int
    quality: int
    units: int
    needed: int
    stored_bytes: int

    @property
    def megabytes(self) -> float:
        """Bytes of the encoded images in millions."""
        return self.stored_bytes / 1e6


@dataclass(frozen=True)
class FeatureDescription:
    """Description of one tap of a teacher's network.

    Attributes:
        tap: Name of the tap.
        encoding: Encoding as in the attributes of the group; of principal directions, only whether
            there are any.
        views: Number of stored views.
        units: Number of committed units of all its views.
        needed: Number of units of the complete tap.
        stored_bytes: Bytes of its group.
        raw_bytes: Bytes of the same rows as float32.
        fidelity: Measured encoding loss, as in ``docs/format.md``; None before the first seal.
    """

    tap: str
    encoding: dict[str, Any]
    views: int
    units: int
    needed: int
    stored_bytes: int
    raw_bytes: int
    fidelity: dict[str, Any] | None


@dataclass(frozen=True)
class TeacherDescription:
    """Description of one teacher.

    Attributes:
        name: Name of the teacher.
        architecture: Architecture of its network.
        source: Origin of its weights.
        weights_sha256: Digest of its weights.
        input_size: Side of its input images in pixels.
        precision: Data type of its forward pass.
        num_classes: C; None without logits.
        class_names: Names of its own classes; None if they are those of the cache.
        encoding: Encoding of its logits; None without logits.
        views: Number of its views.
        units: Number of committed units of the logits of all its views.
        needed: Number of units of the complete logits.
        stored_bytes: Bytes of its logits.
        dense_bytes: Bytes of the same logits as dense float32.
        accuracy: Top-1 accuracy on labeled images by view id; empty before the first seal.
        features: Its taps.
        fidelity: Measured encoding loss, as in ``docs/format.md``; None before the first seal.
    """

    name: str
    architecture: str
    source: str
    weights_sha256: str
    input_size: int
    precision: str
    num_classes: int | None
    class_names: list[str] | None
    encoding: dict[str, Any] | None
    views: int
    units: int
    needed: int
    stored_bytes: int
    dense_bytes: int
    accuracy: dict[str, float]
    features: list[FeatureDescription]
    fidelity: dict[str, Any] | None


@dataclass(frozen=True)
class CacheDescription:
    """Description of a cache.

    Attributes:
        url: Location of the cache.
        format: Version of its format.
        revision: Number of the current revision; None before the first.
        revision_sha256: SHA-256 of the revision, which determines every sealed byte.
        signers: Ids of the keys that are said to have signed the revision; not checked.
        signed_parent: Number of the last signed revision before one that is not signed; None if
            there is none.
        complete: Whether every declared unit is committed.
        images: Number of images.
        unreadable: Number of images that could not be decoded; None while units are missing.
        withdrawn: Number of withdrawn images.
        segments: Number of segments.
        unit_rows: Rows of a unit.
        data: Description of the image set.
        fingerprint: SHA-256 over keys and digests of the images.
        class_names: Names of the classes.
        sample_units: Number of committed units of the samples.
        sample_units_needed: Number of all units of the samples.
        images_in_cache: The images that it contains; None if it contains none.
        views: Views, in the order in which they were declared.
        teachers: Teachers, by name.
        versions: Versions of the libraries, and the processor, that computed it.
    """

    url: str
    format: int
    revision: int | None
    revision_sha256: str | None
    signers: list[str]
    signed_parent: int | None
    complete: bool
    images: int
    unreadable: int | None
    withdrawn: int
    segments: int
    unit_rows: int
    data: str
    fingerprint: str | None
    class_names: list[str]
    sample_units: int
    sample_units_needed: int
    images_in_cache: ImagesDescription | None
    views: list[ViewDescription]
    teachers: list[TeacherDescription]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the description as JSON values."""
        return asdict(self)


def describe(
    url: str | os.PathLike[str] | Location, *, revision: str | None = None
) -> CacheDescription:
    """Describe a cache, finished or not.

    Args:
        url: The cache.
        revision: sha256 of the revision that it must have, or the first 12 digits or more.

    Raises:
        CacheError: There is no cache, or it has another revision.
    """
    location = locate(url)
    manifest = read_manifest(location)
    check_revision(manifest, revision, location)
    teachers = [_teacher(location, manifest, name) for name in manifest.teachers]
    sample_units = len(committed_units(location, SAMPLES, NO_VIEW))
    sample_units_needed = len(needed_units(manifest, manifest.unit_rows, location))
    complete = sample_units >= sample_units_needed
    parts: list[TeacherDescription | FeatureDescription | ImagesDescription] = list(teachers)
    parts += [features for teacher in teachers for features in teacher.features]
    images = _images(location, manifest)
    parts += [images] if images is not None else []
    complete = complete and all(part.units >= part.needed for part in parts)
    return CacheDescription(
        url=str(location),
        format=manifest.format,
        revision=manifest.revision.number if manifest.revision else None,
        revision_sha256=manifest.revision.sha256 if manifest.revision else None,
        signers=_signers(location, manifest.revision),
        signed_parent=_signed_parent(location, manifest.revision),
        complete=complete,
        images=manifest.rows,
        unreadable=_unreadable(location, manifest) if complete else None,
        withdrawn=len(read_withdrawn(location)),
        segments=len(manifest.segments),
        unit_rows=manifest.unit_rows,
        data=manifest.data.description,
        fingerprint=manifest.data.fingerprint,
        class_names=list(manifest.data.class_names),
        sample_units=sample_units,
        sample_units_needed=sample_units_needed,
        images_in_cache=images,
        views=[_view(view_id, recipe) for view_id, recipe in manifest.views.items()],
        teachers=teachers,
        versions=manifest.versions,
    )


def _signers(location: Location, pointer: RevisionPointer | None) -> list[str]:
    """Return the keys whose signatures of a revision are stored; those of another are left out."""
    try:
        envelope = None if pointer is None else read_envelope(location, pointer)
    except CacheDamaged:
        return ["a malformed signature"]
    statement = None if envelope is None else envelope.statement()
    if envelope is None or pointer is None or statement is None:
        return []
    return list(envelope.signers) if statement.sha256 == pointer.sha256 else []


def _signed_parent(location: Location, pointer: RevisionPointer | None) -> int | None:
    """Return the number of the last signed revision before one that is not signed."""
    if pointer is None or not location.lists or _signers(location, pointer):
        return None
    for number in reversed(numbers(location, SIGNATURES)):
        content = location.read(revision_key(number)) if number < pointer.number else None
        if content is None:
            continue
        earlier = RevisionPointer(number=number, sha256=sha256(content))
        if _signers(location, earlier):
            return number
    return None


def _images(location: Location, manifest: Manifest) -> ImagesDescription | None:
    images, squares = manifest.images, manifest.squares
    if squares is not None:
        views = stored_views(manifest)
        return ImagesDescription(
            kind="views",
            side=squares.side,
            quality=squares.quality,
            units=sum(len(committed_units(location, SQUARES, view)) for view in views),
            needed=len(views) * len(needed_units(manifest, squares.unit_rows, location)),
            stored_bytes=square_bytes(location, views),
        )
    if images is None:
        return None
    return ImagesDescription(
        kind=images.kind,
        side=images.side,
        quality=images.quality,
        units=len(committed_units(location, IMAGES, NO_VIEW)),
        needed=len(needed_units(manifest, images.unit_rows, location)),
        stored_bytes=image_bytes(location),
    )


def _teacher(location: Location, manifest: Manifest, name: str) -> TeacherDescription:
    record = manifest.teachers[name]
    locked = record.locked
    features = [_features(location, manifest, feature_name(name, t)) for t in record.features]
    group = read_group(location, name) if record.has_logits else None
    assert group is None or isinstance(group, TeacherGroup)
    views = [] if group is None else _views(manifest, group)
    shown = len(views) if group else max((tap.views for tap in features), default=0)
    return TeacherDescription(
        name=name,
        architecture=locked.architecture or "unknown",
        source=record.source,
        weights_sha256=locked.weights_sha256,
        input_size=locked.input.size or 0,
        precision=locked.precision or "",
        num_classes=group.num_classes if group else None,
        class_names=list(group.class_names) if group and group.class_names is not None else None,
        encoding=group.encoding.settings() if group else None,
        views=shown,
        units=_units(location, group, views) if group else 0,
        needed=len(group.needed_units(manifest)) * len(views) if group else 0,
        stored_bytes=group_bytes(location, group) if group else 0,
        dense_bytes=manifest.rows * len(views) * group.row_numbers * _FLOAT32 if group else 0,
        accuracy=record.accuracy,
        features=features,
        fidelity=record.fidelity.model_dump() if record.fidelity else None,
    )


def _features(location: Location, manifest: Manifest, name: str) -> FeatureDescription:
    group = read_group(location, name)
    assert isinstance(group, FeatureGroup)
    encoding, views = group.encoding, _views(manifest, group)
    measured = manifest.teachers[group.teacher].feature_fidelity.get(group.tap)
    return FeatureDescription(
        tap=group.tap,
        encoding=encoding.to_json() | {"principal": encoding.principal is not None},
        views=len(views),
        units=_units(location, group, views),
        needed=len(group.needed_units(manifest)) * len(views),
        stored_bytes=group_bytes(location, group),
        raw_bytes=manifest.rows * len(views) * group.row_numbers * _FLOAT32,
        fidelity=measured.model_dump() if measured else None,
    )


def _views(manifest: Manifest, group: Group) -> list[str]:
    """Return the views of a group that are not dropped."""
    return [view for view in group.view_ids if view in manifest.views]


def _units(location: Location, group: Group, views: Sequence[str]) -> int:
    return sum(len(committed_units(location, group.path, view)) for view in views)


def _view(view_id: str, recipe: dict[str, Any]) -> ViewDescription:
    operations = [operation["op"] for operation in recipe["operations"]]
    return ViewDescription(view_id, operations, recipe["draw"], recipe["seed"])


def _unreadable(location: Location, manifest: Manifest) -> int:
    """Return the number of unreadable images, from the ``status`` array unit by unit."""
    placement, objects = sample_placement(manifest), CommittedObjects(location)
    segments = [(segment.start, segment.rows) for segment in manifest.segments]
    count = 0
    for unit in placement.units(segments, manifest.unit_rows):
        commits = read_commits(location, SAMPLES, NO_VIEW, [unit])
        placement.check(commits, str(location))
        status = objects.read(placement, list(commits.values()), ["status"])["status"]
        count += int((status == Status.UNREADABLE).sum())
    return count
