"""Retries of failed requests, with exponential backoff and a time limit."""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from logitcache.cache.store.failures import TRANSIENT, failure_of, retry_after
from logitcache.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    from logitcache.cache.store.failures import Failure

__all__ = ["PATIENCE", "RetryPolicy", "end_waits", "environment_policy", "parse_patience"]

_LOG = logging.getLogger(__name__)

Result = TypeVar("Result")

PATIENCE = "LOGITCACHE_RETRY_SECONDS"
"""Environment variable of the retry time, which child processes inherit."""

_LONGEST_PATIENCE = 7 * 24 * 3600.0
_ENDED = threading.Event()


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, up to a time limit.

    The longest wait doubles from attempt to attempt; each wait is drawn uniformly between zero and
    that, so that many clients do not retry at the same time. The wait of a ``Retry-After`` header
    is added, within the time limit.

    Attributes:
        patience_seconds: Time from the first failure to the last attempt; 0 for one attempt.
        first_seconds: Longest wait before the second attempt.
        longest_seconds: Longest wait of all, apart from that of a ``Retry-After`` header.
    """

    patience_seconds: float = 120.0
    first_seconds: float = 0.2
    longest_seconds: float = 10.0

    def call(
        self,
        request: Callable[[], Result],
        on_retry: Callable[[Failure, float], None] = lambda *_: None,
        transient: Set[Failure] = TRANSIENT,
        sleep: Callable[[float], object] = _ENDED.wait,
        clock: Callable[[], float] = time.monotonic,
    ) -> Result:
        """Return the result of a request; raise the error of the last attempt.

        Args:
            request: The request.
            on_retry: Called before each wait with the failure and the seconds since the first one.
            transient: Failures after which the request is tried again.
            sleep: Function that waits for a number of seconds.
            clock: Function that returns the time in seconds.
        """
        until: float | None = None
        longest = self.first_seconds
        while True:
            try:
                return request()
            except Exception as error:
                now = clock()
                until = now + self.patience_seconds if until is None else until
                failure = failure_of(error)
                if failure not in transient or now >= until or _ENDED.is_set():
                    raise
                on_retry(failure, now - until + self.patience_seconds)
                wait = random.uniform(0, min(longest, self.longest_seconds))
                wait = min(wait + (retry_after(error) or 0.0), until - now)
                _LOG.info("a request failed: %s; next attempt in %.1f s", failure.value, wait)
            sleep(wait)
            longest = min(longest * 2, self.longest_seconds)


def parse_patience(text: str, where: str) -> float:
    """Return the retry time in seconds that a user has set.

    Args:
        text: The value.
        where: The option or variable with this value.

    Raises:
        UsageError: It is not a number of seconds within the limits.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_PATIENCE:
        raise UsageError(
            "the value is not a number of seconds for retries",
            where=where,
            expected=f"a number from 0, for no retries, to {_LONGEST_PATIENCE:.0f}",
            got=repr(text),
        )
    return seconds


def environment_policy() -> RetryPolicy:
    """Return the policy with the retry time of the environment, or the default one.

    Raises:
        UsageError: The environment variable is not a number of seconds.
    """
    text = os.environ.get(PATIENCE)
    return RetryPolicy(parse_patience(text, PATIENCE)) if text else RetryPolicy()


def end_waits() -> None:
    """End all waits for another attempt in this process: those requests and later ones fail.

    For an interrupted run while a server is away: threads cannot be interrupted otherwise.
    """
    _ENDED.set()
