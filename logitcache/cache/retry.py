"""Requests that fail: which are worth another try, and what to say of those that are not.

Clients of stores raise kinds of their own, some of them wrapped in others, and are not imported
here: a failure is judged by the HTTP status anywhere in its chain of causes, and else by the names
of its classes.
"""

from __future__ import annotations

import errno
import random
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from logitcache.errors import LogitcacheError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Failure", "RetryPolicy", "failure_of", "storage_error"]

Result = TypeVar("Result")


class Failure(Enum):
    """Why a request failed."""

    ABSENT = "no such object"
    EXISTS = "there is one already"
    NO_BUCKET = "no such bucket"
    DENIED = "access denied"
    BUSY = "the server is busy or failing"
    SLOW = "the server does not answer in time"
    CUT = "the connection is cut again and again"
    UNREACHABLE = "the server cannot be reached"
    REFUSED = "the store refused"


_TRANSIENT = {Failure.BUSY, Failure.SLOW, Failure.CUT, Failure.UNREACHABLE}
_HINTS = {
    Failure.NO_BUCKET: "create it first, or correct the URL",
    Failure.DENIED: "check the credentials in the environment or profile, and what they permit; "
    "some stores say so of objects that do not exist",
    Failure.UNREACHABLE: "check the address and the network, and run the same command again",
}
_AGAIN = "run the same command again; what was committed is intact"
_BY_CLASS = {
    Failure.SLOW: {"TimeoutError", "ReadTimeoutError", "ConnectTimeoutError"},
    Failure.UNREACHABLE: {
        "ClientConnectorError",
        "ConnectionRefusedError",
        "EndpointConnectionError",
        "gaierror",
    },
    Failure.CUT: {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ResponseParserError",
        "ResponseStreamingError",
    },
    Failure.DENIED: {"NoCredentialsError", "PartialCredentialsError", "PermissionError"},
    Failure.EXISTS: {"FileExistsError"},
}
_BY_STATUS = {
    401: Failure.DENIED,
    403: Failure.DENIED,
    404: Failure.ABSENT,
    408: Failure.SLOW,
    409: Failure.BUSY,  # two conditional writes at a time: S3 asks for another try
    410: Failure.ABSENT,
    412: Failure.EXISTS,
    429: Failure.BUSY,
}


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a request is tried again.

    Waits double from the first one up to the longest; each is drawn between nothing and that, so
    that many clients do not come back together.

    Attributes:
        attempts: How many in all.
        first_seconds: Longest wait before the second attempt.
        longest_seconds: Longest wait of all.
        patience_seconds: After which there is no further attempt, however many are left.
    """

    attempts: int = 6
    first_seconds: float = 0.2
    longest_seconds: float = 10.0
    patience_seconds: float = 120.0

    def call(
        self,
        request: Callable[[], Result],
        on_retry: Callable[[Failure], None] = lambda _: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Result:
        """Return what a request returns; raise what the last attempt raised."""
        started = time.monotonic()
        for attempt in range(1, self.attempts + 1):
            try:
                return request()
            except Exception as error:
                failure = failure_of(error)
                late = time.monotonic() - started > self.patience_seconds
                if failure not in _TRANSIENT or attempt == self.attempts or late:
                    raise
                on_retry(failure)
            longest = min(self.longest_seconds, self.first_seconds * 2 ** (attempt - 1))
            sleep(random.uniform(0, longest))
        raise AssertionError("the last attempt returns or raises")


def failure_of(error: BaseException) -> Failure:
    """Return why a request failed."""
    chain = list(_chain(error))
    if any(_code(cause) == "NoSuchBucket" for cause in chain):
        return Failure.NO_BUCKET
    for status in filter(None, map(_status, chain)):
        if status in _BY_STATUS:
            return _BY_STATUS[status]
        if status >= 500:
            return Failure.BUSY
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    for failure, kinds in _BY_CLASS.items():
        if names & kinds:
            return failure
    if any(isinstance(cause, FileNotFoundError) for cause in chain):
        return Failure.ABSENT
    codes = {cause.errno for cause in chain if isinstance(cause, OSError)}
    return Failure.BUSY if codes & {errno.EBUSY, errno.EREMOTEIO} else Failure.REFUSED


def storage_error(error: Exception, where: str) -> LogitcacheError:
    """Return what a user is told of a request that failed for good.

    The client's own words are left out: they may hold an address with credentials in it.
    """
    if isinstance(error, LogitcacheError):
        return error
    failure = failure_of(error)
    status = next(filter(None, map(_status, _chain(error))), None)
    return StorageError(
        failure.value,
        where=where,
        got=type(error).__name__ if status is None else f"HTTP status {status}",
        hint=_HINTS.get(failure, _AGAIN),
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception of aiohttp, botocore or gcsfs carries."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(error, "status", None) or getattr(error, "code", None)
    return int(status) if isinstance(status, int) or str(status).isdecimal() else None


def _code(error: BaseException) -> str | None:
    response: Any = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
