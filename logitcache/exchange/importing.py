"""Import of teacher outputs that another program has computed.

The cache gets its images from a data set and the outputs from a file. What the file does not tell
stays unknown: the views that the teacher was given, the teacher itself, and more. Students see
random views of their own, and objectives that need more than outputs are refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.card import state_facts
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.store.open import locate
from logitcache.cache.verify.restore import rewrite_unsealed
from logitcache.cache.write.claims import MANIFEST, Claims
from logitcache.cache.write.drop import finish_drops
from logitcache.cache.write.writer import CacheWriter
from logitcache.data.packing import PackingSource
from logitcache.data.source import notes_of
from logitcache.data.subset import SubsetSource
from logitcache.errors import DataMismatch, UsageError, first_of
from logitcache.exchange.formats import open_outputs
from logitcache.exchange.imported_teacher import ImportedTeacher, declare_imported
from logitcache.exchange.matching import match_images
from logitcache.exchange.outputs import ReadSettings
from logitcache.exchange.writing import write_outputs
from logitcache.precompute.plan.packing import images_as_stored
from logitcache.precompute.plan.plan import Plan, create_cache, sample_items
from logitcache.precompute.plan.rows import match_rows, open_images
from logitcache.precompute.run.compute import compute_plan, waiting
from logitcache.precompute.run.summary import accuracy_of, count_images, images_fingerprint
from logitcache.views.spec import ViewsConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.store.base import Location
    from logitcache.data.readers import ImageSet
    from logitcache.data.source import Source
    from logitcache.exchange.config import ImportConfig
    from logitcache.exchange.matching import Match
    from logitcache.exchange.outputs import OutputFile
    from logitcache.precompute.run.compute import Progress

__all__ = ["ImportSummary", "import_outputs"]


@dataclass(frozen=True)
class ImportSummary:
    """Result of an import.

    Attributes:
        cache: Location of the cache.
        teacher: Name of the teacher.
        format: Format of the file.
        images: Number of images of the cache.
        views: Number of outputs of each image.
        classes: Number of classes.
        left_out: Number of images without outputs, which are not in the cache.
        unused: Number of outputs that belong to no image.
        accuracy: Top-1 accuracy of the outputs on labeled images; None if it is not known.
        unknown: What the file does not tell.
        revision: Number of the sealed revision.
        revision_sha256: SHA-256 of the revision.
        notes: Notes for the user.
    """

    cache: str
    teacher: str
    format: str
    images: int
    views: int
    classes: int
    left_out: int
    unused: int
    accuracy: float | None
    unknown: tuple[str, ...]
    revision: int
    revision_sha256: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {**asdict(self), "unknown": list(self.unknown), "notes": list(self.notes)}


@dataclass(frozen=True)
class _Images:
    """The images of an import.

    Attributes:
        source: Those that have outputs.
        rows: Row of the file for each of them, int64 (N,).
        left_out: Number of images without outputs.
        match: How they were found.
    """

    source: Source
    rows: NDArray[np.int64]
    left_out: int
    match: Match


def import_outputs(
    config: ImportConfig,
    *,
    data: ImageSet | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> ImportSummary:
    """Write outputs of another program into a cache, as those of a teacher in unknown views.

    A call that was interrupted can be repeated. Every image is read once, for its digest.

    Args:
        config: Configuration of the import.
        data: The images, instead of ``config.data``.
        on_progress: Called after every batch of images and unit of outputs.
        should_stop: Called just as often; if it returns true, the import stops, and what is
            complete is kept.

    Raises:
        UsageError: Something that the file does not tell was not stated.
        DataError: The file is damaged, or its numbers are not what they should be.
        DataMismatch: Images have no outputs.
        CacheError: The cache has another teacher of this name.
    """
    settings = ReadSettings(config.values, None if config.keys is None else Path(config.keys))
    file = open_outputs(Path(config.outputs), config.format, settings)
    location = locate(config.cache, write=True)
    found = _images(file, location, config, data)
    teacher = ImportedTeacher.of(file, found.source, config)
    claims = Claims(location, on_wait=waiting(location, on_progress, should_stop))
    with claims.exclusive(MANIFEST):
        writer, indices = _opened(location, found.source, config)
        group = declare_imported(writer, teacher)
        notes = _read_images(
            _sample_plan(writer, found.source, indices), config, claims, on_progress, should_stop
        )
        rows = np.where(indices >= 0, found.rows[indices], -1)
        write_outputs(writer, group, teacher, rows, on_progress, should_stop)
        state_facts(location, config.card)
        writer.seal(images_fingerprint(writer), accuracy_of(writer))
        claims.sweep()
    return _summary(writer, teacher, found, notes)


def _read_images(
    plan: Plan,
    config: ImportConfig,
    claims: Claims,
    on_progress: Callable[[Progress], None] | None,
    should_stop: Callable[[], bool] | None,
) -> list[str]:
    """Decode and digest the images whose samples are missing, and write these; return notes."""
    compute_plan(
        plan,
        _NoTeachers(),
        claims,
        precision="float32",
        threads=config.threads,
        skip_bad_images=config.on_bad_image == "skip",
        on_progress=on_progress,
        should_stop=should_stop,
    )
    return plan.notes


def _summary(
    writer: CacheWriter, teacher: ImportedTeacher, found: _Images, notes: Sequence[str]
) -> ImportSummary:
    known, pointer = writer.manifest.teachers[teacher.name].accuracy, writer.manifest.revision
    assert pointer is not None
    return ImportSummary(
        cache=str(writer.location),
        teacher=teacher.name,
        format=teacher.file.format,
        images=count_images(writer)[0],
        views=teacher.file.views,
        classes=teacher.num_classes,
        left_out=found.left_out,
        unused=found.match.unused,
        accuracy=next(iter(known.values()), None),
        unknown=teacher.unknown,
        revision=pointer.number,
        revision_sha256=pointer.sha256,
        notes=(*notes_of(found.source), *teacher.notes, *_notes(found), *notes),
    )


def _images(
    file: OutputFile, location: Location, config: ImportConfig, data: ImageSet | None
) -> _Images:
    """Return the images that have outputs.

    Raises:
        DataMismatch: Others have none, and they are not to be left out.
    """
    images = config.data if data is None else data
    source = open_images(images, location, config.images)
    match = match_images(file, source.keys, source.description)
    lacking = np.flatnonzero(match.rows < 0)
    if not len(lacking):
        return _Images(source, match.rows, 0, match)
    if not config.subset:
        raise DataMismatch(
            f"{len(lacking)} of {len(source.keys)} images have no outputs",
            where=file.path,
            got=first_of([source.keys[index] for index in lacking[:3]]),
            hint="leave them out with --subset, or give the images that the outputs are of",
        )
    kept = np.flatnonzero(match.rows >= 0)
    return _Images(_some_of(source, kept), match.rows[kept], len(lacking), match)


def _some_of(source: Source, kept: NDArray[np.int64]) -> Source:
    """Return some of the images of a source, which are packed if it packs them."""
    chosen = kept.tolist()
    if not isinstance(source, PackingSource):
        return SubsetSource(source, chosen)
    return source.with_originals(SubsetSource(source.originals, chosen))


def _opened(
    location: Location, source: Source, config: ImportConfig
) -> tuple[CacheWriter, NDArray[np.signedinteger]]:
    """Open or create the cache; return its writer, and the position of every row in the source."""
    if location.is_empty():
        return create_cache(location, source, config.unit_rows, config.images)
    if read_manifest(location).squares is not None:
        raise UsageError(
            "outputs cannot be imported into a cache that contains rendered views",
            where=location,
            got="outputs of views whose pixels are not known",
            hint="import them into a cache of their own, with --images packed",
        )
    writer = CacheWriter.open(location)
    rewrite_unsealed(writer)
    finish_drops(writer)
    location.sweep()
    return writer, match_rows(writer, source)


def _sample_plan(writer: CacheWriter, source: Source, indices: NDArray[np.signedinteger]) -> Plan:
    """Return the plan that reads and decodes every image whose sample is missing."""
    view = ViewsConfig().eval_view()
    return Plan(
        writer=writer,
        source=images_as_stored(source, writer, indices),
        originals=source if isinstance(source, PackingSource) else None,
        indices=indices,
        views={view.id: view},
        groups={},
        items=sample_items(writer, view.id),
        notes=[],
    )


def _notes(found: _Images) -> list[str]:
    if not found.match.by_position:
        return []
    return [
        "outputs were assigned to images by position, in the order of torchvision's ImageFolder "
        "(classes, then files, by code points)"
    ]


class _NoTeachers:
    """The teachers of a run that only reads images."""

    sizes = (32,)

    def keep(self, taps: Mapping[str, Any]) -> None:
        """Keep nothing."""

    def start(self, *_: object) -> Mapping[str, Callable[[], NDArray[np.float32]]]:
        """Return no outputs."""
        return {}
