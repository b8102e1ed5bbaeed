"""Caches by name: one that is part of the package, and those of a team's shelf."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest

import logitcache
from logitcache.cache.store.open import locate
from logitcache.cache.store.shelf import SHELF, demo_archive
from logitcache.errors import UsageError
from tests.share.caches import Part, build, files_of, keys_of

DIGEST = "ee45f41c5a5284177282df803e777ccd01f3950882de1f47b3759f28f94133f6"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing reach the network, and unpack into a folder of the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def test_the_archive_is_small_and_the_one_that_was_made() -> None:
    """``python -m tests.share.demo_cache`` makes it; other libraries may make other bytes."""
    content = demo_archive("digits").read_bytes()
    assert len(content) < 200_000
    assert hashlib.sha256(content).hexdigest() == DIGEST


@pytest.mark.usefixtures("offline")
def test_the_demo_cache_is_pulled_verified_and_read_offline(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    logitcache.pull("demo:digits", out)
    report = logitcache.verify(str(out), data="digits")
    assert report.ok
    assert report.fingerprints is not None
    cache = logitcache.open_cache(out)
    assert cache.manifest.teachers["cnn"].accuracy.popitem()[1] > 0.9
    with logitcache.loader(
        cache, "digits", size=16, batch_size=512, threads=1, tolerate_pixel_drift=255
    ) as loader:
        images, targets = next(iter(loader))
    assert images.shape == (512, 3, 16, 16)
    right = targets.teachers["cnn"].top_classes(1)[1].flatten() == targets.labels
    assert right.float().mean() > 0.9
    # a second use does not unpack again, and needs no copy
    assert logitcache.describe("demo:digits").images == 1347
    assert [path.name for path in (tmp_path / "user/logitcache/demo").iterdir()] == [
        f"digits-{DIGEST[:16]}"
    ]


def test_a_shelf_is_an_address_below_which_caches_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "cache", Part([keys_of(16)], taps=[]))
    monkeypatch.setenv(SHELF, f"{tmp_path}/shelf/")
    logitcache.push(tmp_path / "cache", "shelf:team/photos")
    assert files_of(tmp_path / "shelf/team/photos") == files_of(tmp_path / "cache")
    logitcache.pull("shelf:team/photos", tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(tmp_path / "cache")
    assert str(locate("shelf:team/photos")) == f"{tmp_path}/shelf/team/photos"
    monkeypatch.setenv(SHELF, "memory://shelf")
    assert str(locate("shelf:photos")) == "memory://shelf/photos"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demo:digit", "demo:digits"),
        ("demo:", "no demo cache"),
        ("shelf:photos", "is not set"),
        ("shelf:../photos", "is not set"),
    ],
)
def test_names_that_are_not_known(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SHELF, raising=False)
    with pytest.raises(UsageError, match=words):
        locate(name)


@pytest.mark.parametrize("name", ["", "../photos", "a//b", "a/./b"])
def test_a_name_does_not_leave_the_shelf(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHELF, "s3://bucket/caches")
    with pytest.raises(UsageError, match="without empty parts"):
        locate(f"shelf:{name}")


@pytest.mark.usefixtures("offline")
def test_a_demo_cache_is_not_written_to() -> None:
    with pytest.raises(UsageError, match="only read"):
        locate("demo:digits", write=True)


def test_paths_with_colons_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("demos:digits", "./demo:digits", "C:/demo"):
        assert str(locate(text)) == str(Path(text))
