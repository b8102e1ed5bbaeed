"""Images that deserve a look, as their teachers were shown them, with the teachers' outputs."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from logitcache.report.page.blocks import Card, Cards, Note, Paragraph, Section
from logitcache.report.page.review import REVIEWS
from logitcache.report.quantities import number_text, percent_text

if TYPE_CHECKING:
    from logitcache.report.page.blocks import Block
    from logitcache.report.page.contents import CacheContents, Contents
    from logitcache.report.page.pictures import Shown
    from logitcache.report.page.review import Found, Review

__all__ = ["images"]


def images(contents: Contents) -> Section | None:
    """Return the hardest, most disputed and probably mislabeled images of each cache."""
    blocks: list[Block] = []
    for cache in contents.first_caches:
        sample = contents.sample_of(cache)
        lists = [] if sample is None else [
            (review, found)
            for review in REVIEWS.values()
            if (found := review.find(sample, contents.settings.images))
        ]  # fmt: skip
        if lists:
            blocks += _of_cache(contents, cache, lists)
    if not blocks:
        return None
    return Section("Images", [Paragraph(contents.sampled), *blocks])


def _of_cache(
    contents: Contents, cache: CacheContents, lists: list[tuple[Review, list[Found]]]
) -> list[Block]:
    wanted = [(found.row, found.view) for _, chosen in lists for found in chosen]
    shown = contents.shown(cache, wanted)
    blocks: list[Block] = []
    if not any(each.png for each in shown.values()):
        blocks.append(
            Note(
                f"The images of “{cache.origin.name}” are not available here, so they are named "
                "only. Give the folder that they are in: logitcache report --data FOLDER"
            )
        )
    for review, chosen in lists:
        cards = [_card(shown[found.row, found.view], found, review) for found in chosen]
        title = f"{review.title} of “{cache.origin.name}”"
        blocks.append(Cards(title, review.explanation, cards))
    return blocks


def _card(shown: Shown, found: Found, review: Review) -> Card:
    picture = None
    if shown.png:
        picture = f"data:image/png;base64,{base64.b64encode(shown.png).decode()}"
    label = f"label {shown.label}" if shown.label else "no label"
    return Card(
        title=shown.key,
        picture=picture,
        alternative=f"{shown.key}, view {shown.view_number}, {label}",
        facts=[f"{label}; view {shown.view_number}", f"{review.unit} {number_text(found.value)}"],
        lists=[
            (
                teacher,
                [(p.name, percent_text(p.share), "label" if p.is_label else "") for p in top],
            )
            for teacher, top in shown.predictions.items()
        ],
    )
