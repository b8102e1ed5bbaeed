"""Loss of the encodings by temperature, against the bytes that they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.report.page.axis import Axis
from logitcache.report.page.blocks import Paragraph, Section, Table
from logitcache.report.page.charts import Charts, Curves, Series
from logitcache.report.quantities import encoding_text, number_text, percent_text

if TYPE_CHECKING:
    from logitcache.report.describe import TeacherDescription
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import CacheContents, Contents

__all__ = ["fidelity"]

_LEAST_KL = 1e-7  # drawn in the place of smaller ones, whose logarithm has no place


def fidelity(contents: Contents) -> Section | None:
    """Return the measured losses of all encodings at all measured temperatures."""
    found = [
        (cache, teacher)
        for cache in contents.first_caches
        for teacher in cache.description.teachers
        if teacher.fidelity is not None and teacher.stored_bytes
    ]
    if not found:
        return None
    text = (
        "KL divergence of the stored from the exact outputs, measured when the cache was computed. "
        "The gradient error is the relative error of the gradient of the distillation loss."
    )
    blocks: list[Block] = [Paragraph(text)]
    if any(kl > _LEAST_KL for _, teacher in found for kl, _ in _losses(teacher).values()):
        blocks.append(Charts([_chart(found)]))
    return Section("Fidelity", [*blocks, _table(found)])


def _bytes(cache: CacheContents, teacher: TeacherDescription) -> float:
    return teacher.stored_bytes / max(1, cache.description.images * teacher.views)


def _losses(teacher: TeacherDescription) -> dict[str, tuple[float, float]]:
    """Return KL divergence and gradient error by temperature."""
    assert teacher.fidelity is not None
    return {
        temperature: (loss["kl_truncation"] + loss["kl_coding"], loss["gradient_error"])
        for temperature, loss in teacher.fidelity["temperatures"].items()
    }


def _chart(found: list[tuple[CacheContents, TeacherDescription]]) -> Curves:
    temperatures = dict.fromkeys(t for _, teacher in found for t in _losses(teacher))
    series = [
        Series(
            f"T = {temperature}",
            sorted(
                (_bytes(cache, teacher), max(_LEAST_KL, _losses(teacher)[temperature][0]))
                for cache, teacher in found
                if temperature in _losses(teacher)
            ),
            number,
            has_line=False,
            has_marks=True,
        )
        for number, temperature in enumerate(temperatures)
    ]
    points = [point for one in series for point in one.points]
    return Curves(
        "Loss against bytes",
        "One mark for each teacher of each cache and temperature.",
        Axis.around("bytes per image and view", [x for x, _ in points], is_log=True),
        Axis.around("KL, nats", [y for _, y in points], is_log=True),
        series,
    )


def _table(found: list[tuple[CacheContents, TeacherDescription]]) -> Table:
    rows = []
    for cache, teacher in found:
        assert teacher.fidelity is not None
        stored = "" if teacher.encoding is None else encoding_text(teacher.encoding)
        for temperature, (kl, gradient) in _losses(teacher).items():
            rows.append(
                [
                    f"{cache.origin.name}/{teacher.name}",
                    stored,
                    f"{_bytes(cache, teacher):.1f}",
                    temperature,
                    number_text(kl),
                    percent_text(gradient),
                    percent_text(teacher.fidelity["top1"]),
                ]
            )
    columns = ["teacher", "stored", "bytes per row", "T", "KL, nats", "gradient error"]
    return Table("Loss of the encodings.", [*columns, "top-1 kept"], rows, text_columns=(1,))
