"""Forged caches: changed, then sealed again, so that every digest of them agrees.

Written without the package's own checks: whoever forges a cache does not use them either.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Forgery", "canonical", "chunk_of", "shard_of", "sparse_file"]


def canonical(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sparse_file(path: Path, size: int) -> None:
    """Write a file of zeros that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(size)


def chunk_of(body: bytes) -> bytes:
    """Return an inner chunk with its checksum."""
    checksum: int = google_crc32c.value(body)
    return body + checksum.to_bytes(4, "little")


def shard_of(*chunks: bytes, entries: list[tuple[int, int]] | None = None) -> bytes:
    """Return a shard of inner chunks, with the index that belongs to them or another one."""
    if entries is None:
        entries, offset = [], 0
        for chunk in chunks:
            entries.append((offset, len(chunk)))
            offset += len(chunk)
    index = np.array(entries, "<u8").tobytes()
    return b"".join(chunks) + chunk_of(index)


class Forgery:
    """A sealed cache in a folder, to be changed and sealed again.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Return the file of a key."""
        return self.root / key

    def read(self, key: str) -> Any:
        """Return a JSON document."""
        found: Any = json.loads(self.path(key).read_bytes())
        return found

    def write(self, key: str, value: object) -> bytes:
        """Write a JSON document and return its bytes."""
        content = canonical(value)
        self.path(key).write_bytes(content)
        return content

    def edit(self, key: str, change: Callable[[Any], object]) -> None:
        """Change a JSON document in place."""
        value = self.read(key)
        change(value)
        self.write(key, value)

    def manifest(self, change: Callable[[Any], object]) -> None:
        """Change the manifest."""
        self.edit("zarr.json", lambda document: change(document["attributes"]["logitcache"]))

    def group(self, name: str, change: Callable[[Any], object]) -> None:
        """Change the attributes of a group."""
        key = f"teachers/{name}/zarr.json"
        self.edit(key, lambda document: change(document["attributes"]["logitcache"]))

    @property
    def revision_key(self) -> str:
        """Where the current revision is."""
        pointer = self.read("zarr.json")["attributes"]["logitcache"]["revision"]
        return f"revisions/{pointer['number']}.json"

    def shard(self, key: str, content: bytes) -> None:
        """Replace a shard; :meth:`seal` commits it as it is."""
        self.path(key).write_bytes(content)

    def seal(
        self,
        *,
        commit: Callable[[Any], object] | None = None,
        ledger: Callable[[Any], object] | None = None,
        revision: Callable[[Any], object] | None = None,
    ) -> None:
        """Compute every digest again, from the shards up to the pointer of the manifest.

        Args:
            commit: Changes every commit before it is digested.
            ledger: Changes every ledger before it is digested.
            revision: Changes the revision before it is digested.
        """
        sealed = self.read(self.revision_key)
        for pointer in sealed["ledgers"].values():
            self._seal_ledger(pointer, commit, ledger)
        documents = {}
        for key in sealed["metadata"]:
            if self.path(key).is_file() and self.path(key).stat().st_size < 2**22:
                content = self.path(key).read_bytes()
                sealed["metadata"][key] = digest(content)
                documents[key] = content.decode(errors="replace")
        manifest = self.read("zarr.json")["attributes"]["logitcache"]
        number = manifest["revision"]["number"]
        manifest["revision"] = None
        sealed["manifest_sha256"] = digest(canonical(manifest))
        copies = {"format": 1, "manifest": manifest, "documents": documents}
        key = f"revisions/{number}.copies.json"
        sealed["copies_sha256"] = digest(self.write(key, copies))
        if revision is not None:
            revision(sealed)
        self.point(self.write(self.revision_key, sealed), number)

    def point(self, revision: bytes, number: int) -> None:
        """Let the manifest point at a revision."""
        pointer = {"number": number, "sha256": digest(revision)}
        self.manifest(lambda manifest: manifest.update(revision=pointer))

    def _seal_ledger(
        self,
        pointer: Any,
        change_commit: Callable[[Any], object] | None,
        change: Callable[[Any], object] | None,
    ) -> None:
        ledger = self.read(pointer["key"])
        for commit in ledger["commits"]:
            for stored in commit["arrays"].values():
                path = self.path(stored["key"])
                if path.is_file() and path.stat().st_size < 2**24:
                    content = path.read_bytes()
                    stored |= {"bytes": len(content), "sha256": digest(content)}
            key = f"commits/{commit['group']}/{commit['view']}/{commit['unit']}.json"
            if change_commit is not None:
                change_commit(commit)
            self.path(key).parent.mkdir(parents=True, exist_ok=True)
            self.write(key, commit)
        pointer["units"] = len(ledger["commits"])
        if change is not None:
            change(ledger)
            pointer["units"] = len(ledger["commits"])
        pointer["sha256"] = digest(self.write(pointer["key"], ledger))
