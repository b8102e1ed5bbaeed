"""SIGKILL to this process at a moment of its work on files: open, write, fsync, rename, remove.

Every moment has a number. Those of the training loop are the same in every run; where a cache is
written, by a thread of its own, they may come in another order.
"""

from __future__ import annotations

import io
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["FileMoments"]


class FileMoments:
    """Counts moments, and kills this process at one of them.

    Args:
        log: Where the moments are written by :meth:`note`, or what this process died at.
        kill_at: Number of the moment to die at.
    """

    def __init__(self, log: Path, kill_at: int | None) -> None:
        self._log, self._kill_at = log, kill_at
        self._moments: list[str] = []

    def install(self) -> None:
        """Put a moment before everything that changes files; never undone: this process ends."""
        patch = pytest.MonkeyPatch()
        opened = io.open

        def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return opened(file, mode, *args, **options)
            self.moment("open")
            return _Watched(opened(file, mode, *args, **options), self)

        patch.setattr("io.open", opening)
        for kind, name in (
            ("fsync", "fsync"),
            ("rename", "replace"),
            ("rename", "rename"),
            ("remove", "unlink"),
            ("remove", "rmdir"),
            ("make", "mkdir"),
        ):
            patch.setattr(f"os.{name}", self._before(kind, getattr(os, name)))
        for module in ("run.checkpoint", "export.export"):
            name = f"logitcache.training.{module}.save_file"
            patch.setattr(name, self._half_saved(__import__("safetensors.torch").torch.save_file))

    def moment(self, kind: str, half: Callable[[], object] = lambda: None) -> None:
        """Note a moment, or die at it.

        Args:
            kind: What is about to be done.
            half: Does a part of it before this process dies.
        """
        if len(self._moments) == self._kill_at:
            half()
            descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, json.dumps({"kind": kind}).encode())
            os.kill(os.getpid(), signal.SIGKILL)
        self._moments.append(kind)

    def note(self) -> None:
        """Write which moments there were."""
        self._kill_at = None
        self._log.write_text(json.dumps({"moments": self._moments}))

    def _before(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self.moment(kind)
            return function(*args, **options)

        return called

    def _half_saved(self, save: Callable[..., None]) -> Callable[..., None]:
        def saving(tensors: Any, path: Path, **options: Any) -> None:
            def half() -> None:
                save(tensors, path, **options)
                os.truncate(path, path.stat().st_size // 2)

            self.moment("tensors", half)
            save(tensors, path, **options)

        return saving


class _Watched:
    """A file whose writes are moments."""

    def __init__(self, file: Any, moments: FileMoments) -> None:
        self._file, self._moments = file, moments

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._moments.moment("write", half)
        written: int = self._file.write(content)
        return written
