"""Card of a cache: README.md with metadata of the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCardData

from logitcache.cache.format.card import NOT_STATED
from logitcache.markdown import block, code, markdown
from logitcache.text import visible
from logitcache.views.operations import Unknown

if TYPE_CHECKING:
    from logitcache.cache.format.card import CardConfig
    from logitcache.report.describe import CacheDescription, TeacherDescription

__all__ = ["Card", "readme"]

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{1,63}")
_MOST_CLASSES, _MOST_VIEWS = 100, 32
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)


@dataclass(frozen=True)
class Card:
    """What a card is written from.

    Attributes:
        cache: Description of the cache.
        facts: What people have stated.
    """

    cache: CacheDescription
    facts: CardConfig

    @property
    def title(self) -> str:
        """Title of the card."""
        if self.facts.title:
            return self.facts.title
        return f"Outputs of {', '.join(teacher.name for teacher in self.cache.teachers)}"

    @property
    def description(self) -> str:
        """The cache in one paragraph of plain text."""
        cache = self.cache
        names = ", ".join(teacher.name for teacher in cache.teachers)
        source = f" of {self.facts.source}" if self.facts.source else ""
        return (
            f"Outputs of {len(cache.teachers)} teacher(s) ({names}) on {len(cache.views)} "
            f"augmented view(s) of {cache.images} images{source}, for knowledge distillation "
            "with logitcache."
        )


def readme(card: Card) -> str:
    """Return the text of README.md."""
    sections = [
        f"---\n{metadata(card).to_yaml()}\n---",
        f"# {markdown(card.title)}",
        markdown(card.description),
        "## Teachers\n\n" + _teachers(card),
        "## Fidelity\n\n" + _fidelity(card),
        "## Images and views\n\n" + _images(card),
        "## Licenses\n\n" + _licenses(card),
        "## Train a student\n\n" + _usage(card),
        "## Known limits\n\n" + _limits(card),
    ]
    if card.facts.citation:
        sections.append("## Citation\n\n" + block("", f"{visible(card.facts.citation)}\n"))
    return "\n\n".join(sections) + "\n"


def metadata(card: Card) -> DatasetCardData:
    """Return the metadata of README.md, as the Hugging Face Hub reads them."""
    cache, facts = card.cache, card.facts
    size = next((name for most, name in _SIZES if cache.images < most), "n>1B")
    more: dict[str, Any] = {
        "logitcache": {
            "format": cache.format,
            "images": cache.images,
            "views": len(cache.views),
            "fingerprint": cache.fingerprint,
            "teachers": {
                t.name: {"architecture": t.architecture, "weights_sha256": t.weights_sha256}
                for t in cache.teachers
            },
        }
    }
    if facts.license is not None and not _IDENTIFIER.fullmatch(facts.license):
        more["license_name"] = visible(facts.license)
    return DatasetCardData(
        license=None if facts.license is None else _identifier(facts.license),
        pretty_name=visible(card.title),
        size_categories=[size],
        tags=["logitcache", "knowledge-distillation", "zarr"],
        task_categories=["image-classification"],
        **more,
    )


def _identifier(license_: str) -> str:
    """Return a license as the Hub writes it; its field has identifiers only."""
    return license_ if _IDENTIFIER.fullmatch(license_) else "other"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _teachers(card: Card) -> str:
    rows = []
    for teacher in card.cache.teachers:
        measured = next(iter(teacher.accuracy.values()), None)
        rows.append(
            [
                code(teacher.name),
                code(teacher.architecture),
                f"`{(teacher.weights_sha256 or 'unknown')[:16]}`",
                _encoding(teacher),
                str(teacher.views),
                "" if measured is None else f"{measured:.2%}",
                f"{teacher.stored_bytes / 1e6:.1f} MB",
                markdown(card.facts.teacher_licenses.get(teacher.name, NOT_STATED)),
            ]
        )
    head = ["teacher", "network", "sha256 of the weights", "stored", "views", "top-1", "size"]
    text = _table([*head, "license of the weights"], rows)
    taps = [
        f"- {code(f'{teacher.name}/{tap.tap}')}: {tap.views} views, {tap.stored_bytes / 1e6:.1f} MB"
        for teacher in card.cache.teachers
        for tap in teacher.features
    ]
    return text + ("\n\nFeatures of layers:\n\n" + "\n".join(taps) if taps else "")


def _encoding(teacher: TeacherDescription) -> str:
    settings = teacher.encoding
    if settings is None:
        return "features alone"
    shown = ", ".join(f"{k} {v}" for k, v in settings.items() if isinstance(v, str | int | float))
    return markdown(f"{teacher.num_classes} classes: {shown}")


def _fidelity(card: Card) -> str:
    rows = [
        [
            code(teacher.name),
            temperature,
            f"{loss['kl_truncation'] + loss['kl_coding']:.4f}",
            f"{loss['gradient_error']:.2%}",
        ]
        for teacher in card.cache.teachers
        if teacher.fidelity is not None
        for temperature, loss in teacher.fidelity["temperatures"].items()
    ]
    if not rows:
        return "Not measured."
    what = "Difference between the stored and the exact outputs, on a sample of rows."
    return f"{what}\n\n" + _table(["teacher", "T", "KL divergence, nats", "gradient error"], rows)


_HELD = {
    "packed": "its images, {held.megabytes:.1f} MB: encoded again as JPEG of quality "
    "{held.quality}, at most {held.side} pixels on the shorter side",
    "views": "the views of its images, {held.megabytes:.1f} MB: rendered at {held.side} pixels, "
    "JPEG of quality {held.quality}",
}
"""What is said of each kind of images in a cache."""


def _images(card: Card) -> str:
    cache, names = card.cache, card.cache.class_names
    lines = [f"- {cache.images} images"]
    held = cache.images_in_cache
    if held is not None:
        lines.append(f"- The cache contains {_HELD[held.kind].format(held=held)}")
    if card.facts.source:
        lines.append(f"- Source: {markdown(card.facts.source)}")
    if cache.unreadable or cache.withdrawn:
        lines.append(
            f"- {cache.unreadable or 0} images could not be decoded, {cache.withdrawn} are excluded"
        )
    lines.append(f"- Fingerprint of the images: `{cache.fingerprint}`")
    shown = ", ".join(markdown(name) for name in names[:_MOST_CLASSES])
    more = len(names) - _MOST_CLASSES
    rest = f", and {more} more (croissant.json)" if more > 0 else ""
    lines.append(f"- {len(names)} classes: {shown}{rest}" if names else "- No labels")
    lines += [
        f"- View `{view.id}`: {markdown(', '.join(view.operations))}; seed {view.seed}, "
        f"draw {view.draw}"
        for view in cache.views[:_MOST_VIEWS]
    ]
    if len(cache.views) > _MOST_VIEWS:
        lines.append(f"- and {len(cache.views) - _MOST_VIEWS} more views")
    return "\n".join(lines)


def _licenses(card: Card) -> str:
    facts = card.facts
    lines = [
        f"- This cache: {markdown(facts.license or NOT_STATED)}",
        f"- Images: {markdown(facts.images_license or NOT_STATED)}",
    ]
    for teacher in card.cache.teachers:
        license_ = facts.teacher_licenses.get(teacher.name, NOT_STATED)
        lines.append(f"- Weights of {code(teacher.name)}: {markdown(license_)}")
    if facts.creator:
        lines.append(f"- Created by {', '.join(markdown(name) for name in facts.creator)}")
    return "\n".join(lines)


def _usage(card: Card) -> str:
    data = "" if card.cache.images_in_cache else '"IMAGES", '
    script = (
        "import logitcache\n"
        'cache = logitcache.open_cache("URL OF THIS CACHE")\n'
        f"for images, targets in logitcache.loader(cache, {data}batch_size=256, size=224):\n"
        "    loss = logitcache.Soft()(student(images), targets)\n"
    )
    return block("python", script)


def _limits(card: Card) -> str:
    cache = card.cache
    lines = [
        "- Targets hold for the views above: a student is trained on the same augmented pixels.",
    ]
    if any(view.operations == [Unknown.name] for view in cache.views):
        lines.append(
            "- Outputs were imported from another program: of views with the operation "
            f"`{Unknown.name}`, the pixels that the teacher was given are not known."
        )
    if cache.images_in_cache is None:
        lines.append(
            "- The images are not in the cache. They have to be obtained from their source, are "
            "found by name and compared by digest."
        )
    sparse = [t.name for t in cache.teachers if t.encoding and t.encoding["kind"] == "sparse"]
    if sparse:
        names = ", ".join(code(name) for name in sparse)
        lines.append(
            f"- Of {names}, the most probable classes are stored, and the mass of the rest."
        )
    missing = card.facts.missing_licenses([teacher.name for teacher in cache.teachers])
    if missing:
        lines.append(f"- No license is stated for {markdown(', '.join(missing))}.")
    return "\n".join(lines)
