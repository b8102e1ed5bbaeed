"""The digest of a revision pins a cache; metadata damaged before a seal are written again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from logitcache.cache.read.diagnose import Cause
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.verify.restore import rewrite_unsealed
from logitcache.cache.write.exclude import withdraw_images
from logitcache.cache.write.writer import CacheWriter
from logitcache.encoding.sparse import SparseEncoding
from logitcache.errors import CacheDamaged, UsageError
from logitcache.report.describe import describe
from tests.cache.building import (
    declare,
    encode,
    make_cache,
    samples_of,
    start_cache,
    write_samples,
    write_teacher,
)

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 40
LOGITS = np.random.default_rng(0).normal(size=(ROWS, 30)).astype(np.float32)


@pytest.mark.requirement("F11.19", "F11.24")
def test_only_the_revision_that_is_asked_for_is_opened(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (SparseEncoding(30, 5), LOGITS)}, ROWS)
    digest = open_cache(tmp_path).revision_sha256
    assert describe(tmp_path).revision_sha256 == verify(tmp_path).revision_sha256 == digest
    for given in (digest, digest[:12], digest[:12].upper()):
        assert open_cache(tmp_path, revision=given).revision_sha256 == digest
    for wrong in (digest[:11], "x" * 64, ""):
        with pytest.raises(UsageError, match="12 to 64 hexadecimal digits"):
            open_cache(tmp_path, revision=wrong)
    withdraw_images(tmp_path, ["img/000003.jpg"], "a test")
    assert open_cache(tmp_path).revision_sha256 != digest, "an exclusion is a revision"
    for opened in (open_cache, verify, describe):
        with pytest.raises(CacheDamaged, match="another revision") as caught:
            opened(tmp_path, revision=digest)
        assert caught.value.exit_code == 4


@pytest.mark.requirement("F11.26")
def test_a_withdrawal_that_the_revision_names_cannot_be_deleted(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": (SparseEncoding(30, 5), LOGITS)}, ROWS)
    withdraw_images(tmp_path, ["img/000003.jpg"], "a test")
    (tmp_path / "withdrawn/1.json").unlink()
    assert [fault.cause for fault in verify(tmp_path).faults] == [Cause.WITHDRAWAL]
    with pytest.raises(CacheDamaged, match="the document of an exclusion is missing"):
        open_cache(tmp_path).samples  # noqa: B018


@pytest.mark.parametrize(
    "key", ["samples/zarr.json", "samples/key/zarr.json", "teachers/a/codes/zarr.json"]
)
@pytest.mark.parametrize("content", [b"", b"{}", b'{"zarr_format": 2}'])
def test_metadata_of_an_unsealed_cache_are_written_again(
    tmp_path: Path, key: str, content: bytes
) -> None:
    writer = start_cache(tmp_path, ROWS)
    samples = samples_of(ROWS)
    write_samples(writer, samples)
    group = declare(writer, "a", SparseEncoding(30, 5))
    before = (tmp_path / key).read_bytes()
    (tmp_path / key).write_bytes(content)
    assert [(f.cause, f.key) for f in verify(tmp_path).faults] == [(Cause.METADATA, key)]
    writer = CacheWriter.open(locate(tmp_path))
    (note,) = rewrite_unsealed(writer)
    assert key in note
    assert (tmp_path / key).read_bytes() == before
    assert verify(tmp_path).ok
    write_teacher(writer, group, encode(group, LOGITS, samples))
    writer.seal("f" * 64, {"a": {}})
    assert open_cache(tmp_path).samples.keys[0] == "img/000000.jpg"


def test_a_group_is_declared_again_unless_units_of_it_are_committed(tmp_path: Path) -> None:
    writer = start_cache(tmp_path, ROWS)
    samples = samples_of(ROWS)
    write_samples(writer, samples)
    group = declare(writer, "a", SparseEncoding(30, 5))
    (tmp_path / "teachers/a/zarr.json").write_bytes(b"")
    writer = CacheWriter.open(locate(tmp_path))
    assert len(rewrite_unsealed(writer)) == 1
    assert not writer.manifest.teachers
    group = declare(writer, "a", SparseEncoding(30, 5))
    write_teacher(writer, group, encode(group, LOGITS, samples))
    (tmp_path / "teachers/a/zarr.json").write_bytes(b"")
    with pytest.raises(CacheDamaged, match="not valid JSON"):
        rewrite_unsealed(CacheWriter.open(locate(tmp_path)))
