"""Audit of a cache: recompute a sample of outputs and compare each with the row that is stored.

Rows are drawn from all rows of all views, mixed and decoded as they were for the teacher. What
counts as a match is in :mod:`logitcache.check.row_comparison`.
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

__all__ = ["TeacherAudit", "audit_teacher", "audit_teachers"]

_ONE_IN = 2000


@dataclass(frozen=True)
class TeacherAudit:
    """Result of the audit of one teacher; a floor is the teacher compared with itself.

    Attributes:
        teacher: Its name.
        samples: Rows that were compared, each view of an image counted.
        pairs: Rows there are in the views that were audited.
        views: How many views were audited.
        all_views: How many views the teacher has.
        taps: Rows of features that were compared, by tap.
        mismatched: Rows that do not match.
        mismatches: The first few of them.
        eps: Difference of a log-probability that passes for noise at once, in nats, mean over
            rows; see :mod:`logitcache.check.row_comparison`.
        agreement: Share of rows with the same most likely class.
        agreement_floor: The same between two batch compositions.
        kl: KL(output now, encoded the same way || what is stored), nats, mean over rows.
        kl_floor: The same between two batch compositions.
        overlap: Share of stored classes that are the same.
        overlap_floor: The same between two batch compositions.
        truncation: KL that keeping K classes costs by design, nats.
        coding: KL that codes cost on top, nats.
    """

    teacher: str
    samples: int
    pairs: int
    views: int
    all_views: int
    taps: dict[str, int]
    mismatched: int
    mismatches: tuple[Mismatch, ...]
    eps: float
    agreement: float
    agreement_floor: float
    kl: float
    kl_floor: float
    overlap: float
    overlap_floor: float
    truncation: float
    coding: float

    @property
    def ok(self) -> bool:
        """Whether every row that was compared matches."""
        return self.mismatched == 0

    @property
    def detection(self) -> float:
        """Probability that the sample has a changed row in it, if one row in 2000 is changed."""
        return 1.0 if self.samples == self.pairs else 1.0 - (1.0 - 1.0 / _ONE_IN) ** self.samples

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        mismatches = [asdict(mismatch) for mismatch in self.mismatches]
        return {
            **asdict(self),
            "mismatches": mismatches,
            "detection": self.detection,
            "ok": self.ok,
        }


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
        source: The images it was made from.
        teachers: Fields of a :class:`~logitcache.teachers.member.TeacherConfig` by name.
        samples: How many rows to compare; None for every row of every view.
        views: Ids of the views to audit; all by default.
        device: Where the teachers run.
        threads: Threads that decode and render; all processors by default.
        on_progress: Called with the number of rows compared, and of all.

    Raises:
        CacheError: A teacher is not the one that the cache was made with.
        UsageError: The cache has no such teacher, or the teacher has none of these views.
    """
    cache = open_cache(url)
    audits = []
    for name, values in teachers.items():
        cache.teacher(name)
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
    seed: int = 0,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> TeacherAudit:
    """Recompute outputs and features of a teacher, and compare them with what is stored.

    Args:
        cache: The cache.
        source: The images it was made from.
        member: The teacher; its lock is compared by the caller.
        samples: How many rows, drawn from all rows of all views; None for every one of them.
        views: Ids of the views to audit; all by default.
        seed: Of the sample.
        threads: Threads that decode and render; all processors by default.
        on_progress: Called with the number of rows compared, and of all.

    Raises:
        DataMismatch: An image is missing or not the one that the teacher saw.
        UsageError: The teacher has none of these views.
    """
    known = cache.views_of([member.name])
    view_ids = [view_id for view_id in known if views is None or view_id in views]
    if not view_ids:
        raise UsageError(
            f"teacher {member.name!r} has none of these views",
            where=cache.url,
            got=", ".join(views or ()),
        )
    shown = ShownRows(cache, source, member.input.size, threads)
    runs, count, pairs = _sampled(shown.rows, view_ids, samples, np.random.default_rng(seed))
    if not pairs:
        raise UsageError("there is no readable image to audit", where=cache.url)
    comparison = RowComparison(cache, member, shown)
    for chunk, pixels in shown.chunks(runs, comparison.batch):
        comparison.add(chunk, pixels)
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


def _sampled(
    rows_of: Callable[[str], NDArray[np.int64]],
    view_ids: Sequence[str],
    samples: int | None,
    generator: np.random.Generator,
) -> tuple[Iterator[Run], int, int]:
    """Draw rows from all views alike.

    Args:
        rows_of: The rows of a view.
        view_ids: The views.
        samples: How many rows to draw; None for all.
        generator: What draws them.

    Returns:
        The rows by view, how many they are, and of how many.
    """
    counts = [len(rows_of(view_id)) for view_id in view_ids]
    pairs = sum(counts)
    if samples is None or samples >= pairs:
        return ((view_id, rows_of(view_id)) for view_id in view_ids), pairs, pairs
    drawn = np.sort(generator.choice(pairs, samples, replace=False, shuffle=False))
    ends = np.cumsum(counts)
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    starts = ends - counts
    runs = (
        (view_id, rows_of(view_id)[part - start])
        for view_id, part, start in zip(view_ids, parts, starts, strict=True)
    )
    return runs, samples, pairs
