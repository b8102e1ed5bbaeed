"""Taps: kept in the same forward, resumed, verified, mended and read by the right rows."""

from __future__ import annotations

import base64
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.cache.read.reader import open_cache
from logitcache.cache.verify.integrity import verify
from logitcache.check.repair import RepairConfig, repair_cache
from logitcache.data.decode import decode
from logitcache.data.readers import open_source
from logitcache.errors import Interrupted, NonFiniteLogits, UsageError
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.networks.taps import TappedNetwork
from logitcache.precompute.build import build_cache
from logitcache.report.describe import describe
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.render import render
from logitcache.views.spec import parse_view
from logitcache.views.tokens import kept_tokens
from tests.precompute.test_building import commits, config

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.cache.read.reader import Cache

Teachers = dict[str, dict[str, Any]]

FEATURES: dict[str, Any] = {
    "layer1": {"values": "int8", "views": 1},
    "layer1.0.bn2": {"tokens": 5},
    "pre_logits": {"principal": 4, "values": "bfloat16"},
}


@pytest.fixture(scope="module")
def configured(teachers: dict[str, dict[str, str]]) -> Teachers:
    return {"cnn": dict(teachers["cnn"]), "red": {**teachers["red"], "features": FEATURES}}


@pytest.fixture(scope="module")
def built(images: Path, configured: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "cache"
    build_cache(config(path, images, configured))
    return path


def _forwarded(
    cache: Cache, images: Path, teacher: dict[str, Any], view_id: str, row: int
) -> dict[str, torch.Tensor]:
    """Render and forward one row by hand."""
    source = open_source(str(images))
    network = build_network(NetworkConfig(model=teacher["model"])).eval()
    cfg: Any = network.pretrained_cfg
    mean = torch.tensor(cfg["mean"]).view(3, 1, 1) * 255
    std = torch.tensor(cfg["std"]).view(3, 1, 1) * 255
    samples, view = cache.samples, parse_view(cache.views[view_id], "")
    floats = view_floats(view, samples.hashes)
    image = decode(source.read(list(source.keys).index(samples.keys[row])))
    how = parameters(view, [f[row].tolist() for f in floats], *image.shape[1:])
    pixels = render(image, how, 8, view.interpolation).float()
    with torch.no_grad():
        _, kept = TappedNetwork(network, FEATURES, size=8)(((pixels - mean) / std)[None])
    return {tap: values[0] for tap, values in kept.items()}


@pytest.mark.requirement("F8.1", "F8.7", "F8.8")
def test_it_holds_what_the_network_held_of_the_very_views(
    built: Path, images: Path, configured: Teachers
) -> None:
    cache = open_cache(built)
    assert set(cache.features) == {f"red/{tap}" for tap in FEATURES}
    assert set(cache.teachers) == {"cnn", "red"}
    view_id = cache.views_of(["red"], [f"red/{tap}" for tap in FEATURES])[0]
    view = parse_view(cache.views[view_id], "")
    stored = {
        tap: cache.tap(f"red/{tap}").encoding.decode(
            cache.read(f"red/features/{tap}", view_id, 0, 64)
        )
        for tap in FEATURES
    }
    for row in cache.samples.readable[::17]:
        exact = _forwarded(cache, images, configured["red"], view_id, int(row))
        whole = exact["layer1"].numpy()
        step = np.abs(whole).max(axis=0) / 127 * 1.01
        assert (np.abs(stored["layer1"][row] - whole) <= step).all()
        encoding = cache.tap("red/layer1.0.bn2").encoding
        positions = kept_tokens(view, cache.samples.hashes[[row]], encoding.patches, 5)[0]
        tokens = exact["layer1.0.bn2"].flatten(1).T[positions]
        np.testing.assert_allclose(stored["layer1.0.bn2"][row], tokens, rtol=2e-3, atol=2e-3)
        principal = cache.tap("red/pre_logits").encoding.principal
        assert principal is not None
        expected = (exact["pre_logits"].numpy() - principal.mean) @ principal.basis
        np.testing.assert_allclose(stored["pre_logits"][row], expected, rtol=1e-2, atol=1e-2)


@pytest.mark.requirement("F8.2")
def test_a_tap_may_be_kept_in_fewer_views(built: Path) -> None:
    cache = open_cache(built)
    assert len(cache.views_of(["red"])) == 2
    assert cache.views_of(["red"], ["red/layer1"]) == cache.views_of(["red"])[:1]
    assert len(cache.views_of(["red"], ["red/pre_logits"])) == 2


@pytest.mark.requirement("F8.12")
def test_maps_of_mostly_zeros_are_compressed(built: Path) -> None:
    cache = open_cache(built)
    view_id = cache.views_of([], ["red/layer1"])[0]
    for tap in FEATURES:
        group = cache.tap(f"red/{tap}")
        values = group.encoding.decode(cache.read(group.name, view_id, 0, 16))
        assert group.encoding.sparse == (np.mean(values == 0) >= 0.5)


def test_a_cache_describes_its_taps(built: Path) -> None:
    description = describe(built)
    red = next(teacher for teacher in description.teachers if teacher.name == "red")
    assert [features.tap for features in red.features] == list(FEATURES)
    assert all(features.units == features.needed for features in red.features)
    assert all(features.stored_bytes > 0 for features in red.features)


@pytest.mark.requirement("F13.4", "F13.5")
def test_what_coding_a_tap_loses_is_kept(built: Path) -> None:
    taps = {f.tap: f.fidelity for t in describe(built).teachers for f in t.features}
    assert all(found is not None and found["rows"] == 60 for found in taps.values())
    coded: Any = taps["layer1"]
    assert 1e-4 < coded["coding"] < 0.02
    assert coded["cosine"] > 0.9999
    assert coded["gradient"] == pytest.approx(coded["error"] / 0.4)
    assert [taps[tap]["reduction"] for tap in FEATURES] == [0, 0, None]  # type: ignore[index]  # not None, as asserted


@pytest.mark.requirement("F8.1")
def test_answers_are_the_same_without_taps(
    built: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    build_cache(config(tmp_path / "plain", images, teachers))
    with_taps, plain = open_cache(built), open_cache(tmp_path / "plain")
    for view_id in plain.views_of(["red"]):
        ours, theirs = (cache.read("red", view_id, 0, 64) for cache in (with_taps, plain))
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_run_that_was_interrupted_ends_in_the_same_bytes(
    built: Path, images: Path, configured: Teachers, tmp_path: Path
) -> None:
    path, checks = tmp_path / "cache", 0

    def soon() -> bool:
        nonlocal checks
        checks += 1
        return checks % 5 == 0

    for _ in range(20):
        try:
            build_cache(config(path, images, configured), should_stop=soon)
            break
        except Interrupted:
            continue
    else:
        pytest.fail("it never ended")
    assert checks > 10
    assert commits(path) == commits(built)


def test_taps_added_later_are_the_same_and_answers_are_not_written_again(
    built: Path, images: Path, configured: Teachers, teachers: Teachers, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    build_cache(config(path, images, teachers))
    before = commits(path)
    build_cache(config(path, images, configured))
    after = commits(path)
    assert {key: after[key] for key in before} == before
    assert after == commits(built)
    assert open_cache(path).revision.number == 2


def test_another_encoding_of_a_known_tap_is_refused(
    built: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    shutil.copytree(built, tmp_path / "cache")
    other = {**teachers["red"], "features": {"layer1": {"values": "float16"}}}
    with pytest.raises(UsageError, match=r"values int8[\s\S]*values float16"):
        build_cache(config(tmp_path / "cache", images, {"red": other}))


def test_a_tap_that_is_not_there_costs_nothing(
    images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    other = {**teachers["red"], "features": {"blocks.3": {}}}
    with pytest.raises(UsageError, match="layer1, pre_logits"):
        build_cache(config(tmp_path / "cache", images, {"red": other}))


def test_nan_in_a_tap_is_an_error(
    images: Path, configured: Teachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logitcache.teachers.member import Member

    start = Member.start

    def poisoned(self: Member, pixels: Any, taps: Any, shown: Any) -> Any:
        logits, kept = start(self, pixels, taps, shown)
        if len(taps) > 1:
            kept["layer1"]()[0, 0, 0, 0] = np.nan
        return logits, kept

    monkeypatch.setattr(Member, "start", poisoned)
    with pytest.raises(NonFiniteLogits, match="teacher 'red', layer 'layer1'"):
        build_cache(config(tmp_path / "cache", images, configured))


def test_damage_is_named_and_mended(
    built: Path, images: Path, configured: Teachers, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    shutil.copytree(built, path)
    shards = sorted(path.glob("teachers/red/features/layer1/values/c/**/*"))
    shard = next(file for file in shards if file.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    (path / "teachers/red/features/pre_logits/zarr.json").write_text("{}")
    report = verify(path)
    found = {fault.group for fault in report.faults}
    assert found == {"teachers/red/features/layer1", "teachers/red/features/pre_logits"}
    teachers = {name: {"model": values["model"]} for name, values in configured.items()}
    repair = RepairConfig.parse(
        {"cache": str(path), "data": str(images), "teachers": teachers}, "repair"
    )
    assert repair_cache(repair).remaining == ()
    for file in sorted(built.glob("teachers/**/*")):
        if file.is_file():
            assert (path / file.relative_to(built)).read_bytes() == file.read_bytes()


@pytest.mark.requirement("F5.1", "F8.11")
def test_a_tap_has_the_attributes_of_the_page(built: Path) -> None:
    cache = open_cache(built)

    def attributes(tap: str) -> dict[str, Any]:
        path = built / f"teachers/red/features/{tap}/zarr.json"
        found: dict[str, Any] = json.loads(path.read_text())["attributes"]["logitcache"]
        assert found.keys() == {"format", "unit_rows", "view_ids", "lock_sha256", "encoding"}
        assert found["view_ids"] == list(cache.tap(f"red/{tap}").view_ids)
        of_teacher = json.loads((built / "teachers/red/zarr.json").read_text())
        assert found["lock_sha256"] == of_teacher["attributes"]["logitcache"]["lock_sha256"]
        encoding: dict[str, Any] = found["encoding"]
        return encoding

    fields = {
        "layout",
        "shape",
        "values",
        "grid",
        "prefix_tokens",
        "kept_tokens",
        "reduction",
        "standardised",
        "pool",
        "sparse",
    }
    layer = attributes("layer1")
    assert layer.keys() == fields | {"scale_axes"}
    assert (layer["layout"], layer["values"], layer["scale_axes"]) == ("NCHW", "int8", "channels")
    assert (layer["reduction"], layer["standardised"], layer["pool"]) == ("none", False, None)
    tokens = attributes("layer1.0.bn2")
    assert (tokens["layout"], tokens["kept_tokens"], tokens["shape"][0]) == ("NLC", 5, 5)
    vector = attributes("pre_logits")
    assert vector.keys() == fields | {"principal"}
    directions, mean, basis = (vector["principal"][n] for n in ("directions", "mean", "basis"))
    fitted = cache.tap("red/pre_logits").encoding.principal
    assert fitted is not None
    assert (directions, vector["shape"]) == (4, [4])
    assert base64.b64decode(mean) == fitted.mean.astype("<f4").tobytes()
    assert base64.b64decode(basis) == fitted.basis.astype("<f4").tobytes()
    array = json.loads((built / "teachers/red/features/layer1/scale/zarr.json").read_text())
    assert (array["data_type"], len(array["shape"])) == ("float16", 4)
