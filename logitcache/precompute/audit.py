"""Asking the teachers once more: does the cache hold what they say?

Never by equality, because a forward on another device or in another batch rounds differently. The
same teacher at another batch composition gives the noise floor, and the cache has to be as close to
the teacher as the teacher is to itself. What top-K and codes lose by design is told apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.reader import open_cache
from logitcache.data.identity import compare, content_digest
from logitcache.encoding.logits import log_softmax
from logitcache.encoding.sparse import DecodedSparse, SparseEncoding
from logitcache.encoding.topk import top_k_mask
from logitcache.errors import DataMismatch
from logitcache.platforms import available_processors
from logitcache.precompute.compute import resolve_device
from logitcache.precompute.lock import as_locked, check_lock
from logitcache.teachers.member import Member, TeacherConfig
from logitcache.views.render import BatchRequest, ViewRenderer
from logitcache.views.spec import parse_view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from logitcache.cache.groups import TeacherGroup
    from logitcache.cache.reader import Cache
    from logitcache.data.source import Source
    from logitcache.encoding.arrays import Encoded
    from logitcache.encoding.choice import Encoding

__all__ = ["TeacherAudit", "audit_teacher", "audit_teachers"]

_MOST_VIEWS = 4
_DENSE_IDS = 5
_KL_FACTOR, _MOST_KL, _MOST_SHARE = 10.0, 1e-3, 0.1
_SHARE_MARGIN = 0.02
_DEVIATIONS = 3.0


@dataclass(frozen=True)
class TeacherAudit:
    """How close a cache is to a teacher that was asked again; the floor is the teacher to itself.

    Attributes:
        teacher: Its name.
        samples: Rows that were compared.
        views: Views they were of.
        agreement: Share of rows with the same likeliest class.
        agreement_floor: The same between two batch compositions.
        kl: KL(what it says now, stored the same way || what is stored), nats, mean over rows.
        kl_floor: The same between two batch compositions.
        kl_other: The same between the answers to one image and to another.
        overlap: Share of stored classes that are the same.
        overlap_floor: The same between two batch compositions.
        truncation: KL that keeping K classes costs, nats.
        coding: KL that codes cost on top, nats.
    """

    teacher: str
    samples: int
    views: int
    agreement: float
    agreement_floor: float
    kl: float
    kl_floor: float
    kl_other: float
    overlap: float
    overlap_floor: float
    truncation: float
    coding: float

    @property
    def ok(self) -> bool:
        """Whether the cache is as close to the teacher as noise allows."""
        floor = self.agreement_floor
        spread = _DEVIATIONS * float(np.sqrt(max(floor * (1 - floor), 1e-9) / self.samples))
        return (
            self.agreement >= floor - _SHARE_MARGIN - spread
            and self.kl <= _KL_FACTOR * self.kl_floor + min(_MOST_KL, _MOST_SHARE * self.kl_other)
            and self.overlap >= self.overlap_floor - _SHARE_MARGIN
        )

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {**asdict(self), "ok": self.ok}


def audit_teachers(
    url: str,
    source: Source,
    teachers: Mapping[str, Mapping[str, Any]],
    *,
    samples: int,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[TeacherAudit]:
    """Ask several teachers again, each as it was locked.

    Args:
        url: The cache.
        source: The images it was made from.
        teachers: Fields of a :class:`~logitcache.teachers.member.TeacherConfig` by name.
        samples: How many rows.
        device: Where they run.
        on_progress: Called with the number of rows compared, and of all.

    Raises:
        CacheError: A teacher is not the one that answered.
        UsageError: The cache has no such teacher.
    """
    cache = open_cache(url)
    audits = []
    for name, values in teachers.items():
        cache.teacher(name)
        lock = cache.manifest.teachers[name].lock
        config = as_locked(TeacherConfig.parse(values, f"teachers.{name}"), lock)
        member = Member(name, config, device=resolve_device(device), precision=lock["precision"])
        check_lock(url, name, lock, member.lock)
        audits.append(
            audit_teacher(cache, source, member, samples=samples, on_progress=on_progress)
        )
    return audits


def audit_teacher(
    cache: Cache,
    source: Source,
    member: Member,
    *,
    samples: int = 256,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> TeacherAudit:
    """Ask a teacher again about a random sample of rows and views.

    Args:
        cache: The cache.
        source: The images it was made from.
        member: The teacher; its lock is compared by the caller.
        samples: How many rows.
        seed: Of the sample.
        on_progress: Called with the number of rows compared, and of all.

    Raises:
        DataMismatch: An image is missing or not the one that the teacher saw.
    """
    group = cache.teacher(member.name)
    generator = np.random.default_rng(seed)
    readable = cache.samples.readable
    rows = np.sort(generator.permutation(readable)[: min(samples, len(readable))])
    view_ids = cache.views_of([member.name])
    chosen = generator.permutation(len(view_ids))[: min(_MOST_VIEWS, len(view_ids))]
    batch = cache.manifest.teachers[member.name].canonical_batch
    parts = []
    for number, view in enumerate(chosen):
        mine = rows[number :: len(chosen)]
        if len(mine):
            view_id = view_ids[view]
            pixels = _render(cache, source, view_id, mine, member.input.size)
            again = _forward(member, pixels, batch)
            other = _forward(member, pixels[::-1].copy(), max(1, batch // 2 + 1))[::-1]
            parts.append((again, other, _stored(cache, group, view_id, mine)))
        if on_progress is not None:
            on_progress(min(len(rows), (number + 1) * len(mine)), len(rows))
    again, other = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    stored = {name: np.concatenate([part[2][name] for part in parts]) for name in parts[0][2]}
    return _compare(group, again, other, stored, len(chosen))


def _render(
    cache: Cache, source: Source, view_id: str, rows: NDArray[np.int64], size: int
) -> NDArray[np.uint8]:
    """Render the views again: uint8 (B, 3, S, S)."""
    samples = cache.samples
    found, difference = compare(source, samples.keys[rows], samples.sizes[rows])
    if difference.missing or difference.changed:
        raise DataMismatch(
            "these are not the images the cache was made from",
            where=cache.url,
            got=difference.summary(),
            hint="point --data at the original images",
        )
    digests = {
        int(index): samples.digests[row].tobytes() for index, row in zip(found, rows, strict=True)
    }

    def read(index: int) -> bytes | NDArray[np.uint8]:
        image = source.read(index)
        if content_digest(image) != digests[index]:
            raise DataMismatch(
                "this image is not the one the teachers saw",
                where=source.keys[index],
                hint="restore the file",
            )
        return image

    request = BatchRequest(
        parse_view(cache.views[view_id], f"{cache.url}, view {view_id}"),
        found,
        samples.hashes[rows],
    )
    with ViewRenderer(read, [size], threads=available_processors()) as renderer:
        (rendered,) = renderer.batches([request])
    for failure in rendered.failures.values():
        raise failure
    return rendered.pixels[size]


def _forward(member: Member, pixels: NDArray[np.uint8], batch: int) -> NDArray[np.float64]:
    """Return log-probabilities (B, C), forwarded in batches of one shape, padded with zeros."""
    missing = -len(pixels) % batch
    padded = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])
    parts = [member.answer(padded[i : i + batch]) for i in range(0, len(padded), batch)]
    return log_softmax(np.concatenate(parts)[: len(pixels)])[0]


def _stored(
    cache: Cache, group: TeacherGroup, view_id: str, rows: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Read rows as they are encoded, unit by unit."""
    names = list(group.encoding.specs())
    parts: list[Encoded] = []
    for unit in np.unique(rows // group.unit_rows):
        start = int(unit) * group.unit_rows
        mine = rows[rows // group.unit_rows == unit] - start
        encoded = cache.read(group.name, view_id, start, start + group.unit_rows, names)
        parts.append({name: array[mine] for name, array in encoded.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _compare(
    group: TeacherGroup,
    again: NDArray[np.float64],
    other: NDArray[np.float64],
    stored: dict[str, NDArray[Any]],
    views: int,
) -> TeacherAudit:
    encoding = group.encoding
    cached = _spread(encoding, stored)
    now = _spread(encoding, encoding.encode(again))
    elsewhere = _spread(encoding, encoding.encode(other))
    truncated = _truncated(encoding, again)
    truncation = _kl(again, truncated)
    return TeacherAudit(
        teacher=group.name,
        samples=len(again),
        views=views,
        agreement=_same_best(now, cached),
        agreement_floor=_same_best(now, elsewhere),
        kl=_kl(now, cached),
        kl_floor=_kl(now, elsewhere),
        kl_other=_kl(now, np.roll(now, 1, axis=0)),
        overlap=_overlap(encoding, now, cached),
        overlap_floor=_overlap(encoding, now, elsewhere),
        truncation=truncation,
        coding=_kl(again, now) - truncation,
    )


def _spread(encoding: Encoding, arrays: dict[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Return stored rows as log-probabilities (N, C), the tail spread over absent classes."""
    decoded = encoding.decode(arrays)
    if not isinstance(decoded, DecodedSparse):
        return decoded.log_probs.astype(np.float64)
    present = np.isfinite(decoded.log_probs)
    absent = np.maximum(1, encoding.num_classes - present.sum(axis=1))
    base = decoded.tail[:, 0].astype(np.float64) - np.log(absent)
    out = np.repeat(base[:, None], encoding.num_classes, axis=1)
    row, entry = np.nonzero(present)
    out[row, decoded.class_ids[row, entry]] = decoded.log_probs[row, entry]
    return out


def _truncated(encoding: Encoding, log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what is left of exact answers when K classes and the mass of the others are kept."""
    if not isinstance(encoding, SparseEncoding):
        return log_probs
    kept = encoding.kept(log_probs)
    mass = np.where(kept, 0.0, np.exp(log_probs)).sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        base = np.log(mass / (~kept).sum(axis=1, keepdims=True))
    return np.where(kept, log_probs, base)


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Return mean KL(p || q) in nats; classes without mass count nothing."""
    weight = np.exp(p)
    terms = np.where(weight > 0, weight * (p - np.maximum(q, -1e4)), 0.0)
    return float(terms.sum(axis=1).mean())


def _same_best(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return float((p.argmax(axis=1) == q.argmax(axis=1)).mean())


def _overlap(encoding: Encoding, p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Return the share of the largest classes that two answers have in common."""
    k = encoding.top_k if isinstance(encoding, SparseEncoding) else _DENSE_IDS
    k = min(k, encoding.num_classes - 1)
    return float((top_k_mask(p, k) & top_k_mask(q, k)).sum() / (k * len(p)))
