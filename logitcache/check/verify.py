"""Verification of a cache: its bytes, its images, outputs of its teachers, and its views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from logitcache.cache.read.reader import open_cache
from logitcache.cache.read.signature import signed_revision
from logitcache.cache.read.view_selection import choose_views
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import VerifyReport
from logitcache.cache.verify.integrity import verify as verify_bytes
from logitcache.check.images import check_images
from logitcache.check.row_index import index_difference
from logitcache.config import Config
from logitcache.data.readers import DataConfig
from logitcache.errors import UsageError, ViewDrift
from logitcache.targets.images.image_source import contains_images, images_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from logitcache.check.audit import TeacherAudit
    from logitcache.check.images import ImagesReport
    from logitcache.data.readers import ImageSet
    from logitcache.targets.images.fingerprint_check import FingerprintReport

    Progress = Callable[[str, int, int], None]

__all__ = ["SAMPLES", "CacheReport", "VerifyConfig", "verify"]

SAMPLES = 256
"""Rows of each teacher that are recomputed by default."""


class VerifyConfig(Config):
    """What a cache is compared with beyond its own digests.

    Attributes:
        data: The images it was computed from.
        teachers: Fields of a :class:`~logitcache.teachers.member.TeacherConfig` by name.
        threads: Number of threads for reading, decoding and rendering; all processors by default.
    """

    data: DataConfig | None = None
    teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    threads: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class CacheReport:
    """Result of a verification.

    Attributes:
        bytes: Comparison of every object with its commit.
        images: Comparison with the images; None if they were not given, or if bytes are damaged.
        audits: Comparison of stored rows with recomputed outputs, per teacher.
        fingerprints: View fingerprints, rendered again on this machine; None if not checked.
        drift: Difference of the rendered fingerprints, as an error to raise; None if there is none.
        index: The first row of the index of rows that differs from the samples; None if none does.
    """

    bytes: VerifyReport
    images: ImagesReport | None = None
    audits: tuple[TeacherAudit, ...] = ()
    fingerprints: FingerprintReport | None = None
    drift: ViewDrift | None = None
    index: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing differs from what was committed."""
        made_from = (self.images is None or self.images.ok) and all(a.ok for a in self.audits)
        return self.bytes.ok and made_from and self.drift is None and self.index is None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        fingerprints = self.fingerprints
        return {
            **self.bytes.to_json(),
            "images": None if self.images is None else self.images.to_json(),
            "audits": [audit.to_json() for audit in self.audits],
            "probes": None if fingerprints is None else fingerprints.to_json(),
            "index": self.index,
            "ok": self.ok,
        }


def verify(
    cache: str | os.PathLike[str],
    *,
    data: ImageSet | None = None,
    teachers: Mapping[str, Mapping[str, Any]] | None = None,
    quick: bool = False,
    samples: int | None = SAMPLES,
    views: Sequence[str] = (),
    revision: str | None = None,
    signed_by: str | os.PathLike[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> CacheReport:
    """Verify a cache.

    Bytes are always checked. With ``data``, or where the cache contains its images, the images are
    compared by name, size, digest and class, and the view fingerprints of the cache are rendered
    again. With ``teachers``, a random sample of rows is recomputed, if the images are those of the
    cache.

    Args:
        cache: Folder or URL of the cache.
        data: The images it was computed from; by default those in the cache, if it has any.
        teachers: Fields of a :class:`~logitcache.teachers.member.TeacherConfig` by name of the
            teacher; needs images.
        quick: Whether to check only sizes and headers of shards, and no image contents.
        samples: Number of rows to recompute per teacher; None for all.
        views: Ids, numbers or ranges of the views to recompute; all by default.
        revision: sha256 of the required revision, or its first 12 digits or more.
        signed_by: File with the public key that has to have signed the current revision.
        device: Device of the teachers.
        threads: Number of threads; all processors by default.
        on_progress: Called with the phase (``verify``, in bytes; ``images``; ``audit``, in rows;
            ``view fingerprints``, without an amount), the finished amount, and the total.

    Raises:
        UsageError: Teachers without images, an unknown teacher or view, or another revision.
        SignatureError: The cache is not signed by the key, or differs from what was signed.
        StorageError: A store cannot be read.
    """
    if signed_by is not None:
        revision = signed_revision(locate(cache), signed_by, revision)
    progress = on_progress or (lambda phase, done, total: None)
    report = verify_bytes(
        cache,
        quick=quick,
        revision=revision,
        on_progress=lambda found: progress("verify", found.done, found.total),
    )
    if not report.ok or (report.revision is None and data is None):
        return CacheReport(report)
    opened = open_cache(cache)
    if not quick and (different := index_difference(locate(cache), opened)) is not None:
        return CacheReport(report, index=different)
    if data is None and not contains_images(opened):
        if teachers:
            what = "teacher outputs cannot be recomputed without the images"
            raise UsageError(what, hint="pass the images as data, too (--data)")
        return CacheReport(report)
    if teachers:
        from logitcache.check.audit import audit_teachers, check_teacher  # imports teachers

        for name in teachers:
            check_teacher(opened, name)  # an unknown name is reported before hours of reading
    view_ids = choose_views(list(opened.views), views) if views else None
    source = images_of(opened, data)
    images = check_images(
        opened,
        source,
        # rendered views are in the cache, and all of their bytes were compared
        digests=not quick and opened.squares is None,
        threads=threads,
        on_progress=lambda done, total: progress("images", done, total),
    )
    audits: tuple[TeacherAudit, ...] = ()
    if teachers and images.ok:
        audits = tuple(
            audit_teachers(
                str(cache),
                source,
                {name: dict(values) for name, values in teachers.items()},
                samples=samples,
                views=view_ids,
                device=device,
                threads=threads,
                on_progress=lambda done, total: progress("audit", done, total),
            )
        )
    found = CacheReport(report, images, audits)
    if quick or not found.ok:
        return found
    progress("view fingerprints", 0, 0)
    # not above: it imports PyTorch, and bytes are verified without it
    from logitcache.targets.images.fingerprint_check import check_fingerprints

    try:
        return CacheReport(report, images, audits, check_fingerprints(opened, source))
    except ViewDrift as drift:
        return CacheReport(report, images, audits, drift=drift)
