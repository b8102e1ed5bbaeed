"""Classification of failed requests, and the errors that users get for them.

Each client raises exceptions of its own, some of them wrapped in others, and is not imported here:
a failure is classified by the HTTP status anywhere in its chain of causes, or else by the names of
its classes.
"""

from __future__ import annotations

import errno
import re
import socket
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from logitcache.errors import LogitcacheError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "TRANSIENT",
    "WRONG_ADDRESS",
    "Failure",
    "failure_of",
    "http_status",
    "retry_after",
    "storage_error",
]


class Failure(Enum):
    """Why a request failed."""

    ABSENT = "the object does not exist"
    EXISTS = "the object exists already"
    NO_BUCKET = "the bucket does not exist"
    DENIED = "the store denied access"
    BUSY = "the server is busy or failing"
    SLOW = "the server does not respond in time"
    CUT = "the connection was cut repeatedly"
    UNREACHABLE = "the server cannot be reached"
    UNKNOWN_HOST = "the host name of the server is unknown"
    UNTRUSTED = "no secure connection to the server can be established"
    REDIRECTED = "the server redirects endlessly"
    GARBLED = "the response is not HTTP"
    REFUSED = "the store refused the request"


WRONG_ADDRESS = frozenset({Failure.UNKNOWN_HOST, Failure.GARBLED})
"""Failures of a wrong address; temporary ones if the server has responded before."""

TRANSIENT = WRONG_ADDRESS | {Failure.BUSY, Failure.SLOW, Failure.CUT, Failure.UNREACHABLE}
"""Failures that may be temporary."""

_HINTS = {
    Failure.NO_BUCKET: "create it first, or correct the URL",
    Failure.DENIED: "check the credentials in the environment or profile, and what they permit; "
    "some stores respond like this for objects that do not exist",
    Failure.UNREACHABLE: "check the address and the network, and re-run the same command",
    Failure.UNKNOWN_HOST: "check the address and the network, and re-run the same command",
    Failure.UNTRUSTED: "check that the server speaks TLS at this address and that its certificate "
    "is valid for it; SSL_CERT_FILE, or AWS_CA_BUNDLE for s3://, adds certificate authorities",
    Failure.REDIRECTED: "correct the URL: use the address that serves the files themselves",
    Failure.GARBLED: "check scheme, host and port of the address",
}
_AGAIN = "re-run the same command; what was committed is intact"
_LONGER = (
    f"{_AGAIN}; logitcache --retry-seconds N, or LOGITCACHE_RETRY_SECONDS, sets the retry time"
)
_BY_CLASS = {
    Failure.SLOW: {
        "ConnectTimeout",
        "ConnectTimeoutError",
        "ReadTimeout",
        "ReadTimeoutError",
        "TimeoutError",
    },
    Failure.UNREACHABLE: {
        "ClientConnectorError",
        "ConnectError",
        "ConnectionRefusedError",
        "EndpointConnectionError",
        "gaierror",
    },
    Failure.CUT: {
        "ChecksumError",
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionError",
        "FlexibleChecksumError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "RemoteProtocolError",
        "ResponseParserError",
        "ResponseStreamingError",
        "SSLError",
    },
    Failure.DENIED: {"NoCredentialsError", "PartialCredentialsError", "PermissionError"},
    Failure.EXISTS: {"FileExistsError"},
}
_BY_STATUS = {
    401: Failure.DENIED,
    403: Failure.DENIED,
    404: Failure.ABSENT,
    408: Failure.SLOW,
    409: Failure.BUSY,  # two conditional writes at a time: S3 requires another attempt
    410: Failure.ABSENT,
    412: Failure.EXISTS,
    425: Failure.BUSY,
    429: Failure.BUSY,
    501: Failure.REFUSED,  # statuses above 500 that waiting does not change
    505: Failure.REFUSED,
    507: Failure.REFUSED,
    511: Failure.DENIED,
}
_UNTRUSTED = {"ClientConnectorCertificateError", "ClientConnectorSSLError", "ClientSSLError"}
_OF_BODIES = {"ClientPayloadError", "ContentLengthError", "TransferEncodingError"}
_CERTIFICATE = {"CertificateError", "SSLCertVerificationError"}
_UNKNOWN = {getattr(socket, name, None) for name in ("EAI_NONAME", "EAI_NODATA")} - {None}
_SECONDS = re.compile(r"[0-9]{1,9}")


def failure_of(error: BaseException) -> Failure:
    """Return why a request failed."""
    chain = list(_chain(error))
    names = {kind.__name__ for cause in chain for kind in type(cause).__mro__}
    if any(_code(cause) == "NoSuchBucket" for cause in chain):
        return Failure.NO_BUCKET
    if "HttpProcessingError" in names:  # aiohttp gives a response it cannot parse a status of 400
        return Failure.CUT if names & _OF_BODIES else Failure.GARBLED
    if names & _CERTIFICATE or (names & _UNTRUSTED and "SSLEOFError" not in names):
        return Failure.UNTRUSTED
    if "TooManyRedirects" in names:
        return Failure.REDIRECTED
    status = http_status(error)
    if status is not None:
        other = Failure.REDIRECTED if status < 400 else Failure.REFUSED
        return _BY_STATUS.get(status, Failure.BUSY if status >= 500 else other)
    if any(isinstance(cause, socket.gaierror) and cause.errno in _UNKNOWN for cause in chain):
        return Failure.UNKNOWN_HOST
    for failure, kinds in _BY_CLASS.items():
        if names & kinds:
            return failure
    if any(isinstance(cause, FileNotFoundError) for cause in chain):
        return Failure.ABSENT
    codes = {cause.errno for cause in chain if isinstance(cause, OSError)}
    return Failure.BUSY if codes & {errno.EBUSY, errno.EREMOTEIO} else Failure.REFUSED


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status in a chain of causes; None where there was no response."""
    return next(filter(None, map(_status, _chain(error))), None)


def retry_after(error: BaseException) -> float | None:
    """Return the seconds of a busy server's ``Retry-After``; None where there is none.

    A date is taken relative to the server's own clock where its response shows that.
    """
    for cause in _chain(error):
        if _status(cause) in {429, 503}:
            headers = {name.lower(): value for name, value in _headers(cause).items()}
            return _seconds(str(headers.get("retry-after", "")), str(headers.get("date", "")))
    return None


def storage_error(error: Exception, where: str) -> LogitcacheError:
    """Return the error that a user gets for a request that failed after all retries.

    The client's own message is left out, since it may contain an address with credentials.
    """
    if isinstance(error, LogitcacheError):
        return error
    failure = failure_of(error)
    status = http_status(error)
    if failure in {Failure.GARBLED, Failure.CUT} or status is None:
        got = type(error).__name__
    else:
        wait = retry_after(error)
        got = f"HTTP status {status}" + ("" if wait is None else f", Retry-After: {wait:.0f} s")
    default = _LONGER if failure in TRANSIENT else _AGAIN
    return StorageError(failure.value, where=where, got=got, hint=_HINTS.get(failure, default))


def _seconds(value: str, now: str) -> float | None:
    """Return the seconds of a ``Retry-After`` header: a number, or a date."""
    if _SECONDS.fullmatch(value.strip()):
        return float(value)
    then, server_time = _moment(value), _moment(now)
    if then is None:
        return None
    return max(0.0, (then - (server_time or datetime.now(UTC))).total_seconds())


def _moment(text: str) -> datetime | None:
    from email.utils import parsedate_to_datetime  # not needed for help, which comes at once

    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # no date
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception of aiohttp, botocore, gcsfs or httpx carries."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:
        status = getattr(response, "status_code", None)
    else:
        status = error.status if hasattr(error, "status") else getattr(error, "code", None)
    found = int(status) if isinstance(status, int) or str(status).isdecimal() else None
    return found if found in range(100, 1000) else None


def _headers(error: BaseException) -> Mapping[str, str]:
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    else:
        found = getattr(error if response is None else response, "headers", None)
    return found or {}


def _code(error: BaseException) -> str | None:
    response: Any = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
