"""Contract of a location: where the objects of a cache are stored."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from logitcache.errors import CacheDamaged

if TYPE_CHECKING:
    from logitcache.cache.store.base import Location

__all__ = ["LocationContract"]


class LocationContract:
    """Tests that every :class:`~logitcache.cache.store.base.Location` with listings passes.

    Define a fixture ``location`` that returns an empty one that can be written to.
    """

    def test_what_is_written_is_read(self, location: Location) -> None:
        """The last content of an object is read, whole or in parts as a slice would be."""
        location.write("a/b/c.json", b"first")
        location.write("a/b/c.json", b"0123456789")
        assert location.read("a/b/c.json") == b"0123456789"
        assert location.read("a/b/c.json", 2, 5) == b"234"
        assert location.read("a/b/c.json", 7) == b"789"
        assert location.read("a/b/c.json", -4) == b"6789"

    def test_size_digest_and_time_are_those_of_the_content(self, location: Location) -> None:
        """Size and sha256 follow from the content; the time is that of the last write."""
        content = bytes(range(200))
        location.write("x.bin", content)
        assert location.size("x.bin") == 200
        assert location.digest("x.bin", most=200) == (200, hashlib.sha256(content).hexdigest())
        modified = location.modified("x.bin")
        assert modified is not None
        assert abs(modified - time.time()) < 60

    def test_an_absent_object_is_none(self, location: Location) -> None:
        """Nothing is raised for an object that does not exist, or is deleted twice."""
        location.write("x.json", b"1")
        location.delete("x.json")
        location.delete("x.json")
        for look in (location.read, location.size, location.modified, location.stamp):
            assert look("x.json") is None
        assert location.digest("x.json", most=10) is None

    def test_no_more_is_read_than_allowed(self, location: Location) -> None:
        """An object that is larger than the caller allows is damage, and is not read."""
        location.write("large.bin", bytes(100))
        with pytest.raises(CacheDamaged):
            location.read("large.bin", most=99)
        with pytest.raises(CacheDamaged):
            location.digest("large.bin", most=99)
        assert location.read("large.bin", most=100) == bytes(100)

    def test_what_is_there_is_listed(self, location: Location) -> None:
        """Names are those directly below a prefix, keys all below it."""
        assert location.is_empty()
        for key in ("x/1.json", "x/10.json", "x/2.json", "x/more/3.json", "xy.json"):
            location.write(key, b"12")
        assert location.names("x") == ["1.json", "10.json", "2.json"]
        assert location.names("nowhere") == []
        assert sorted(location.keys("x")) == ["x/1.json", "x/10.json", "x/2.json", "x/more/3.json"]
        assert set(location.keys()) == {*location.keys("x"), "xy.json"}
        assert location.bytes_below("x") == 8
        assert location.bytes_below("nowhere") == 0
        assert not location.is_empty()

    def test_only_one_creates(self, location: Location) -> None:
        """Of several threads that create one object at once, one does."""
        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(lambda i: location.create("claim.json", b"%d" % i), range(6)))
        assert won.count(True) == 1
        assert location.read("claim.json") == b"%d" % won.index(True)

    @pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../b", "a\\b", "a\0b"])
    def test_no_key_leads_out(self, location: Location, key: str) -> None:
        """Keys are relative and stay below the location."""
        for reach in (location.read, location.size, location.stamp, location.delete):
            with pytest.raises(CacheDamaged):
                reach(key)
        with pytest.raises(CacheDamaged):
            location.write(key, b"x")
