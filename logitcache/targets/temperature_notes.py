"""Notes on sparse targets that are used at high temperatures.

The K most likely classes approximate a teacher at T = 1; at higher temperatures, the probability of
the other classes grows.
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
    """Return notes on sparse targets at T >= 2, with the loss measured for them.

    Args:
        groups: Groups of the teachers, by name.
        measured: Measured losses of their encodings, by name; teachers may be missing.
        temperatures: Highest temperature at which each teacher is used, by name.
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
    use = (
        f"teacher {name}: the cache has {encoding.top_k} of {encoding.num_classes} classes, "
        f"encoded for temperature 1, and the objective uses temperature {temperature:g}; "
    )
    advice = (
        "; the dense encoding has almost no loss, the transform encoding little at any temperature"
    )
    if measured is None or not measured.temperatures:
        return f"{use}the resulting loss of fidelity was not measured in this cache{advice}"
    nearest = min(measured.temperatures, key=lambda text: abs(float(text) - temperature))
    loss = measured.temperatures[nearest]
    return (
        f"{use}on {measured.rows} rows at temperature {nearest} the stored outputs have a KL "
        f"divergence of {loss.kl_truncation + loss.kl_coding:.2g} nats from the exact ones, and "
        f"the gradient of the loss differs by {loss.gradient_error:.0%}{advice}"
    )
