"""Comparison of libraries, weights, views and images of all processes of a run.

Each process describes its own environment. Processes with equal descriptions may write one cache; a
worker with another one is refused before its first unit, with every field that differs.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from logitcache.cache.format.names import canonical_json, sha256
from logitcache.data.identity import content_digest, key_hash
from logitcache.errors import ClusterError, UnreadableImage
from logitcache.label_sets import label_texts
from logitcache.precompute.environment import versions
from logitcache.precompute.plan.teacher_lock import lock_differences

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from logitcache.data.source import Source

__all__ = [
    "Entry",
    "Environment",
    "EnvironmentMismatch",
    "compare_environments",
    "describe_environment",
    "named",
]

_SAMPLED_IMAGES = 64
_BUCKETS = 1024
_MOST_DISPUTED = 4

Entry = tuple[str, int, str]
"""Key, size in bytes and label of an image."""


@dataclass(frozen=True)
class Environment:
    """Environment of a process.

    Attributes:
        versions: Versions of libraries, and the class of the processor.
        teachers: Locks of the teachers by name.
        views: Ids of the views in order; an id is the digest of a recipe.
        images: ``count``, ``sample`` (SHA-256 over the content of some images) and ``classes``
            (SHA-256 of the class names).
        listing: Digests over key, size and label of all images, in buckets by the hash of the key:
            few enough to be sent to every worker, and enough to find differing images.
    """

    versions: Mapping[str, str]
    teachers: Mapping[str, Mapping[str, Any]]
    views: tuple[str, ...]
    images: Mapping[str, Any]
    listing: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all fields; processes with equal digests compute equal units."""
        return sha256(canonical_json(asdict(self)))

    def differences(self, other: Environment) -> list[str]:
        """Return a description of every field that differs in another process."""
        kinds = ("versions", "teachers", "images")
        here, there = ({kind: getattr(one, kind) for kind in kinds} for one in (self, other))
        found = [
            f"{field}: {own} on this worker, {planned} in the plan"
            for field, planned, own in lock_differences(here, there)
        ]
        if self.views != other.views:
            found.append("views: the same recipes have different ids on this worker")
        if self.listing != other.listing:
            found.append("images: names, sizes or labels differ")
        return found


class EnvironmentMismatch(ClusterError):
    """The environment of a worker differs from that of the process that made the plan.

    Attributes:
        disputed: Images as the worker lists them, of some buckets whose digests differ.
    """

    disputed: Mapping[int, list[Entry]]


def describe_environment(
    source: Source, locks: Mapping[str, Mapping[str, Any]], views: Iterable[str]
) -> Environment:
    """Describe the environment of this process.

    Args:
        source: Image set.
        locks: Locks of the loaded teachers, by name.
        views: Ids of the views in order.
    """
    listing = tuple(_digest(source, bucket) for bucket in _bucketed(source))
    return Environment(versions(), dict(locks), tuple(views), _images(source), listing)


def compare_environments(planned: Environment, own: Environment, source: Source) -> None:
    """Raise an error if this process differs from the one that made the plan.

    Args:
        planned: Environment of the process that made the plan.
        own: Environment of this process.
        source: Image set of this process.

    Raises:
        EnvironmentMismatch: The digests differ; the message has every differing field.
    """
    if own.digest == planned.digest:
        return
    error = EnvironmentMismatch(
        "libraries, weights, views or images of this worker differ from those of the run",
        expected=f"digest {planned.digest[:16]}",
        got="; ".join(planned.differences(own)),
        hint="install the same libraries and provide the same weights and images on every worker",
    )
    pairs = enumerate(zip(planned.listing, own.listing, strict=True))
    differing = [number for number, (there, here) in pairs if there != here][:_MOST_DISPUTED]
    buckets = _bucketed(source) if differing else []
    error.disputed = {n: [_entry(source, index) for index in buckets[n]] for n in differing}
    raise error


def named(source: Source, disputed: Mapping[int, list[Entry]]) -> list[str]:
    """Return a description of every disputed image that differs from the images of this process."""
    if not disputed:
        return []
    buckets, found = _bucketed(source), []
    for number, entries in disputed.items():
        here = {key: rest for key, *rest in (_entry(source, index) for index in buckets[number])}
        there = {key: rest for key, *rest in entries}
        for key in sorted(here.keys() | there.keys()):
            if key not in there:
                found.append(f"{key} is missing on the worker")
            elif key not in here:
                found.append(f"{key} is only on the worker")
            elif here[key] != there[key]:
                (size, label), (other_size, other_label) = here[key], there[key]
                found.append(
                    f"{key} has {other_size} bytes on the worker, {size} here"
                    if size != other_size
                    else f"{key} has label {other_label} on the worker, {label} here"
                )
    return found


def _bucketed(source: Source) -> list[list[int]]:
    """Return positions of images by the hash of their key, each bucket in the order of keys."""
    buckets: list[list[int]] = [[] for _ in range(_BUCKETS)]
    for index, key in enumerate(source.keys):
        buckets[key_hash(key) % _BUCKETS].append(index)
    for bucket in buckets:
        bucket.sort(key=source.keys.__getitem__)
    return buckets


def _digest(source: Source, indices: list[int]) -> str:
    sha = hashlib.sha256()
    for index in indices:
        # no file name contains NUL, so different entries give different bytes
        sha.update("\0".join(map(str, _entry(source, index))).encode() + b"\0")
    return sha.hexdigest()[:16]


def _entry(source: Source, index: int) -> Entry:
    (label,) = label_texts(source, np.array([index]))
    return str(source.keys[index]), int(source.sizes[index]), label


def _images(source: Source) -> dict[str, Any]:
    """Describe an image set by its size, its classes and the content of some images."""
    order = sorted(range(len(source.keys)), key=source.keys.__getitem__)
    chosen = np.linspace(0, len(order) - 1, min(_SAMPLED_IMAGES, len(order))).astype(np.int64)
    sample = hashlib.sha256()
    for position in chosen:
        sample.update(_content(source, order[position]))
    return {
        "count": len(order),
        "sample": sample.hexdigest(),
        "classes": sha256(canonical_json(list(source.class_names))),
    }


def _content(source: Source, index: int) -> bytes:
    try:
        return content_digest(source.read(index))
    except (UnreadableImage, OSError):  # unreadable for all processes, or the digests differ
        return b"unreadable"
