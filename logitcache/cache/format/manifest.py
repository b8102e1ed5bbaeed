"""The root manifest of a cache: images, teachers, views and segments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationError, model_validator

from logitcache.cache.format.documents import parse_group, validation_detail
from logitcache.cache.format.names import (
    ATTRIBUTE,
    FEATURES,
    FORMATS,
    LABEL_SETS,
    STORED_VIEWS,
    check_name,
)
from logitcache.cache.format.records import (
    Count,
    FeatureFidelityRecord,
    FidelityRecord,
    ImagesRecord,
    LossRecord,
    Record,
    SquaresRecord,
)
from logitcache.cache.format.teacher_lock import Lock, LockedFields
from logitcache.cache.store.base import MAX_DOCUMENT_BYTES
from logitcache.errors import CacheDamaged, CacheError, UnsupportedFormat, UsageError
from logitcache.views.recipe import Recipe, ViewId, recipe_id

if TYPE_CHECKING:
    from logitcache.cache.store.base import Location

__all__ = [
    "MAX_LABEL_WIDTH",
    "MAX_UNITS",
    "DataRecord",
    "DerivationRecord",
    "FeatureFidelityRecord",
    "FidelityRecord",
    "ImagesRecord",
    "LossRecord",
    "Manifest",
    "PartRecord",
    "RevisionPointer",
    "Segment",
    "SquaresRecord",
    "TeacherRecord",
    "check_revision",
    "parse_manifest",
    "read_manifest",
]

MAX_UNITS = 2**15  # of a view: its ledger, which names all of them, is held in memory
MAX_LABEL_WIDTH = 1024  # classes of an image
_SHA256 = re.compile(r"[0-9a-fA-F]{12,64}")


class Segment(Record):
    """Rows that were added together.

    Attributes:
        start: First row, a multiple of the unit.
        rows: Number of rows.
        listing_sha256: SHA-256 over the keys and labels of its rows, in order.
    """

    start: Count
    rows: Count
    listing_sha256: str = ""

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.start + self.rows


class DataRecord(Record):
    """The image set that the cache was computed from.

    Attributes:
        description: Reader, location and split, as text; never compared.
        class_names: Names of the classes in the order of their numbers; empty without labels.
        fingerprint: SHA-256 over the keys and digests of all rows; None before the first seal.
        listing: Version of the rules by which its files are listed.
        decoding: Version of the table by which its images are decoded.
        label_width: Room for the classes of an image; None if it has one class at most.
    """

    description: str
    class_names: tuple[str, ...] = Field(max_length=1_000_000)
    fingerprint: str | None = None
    listing: int = Field(default=1, ge=1, le=2)
    decoding: int = Field(default=1, ge=1, le=2)
    label_width: int | None = Field(default=None, ge=1, le=MAX_LABEL_WIDTH)

    @property
    def required(self) -> tuple[str, ...]:
        """Names that the root has to require of readers."""
        needed = {f"decoding-{self.decoding}": self.decoding > 1, LABEL_SETS: self.label_width}
        return tuple(name for name, is_needed in needed.items() if is_needed)


class TeacherRecord(Record):
    """A teacher, field by field; its lock has to match that of a resumed run.

    Attributes:
        lock: All that determines the outputs: model, weights, input, precision, class map.
        canonical_batch: Images of one forward pass.
        source: Origin of the weights, as text; never compared.
        accuracy: Top-1 accuracy on labeled rows by view id; empty before the first seal.
        versions: Libraries and processor that computed its first unit; never compared.
        features: Taps of its network that are stored.
        tables: Tables that are stored, see :mod:`logitcache.cache.format.table_group`.
        fidelity: Encoding loss of its outputs; None before the first seal or without a measurement.
        feature_fidelity: Encoding loss of its features, by tap.
    """

    lock: Lock
    canonical_batch: int = Field(ge=1)
    source: str
    accuracy: dict[str, float] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    features: tuple[str, ...] = Field(default=(), max_length=1024)
    tables: tuple[str, ...] = Field(default=(), max_length=64)
    fidelity: FidelityRecord | None = None
    feature_fidelity: dict[str, FeatureFidelityRecord] = Field(default_factory=dict)

    @property
    def locked(self) -> LockedFields:
        """The fields of the lock that are read."""
        return LockedFields.model_validate(self.lock)

    @property
    def has_logits(self) -> bool:
        """Whether logits are cached; otherwise the teacher has features alone."""
        return "head" not in self.lock or self.locked.head != "none"


class RevisionPointer(Record):
    """Which revision is current, and its digest."""

    number: int = Field(ge=1, le=2**53)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    def __str__(self) -> str:
        return f"revision {self.number}, sha256 {self.sha256}"


class PartRecord(Record):
    """A sealed cache that rows, views or teachers were taken from.

    Attributes:
        revision: Its revision.
        images: Number of its images that were taken.
    """

    revision: RevisionPointer
    images: Count


class DerivationRecord(Record):
    """How a cache was made from others, without images and teachers; never compared by readers.

    Attributes:
        command: Name of the command, ``slice`` or ``merge``.
        parts: The caches that it was made from.
        selection: Options that selected what was taken, as JSON values.
    """

    command: str = Field(max_length=64)
    parts: tuple[PartRecord, ...] = Field(max_length=4096)
    selection: dict[str, Any] = Field(default_factory=dict, max_length=64)


class Manifest(Record):
    """The root manifest.

    Attributes:
        format: Version of the format.
        requires: Features that a reader has to support, names of :data:`.FEATURES`.
        unit_rows: U, the rows of a block.
        segments: Segments, in the order in which they were added.
        data: Image set.
        images: Encoding of the images that the cache contains; None if it contains none.
        squares: Encoding of the rendered views that the cache contains; None if it contains none.
        views: Recipes by view id.
        teachers: Records by name.
        versions: Libraries and processor that computed the first unit.
        revision: Current revision; None before the first seal.
        dropping: Dropped groups whose commits are not removed yet.
        derived_from: The caches that it was made from; None where teachers computed it.
    """

    format: int
    requires: tuple[str, ...] = Field(default=(), max_length=64)
    unit_rows: int = Field(ge=16, le=65536)
    segments: tuple[Segment, ...] = Field(max_length=65536)
    data: DataRecord
    images: ImagesRecord | None = None
    squares: SquaresRecord | None = None
    views: dict[ViewId, Recipe] = Field(max_length=65536)
    teachers: dict[str, TeacherRecord] = Field(max_length=4096)
    versions: dict[str, str]
    revision: RevisionPointer | None = None
    dropping: tuple[str, ...] = Field(default=(), max_length=4096)
    derived_from: DerivationRecord | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, record in self.teachers.items():
            check_name(name, "teacher")
            for tap in record.features:
                check_name(tap, "tap")
            for table in record.tables:
                check_name(table, "table")
        if (LABEL_SETS in self.requires) != (self.data.label_width is not None):
            raise ValueError(f"{LABEL_SETS} are required without data.label_width, or the reverse")
        end = 0
        for segment in self.segments:
            if segment.start % self.unit_rows or segment.start < end:
                raise ValueError(
                    f"a segment starts at row {segment.start}; expected a multiple of "
                    f"{self.unit_rows} from {end}"
                )
            end = segment.stop
        if self.images is not None and self.squares is not None:
            raise ValueError("images and squares: a cache contains only one of them")
        stored = self.images or self.squares
        if stored is not None and self.unit_rows % stored.unit_rows:
            raise ValueError(
                f"units of images of {stored.unit_rows} rows do not divide {self.unit_rows}"
            )
        if (STORED_VIEWS in self.requires) != (self.squares is not None):
            raise ValueError(f"{STORED_VIEWS} are required without squares, or the reverse")
        if end > MAX_UNITS * self.unit_rows:
            raise ValueError(f"{end} rows in units of {self.unit_rows} are over {MAX_UNITS} units")
        return self

    @property
    def rows(self) -> int:
        """Images of all segments, readable or not."""
        return sum(segment.rows for segment in self.segments)

    @property
    def capacity(self) -> int:
        """Rows of the arrays: the last segment's end, up to a whole unit."""
        end = self.segments[-1].stop if self.segments else 0
        return -(-end // self.unit_rows) * self.unit_rows

    def changed(self, **fields: Any) -> Manifest:
        """Return a copy with some fields replaced."""
        return self.model_copy(update=fields)

    def requiring(self, *features: str) -> Manifest:
        """Return a copy that only readers that know these features will read."""
        new = [feature for feature in features if feature not in self.requires]
        if not new:
            return self
        return self.changed(format=FORMATS[-1], requires=(*self.requires, *new))

    def no_longer_requiring(self, feature: str) -> Manifest:
        """Return a copy without a required feature; format 1 again if nothing is required."""
        rest = tuple(name for name in self.requires if name != feature)
        if len(rest) == len(self.requires):
            return self
        # built again: a copy would keep ``requires`` among the fields that were set and are written
        fields = {name: getattr(self, name) for name in self.model_fields_set}
        fields |= {"requires": rest} if rest else {"format": FORMATS[0]}
        if not rest:
            del fields["requires"]
        return Manifest(**fields)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as JSON values, with the fields that were set only.

        So its digest is that of the document, whichever version reads it and whatever it adds.
        """
        return self.model_dump(mode="json", exclude_unset=True)


def read_manifest(location: Location) -> Manifest:
    """Read and check the root manifest.

    Raises:
        CacheError: There is no cache, or its manifest is malformed.
        UnsupportedFormat: It has a newer format, or requires unknown features.
    """
    where = f"{location}/zarr.json"
    size = location.size("zarr.json")
    if size is None:
        raise CacheError(
            "no cache here",
            where=location,
            expected="a zarr.json, as logitcache precompute writes it",
            hint="check the path; logitcache precompute creates a cache in a new or empty folder",
        )
    if size > MAX_DOCUMENT_BYTES:
        raise CacheError(
            "the manifest is larger than the format allows",
            where=where,
            expected=f"at most {MAX_DOCUMENT_BYTES} bytes",
            got=f"{size} bytes",
        )
    try:
        values = parse_group(location.read("zarr.json", most=MAX_DOCUMENT_BYTES) or b"", where)
    except CacheDamaged as error:
        raise CacheError(
            "not a logitcache cache",
            where=where,
            expected=f"a Zarr group with attributes[{ATTRIBUTE!r}]",
            got=error.brief,
        ) from None
    _check_version(values, where)
    return parse_manifest(values, where)


def parse_manifest(values: object, where: str) -> Manifest:
    """Check the JSON values of a root manifest of a known format.

    Raises:
        CacheError: They are malformed.
        CacheDamaged: A view has the id of another recipe.
    """
    try:
        manifest = Manifest.model_validate(values)
        ids = {view_id: recipe_id(recipe) for view_id, recipe in manifest.views.items()}
    except (ValueError, UsageError) as error:
        place, got = _first_fault(error)
        raise CacheError("the manifest is damaged", where=f"{where} {place}", got=got) from None
    for view_id, own in ids.items():
        if own != view_id:
            raise CacheDamaged(
                "the id of a view is not the digest of its recipe",
                where=f"{where} views.{view_id}",
                expected=f"a recipe with the digest {view_id}",
                got=f"a recipe with the digest {own}",
                hint="logitcache repair restores the manifest that was sealed",
            )
    return manifest


def _first_fault(error: ValueError | UsageError) -> tuple[str, str]:
    """Return the place and the cause of the first malformed value."""
    if isinstance(error, ValidationError):
        return validation_detail(error)
    return "", error.what if isinstance(error, UsageError) else str(error)


def check_revision(manifest: Manifest, wanted: str | None, where: object) -> None:
    """Compare the sealed revision with the one that a user trusts.

    Args:
        manifest: The root manifest.
        wanted: sha256 of the revision, or at least its first 12 digits; None for any.
        where: The cache, for error messages.

    Raises:
        UsageError: It is not a sha256.
        CacheDamaged: The cache has another revision, or none.
    """
    if wanted is None:
        return
    if not _SHA256.fullmatch(wanted):
        raise UsageError(
            "the option is not the sha256 of a revision",
            where=f"--revision {wanted[:80]}",
            expected="12 to 64 hexadecimal digits, as logitcache inspect prints them",
        )
    found = manifest.revision
    if found is None or not found.sha256.startswith(wanted.lower()):
        raise CacheDamaged(
            "the cache has another revision than the requested one",
            where=where,
            expected=f"sha256 {wanted.lower()}",
            got="not sealed"
            if found is None
            else f"revision {found.number}, sha256 {found.sha256}",
            hint="download the published cache again, or check what has changed since then "
            "(logitcache inspect) and pass the new digest",
        )


def _check_version(values: object, where: str) -> None:
    """Refuse a format version or required features that this version does not support."""
    version = values.get("format") if isinstance(values, dict) else None
    if version not in FORMATS or isinstance(version, bool):
        raise UnsupportedFormat(
            "this version of logitcache cannot read this cache format",
            where=where,
            expected=f"format {' or '.join(map(str, FORMATS))}",
            got=f"format {version}",
            hint="install a newer version: pip install --upgrade logitcache",
        )
    assert isinstance(values, dict)
    required = values.get("requires", [])
    names = required if isinstance(required, list) else [required]
    unknown = [str(name)[:64] for name in names if str(name) not in FEATURES]
    if unknown:
        raise UnsupportedFormat(
            "this cache requires features that this version of logitcache does not have",
            where=where,
            expected=f"no features but {', '.join(FEATURES)}",
            got=", ".join(unknown[:5]),
            hint="install a newer version: pip install --upgrade logitcache",
        )
