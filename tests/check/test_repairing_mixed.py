"""Views that mix images: damaged partners and fingerprints are named and repaired."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.exclude import withdraw_images
from logitcache.errors import CacheDamaged, DataMismatch
from tests.check.test_repairing import precompute, repair, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Teachers = dict[str, dict[str, str]]
MIXED = {"count": 1, "mixup_alpha": 1.0}


@pytest.fixture(scope="module")
def intact(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixed") / "cache"
    precompute(path, images, {"red": teachers["red"]}, views=MIXED)
    assert verify(path).ok
    return path


@pytest.fixture
def cache(intact: Path, tmp_path: Path) -> Path:
    shutil.copytree(intact, tmp_path / "cache")
    return tmp_path / "cache"


def partners(cache: Path) -> Path:
    return min(cache.glob("views/*/partner/c/*"))


def answers(cache: Path) -> Path:
    return min(p for p in cache.glob("teachers/red/logp/c/**/*") if p.is_file())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def both(cache: Path) -> None:
    flip(partners(cache))
    flip(answers(cache))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": lambda cache: flip(partners(cache)),
    "missing": lambda cache: partners(cache).unlink(),
    "metadata": lambda cache: partners(cache).parent.parent.joinpath("zarr.json").write_text("{}"),
    "commits": lambda cache: shutil.rmtree(min((cache / "commits" / "views").iterdir())),
    "probes": lambda cache: flip(min((cache / "probes").iterdir())),
    "with the answers": both,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_it_is_named_and_mended_to_the_byte(
    intact: Path, cache: Path, images: Path, teachers: Teachers, name: str
) -> None:
    DAMAGES[name](cache)
    found = verify(cache).faults
    assert any(fault.key.startswith(("views/", "commits/views/", "probes/")) for fault in found)
    summary = repair(cache, images, {"red": teachers["red"]})
    assert summary.remaining == ()
    assert snapshot(cache) == snapshot(intact)


def test_a_reader_stops_at_damaged_partners(cache: Path) -> None:
    flip(partners(cache))
    opened = open_cache(cache)
    with pytest.raises(CacheDamaged, match="partner"):
        opened.partners(next(iter(opened.views)))


def test_a_withdrawn_partner_leaves_all_other_pairs_as_they_were(
    cache: Path, images: Path, teachers: Teachers
) -> None:
    view = next(iter(open_cache(cache).views))
    before = open_cache(cache).partners(view)
    gone = int(np.flatnonzero((before >= 0) & (before != np.arange(len(before))))[0])
    withdraw_images(cache, [open_cache(cache).samples.keys[gone]], "a test")
    after = open_cache(cache).partners(view)
    assert after[gone] == -1
    others = np.delete(np.arange(len(before)), gone)
    np.testing.assert_array_equal(after[others], before[others])
    precompute(cache, images, teachers, views=MIXED)  # the second teacher sees the stored pairs
    assert verify(cache).ok
    np.testing.assert_array_equal(open_cache(cache).partners(view), after)


def test_pairs_that_no_teacher_saw_are_refused(
    cache: Path, images: Path, teachers: Teachers
) -> None:
    view = next(iter(open_cache(cache).views))
    row = int(np.flatnonzero(open_cache(cache).partners(view)[:16] >= 0)[0])
    withdraw_images(cache, [open_cache(cache).samples.keys[row]], "a test")
    flip(cache / f"views/{view}/partner/c/0")
    with pytest.raises(DataMismatch, match="withdrawn/ folder"):
        repair(cache, images, {"red": teachers["red"]})
