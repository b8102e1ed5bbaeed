"""Identity of the process that holds a claim, and whether it has certainly ended.

A claim may contain any bytes, since another process, machine or person has written it. Fields that
are not valid count as unknown.
"""

from __future__ import annotations

import json
import math
import os
import re
import socket
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Self

from logitcache.platforms import boot_identity, process_namespace, process_started

__all__ = ["MOST_BYTES", "Holder", "new_token"]

MOST_BYTES = 4096
"""Bytes of the largest claim; a larger file is not read."""

_MOST_PID = 2**31 - 1
_MOST_TEXT = 256
_SAME_BOOT_SECONDS = 60.0  # by which the time of one boot may differ after the clock was set
_PROCESS = uuid.uuid4().hex  # begins the tokens of this process
_BOOT = re.compile(r"id:[0-9A-Za-z-]+|time:[0-9]{1,15}")


@dataclass(frozen=True)
class Holder:
    """A process, as its claims name it; None for fields that are not known.

    Attributes:
        host: Name of its machine or container.
        pid: Process number.
        token: Token that differs for each set of claims.
        boot: See :func:`~logitcache.platforms.boot_identity`.
        namespace: See :func:`~logitcache.platforms.process_namespace`.
        started: See :func:`~logitcache.platforms.process_started`.
        locked: Whether it locks its claim for as long as it runs.
    """

    host: str | None = None
    pid: int | None = None
    token: str | None = None
    boot: str | None = None
    namespace: str | None = None
    started: float | None = None
    locked: bool | None = None

    @classmethod
    def this_process(cls, token: str) -> Self:
        """Return this process, with a token from :func:`new_token`."""
        pid = os.getpid()
        namespace = process_namespace()
        started = process_started(pid) if namespace is not None else None
        return cls(socket.gethostname(), pid, token, boot_identity(), namespace, started)

    @classmethod
    def parse(cls, content: bytes | None) -> Self:
        """Read a claim, whatever it contains."""
        try:
            found = json.loads(content or b"")
        except (ValueError, RecursionError):  # half written, or never a claim
            return cls()
        if not isinstance(found, dict):
            return cls()
        return cls(
            host=_text(found.get("host")),
            pid=_pid(found.get("pid")),
            token=_text(found.get("token")),
            boot=_text(found.get("boot")),
            namespace=_text(found.get("namespace")),
            started=_number(found.get("started")),
            locked=found.get("locked") is True or None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of a claim."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def has_ended(self) -> bool:
        """Whether this process has certainly ended; where that is not known, False."""
        here = Holder.this_process(new_token())
        if self.host is None or self.host != here.host:
            return False
        same_boot = _same_boot(self.boot, here.boot)
        if not same_boot:
            return same_boot is False
        if self.pid is None or self.namespace is None or self.namespace != here.namespace:
            return False
        if self.pid == here.pid:  # process 1 of a container that was killed and started again
            return not (self.token or "").startswith(_PROCESS)
        try:
            started = process_started(self.pid)
        except PermissionError:
            return False
        return started is None or (self.started is not None and self.started != started)

    @property
    def is_of_this_boot(self) -> bool:
        """Whether this process certainly is, or was, one of the machine that this one runs on."""
        here = Holder.this_process(new_token())
        same_host = self.host is not None and self.host == here.host
        unique = (self.boot or "").startswith("id:")
        return _same_boot(self.boot, here.boot) is True and (unique or same_host)

    def __str__(self) -> str:
        """Return the number and the machine of the process, for messages."""
        if self.host is None or self.pid is None:
            return "an unknown process"
        return f"process {self.pid} on {self.host}"


def new_token() -> str:
    """Return a token that no other set of claims has."""
    return f"{_PROCESS}-{uuid.uuid4().hex[:12]}"


def _same_boot(theirs: str | None, ours: str | None) -> bool | None:
    """Return whether two processes of one machine belong to one boot; None if that is not known."""
    if theirs is None or ours is None:
        return None
    if not _BOOT.fullmatch(theirs) or not _BOOT.fullmatch(ours):
        return None
    (kind, _, value), (our_kind, _, our_value) = theirs.partition(":"), ours.partition(":")
    if kind != our_kind:
        return None
    if kind == "id":
        return value == our_value
    return abs(int(value) - int(our_value)) <= _SAME_BOOT_SECONDS


def _text(value: object) -> str | None:
    """Return a string that can be shown on one line; None for anything else."""
    if isinstance(value, str) and 0 < len(value) <= _MOST_TEXT and value.isprintable():
        return value
    return None


def _pid(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST_PID:
        return value
    return None


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            return None
        return number if math.isfinite(number) else None
    return None
