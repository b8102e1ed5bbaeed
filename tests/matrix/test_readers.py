"""Caches in other implementations of Zarr, which ``.ci/matrix`` installs; see docs/format.md."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from logitcache.cache.format.groups import row_groups
from logitcache.cache.format.names import SAMPLE_ARRAYS
from logitcache.cache.format.partners import mixed_views
from logitcache.cache.read.reader import open_cache
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.conftest import write_images

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from logitcache.cache.read.reader import Cache

    Read = Callable[[str, str], NDArray[Any]]
    """Returns a whole array, by the path of its group and its name."""


def needs(library: str) -> pytest.MarkDecorator:
    """Skip a test before its cache is made."""
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"needs {library}; see .ci/matrix")


ENCODINGS: dict[str, dict[str, Any]] = {
    "sparse": {"top_k": 2},
    "sparse-5-bits": {"top_k": 2, "bits": 5},
    "sparse-float16": {"top_k": 2, "sparse_values": "float16"},
    "dense": {"kind": "dense"},
    "dense-uint8": {"kind": "dense", "dense_values": "uint8"},
}
FEATURES: dict[str, Any] = {
    "layer1": {"values": "int8", "views": 1},
    "layer1.0.bn2": {"tokens": 5},
    "pre_logits": {"principal": 4, "values": "bfloat16"},
}


@pytest.fixture(scope="module", params=ENCODINGS)
def path(
    request: pytest.FixtureRequest,
    teachers: dict[str, dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a cache with mixing views, features, and an image that cannot be read."""
    root = tmp_path_factory.mktemp("readers")
    images = write_images(root / "images", 7)
    (images / "cat" / "none.jpg").write_bytes(b"no image")
    values = {
        "cache": str(root / "cache"),
        "data": str(images),
        "teachers": {"cnn": teachers["cnn"], "red": {**teachers["red"], "features": FEATURES}},
        "views": {"count": 2, "eval": True, "mixup_alpha": 0.4},
        "encoding": ENCODINGS[request.param],
        "unit_rows": 16,
        "batch_size": 8,
        "on_bad_image": "skip",
        "min_accuracy": 0,
    }
    build_cache(PrecomputeConfig.parse(values, "precompute"))
    return root / "cache"


def compare(cache: Cache, read: Read, *, keys: bool) -> None:
    """Compare every committed row of every array with what our reader returns."""
    for name, group in row_groups(cache.groups).items():
        for array in group.specs():
            found = read(group.path, array)
            for view in filter(None, group.slots):
                ours = cache.read(name, view, 0, cache.rows_end, [array])[array]
                np.testing.assert_array_equal(found[group.slot(view), : len(ours)], ours)
                assert found.dtype == ours.dtype
    for array in SAMPLE_ARRAYS:
        found = read("samples", array)
        for unit in cache.units():
            here = slice(unit * cache.unit_rows, (unit + 1) * cache.unit_rows)
            np.testing.assert_array_equal(found[here], cache.sample_unit(array, unit))
    if keys:
        assert list(read("samples", "key")[: cache.rows_end]) == list(cache.samples.keys)
    starts = np.arange(cache.rows_end) // cache.unit_rows * cache.unit_rows
    ok = cache.samples.readable
    for view in mixed_views(cache.manifest):
        offsets = read(f"views/{view}", "partner")[: cache.rows_end].astype(int)
        np.testing.assert_array_equal((starts + offsets)[ok], cache.partners(view)[ok])


@needs("xarray")
def test_a_cache_opens_in_xarray(path: Path) -> None:
    xarray = importlib.import_module("xarray")

    def opened(group: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # strings are no part of the Zarr v3 core yet
            return xarray.open_zarr(path, group=group, consolidated=False)

    cache = open_cache(path)
    for name, group in row_groups(cache.groups).items():
        dataset = opened(group.path)
        for array, spec in group.specs().items():
            axes = tuple(f"{array}_{n + 1}" for n in range(len(spec.shape)))
            assert dataset[array].dims == ("view", "row", *axes), name
    assert opened("samples")["key"].dims == ("row",)
    compare(cache, lambda group, array: opened(group)[array].values, keys=True)


@needs("xarray")
def test_xarray_takes_the_rows_of_an_image(path: Path) -> None:
    xarray = importlib.import_module("xarray")
    cache = open_cache(path)
    samples = cache.samples
    row = int(samples.readable[5])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keys = xarray.open_zarr(path, group="samples", consolidated=False)["key"]
        answers = xarray.open_zarr(path, group="teachers/red", consolidated=False)
        one = answers.isel(row=np.flatnonzero(keys.values == samples.keys[row]))
    for slot, view in enumerate(cache.teacher("red").slots):
        ours = cache.read("red", view, row, row + 1)
        for array, expected in ours.items():
            np.testing.assert_array_equal(one[array].isel(view=slot).values, expected)


@needs("tensorstore")
def test_a_cache_opens_in_tensorstore(path: Path) -> None:
    """All but the keys: it has no strings."""
    tensorstore = importlib.import_module("tensorstore")

    def read(group: str, array: str) -> NDArray[Any]:
        place = {"driver": "file", "path": str(path / group / array)}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()
        assert opened.domain.labels[-len(opened.shape) :][0] in {"view", "row"}
        values: NDArray[Any] = opened.read().result()
        return values

    compare(open_cache(path), read, keys=False)


@needs("zarrs")
def test_a_cache_opens_in_zarrs(path: Path) -> None:
    """A pipeline of codecs in Rust below the interface of zarr-python."""

    def read(group: str, array: str) -> NDArray[Any]:
        pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
        with zarr.config.set(pipeline), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened: Any = zarr.open_array(path / group / array, mode="r")
            assert type(opened._async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
            return np.asarray(opened[:])

    compare(open_cache(path), read, keys=True)
