"""A listing of the images of the tests with several classes per image."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["TAGS", "sets_of", "write_listing"]

TAGS = ("bird", "cat", "dog", "house")


def sets_of(images: Path) -> dict[str, list[str] | None]:
    """Return the classes of every image by key: its folder, others by a hash; a few have none."""
    found: dict[str, list[str] | None] = {}
    for path in sorted(images.rglob("*.jpg")):
        key = path.relative_to(images).as_posix()
        word = hashlib.sha256(key.encode()).digest()
        if word[0] % 10 == 0:
            found[key] = None
        elif word[0] % 10 == 1:
            found[key] = []
        else:
            others = {tag for tag, byte in zip(TAGS, word[1:], strict=False) if byte % 3 == 0}
            found[key] = sorted({path.parent.name} | others)
    return found


def write_listing(
    images: Path,
    path: Path,
    sets: dict[str, list[str] | None] | None = None,
    names: Sequence[str] = TAGS,
) -> dict[str, Any]:
    """Write a table of the images; return the settings of the set.

    Args:
        images: Folder of the images.
        path: The table, ``.jsonl``.
        sets: Classes by key; those of :func:`sets_of` by default.
        names: Names of all classes, in order.
    """
    rows = (sets_of(images) if sets is None else sets).items()
    lines = [json.dumps({"path": key, "label": tags}) for key, tags in rows]
    path.write_text("\n".join(lines))
    classes = path.with_suffix(".txt")
    classes.write_text("\n".join(names))
    return {"name": str(path), "root": str(images), "class_list": str(classes)}
