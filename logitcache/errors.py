"""Errors that users meet, in one class hierarchy.

::

    LogitcacheError                  exit 1   the root: catch this to catch them all
    ├── UsageError                        2   an option, name or value that cannot be used
    ├── DataError                         1   the image set: missing, empty, ambiguous
    │   ├── UnreadableImage               1   one image that cannot be decoded
    │   └── DataMismatch                  1   these images are not the ones of the cache
    ├── ViewDrift                         4   views differ from those that were precomputed
    │   ├── ParameterDrift                4   other crops, flips, colors: another algorithm
    │   └── PixelDrift                    4   the same parameters, but other pixels
    ├── NetworkError                      1   a model or its weights cannot be built
    ├── NonFiniteLogits                   1   a teacher returned NaN or infinity
    ├── FeatureOverflow                   1   a feature is too large for its data type
    ├── NonFiniteLoss                     1   a student's loss became NaN or infinite
    ├── CacheError                        1   the cache: absent, foreign, inconsistent
    │   ├── UnsupportedFormat             1   written by a newer logitcache
    │   ├── CacheUnsealed                 3   work is missing; resume to finish it
    │   ├── SignatureError                4   the cache is not what the given key has signed
    │   └── CacheDamaged                  4   stored bytes differ from the committed ones
    ├── StorageError                      3   the disk or the store failed; resume later
    ├── RankLost                          3   another process of a training ended; resume later
    ├── ClusterError                      3   workers or their scheduler failed; resume later
    └── Interrupted                     3/130 stopped by a signal; 3 if something was kept

A message states what went wrong, where, what was expected, what was found and what to do next. The
command line prints it without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "CacheDamaged",
    "CacheError",
    "CacheUnsealed",
    "ClusterError",
    "DataError",
    "DataMismatch",
    "FeatureOverflow",
    "Interrupted",
    "LogitcacheError",
    "NetworkError",
    "NonFiniteLogits",
    "NonFiniteLoss",
    "ParameterDrift",
    "PixelDrift",
    "RankLost",
    "SignatureError",
    "StorageError",
    "UnreadableImage",
    "UnsupportedFormat",
    "UsageError",
    "ViewDrift",
    "first_of",
    "nearest",
    "redacted",
]

_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")
_QUERY = re.compile(r"(?<=[?&])([^=&#\s]+)=[^&#\s]*")


class LogitcacheError(Exception):
    """Root of all errors that a user can cause or meet.

    Args:
        what: One sentence, no final period: the thing that went wrong.
        where: Path, key, option or row that it concerns.
        expected: What would have been correct.
        got: What was found instead.
        hint: What to do next; :attr:`default_hint` without one.
    """

    exit_code = 1
    default_hint: str | None = None

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.hint = hint or self.default_hint
        super().__init__(self.render())

    def __str__(self) -> str:
        return self.render()  # with a place that was added since

    def __reduce__(self) -> tuple[Any, ...]:
        """Make an error picklable: a field of another type may not be, and becomes a string."""
        parts = {"where": self.where, "expected": self.expected, "got": self.got}
        plain = {
            name: value if isinstance(value, int | float | str | None) else str(value)
            for name, value in parts.items()
        }
        return _revived, (type(self), self.args, {**self.__dict__, **plain})

    @property
    def brief(self) -> str:
        """What went wrong and what was found, in one line."""
        return self.what if self.got is None else f"{self.what}: {self.got}"

    def render(self) -> str:
        """Return the message, one line per part that is known; see :func:`.visible`."""
        parts = [
            ("where", self.where),
            ("expected", self.expected),
            ("got", self.got),
            ("next", self.hint),
        ]
        lines = [
            f"  {name + ':':<10}{visible(value)}" for name, value in parts if value is not None
        ]
        return "\n".join([visible(self.what), *lines])


class UsageError(LogitcacheError):
    """An option, name or value that cannot be used."""

    exit_code = 2


class DataError(LogitcacheError):
    """The image set is missing, empty or ambiguous."""


class UnreadableImage(DataError):
    """One image cannot be decoded."""

    def at(self, place: object, hint: str | None = None) -> UnreadableImage:
        """Return this error with the index or the name of the image.

        Args:
            place: Index or name of the image.
            hint: What to do next, where this error has no hint.
        """
        return type(self)(
            self.what,
            where=place,
            expected=self.expected,
            got=self.got,
            hint=self.hint or hint,
        )


class DataMismatch(DataError):
    """The available images are not the ones the cache was made from."""


class ViewDrift(LogitcacheError):
    """Views differ from those that the teachers were given."""

    exit_code = 4


class ParameterDrift(ViewDrift):
    """The view algorithm returns other parameters; never tolerated."""


class PixelDrift(ViewDrift):
    """The same parameters result in other pixels on this machine."""


class NetworkError(LogitcacheError):
    """A model or its weights cannot be built or loaded."""


class NonFiniteLogits(LogitcacheError):
    """A teacher returned NaN or infinity; nothing of that unit is written."""


class FeatureOverflow(LogitcacheError):
    """A feature is too large for the data type it is stored in."""


class NonFiniteLoss(LogitcacheError):
    """A student's loss became NaN or infinite; the last checkpoint is kept."""


class CacheError(LogitcacheError):
    """The cache is absent, foreign or inconsistent."""


class UnsupportedFormat(CacheError):
    """The cache has a format that this version cannot read."""


class CacheUnsealed(CacheError):
    """Units of the cache are missing; another precompute run finishes it."""

    exit_code = 3


class CacheDamaged(CacheError):
    """Stored bytes are missing or differ from the committed ones."""

    exit_code = 4
    default_hint = "logitcache verify lists all damage; logitcache repair fixes it"


class SignatureError(CacheError):
    """The cache is not signed by the given key, or differs from what was signed."""

    exit_code = 4


class StorageError(LogitcacheError):
    """The disk or the object store failed; committed units are intact."""

    exit_code = 3


class RankLost(LogitcacheError):
    """Another process of the same training ended; its last checkpoint is intact."""

    exit_code = 3


class ClusterError(LogitcacheError):
    """Workers or their scheduler failed; committed units are intact."""

    exit_code = 3


class Interrupted(LogitcacheError):
    """A signal stopped the run.

    Args:
        what: The message.
        kept: Whether something worth keeping was written; decides the exit code (3 or 130).
        hint: What to do next.
    """

    def __init__(self, what: str, *, kept: bool, hint: str | None = None) -> None:
        self.exit_code = 3 if kept else 130
        super().__init__(what, hint=hint)


def _revived(
    kind: type[LogitcacheError], args: tuple[Any, ...], state: dict[str, Any]
) -> LogitcacheError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def nearest(name: str, options: Iterable[str]) -> str:
    """Return a hint with the valid names that are closest to a misspelled one.

    Args:
        name: The name that the user wrote.
        options: The valid names.
    """
    options = sorted(options)
    if not options:
        return "there are none"
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(option) for option in close) + "?"
    if len(options) <= 12:
        return "one of " + ", ".join(repr(option) for option in options)
    return f"none of the {len(options)} known names is close"


def first_of(names: Sequence[str], most: int = 5) -> str:
    """Return the first names and their total number, for a message."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)} in all)"


def redacted(url: str) -> str:
    """Return a URL without its user, password and values of the query, to be shown."""
    if "://" not in url:
        return url
    return _QUERY.sub(r"\1=***", _CREDENTIALS.sub("***@", url))
