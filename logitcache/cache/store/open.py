"""Locations by URL.

One grammar: a path or ``file://``, ``memory://NAME``, ``s3://BUCKET/PREFIX``, ``gs://…``,
``http(s)://…`` and ``hf://…``; and the names ``demo:NAME`` and ``shelf:NAME``. Credentials come
from the standard environment or profile of each store and are never written anywhere; those in a
URL are shown as ``***``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from logitcache.cache.store.hub import HubLocation
from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.remote import RemoteLocation
from logitcache.cache.store.shelf import named_cache
from logitcache.cache.store.urls import parse_url

if TYPE_CHECKING:
    from logitcache.cache.store.base import Location

__all__ = ["is_within", "locate", "locate_receiver"]

_RECEIVERS = {"hf": HubLocation}
"""Locations that a cache is only copied to, by scheme; no run computes there."""


def locate(url: str | os.PathLike[str] | Location, *, write: bool = False) -> Location:
    """Return the location that a URL names.

    Args:
        url: A path or URL; a location is returned as it is.
        write: Whether the cache will be written to.

    Raises:
        UsageError: Not a URL, an unknown scheme or name, a missing extra, a read-only scheme, or
            ``memory://`` where there are several processes.
    """
    if not isinstance(url, str | os.PathLike):
        return url
    named = named_cache(os.fspath(url), write=write) or url
    place = parse_url(named)
    if isinstance(place, Path):
        return LocalLocation(place)
    return RemoteLocation(os.fspath(named), write=write)


def locate_receiver(url: str | os.PathLike[str] | Location) -> Location:
    """Return the location that a URL names, to copy a cache to it; see :func:`locate`."""
    if not isinstance(url, str | os.PathLike):
        return url
    named = named_cache(os.fspath(url), write=True) or url
    place = parse_url(named)
    kind = None if isinstance(place, Path) else _RECEIVERS.get(place.scheme)
    return locate(url, write=True) if kind is None else kind(os.fspath(named))


def is_within(location: Location, other: Location) -> bool:
    """Return whether a location is another one, or a folder in it; links are followed."""
    inner, outer = (f"{_place(one)}/" for one in (location, other))
    return inner.startswith(outer)


def _place(location: Location) -> str:
    text = str(location)
    return text.rstrip("/") if "://" in text else Path(text).resolve().as_posix()
