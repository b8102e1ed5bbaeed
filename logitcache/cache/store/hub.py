"""A repository of the Hugging Face Hub that a cache is pushed to.

Each change of a repository is a git commit, of which the Hub accepts a limited number an hour. So
objects are gathered and committed many at a time. Shards, commits and ledgers of a cache come
first; all other documents are committed together with its root, so a reader finds the old ones or
the new ones. Contents are uploaded by ``huggingface_hub``, which leaves out what the Hub has.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from logitcache.cache.store.base import MAX_DOCUMENT_BYTES
from logitcache.cache.store.failures import Failure, failure_of, storage_error
from logitcache.cache.store.remote import RemoteLocation
from logitcache.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["HubLocation"]

_ROOT = "zarr.json"
_FIRST = ("commits/", "ledger/", "transfer.json")
_CLAIMS = "claims/"
_MOST_OBJECTS, _MOST_BYTES = 200, 2**28  # of a commit
_KINDS = {"datasets": "dataset", "spaces": "space"}


class HubLocation(RemoteLocation):
    """A repository that receives a cache; see :class:`~logitcache.cache.store.base.Location`.

    An object is durable once it is committed: when enough objects are gathered, with the root, and
    before a deletion. Claims stay in the memory of this process, since each would be a
    commit; instead, every commit names the one before it, and fails if somebody else has made one.

    Args:
        url: ``hf://datasets/OWNER/NAME`` and a folder in it; or ``hf://OWNER/NAME`` for a model.

    Raises:
        UsageError: The URL names no repository, or a revision of one.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        parts = self._base.removeprefix("hf://").split("/")
        self._kind = _KINDS.get(parts[0], "model")
        own = parts[1:] if parts[0] in _KINDS else parts
        if len(own) < 2 or not all(own) or any("@" in part for part in own):
            raise UsageError(
                "the URL names no repository that can be written to",
                where=self._shown,
                expected="hf://datasets/OWNER/NAME, or a folder in it, without a revision",
            )
        self._repository, self._folder = "/".join(own[:2]), "/".join(own[2:])
        self._pending: dict[str, bytes] = {}
        self._claims: dict[str, tuple[bytes, float]] = {}
        self._head: str | None = None
        self._gathering = threading.RLock()

    def read(
        self,
        key: str,
        start: int | None = None,
        stop: int | None = None,
        *,
        most: int = MAX_DOCUMENT_BYTES,
    ) -> bytes | None:
        """Return an object, or a part of it, also one that is not committed yet."""
        own = self._own(key)
        return super().read(key, start, stop, most=most) if own is None else own[start:stop]

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, None if there is none."""
        own = self._own(key)
        if own is not None:
            return len(own)
        return None if key.startswith(_CLAIMS) else super().size(key)

    def modified(self, key: str) -> float | None:
        """Return when an object was written; of claims, by the clock of this machine."""
        if key.startswith(_CLAIMS):
            return self._claims[key][1] if key in self._claims else None
        return super().modified(key)

    def write(self, key: str, content: bytes) -> None:
        """Gather an object to be committed; the root is committed at once, with all others."""
        with self._gathering:
            if key.startswith(_CLAIMS):
                self._claims[key] = (content, time.time())
                return
            self._pending[key] = content
            first = {key for key in self._pending if "/c/" in key or key.startswith(_FIRST)}
            size = sum(len(self._pending[key]) for key in first)
            if key == _ROOT:
                self._commit(self._pending)
            elif len(first) >= _MOST_OBJECTS or size >= _MOST_BYTES:
                self._commit(first)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object unless there is one; return whether it was written."""
        with self._gathering:
            if self.size(key) is not None:
                return False
            self.write(key, content)
            return True

    def delete(self, key: str) -> None:
        """Remove an object if it exists, after all that was written before."""
        with self._gathering:
            self._claims.pop(key, None)
            if key.startswith(_CLAIMS):
                return
            self._commit(self._pending)
            if super().size(key) is not None:
                self._commit((), deleted=key)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the objects directly below a prefix, sorted."""
        own = {key.removeprefix(f"{prefix}/") for key in self._gathered() if key.startswith(prefix)}
        found = [] if prefix.startswith(_CLAIMS.strip("/")) else super().names(prefix)
        return sorted({*found, *(name for name in own if "/" not in name)})

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys of all objects below a prefix."""
        own = [key for key in self._gathered() if key.startswith(prefix)]
        yield from dict.fromkeys([*super().keys(prefix), *own])

    def is_empty(self) -> bool:
        """Return whether there is nothing of a cache; what the Hub adds does not count."""
        names = {*self._pending, *(name for name, _ in self._entries(""))}
        return not names - {".gitattributes"}

    def _own(self, key: str) -> bytes | None:
        with self._gathering:
            claim = self._claims.get(key)
            return self._pending.get(key) if claim is None else claim[0]

    def _gathered(self) -> list[str]:
        with self._gathering:
            return [*self._pending, *self._claims]

    def _check_writable(self) -> None:
        """Accept the scheme: objects are committed by this class."""

    def _commit(self, keys: Iterable[str], deleted: str | None = None) -> None:
        """Commit some of what was gathered, or a deletion."""
        chosen = {key: self._pending[key] for key in keys}
        if not chosen and deleted is None:
            return
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api = HfApi()
        operations: list[Any] = [
            CommitOperationAdd(self._inner(key), content) for key, content in chosen.items()
        ]
        if deleted is not None:
            operations.append(CommitOperationDelete(self._inner(deleted)))
        what = f"{len(operations)} objects of a cache" if len(operations) > 1 else "A cache"
        try:
            if self._head is None:
                self._head = self._opened_repository(api)
            self.traffic["write"] += 1
            done = api.create_commit(
                self._repository,
                operations,
                commit_message=f"{what}, by logitcache",
                repo_type=self._kind,
                parent_commit=self._head,
            )
        except Exception as error:
            if failure_of(error) is Failure.EXISTS:
                raise self._changed() from None
            raise storage_error(error, self._shown) from None
        self._head = done.oid
        self._pending = {k: c for k, c in self._pending.items() if k not in chosen}

    def _opened_repository(self, api: Any) -> str:
        """Return the current commit of the repository; a new one is private."""
        api.create_repo(self._repository, repo_type=self._kind, private=True, exist_ok=True)
        self._opened.clear()  # a file system remembers that there was no such repository
        found: str = api.repo_info(self._repository, repo_type=self._kind).sha
        return found

    def _inner(self, key: str) -> str:
        return f"{self._folder}/{key}" if self._folder else key

    def _changed(self) -> StorageError:
        return StorageError(
            "the repository has changed since this command has begun",
            where=self._shown,
            got="a commit of another process",
            hint="re-run the same command: what is there is not sent again",
        )
