"""Facts that people state about a cache: licenses, creators, citation, source.

``docs/format.md`` is normative. What is not stated stays unknown: nothing is guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from logitcache.cache.format.documents import parse_json, validation_detail
from logitcache.cache.format.names import CARD_DOCUMENTS, FORMAT, canonical_json
from logitcache.config import Config
from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from logitcache.cache.store.base import Location

__all__ = ["FACTS", "NOT_STATED", "CardConfig", "joined_facts", "read_facts", "state_facts"]

FACTS = CARD_DOCUMENTS[0]
"""Key of the document with the facts."""

NOT_STATED = "not stated"
"""Stands for a license that nobody has stated."""

_MOST_BYTES = 2**22
_Text = Annotated[str, Field(min_length=1, max_length=20_000)]


class CardConfig(Config):
    """Facts about a cache that only people know, for its card; all optional.

    Attributes:
        title: Name of the cache.
        license: License of the cache itself, by its identifier on the Hugging Face Hub, for example
            ``cc-by-4.0``; or as text.
        creator: Names of the people or organizations that computed it.
        citation: How to cite it, as text or BibTeX.
        source: Where the images come from: a URL, or the name of a data set.
        images_license: License of the images.
        teacher_licenses: Licenses of the teachers' weights, by name of the teacher.
    """

    title: _Text | None = None
    license: _Text | None = None
    creator: list[_Text] = Field(default_factory=list, max_length=1000)
    citation: _Text | None = None
    source: _Text | None = None
    images_license: _Text | None = None
    teacher_licenses: dict[str, _Text] = Field(default_factory=dict, max_length=4096)

    def stated(self) -> dict[str, Any]:
        """Return the facts that are stated, as JSON values."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value}

    def updated(self, facts: CardConfig) -> CardConfig:
        """Return these facts with others in the place of those that they state."""
        licenses = {**self.teacher_licenses, **facts.teacher_licenses}
        values = {**self.stated(), **facts.stated(), "teacher_licenses": licenses}
        return CardConfig.model_validate(values)

    def missing_licenses(self, teachers: Iterable[str]) -> list[str]:
        """Return what has no license: the cache, the images, and teachers by name."""
        stated = {"the cache": self.license, "the images": self.images_license}
        stated |= {f"teacher {name}": self.teacher_licenses.get(name) for name in teachers}
        return [what for what, license_ in stated.items() if license_ is None]


def joined_facts(parts: Sequence[CardConfig], teachers: Collection[str]) -> CardConfig:
    """Return the facts about a cache that is made from others: those that its parts state.

    Licenses that differ are listed, and so is that a part states none. A title is that of one part
    alone.

    Args:
        parts: Facts of the parts.
        teachers: Names of the teachers of the new cache.
    """
    licenses = {
        name: text
        for name in teachers
        if (text := _listed([part.teacher_licenses[name] for part in parts if _has(part, name)]))
    }
    return CardConfig(
        title=parts[0].title if len(parts) == 1 else None,
        license=_listed([part.license for part in parts]),
        creator=list(dict.fromkeys(name for part in parts for name in part.creator)),
        citation=_listed([part.citation for part in parts if part.citation], "\n\n"),
        source=_listed([part.source for part in parts if part.source]),
        images_license=_listed([part.images_license for part in parts]),
        teacher_licenses=licenses,
    )


def _has(part: CardConfig, teacher: str) -> bool:
    return teacher in part.teacher_licenses


def _listed(texts: Sequence[str | None], separator: str = "; ") -> str | None:
    """Return different texts as one; None where none is stated."""
    if not any(texts):
        return None
    return separator.join(dict.fromkeys(text or NOT_STATED for text in texts))


def read_facts(location: Location) -> CardConfig:
    """Read the facts about a cache; none are stated in a cache without the document.

    Raises:
        CacheDamaged: The document is malformed.
    """
    content = location.read(FACTS, most=_MOST_BYTES)
    if content is None:
        return CardConfig()
    where = f"{location}/{FACTS}"
    values = parse_json(content, where)
    known = {name: values[name] for name in CardConfig.model_fields if name in values}
    try:
        return CardConfig.model_validate(known)
    except ValidationError as error:
        place, detail = validation_detail(error)
        what = "the facts about a cache are malformed"
        raise CacheDamaged(what, where=f"{where} {place}", got=detail) from None


def state_facts(location: Location, facts: CardConfig) -> CardConfig:
    """Add facts to those of a cache, and return all; the caller holds the lock of the manifest."""
    before = read_facts(location)
    after = before.updated(facts)
    if after != before or (facts.stated() and location.size(FACTS) is None):
        location.write(FACTS, canonical_json({"format": FORMAT, **after.stated()}))
    return after
