"""A server that speaks as much of the Hub's protocol as pushing and reading a repository takes.

Written from what ``huggingface_hub`` requests; regular files are committed inline, large ones by
the protocol of git LFS, and a commit with another parent than the head is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from tests.remote.servers import QuietServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

_LARGE = 2000


@dataclass
class Repository:
    """A repository with one branch.

    Attributes:
        files: Contents by path.
        commits: Message and paths of each commit, oldest first.
        states: Files after each commit.
        private: Whether it was created as a private one.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, list[str]]] = field(default_factory=list)
    states: list[dict[str, bytes]] = field(default_factory=list)
    private: bool | None = None

    @property
    def head(self) -> str:
        """Digest of the last commit."""
        return hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()


class FakeHub:
    """A server with repositories, and a log of what it received.

    Attributes:
        repositories: By name, ``OWNER/NAME``.
        large: Contents of git LFS by sha256.
        uploads: sha256 of every content that was uploaded, in order.
        fail_after: Number of commits after which every request fails; None to never fail.
        least_large: Bytes from which a file is stored by git LFS.
        watch: Called with the user agent of each request before it is answered.
        watch_path: Called with the method and the path of each request before it is answered.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.fail_after: int | None = None
        self.least_large = _LARGE
        self.watch: Callable[[str], None] = lambda _: None
        self.watch_path: Callable[[str, str], None] = lambda method, path: None
        self._lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def commits(self) -> int:
        """Number of commits of all repositories."""
        return sum(len(one.commits) for one in self.repositories.values())

    @property
    def is_down(self) -> bool:
        """Whether every request fails."""
        return self.fail_after is not None and self.commits >= self.fail_after

    def commit(self, name: str, lines: list[dict[str, Any]]) -> str | None:
        """Apply a commit; return the new head, or None where its parent is not the old one."""
        with self._lock:
            found, header = self.repositories[name], lines[0]["value"]
            if header.get("parentCommit", found.head) != found.head:
                return None
            paths = []
            for line in lines[1:]:
                value = line["value"]
                paths.append(value["path"])
                if line["key"] == "file":
                    found.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    found.files[value["path"]] = self.large[value["oid"]]
                else:
                    assert line["key"] == "deletedFile", line
                    del found.files[value["path"]]
            found.commits.append((header["summary"], paths))
            found.states.append(dict(found.files))
            return found.head


def use_hub(patch: pytest.MonkeyPatch, hub: FakeHub | str) -> None:
    """Make all clients of this process use a hub, given as a server or by its URL."""
    url = hub if isinstance(hub, str) else hub.url
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr("huggingface_hub.constants.ENDPOINT", url)
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    patch.setenv("HF_TOKEN", "hf_x")
    patch.setenv("LOGITCACHE_RETRY_SECONDS", "0.2")
    # the client waits for a server that fails, as it does on the real one
    no_waiting = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    patch.setattr("huggingface_hub.utils._http.time", no_waiting)


def write_state(files: dict[str, bytes], folder: Path) -> Path:
    """Write the files of a state of a repository that are in its folder ``v1``."""
    for path, content in files.items():
        if path.startswith("v1/"):
            target = folder / path.removeprefix("v1/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return folder


class _Handler(BaseHTTPRequestHandler):
    server_hub: FakeHub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def do_PUT(self) -> None:
        self.server_hub.watch(str(self.headers.get("User-Agent")))
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = hashlib.sha256(content).hexdigest()
        assert self.path == f"/lfs/{digest}"
        if self.server_hub.is_down:
            self._send(b"down", 503, {"Retry-After": "0"})
            return
        self.server_hub.uploads.append(digest)
        self.server_hub.large[digest] = content
        self._send(b"")

    def _answer(self, body: bytes) -> None:
        hub, parts = self.server_hub, urlsplit(self.path)
        hub.watch(str(self.headers.get("User-Agent")))
        path, query = unquote(parts.path), parse_qs(parts.query)
        hub.watch_path(self.command, path)
        if hub.is_down:
            self._send(b"down", 503, {"Retry-After": "0"})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path.startswith("/api/datasets/"):
            self._api(path.removeprefix("/api/datasets/").split("/"), query, body)
        elif path.startswith("/datasets/"):
            self._resolve(path.removeprefix("/datasets/").split("/"))
        else:
            self._send(b"unknown", 404)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = "/".join(filter(None, (wanted.get("organization"), wanted["name"])))
        known = name in self.server_hub.repositories
        made = self.server_hub.repositories.setdefault(name, Repository())
        if not known:
            made.private = wanted.get("private", wanted.get("visibility") == "private")
            made.files[".gitattributes"] = b"* filter=lfs\n"
        self._json({"url": f"{self.server_hub.url}/datasets/{name}"}, 409 if known else 200)

    def _batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for one in wanted["objects"]:
            if one["oid"] not in self.server_hub.large:
                one["actions"] = {"upload": {"href": f"{self.server_hub.url}/lfs/{one['oid']}"}}
            objects.append(one)
        self._json({"transfer": "basic", "objects": objects})

    def _api(self, parts: list[str], query: dict[str, list[str]], body: bytes) -> None:
        name, rest = "/".join(parts[:2]), parts[2:]
        found = self.server_hub.repositories.get(name)
        if found is None:
            self._send(b"", 404, {"X-Error-Code": "RepoNotFound"})
        elif not rest or rest[0] == "revision":
            self._json({"id": name, "sha": found.head, "private": True, "siblings": []})
        elif rest[0] == "preupload":
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs"
                    if one["size"] >= self.server_hub.least_large
                    else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            self._json({"files": modes})
        elif rest[0] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            head = self.server_hub.commit(name, lines)
            if head is None:
                self._json({"error": "the branch has changed"}, 412)
            else:
                url = f"{self.server_hub.url}/datasets/{name}/commit/{head}"
                self._json({"commitUrl": url, "commitOid": head})
        elif rest[0] == "tree":
            self._tree(found, "/".join(rest[2:]), recursive="recursive" in query)
        elif rest[0] == "paths-info":
            wanted = parse_qs(body.decode())["paths"] if b"=" in body else json.loads(body)["paths"]
            self._json([entry for one in wanted for entry in self._entries(found, one)])
        else:
            self._send(b"unknown", 404)

    def _mode(self, one: dict[str, Any]) -> dict[str, Any]:
        large = one["size"] >= self.server_hub.least_large
        mode = "lfs" if large else "regular"
        return {"path": one["path"], "uploadMode": mode, "shouldIgnore": False}

    def _tree(self, found: Repository, folder: str, *, recursive: bool) -> None:
        below = f"{folder}/" if folder else ""
        inside = [path for path in found.files if path.startswith(below)]
        if below and not inside:
            self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})
            return
        folders = {
            "/".join(path.split("/")[:depth])
            for path in inside
            for depth in range(1, path.count("/") + 1)
        }
        shown = [*sorted(one for one in folders if one.startswith(below)), *sorted(inside)]
        if not recursive:
            shown = [path for path in shown if "/" not in path.removeprefix(below)]
        self._json([entry for path in shown for entry in self._entries(found, path)])

    def _entries(self, found: Repository, path: str) -> list[dict[str, Any]]:
        if path in found.files:
            content = found.files[path]
            oid = hashlib.sha1(content).hexdigest()
            return [{"type": "file", "path": path, "size": len(content), "oid": oid}]
        if any(one.startswith(f"{path}/") for one in found.files):
            oid = hashlib.sha1(path.encode()).hexdigest()
            return [{"type": "directory", "path": path, "size": 0, "oid": oid}]
        return []

    def _resolve(self, parts: list[str]) -> None:
        found = self.server_hub.repositories.get("/".join(parts[:2]))
        content = None if found is None else found.files.get("/".join(parts[4:]))
        if content is None:
            self._send(b"", 404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        wanted = self.headers.get("Range")
        if wanted is None:
            self._send(content, 200, headers)
            return
        start, _, stop = wanted.removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(stop or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(content[first : last + 1], 206, headers)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
