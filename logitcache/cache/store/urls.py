"""URLs of caches: schemes, permitted characters, and decoding.

Every path or address of a cache is parsed by :func:`parse_url`. In ``file://`` and ``http(s)://``
URLs ``%23`` stands for ``#``. In all others a ``%`` is a character of the name, as in the tools of
those stores.
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
"""Supported schemes, with the extra that installs the client; empty where none is needed."""

WEB = frozenset({"http", "https"})
_DECODED = WEB | {"file"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]|^ | $")
_NOT_A_PATH = "not a path: empty, or with a null character"
_CREDENTIALS = "set the credentials by the standard environment variables or profile"


@dataclass(frozen=True)
class CacheUrl:
    """Parsed URL of a cache that is not in a folder.

    Attributes:
        scheme: Scheme in lower case.
        base: Scheme, bucket or host, and prefix, without a slash at the end.
        query: With its question mark; empty where there is none.
        shown: The URL without secrets.
    """

    scheme: str
    base: str
    query: str
    shown: str


def parse_url(url: str | os.PathLike[str]) -> CacheUrl | Path:
    """Return the path or the parsed URL of a cache.

    Args:
        url: The path or URL.

    Raises:
        UsageError: Neither a path nor a URL, an unknown scheme, no host or bucket, or a part that
            URLs of this scheme do not have: a fragment, a query, credentials, a host.
    """
    text = os.fspath(url)
    if "\0" in text or not text:
        raise UsageError(_NOT_A_PATH, where=repr(_safe(text)))
    if re.match(r"(?i)file:(?!//)/", text):
        hint = "write file:///PATH with three slashes, or the path alone"
        raise UsageError("not a URL", where=_safe(text), hint=hint)
    if "://" not in text:
        return Path(text).expanduser()
    parts = _split(text)
    if parts.fragment or text.endswith("#"):
        what = "the URL of a cache has no fragment (the part after '#')"
        raise UsageError(what, where=_safe(text), hint=_fragment_hint(parts))
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
            f"the URL of a cache on {parts.scheme}:// has no credentials and no query",
            where=_safe(text),
            hint=_CREDENTIALS,
        )
    named = parts.netloc or (parts.scheme == "memory" and parts.path.strip("/"))
    if not named or (parts.scheme in WEB and not parts.hostname):
        expected = f"{parts.scheme}://NAME/…"
        raise UsageError("the URL has no bucket or host", where=_safe(text), expected=expected)
    base = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
    query = f"?{parts.query}" if parts.query else ""
    return CacheUrl(parts.scheme, base, query, redacted(base + query))


def _split(text: str) -> SplitResult:
    if _CONTROL.search(text):
        got = "a control character, or a space at the start or end"
        raise UsageError("not a URL", where=repr(_safe(text)), got=got)
    try:
        text.encode()
        parts = urlsplit(text)
        if parts.scheme in WEB:
            _ = parts.port  # checks that it is a number
    except ValueError as error:
        why = "a character that is not Unicode" if isinstance(error, UnicodeError) else str(error)
        if "@" in text:
            why = "a part that cannot be parsed"  # and that may belong to a password
        raise UsageError("not a URL", where=repr(_safe(text)), got=why) from None
    return parts


def _local(parts: SplitResult, text: str) -> Path:
    """Return the path of a ``file://`` URL."""
    if parts.netloc not in {"", "localhost"}:
        raise UsageError(
            "a file:// URL names no other machine",
            where=_safe(text),
            expected="file:///PATH",
            hint="use the path at which the folder of that machine is mounted on this one",
        )
    if "?" in text:
        raise UsageError(
            "a file:// URL has no query (the part after '?')",
            where=_safe(text),
            hint="write %3F where the path has a question mark, or write the path alone",
        )
    path = url2pathname(parts.path)  # on Windows /C:/x is C:\x
    if "\0" in path or not path:
        raise UsageError(_NOT_A_PATH, where=repr(_safe(text)))
    return Path(path)


def _safe(text: str) -> str:
    """Return a refused URL without secrets, even where a password is not percent-encoded."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() in WEB and "@" in rest:
        return redacted(f"{scheme}://***@{rest.rpartition('@')[2]}")
    return redacted(text)


def _fragment_hint(parts: SplitResult) -> str:
    """Return a hint for a name with a ``#`` in it."""
    if parts.scheme == "file":
        return "write %23 where the path has a '#', or write the path alone"
    if parts.scheme in _DECODED:
        return "write %23 where the address has a '#'"
    return "leave it out; caches whose names have a '#' in them cannot be opened"
