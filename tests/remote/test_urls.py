"""URLs of caches: what each part of them means, and which parts are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from logitcache.cache.store.local import LocalLocation
from logitcache.cache.store.open import locate
from logitcache.cache.store.urls import parse_url
from logitcache.errors import UsageError
from tests.remote.servers import FaultyServer, from_folder

MEANT = {
    "a/b": Path("a/b"),
    "a?b#c%20d": Path("a?b#c%20d"),
    "~/x": Path.home() / "x",
    "file:///a/b": Path("/a/b"),
    "file://localhost/a": Path("/a"),
    "FILE:///a%20b%23c%3Fd%25": Path("/a b#c?d%"),
    "s3://bucket/a/b/": ("s3", "s3://bucket/a/b", ""),
    "S3://bucket/a": ("s3", "s3://bucket/a", ""),
    "s3://bucket/a%20b": ("s3", "s3://bucket/a%20b", ""),
    "s3://bucket/a b": ("s3", "s3://bucket/a b", ""),
    "gs://bucket/ä": ("gs", "gs://bucket/ä", ""),
    "memory://c%23": ("memory", "memory://c%23", ""),
    "memory:///c": ("memory", "memory:///c", ""),
    "hf://datasets/a/b@main/c": ("hf", "hf://datasets/a/b@main/c", ""),
    "https://host/c%23d/": ("https", "https://host/c%23d", ""),
    "http://me:word@[::1]:80/c?x=1&y": ("http", "http://me:word@[::1]:80/c", "?x=1&y"),
}
REFUSED = {
    "": "not a path",
    "a\0b": "not a path",
    "file:///a%00b": "not a path",
    "file://": "not a path",
    "file:/a/b": "write file:///PATH",
    "file://host/a": "names no other machine",
    "file://me:word@host/a": "names no other machine",
    "file:///a#1": r"no fragment[\s\S]*%23[\s\S]*the path",
    "file:///a?b=word": r"no query[\s\S]*%3F",
    "s3://bucket/a#1": r"no fragment[\s\S]*leave it out",
    "gs://bucket/a#": "no fragment",
    "memory://a#1": "no fragment",
    "hf://datasets/a/b#1": "no fragment",
    "http://host/a#1": r"no fragment[\s\S]*%23",
    "https://host/a?b=word#1": "no fragment",
    "s3://bucket/a?versionId=word": "no credentials and no query",
    "s3://bucket/a?": "no credentials and no query",
    "gs://bucket/a?b": "no credentials and no query",
    "memory://a?b": "no credentials and no query",
    "hf://datasets/a/b?c": "no credentials and no query",
    "s3://me:word@bucket/a": "no credentials and no query",
    "hf://me:word@datasets/a": "no credentials and no query",
    "s3://": "the URL has no bucket or host",
    "s3:///a": "the URL has no bucket or host",
    "http:///a": "the URL has no bucket or host",
    "http://:80/a": "the URL has no bucket or host",
    "http://host:port/a": "not a URL",
    "https://me:1#word@host/c": "no fragment",
    "https://me:a?word@host/c": "not a URL",
    "https://me:word/b@host/c": "not a URL",
    "http://host:99999/a": "not a URL",
    "http://[::1/a": "not a URL",
    "s3://bucket/a\nb": "not a URL",
    " s3://bucket/a": "not a URL",
    "http://host/a ": "not a URL",
    "s3://bucket/\ud800": "not Unicode",
    "ftp://host/a": "not supported",
    "https+s3://host/a": "not supported",
}


@pytest.mark.parametrize(("url", "meant"), MEANT.items())
def test_a_url_means_one_place(url: str, meant: Path | tuple[str, str, str]) -> None:
    found = parse_url(url)
    if isinstance(found, Path):
        assert found == meant
    else:
        assert (found.scheme, found.base, found.query) == meant
        assert "word" not in found.shown


@pytest.mark.parametrize(("url", "message"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_a_url_cannot_mean_is_refused(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        locate(url)
    assert caught.value.exit_code == 2
    assert "word" not in str(caught.value)


def test_two_urls_of_files_are_two_caches(tmp_path: Path) -> None:
    for name in ("u#1", "u#2", "u%23"):
        quoted = name.replace("%", "%25").replace("#", "%23")
        location = locate(f"file://{tmp_path}/{quoted}", write=True)
        assert isinstance(location, LocalLocation)
        location.write("x", name.encode())
    assert {path.name for path in tmp_path.iterdir()} == {"u#1", "u#2", "u%23"}


def test_a_web_address_is_sent_as_it_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "a b#c"
    folder.mkdir()
    (folder / "x?y").write_bytes(b"1")
    with FaultyServer(from_folder(tmp_path)) as server:
        for written in ("a%20b%23c", "a b%23c"):
            location = locate(f"{server.url}/{written}?sig=a%2Bb")
            assert location.read("x?y") == b"1"
        assert {request.path for request in server.log} == {"/a%20b%23c/x%3Fy?sig=a%2Bb"}
