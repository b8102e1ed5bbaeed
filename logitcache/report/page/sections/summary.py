"""The contents of a report in a few sentences."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING

from logitcache.report.page.blocks import Paragraph, Section
from logitcache.report.quantities import bytes_text, spread_text

if TYPE_CHECKING:
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import Contents, Network

__all__ = ["summary"]


def summary(contents: Contents) -> Section:
    """Return what was run and what came out, in plain sentences."""
    networks = contents.networks
    blocks: list[Block] = [Paragraph(_what(contents, networks))]
    blocks += [Paragraph(text) for text in (_students(networks), _caches(contents)) if text]
    return Section("Summary", blocks)


def _what(contents: Contents, networks: list[Network]) -> str:
    unfinished = sum(run.result is None for run in contents.runs)
    parts = []
    if contents.caches:
        parts.append(_count(len(contents.caches), "cache", "caches"))
    if contents.runs:
        runs = _count(len(contents.runs), "training run", "training runs")
        kinds = _count(len(networks), "network", "networks")
        parts.append(f"{runs} of {kinds}")
    text = f"This report describes {' and '.join(parts)}."
    if unfinished:
        text += f" {unfinished} of the runs {'is' if unfinished == 1 else 'are'} not finished."
    return text


def _students(networks: list[Network]) -> str:
    """Return what the best student is worth against the controls."""
    students = [n for n in networks if n.uses_cache and not n.is_shuffled and n.scores]
    if not students:
        return ""
    best = max(students, key=lambda network: mean(network.scores))
    text = (
        f"The best network that was trained from a cache is “{best.name}” (targets: "
        f"{best.trained_on}): {spread_text(best.scores)}."
    )
    labels = [
        n for n in networks if n.scores and n.runs[0].settings and not n.uses_cache
        and n.model == best.model
    ]  # fmt: skip
    if labels:
        control = max(labels, key=lambda network: mean(network.scores))
        gain = 100 * (mean(best.scores) - mean(control.scores))
        word = "above" if gain >= 0 else "below"
        text += (
            f" That is {abs(gain):.1f} percentage points {word} the same architecture trained on "
            f"labels alone (“{control.name}”, {spread_text(control.scores)})."
        )
    shuffled = [n for n in networks if n.is_shuffled and n.scores]
    if shuffled:
        text += (
            " With shuffled targets, which must not help, the result is "
            f"{', '.join(spread_text(network.scores) for network in shuffled)}."
        )
    return text


def _caches(contents: Contents) -> str:
    sentences = []
    for cache in contents.first_caches:
        found = cache.description
        stored = sum(teacher.stored_bytes for teacher in found.teachers)
        dense = sum(teacher.dense_bytes for teacher in found.teachers)
        text = (
            f"The cache “{cache.origin.name}” has the outputs of "
            f"{_count(len(found.teachers), 'teacher', 'teachers')} for "
            f"{_count(found.images, 'image', 'images')} in "
            f"{_count(len(found.views), 'view', 'views')}: {bytes_text(stored)}"
        )
        sentences.append(f"{text}, {stored / dense:.2f} of float32." if dense else f"{text}.")
    return " ".join(sentences)


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
