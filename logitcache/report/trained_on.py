"""What a network was trained on, in a few words: labels, images, or caches and their teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitcache.objectives.aliases import long_forms

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["objective_terms", "reads_labels", "trained_on"]

_WITHOUT_TEACHERS = {
    **dict.fromkeys(("label", "episode", "gap"), "labels"),
    "attend": "prototypes",
    "reconstruct": "pixels",
}
"""What terms without outputs of a teacher are computed from."""
_READ_LABELS = {"label", "episode", "gap", "split", "fuse", "attend"}


def trained_on(train: Mapping[str, Any]) -> str:
    """Return a description of the targets of a training run.

    Args:
        train: Settings of the run, as a user writes them or as the run saves them.
    """
    parts = dict.fromkeys(_of_term(term) for term in objective_terms(train))
    shuffled = ", shuffled" if train.get("shuffle_targets") else ""
    return " and ".join(parts) + shuffled


def reads_labels(train: Mapping[str, Any]) -> bool:
    """Return whether a training run uses the labels of its images.

    Args:
        train: Settings of the run, as a user writes them or as the run saves them.
    """
    terms = [next(iter(term.items())) for term in objective_terms(train)]
    own = (kind for kind, settings in terms if not (settings or {}).get("pseudo"))
    return bool(train.get("sampler")) or any(kind in _READ_LABELS for kind in own)


def _of_term(term: Mapping[str, Any]) -> str:
    kind, settings = next(iter(term.items()))
    settings = settings or {}
    if settings.get("pseudo"):
        return f"pseudo labels of {settings['pseudo']}"
    if kind in _WITHOUT_TEACHERS:
        return _WITHOUT_TEACHERS[kind]
    pairs = settings.get("pairs") or [settings]
    if all(pair.get("against") == "pixels" for pair in pairs):
        return "pixels"
    if all("teacher" in pair for pair in pairs):  # a term on features
        names = " + ".join(dict.fromkeys(str(pair["teacher"]) for pair in pairs))
        return f"{settings.get('form', 'features')} of {names}"
    teachers = settings.get("teachers")
    names = " + ".join(teachers) if isinstance(teachers, dict) else "all teachers"
    form = settings.get("form", "nkd") if kind == "split" else ""
    return f"{form} of cache of {names}" if form else f"cache of {names}"


def objective_terms(train: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objectives of a training run as mappings with one key.

    Args:
        train: Settings of the run, as a user writes them or as the run saves them.
    """
    default: Any = "soft" if train.get("cache") else "label"
    terms = train.get("objectives") or default
    listed = terms if isinstance(terms, list) else [terms]
    in_full: list[Any] = [term for entry in listed for term in long_forms(entry)]
    return [{term: {}} if isinstance(term, str) else _one_kind(term) for term in in_full]


def _one_kind(term: Mapping[str, Any]) -> dict[str, Any]:
    """Return a term without the kinds that it is not; saved settings name all of them."""
    if len(term) == 1:
        return dict(term)
    return {kind: settings for kind, settings in term.items() if settings is not None}
