"""Encodings of the outputs of teachers: chosen for new ones, compared for known ones."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from logitcache.cache.format.arrays import packed_bytes
from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.store.open import locate
from logitcache.encoding.choice import choose, choose_on_sample, is_as_configured, sample_rows
from logitcache.errors import UsageError, first_of
from logitcache.precompute.plan.teacher_lock import check_lock
from logitcache.precompute.sample.trial import sample_log_probs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from logitcache.cache.write.writer import CacheWriter
    from logitcache.data.source import Source
    from logitcache.encoding.budget import Choice
    from logitcache.encoding.kinds import Encoding
    from logitcache.precompute.config import PrecomputeConfig
    from logitcache.teachers.ensemble import Ensemble
    from logitcache.teachers.member import Member
    from logitcache.views.spec import View

__all__ = ["check_declared", "choice_note", "choose_encodings", "stored_encoding"]

_LOG = logging.getLogger(__name__)


def choose_encodings(
    config: PrecomputeConfig, source: Source, ensemble: Ensemble, views: Sequence[View]
) -> dict[str, Choice]:
    """Choose the encodings of new teachers on a sample, if the configuration depends on one."""
    wanted, location = config.encoding, locate(config.cache)
    if not wanted.is_fitted:
        return {}
    known = set() if location.is_empty() else read_manifest(location).teachers.keys()
    return {
        name: choose_on_sample(
            wanted,
            sample_log_probs(
                source,
                ensemble,
                name,
                views,
                rows=sample_rows(wanted, member.num_classes),
                batch=config.batch,
            ),
            packed_bytes,
            f"teacher {name!r}",
        )
        for name, member in ensemble.members.items()
        if member.has_logits and name not in known
    }


def choice_note(name: str, choice: Choice) -> str:
    """Return a note for the user on a chosen encoding."""
    stored = ", ".join(f"{key} {value}" for key, value in choice.encoding.settings().items())
    lost = ", ".join(
        f"{choice.fidelity.kl(temperature):.3g} nats at T = {temperature:g}"
        for temperature in choice.fidelity.losses
    )
    return (
        f"teacher {name}: {stored}; {choice.row_bytes:.1f} bytes per row and view without lse and "
        f"label, a KL divergence of {lost} on {choice.fidelity.rows} rows of a sample"
    )


def stored_encoding(
    config: PrecomputeConfig, writer: CacheWriter, name: str, member: Member
) -> Encoding:
    """Return the encoding of a teacher: the stored one, completed or replaced by the settings.

    Raises:
        UsageError: The stored encoding does not fit settings that are chosen on a sample.
    """
    stored = writer.teachers()[name].encoding if name in writer.teachers() else None
    wanted = config.encoding
    if stored is None or not wanted.is_fitted:
        encoding = choose(wanted, member.num_classes, stored, head=member.head)
        why = "as stored" if stored else "configured, or the default for this number of classes"
        _LOG.info(
            "teacher %s: %d classes, %s: %s", name, member.num_classes, encoding.settings(), why
        )
        return encoding
    if not is_as_configured(wanted, stored):
        settings = {"kind": wanted.kind, "step": wanted.step, "refined": wanted.refined}
        raise _stored_otherwise(writer, name, stored, settings)
    return stored


def check_declared(
    writer: CacheWriter, name: str, member: Member, encoding: Encoding | None
) -> None:
    """Raise an error if a teacher of a cache is another one, or stored in another encoding.

    Args:
        writer: Writer of the cache.
        name: Name of the teacher.
        member: Teacher of this run.
        encoding: Encoding of its logits in this run; None without logits.

    Raises:
        CacheError: The cache has another teacher of this name.
        UsageError: The cache stores this teacher in another encoding.
    """
    check_lock(writer.location, name, writer.manifest.teachers[name].lock, member.lock)
    if encoding is None:
        return
    group = writer.teachers()[name]
    if member.class_names not in (None, group.class_names):
        raise UsageError(
            f"teacher {name!r} is stored with other class names",
            where=writer.location,
            expected=first_of(group.class_names) if group.class_names else "no names of its own",
            got=first_of(member.class_names or ()),
            hint="leave out class_map: own, or give the teacher a new name",
        )
    if group.encoding != encoding:
        raise _stored_otherwise(writer, name, group.encoding, encoding.settings())


def _stored_otherwise(
    writer: CacheWriter, name: str, stored: Encoding, settings: Mapping[str, Any]
) -> UsageError:
    return UsageError(
        f"teacher {name!r} is stored in another encoding",
        where=writer.location,
        expected=stored.settings(),
        got=dict(settings),
        hint="use the same encoding, or give the teacher a new name",
    )
