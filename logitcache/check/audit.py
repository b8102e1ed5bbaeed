"""Audit of a cache: recompute a sample of outputs and compare each with the row that is stored.

Rows are drawn from all rows of all views, mixed and decoded as they were for the teacher. The
tolerance is that of :mod:`logitcache.check.row_comparison`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.read.reader import open_cache
from logitcache.check.recompute import ShownRows
from logitcache.check.row_comparison import RowComparison
from logitcache.errors import UsageError
from logitcache.networks.device import resolve_device
from logitcache.precompute.plan.teacher_lock import as_locked, check_lock
from logitcache.teachers.member import Member, TeacherConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache
    from logitcache.check.recompute import Run
    from logitcache.check.row_comparison import Mismatch
    from logitcache.data.source import Source

__all__ = ["TeacherAudit", "audit_teacher", "audit_teachers", "check_teacher"]

_ONE_IN = 2000


@dataclass(frozen=True)
class TeacherAudit:
    """Result of the audit of one teacher; a floor compares the teacher with itself.

    What concerns logits is None for a teacher without them.

    Attributes:
        teacher: Name of the teacher.
        samples: Number of compared rows, over all views.
        pairs: Number of rows of the audited views.
        views: Number of audited views.
        all_views: Number of views of the teacher.
        taps: Numbers of compared rows of features, by tap.
        mismatched: Number of rows that do not match.
        mismatches: The first few of them.
        eps: Tolerated difference of a log-probability, in nats, mean over rows; see
            :mod:`logitcache.check.row_comparison`.
        agreement: Share of rows with the same most probable class.
        agreement_floor: ``agreement`` between two batch compositions.
        kl: KL divergence of the stored row from the encoded output, in nats, mean over rows.
        kl_floor: ``kl`` between two batch compositions.
        overlap: Share of stored classes that are the same.
        overlap_floor: ``overlap`` between two batch compositions.
        truncation: KL divergence by keeping K classes only, in nats.
        coding: Further KL divergence by the rounding of codes, in nats.
    """

    teacher: str
    samples: int
    pairs: int
    views: int
    all_views: int
    taps: dict[str, int]
    mismatched: int
    mismatches: tuple[Mismatch, ...]
    eps: float | None = None
    agreement: float | None = None
    agreement_floor: float | None = None
    kl: float | None = None
    kl_floor: float | None = None
    overlap: float | None = None
    overlap_floor: float | None = None
    truncation: float | None = None
    coding: float | None = None

    @property
    def ok(self) -> bool:
        """Whether every compared row matches."""
        return self.mismatched == 0

    @property
    def detection(self) -> float:
        """Probability that the sample contains a changed row, if one row in 2000 is changed."""
        return 1.0 if self.samples == self.pairs else 1.0 - (1.0 - 1.0 / _ONE_IN) ** self.samples

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        found = [asdict(mismatch) for mismatch in self.mismatches]
        return asdict(self) | {"mismatches": found, "detection": self.detection, "ok": self.ok}


def audit_teachers(
    url: str,
    source: Source,
    teachers: Mapping[str, Mapping[str, Any]],
    *,
    samples: int | None,
    views: Sequence[str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[TeacherAudit]:
    """Audit several teachers, each with the settings of its lock.

    Args:
        url: The cache.
        source: The images that it was computed from.
        teachers: Fields of a :class:`~logitcache.teachers.member.TeacherConfig` by name.
        samples: Number of rows to compare; None for every row of every view.
        views: Ids of the views to audit; all by default.
        device: Device of the teachers.
        threads: Threads that decode and render; all processors by default.
        on_progress: Called with the numbers of compared rows and of all rows.

    Raises:
        CacheError: A teacher is not the one that the cache was computed with.
        UsageError: The cache has no such teacher, or the teacher has none of these views.
    """
    cache = open_cache(url)
    audits = []
    for name, values in teachers.items():
        check_teacher(cache, name)
        record = cache.manifest.teachers[name]
        config = as_locked(TeacherConfig.parse(values, f"teachers.{name}"), record.locked)
        precision = record.locked.precision or "float32"
        member = Member(name, config, device=resolve_device(device), precision=precision)
        check_lock(url, name, record.lock, member.lock)
        audits.append(
            audit_teacher(
                cache,
                source,
                member,
                samples=samples,
                views=views,
                threads=threads,
                on_progress=on_progress,
            )
        )
    return audits


def audit_teacher(
    cache: Cache,
    source: Source,
    member: Member,
    *,
    samples: int | None = 256,
    views: Sequence[str] | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TeacherAudit:
    """Recompute outputs and features of a teacher, and compare them with the stored rows.

    Args:
        cache: The cache.
        source: The images that it was computed from.
        member: The teacher; its lock is compared by the caller.
        samples: Number of rows, drawn from all rows of all views; None for all of them.
        views: Ids of the views to audit; all by default.
        threads: Threads that decode and render; all processors by default.
        on_progress: Called with the numbers of compared rows and of all rows.

    Raises:
        DataMismatch: An image is missing or not the one that the teacher was given.
        UsageError: The teacher has none of these views.
    """
    known = _views_of(cache, member.name)
    view_ids = [view_id for view_id in known if views is None or view_id in views]
    if not view_ids:
        raise UsageError(
            f"teacher {member.name!r} has none of the selected views",
            where=cache.url,
            got=", ".join(views or ()),
            hint="logitcache inspect lists the views of each teacher",
        )
    shown = ShownRows(cache, source, member.input.size, threads)
    runs, count, pairs = _sampled(shown.rows, view_ids, samples, np.random.default_rng(0))
    if not pairs:
        raise UsageError("the cache has no readable image to compare", where=cache.url)
    comparison = RowComparison(cache, member, shown)
    for chunk, images in shown.chunks(runs, comparison.batch):
        comparison.add(chunk, images)
        if on_progress is not None:
            on_progress(comparison.samples, count)
    return TeacherAudit(
        teacher=member.name,
        samples=comparison.samples,
        pairs=pairs,
        views=len(view_ids),
        all_views=len(known),
        taps=comparison.taps,
        mismatched=comparison.mismatched,
        mismatches=tuple(comparison.mismatches),
        **comparison.means(),
    )


def check_teacher(cache: Cache, name: str) -> None:
    """Refuse a name that no sealed teacher has, with logits or without.

    Raises:
        UsageError: There is no such teacher, or it is not sealed yet.
    """
    if name not in {group.teacher for group in cache.groups.values()}:
        cache.teacher(name)  # raises the error


def _views_of(cache: Cache, teacher: str) -> list[str]:
    """Return the views of a teacher's logits; without logits, those of its features."""
    if teacher in cache.teachers:
        return cache.views_of([teacher])
    taps = [name for name, group in cache.features.items() if group.teacher == teacher]
    return list(dict.fromkeys(view for tap in taps for view in cache.views_of([], [tap])))


def _sampled(
    rows_of: Callable[[str], NDArray[np.int64]],
    view_ids: Sequence[str],
    samples: int | None,
    generator: np.random.Generator,
) -> tuple[Iterator[Run], int, int]:
    """Draw rows from all views with equal probability.

    Args:
        rows_of: Function that returns the rows of a view.
        view_ids: The views.
        samples: Number of rows to draw; None for all.
        generator: Random generator.

    Returns:
        The rows by view, their number, and the number of all rows.
    """
    counts = [len(rows_of(view_id)) for view_id in view_ids]
    pairs = sum(counts)
    if samples is None or samples >= pairs:
        return ((view_id, rows_of(view_id)) for view_id in view_ids), pairs, pairs
    # sorted, so that each unit is read once
    drawn = np.sort(generator.choice(pairs, samples, replace=False, shuffle=False))
    ends = np.cumsum(counts)
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    starts = ends - counts
    runs = (
        (view_id, rows_of(view_id)[part - start])
        for view_id, part, start in zip(view_ids, parts, starts, strict=True)
    )
    return runs, samples, pairs
