"""URLs of caches: schemes, permitted characters, and decoding.

Every path or address of a cache comes from :func:`parse_url`. In ``file://`` and ``http(s)://``
URLs ``%23`` stands for ``#``. In all others a ``%`` is a character of the name, as it is in the
tools of those stores.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import url2pathname

from logitcache.errors import UsageError, nearest, redacted

__all__ = ["SCHEMES", "WEB", "CacheUrl", "parse_url"]

SCHEMES = {"memory": "", "s3": "s3", "gs": "gcs", "http": "http", "https": "http", "hf": ""}
"""What can be opened, and the extra that brings its client; empty where none is needed."""

WEB = frozenset({"http", "https"})
_DECODED = WEB | {"file"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]|^ | $")
_CREDENTIALS = "give credentials by the standard environment variables or profile"


@dataclass(frozen=True)
class CacheUrl:
    """A cache that is not on a disk.

    Attributes:
        scheme: In lower case.
        base: Scheme, bucket or host, and prefix, without a slash at the end.
        query: With its question mark; empty where there is none.
        shown: The URL without secrets.
    """

    scheme: str
    base: str
    query: str
    shown: str


def parse_url(url: str | os.PathLike[str]) -> CacheUrl | Path:
    """Return what a path or URL of a cache names.

    Args:
        url: The path or URL.

    Raises:
        UsageError: Neither a path nor a URL, an unknown scheme, no place, or a part that URLs of
            this scheme do not have: a fragment, a query, credentials, a host.
    """
    text = os.fspath(url)
    if "\0" in text or not text:
        raise UsageError("not a path", where=repr(_safe(text)))
    if re.match(r"(?i)file:(?!//)/", text):
        raise UsageError("not a URL", where=_safe(text), hint="write file:///PATH, or the path")
    if "://" not in text:
        return Path(text).expanduser()
    parts = _split(text)
    if parts.fragment or text.endswith("#"):
        raise UsageError("a URL of a cache has no fragment", where=_safe(text), hint=_sharp(parts))
    if parts.scheme == "file":
        return _local(parts, text)
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"caches on {parts.scheme}:// are not supported",
            where=_safe(text),
            hint=nearest(parts.scheme, [*SCHEMES, "file"]),
        )
    if parts.scheme not in WEB and ("?" in text or "@" in parts.netloc):
        raise UsageError(
            f"an {parts.scheme}:// URL takes no credentials and no query",
            where=_safe(text),
            hint=_CREDENTIALS,
        )
    named = parts.netloc or (parts.scheme == "memory" and parts.path.strip("/"))
    if not named or (parts.scheme in WEB and not parts.hostname):
        raise UsageError("URL has no bucket or host", where=_safe(text))
    base = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    query = f"?{parts.query}" if parts.query else ""
    return CacheUrl(parts.scheme, base, query, redacted(base + query))


def _split(text: str) -> SplitResult:
    if _CONTROL.search(text):
        got = "a control character, or a space at an end"
        raise UsageError("not a URL", where=repr(_safe(text)), got=got)
    try:
        text.encode()
        parts = urlsplit(text)
        if parts.scheme in WEB:
            _ = parts.port  # checks that it is a number
    except ValueError as error:
        why = "a lone surrogate" if isinstance(error, UnicodeError) else str(error)
        if "@" in text:
            why = "a part that cannot be read"  # which may be a part of a password
        raise UsageError("not a URL", where=repr(_safe(text)), got=why) from None
    return parts


def _local(parts: SplitResult, text: str) -> Path:
    """Return the path of a ``file://`` URL."""
    if parts.netloc not in {"", "localhost"}:
        raise UsageError(
            "a file:// URL names no other machine",
            where=_safe(text),
            expected="file:///PATH",
            hint="give the path under which the folder of that machine is mounted here",
        )
    if "?" in text:
        raise UsageError(
            "a file:// URL takes no query",
            where=_safe(text),
            hint="write %3F where the path has a question mark, or give the path",
        )
    path = url2pathname(parts.path)  # on Windows /C:/x is C:\x
    if "\0" in path or not path:
        raise UsageError("not a path", where=repr(_safe(text)))
    return Path(path)


def _safe(text: str) -> str:
    """Return a URL that is refused as it may be shown, also where a password was not encoded."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() in WEB and "@" in rest:
        return redacted(f"{scheme}://***@{rest.rpartition('@')[2]}")
    return redacted(text)


def _sharp(parts: SplitResult) -> str:
    """Return how a name that has a ``#`` in it can be given."""
    if parts.scheme == "file":
        return "write %23 where the path has a '#', or give the path"
    if parts.scheme in _DECODED:
        return "write %23 where the address has a '#'"
    return "leave it out; caches whose names have a '#' in them cannot be opened"
