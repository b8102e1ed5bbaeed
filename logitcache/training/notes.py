"""What a run tells its user before it starts: once in the log, and again in its result."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from logitcache.objectives.combine import ObjectiveConfig
    from logitcache.targets.loader import Targets

__all__ = ["asked_notes"]

_LOG = logging.getLogger(__name__)


def asked_notes(targets: Targets | None, terms: Sequence[ObjectiveConfig]) -> tuple[str, ...]:
    """Return, and log, what the targets lose at the temperatures that objectives ask for.

    Args:
        targets: What teachers said; None without a cache.
        terms: Of the objective.
    """
    if targets is None:
        return ()
    notes = [
        note
        for term in terms
        if term.soft is not None  # the others refuse sparse targets at any T but 1
        for note in targets.reader.lossy_notes(term.soft.temperature, term.soft.teachers)
    ]
    for note in dict.fromkeys(notes):
        _LOG.warning(note)
    return tuple(dict.fromkeys(notes))
