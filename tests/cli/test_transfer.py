"""``logitcache push`` and ``pull``: what they print, and the exit codes of what they refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from logitcache.cache.read.reader import open_cache
from tests.share.growing import build, files, grow
from tests.share.signing import write_keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome


def test_a_cache_is_copied_and_updated(logitcache: Callable[..., Outcome], tmp_path: Path) -> None:
    cache = build(tmp_path / "cache")
    digest = open_cache(cache).revision_sha256
    pushed = logitcache("push", cache, tmp_path / "copy")
    assert pushed.code == 0, pushed.err
    assert f"revision 1, sha256 {digest}" in pushed.out
    assert "0 of 0.0 MB already present" in pushed.out
    assert files(tmp_path / "copy") == files(cache)
    grow(cache)
    found = logitcache("pull", cache, tmp_path / "copy", "--json").json
    assert (found["number"], found["present"]) == (2, 42)
    assert found["destination"] == str(tmp_path / "copy")


def test_a_part_is_copied(logitcache: Callable[..., Outcome], tmp_path: Path) -> None:
    cache = grow(build(tmp_path / "cache"))
    part = ("pull", cache, tmp_path / "part", "--views", "2", "--teacher", "a")
    assert logitcache(*part).code == 0
    assert len(open_cache(tmp_path / "part").views) == 2
    assert logitcache("verify", tmp_path / "part").code == 0
    refused = logitcache("pull", cache, tmp_path / "part")
    assert refused.code == 1
    assert "choose another destination" in refused.err


def test_mistakes_are_usage_errors(logitcache: Callable[..., Outcome], tmp_path: Path) -> None:
    cache = build(tmp_path / "cache")
    assert logitcache("push", cache, "https://host/cache").code == 2
    assert logitcache("push", cache, tmp_path / "part", "--views", "7").code == 2
    assert logitcache("pull", cache, tmp_path / "part", "--views", "0").code == 2
    assert logitcache("pull", cache, tmp_path / "part", "--revision", "new").code == 2
    assert logitcache("pull", tmp_path / "nothing", tmp_path / "part").code == 1
    assert not (tmp_path / "part").exists()


def test_a_cache_is_signed_and_its_signature_required(
    logitcache: Callable[..., Outcome], tmp_path: Path
) -> None:
    cache = build(tmp_path / "cache")
    private, public = write_keys(tmp_path / "keys", "alice")
    assert "not signed" not in logitcache("inspect", cache).out
    signed = logitcache("sign", cache, "--key", private, "--command", "precompute", "--json").json
    assert signed["revision"] == open_cache(cache).revision_sha256
    assert signed["signer"] in logitcache("inspect", cache).out
    assert "signature: valid" in logitcache("verify", cache, "--signed-by", public).out
    assert logitcache("pull", cache, tmp_path / "copy", "--signed-by", public).code == 0
    grow(cache)
    for command in (("verify", cache), ("pull", cache, tmp_path / "copy")):
        refused = logitcache(*command, "--signed-by", public)
        assert refused.code == 4
        assert "the current revision is not signed" in refused.err
    assert "not signed; revision 1 is" in logitcache("inspect", cache).out
    assert logitcache("sign", cache, "--key", public).code == 2


def test_a_card_is_written_and_missing_licenses_are_listed(
    logitcache: Callable[..., Outcome], tmp_path: Path
) -> None:
    cache = build(tmp_path / "cache")
    pushed = logitcache("push", cache, tmp_path / "first", "--json").json
    assert "no license is stated" in pushed["notes"][0]
    stated = ("--license", "mit", "--creator", "Ada", "--images-license", "cc0-1.0")
    found = logitcache("card", cache, *stated, "--teacher-license", "a=mit", "--json").json
    assert found["missing_licenses"] == ["teacher b"]
    assert found["changed"] == ["card.json", "README.md", "croissant.json"]
    written = logitcache("card", cache, "--teacher-license", "b=other terms")
    assert written.code == 0
    assert "note" not in written.out
    assert "note" not in logitcache("push", cache, tmp_path / "first").out
    assert logitcache("card", cache, "--teacher-license", "mit").code == 2
    assert "up to date" in logitcache("card", cache).out
