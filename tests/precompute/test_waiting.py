"""Runs that meet the claims of others: of killed ones, of stopped ones, of those that go on."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.claim_holder import Holder
from logitcache.cli.progress import ProgressLine
from logitcache.errors import Interrupted
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.precompute.run.compute import Progress
from tests.conftest import write_images

if TYPE_CHECKING:
    from pathlib import Path

Teachers = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("few"), 6)


def config(cache: Path, images: Path, teachers: Teachers) -> PrecomputeConfig:
    values: dict[str, Any] = {"cache": str(cache), "data": str(images), "unit_rows": 16}
    values |= {"teachers": {"red": teachers["red"]}, "views": {"count": 2}, "device": "cpu"}
    return PrecomputeConfig.parse({**values, "batch_size": 4, "threads": 1}, "")


def leave_claims(cache: Path, views: list[str], **fields: Any) -> None:
    """Leave the claims of another process: of the manifest, and of every item of two blocks."""
    content = json.dumps({**Holder.this_process("another token").to_json(), **fields})
    (cache / "claims").mkdir(parents=True, exist_ok=True)
    for name in ["manifest", *(f"{view}-{block}" for view in views for block in (0, 1))]:
        (cache / f"claims/{name}.json").write_text(content)


@pytest.fixture
def views(few: Path, teachers: Teachers, tmp_path: Path) -> list[str]:
    return [view.id for view in config(tmp_path, few, teachers).views.views()]


def test_a_run_that_was_killed_as_process_1_of_a_container_resumes_at_once(
    few: Path, teachers: Teachers, tmp_path: Path, views: list[str]
) -> None:
    """Its claims name the number of the new run itself; so do those left after their commit."""
    cache = tmp_path / "cache"
    leave_claims(cache, views)
    waits: list[str] = []
    requested = config(cache, few, teachers)
    summary = build_cache(requested, on_progress=lambda seen: waits.append(seen.waiting))
    assert summary.computed == 36
    assert not any(waits)
    leave_claims(cache, views)
    assert {orphan.why.partition(" (")[0] for orphan in verify(cache).orphans} == {
        "the claim of a run that was killed"
    }
    assert build_cache(requested).computed == 0
    assert verify(cache).orphans == ()
    assert not (cache / "claims").exists()


def test_a_run_that_was_killed_while_it_wrote_the_first_file_resumes(
    few: Path, teachers: Teachers, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:40]
    (cache / f"zarr.json.{host}_{child.pid}_ab.partial").write_bytes(b"{")
    assert build_cache(config(cache, few, teachers)).computed == 36
    assert verify(cache).orphans == ()


def test_a_run_says_for_whom_it_waits_and_goes_on_when_the_claim_is_stale(
    few: Path,
    teachers: Teachers,
    tmp_path: Path,
    views: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"
    leave_claims(cache, views[1:], host="another", pid=77)
    (cache / "claims/manifest.json").unlink()
    monkeypatch.setattr("logitcache.cache.write.claims.STALE_SECONDS", 1.5)
    waits: list[str] = []
    with ProgressLine("precompute") as line:

        def watch(progress: Progress) -> None:
            line.precompute(progress)
            if progress.waiting:
                waits.append(progress.waiting)

        summary = build_cache(config(cache, few, teachers), on_progress=watch)
    assert summary.computed == 36
    assert waits
    expected = (f"block 0 of view {views[1]}", "process 77 on another", "taken over after 2 s")
    assert all(text in waits[0] for text in expected), waits[0]
    printed = [text for text in capsys.readouterr().err.splitlines() if "waiting for" in text]
    assert len(printed) == 1, "at once, and again after some seconds"
    assert verify(cache).ok
    assert not (cache / "claims").exists()


@pytest.mark.parametrize("kind", ["item", "manifest"])
def test_a_run_that_waits_can_be_stopped(
    few: Path, teachers: Teachers, tmp_path: Path, views: list[str], kind: str
) -> None:
    cache = tmp_path / "cache"
    seen: list[str] = []
    requested = config(cache, few, teachers)
    if kind == "item":
        leave_claims(cache, views, host="another", pid=77)
        (cache / "claims/manifest.json").unlink()
    else:
        build_cache(requested)
        leave_claims(cache, [], host="another", pid=77)
    with pytest.raises(Interrupted) as caught:
        build_cache(
            requested,
            on_progress=lambda progress: seen.append(progress.waiting),
            should_stop=lambda: any(seen),
        )
    assert "process 77 on another" in seen[-1]
    assert caught.value.exit_code == (130 if kind == "item" else 3)


def test_waiting_is_printed_again_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [1000.0]
    monkeypatch.setattr("logitcache.cli.progress.time.monotonic", lambda: now[0])
    with ProgressLine("precompute") as line:
        for second in range(40):
            now[0] += 1
            line.precompute(Progress(0, 9, waiting=f"waiting since {second} s"))
        line.precompute(Progress(1, 9))
        line.precompute(Progress(1, 9, waiting="waiting for another"))
    printed = [text for text in capsys.readouterr().err.splitlines() if "waiting" in text]
    assert [text.partition("waiting ")[2] for text in printed] == [
        "since 0 s",
        "since 16 s",
        "since 32 s",
        "for another",
    ]
