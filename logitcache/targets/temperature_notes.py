"""Notes on sparse targets that are used at high temperatures.

The K most likely classes approximate a teacher at T = 1; at higher temperatures, the other classes
matter more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.encoding.sparse import SparseEncoding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from logitcache.cache.format.groups import TeacherGroup
    from logitcache.cache.format.manifest import FidelityRecord

__all__ = ["lossy_notes"]

_TEMPERATE = 2.0


def lossy_notes(
    groups: Mapping[str, TeacherGroup],
    measured: Mapping[str, FidelityRecord],
    temperatures: Mapping[str, float],
) -> list[str]:
    """Return what to tell of sparse targets at T >= 2, with the numbers measured for them.

    Args:
        groups: Of the teachers, by name.
        measured: What their encodings lose, by name; teachers may be missing.
        temperatures: The highest T that each teacher is used at, by name.
    """
    notes = []
    for name, temperature in temperatures.items():
        encoding = groups[name].encoding
        if temperature >= _TEMPERATE and isinstance(encoding, SparseEncoding):
            notes.append(_note(name, encoding, temperature, measured.get(name)))
    return notes


def _note(
    name: str, encoding: SparseEncoding, temperature: float, measured: FidelityRecord | None
) -> str:
    kept = f"teacher {name} keeps {encoding.top_k} of {encoding.num_classes} classes"
    asked = f"{kept}, encoded for T = 1, and is used at T = {temperature:g}: "
    advice = "; a dense encoding (--set encoding.kind=dense) loses next to nothing"
    if measured is None or not measured.temperatures:
        return f"{asked}what that loses was not measured in this cache{advice}"
    nearest = min(measured.temperatures, key=lambda text: abs(float(text) - temperature))
    loss = measured.temperatures[nearest]
    return (
        f"{asked}on {measured.rows} rows at T = {nearest} that lost a KL of "
        f"{loss.kl_truncation + loss.kl_coding:.2g} nats and changed the gradient of the loss by "
        f"{loss.gradient_error:.0%}{advice}"
    )
