"""Drift of every kind is caught before the first step, by probes alone."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch.nn import functional

from logitcache.cache.read.reader import open_cache
from logitcache.data.decode import decode
from logitcache.data.readers import open_source
from logitcache.draws import words
from logitcache.errors import CacheDamaged, DataMismatch, ParameterDrift, PixelDrift
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.images import fingerprint_check as checking
from logitcache.targets.images.fingerprint_check import check_fingerprints
from logitcache.targets.loader import loader
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.views import algorithm, color, erase, geometry, render
from logitcache.views import fingerprints as probing
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.arithmetic import exp2
from logitcache.views.environment import rendering_versions
from logitcache.views.fingerprints import (
    Fingerprint,
    choose_fingerprints,
    fingerprint_difference,
)
from logitcache.views.operations import RandAugment
from logitcache.views.spec import parse_view
from tests.conftest import jpeg, shape_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from logitcache.views.parameters import Parameters

Teachers = dict[str, dict[str, str]]
VIEWS = {"count": 3, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.3, "mixup_alpha": 0.8}


def values(cache: Path, images: Path, teachers: Teachers, **views: Any) -> PrecomputeConfig:
    return PrecomputeConfig.parse(
        {
            "cache": str(cache),
            "data": str(images),
            "teachers": {"red": {**teachers["red"], "size": 24}},
            "views": {**VIEWS, **views},
            "unit_rows": 16,
        },
        "",
    )


@pytest.fixture(scope="module")
def built(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probes") / "cache"
    build_cache(values(path, images, teachers))
    return path


@pytest.mark.requirement("V8.1")
def test_nothing_drifts_here(built: Path, images: Path) -> None:
    report = check_fingerprints(open_cache(built), open_source(str(images)))
    assert report.checked >= 64
    assert (report.skipped, report.drifted, report.largest) == (0, 0, 0)
    assert report.made_with == report.here


@pytest.mark.requirement("V8.1")
def test_probes_are_spread_over_views_and_segments() -> None:
    segments = [np.arange(100), 128 + np.arange(7), np.empty(0, dtype=np.int64)]
    chosen = choose_fingerprints(["a", "b", "c"], segments)
    assert len(chosen) >= 50
    assert len(set(chosen)) == len(chosen)
    for view in "abc":
        rows = [row for name, row in chosen if name == view]
        assert max(np.diff(sorted(row for row in rows if row < 100))) < 20
        assert sum(row >= 128 for row in rows) == 7
    assert len(choose_fingerprints([f"v{i}" for i in range(3000)], segments)) <= 192
    assert len(choose_fingerprints(["a"], [np.arange(1000)])) == 64
    assert choose_fingerprints([], segments) == []


@pytest.mark.requirement("F5.11")
def test_more_views_and_images_bring_more_probes(
    built: Path, images: Path, teachers: Teachers, tmp_path: Path
) -> None:
    shutil.copytree(built, tmp_path / "c")
    shutil.copytree(images, tmp_path / "images")
    build_cache(values(tmp_path / "c", tmp_path / "images", teachers))
    assert len(open_cache(tmp_path / "c").probes()) == 1, "nothing new, nothing written"
    (tmp_path / "images" / "cat" / "new.jpg").write_bytes(jpeg(shape_image(77)))
    build_cache(values(tmp_path / "c", tmp_path / "images", teachers, count=4))
    cache = open_cache(tmp_path / "c")
    covered = {
        (view, start)
        for document in cache.probes()
        for view in document.views
        for start in document.segments
    }
    starts = {segment.start for segment in cache.manifest.segments}
    assert covered == {(view, start) for view in cache.views for start in starts}
    assert check_fingerprints(cache, open_source(str(tmp_path / "images"))).drifted == 0


def other_resizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's bicubic instead of torch's."""

    def resize(image: torch.Tensor, height: int, width: int, _: str) -> torch.Tensor:
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    monkeypatch.setattr(geometry, "_resize", resize)


def no_antialiasing(monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(image: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
        out = functional.interpolate(image[None].float(), size=(height, width), mode=mode)
        return out.round().clamp(0, 255).byte()[0]

    monkeypatch.setattr(geometry, "_resize", resize)


def other_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that is off by one level in one pixel of a hundred."""

    def off(stored: Any, table: int) -> torch.Tensor:
        image = decode(stored, table).clone()
        image[:, ::10, ::10] ^= 1
        return image

    monkeypatch.setattr(probing, "decode", off)


def flipped_order(monkeypatch: pytest.MonkeyPatch) -> None:
    apply = render._apply
    monkeypatch.setattr(
        render, "_apply", lambda square, steps, mode: apply(square, steps[::-1], mode)
    )


def other_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose equalize does nothing."""
    monkeypatch.setitem(color.COLOR_STEPS, "equalize", lambda picture: picture)


def other_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "sine", lambda degrees: degrees * 0.0174)


def other_blend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blending that rounds down."""
    monkeypatch.setattr(
        render,
        "mix_squares",
        lambda own, other, how: (how.lam * own + (1 - how.lam) * other).to(torch.uint8),
    )


@pytest.mark.requirement("V8.4")
@pytest.mark.parametrize(
    "drift",
    [
        other_resizer,
        no_antialiasing,
        other_decoder,
        flipped_order,
        other_contrast,
        other_rotation,
        other_blend,
    ],
)
def test_pixel_drift_is_caught(
    built: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    drift: Callable[[pytest.MonkeyPatch], None],
) -> None:
    cache, source = open_cache(built), open_source(str(images))
    drift(monkeypatch)
    with pytest.raises(PixelDrift, match=r"of 255, with[\s\S]*--tolerate-pixel-drift \d") as found:
        check_fingerprints(cache, source)
    assert found.value.exit_code == 4
    largest = int(str(found.value.hint).rpartition(" ")[2])
    assert check_fingerprints(cache, source, tolerance=largest).largest == largest
    with pytest.raises(PixelDrift):
        check_fingerprints(cache, source, tolerance=largest - 1)


def other_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "exp2", lambda x: exp2(x) * 1.02)


def other_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithm, "words", lambda *args, **kwargs: words(*args, **kwargs)[:, ::-1])


def other_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = algorithm._STEPS[RandAugment]
    monkeypatch.setitem(
        algorithm._STEPS, RandAugment, lambda operation, u: draw(operation, u)[::-1]
    )


def other_erasing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase, "log2", lambda x: x - 1)


@pytest.mark.requirement("V8.3")
@pytest.mark.parametrize("drift", [other_scale, other_words, other_layers, other_erasing])
def test_parameter_drift_is_caught_and_never_tolerated(
    built: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    drift: Callable[[pytest.MonkeyPatch], None],
) -> None:
    drift(monkeypatch)
    with pytest.raises(ParameterDrift, match="which no option tolerates"):
        check_fingerprints(open_cache(built), open_source(str(images)), tolerance=255)


@pytest.mark.requirement("V8.4")
def test_the_message_names_versions_on_both_sides(
    built: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "none" if rendering_versions()["cpu"] == "vector" else "vector"
    here = {**rendering_versions(), "pillow": "99.0", "cpu": other}
    monkeypatch.setattr(checking, "rendering_versions", lambda: here)
    other_resizer(monkeypatch)
    with pytest.raises(PixelDrift) as found:
        check_fingerprints(open_cache(built), open_source(str(images)))
    text = found.value.render()
    assert "pillow 99.0" in text
    assert f"cpu {other}" in text
    assert f"install pillow {PIL.__version__}; " in text
    assert f"use a processor of class {rendering_versions()['cpu']}" in text


@pytest.mark.requirement("V8.2")
def test_train_and_loader_stop_before_the_first_step(
    built: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_resizer(monkeypatch)
    with pytest.raises(PixelDrift):
        loader(open_cache(built), str(images), size=8)
    fields: dict[str, Any] = {
        "out": str(tmp_path / "run"),
        "data": str(images),
        "cache": str(built),
        "student": {"model": "resnet10t", "kwargs": {"channels": [16] * 4, "stem_width": 16}},
        "steps": 1,
        "batch_size": 8,
    }
    with pytest.raises(PixelDrift):
        train_student(TrainConfig.parse(fields, ""))
    assert not (tmp_path / "run").exists()
    tolerant = {**fields, "student": {**fields["student"], "size": 32}, "tolerate_pixel_drift": 255}
    assert train_student(TrainConfig.parse(tolerant, "")).steps == 1


@pytest.mark.requirement("V8.6")
def test_changed_images_are_no_drift(built: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    for path in (tmp_path / "images").glob("*/*.jpg"):
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
    with pytest.raises(DataMismatch, match="not the one that the teachers were given"):
        check_fingerprints(open_cache(built), open_source(str(tmp_path / "images")))


def test_probes_of_missing_images_are_skipped(built: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "images")
    for path in (tmp_path / "images" / "cat").glob("*.jpg"):
        path.unlink()
    report = check_fingerprints(open_cache(built), open_source(str(tmp_path / "images")))
    assert report.skipped > 0
    assert report.checked > 0


@pytest.mark.requirement("F5.11")
def test_damaged_probes_are_not_trusted(built: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "c")
    path = tmp_path / "c" / "probes" / "1.json"
    document = json.loads(path.read_text())
    document["probes"] = document["probes"][:3]
    path.write_text(json.dumps(document))
    with pytest.raises(CacheDamaged, match="has changed since it was sealed"):
        open_cache(tmp_path / "c").probes()
    path.unlink()
    with pytest.raises(CacheDamaged, match="a document of view fingerprints is missing"):
        check_fingerprints(open_cache(tmp_path / "c"), open_source(str(images)))


@pytest.mark.requirement("F5.10", "V8.1")
def test_a_probe_holds_digests_of_parameters_and_square_and_a_patch(
    built: Path, images: Path
) -> None:
    """Rendered here by hand, image and partner."""
    cache, source = open_cache(built), open_source(str(images))
    keys = list(source.keys)
    (document,) = cache.probes()
    assert document.views == list(cache.views)
    assert document.segments == [0]
    for probe in document.probes[::9]:
        view, size = parse_view(cache.views[probe["view"]], ""), probe["size"]
        shown: list[tuple[Parameters | None, torch.Tensor | None]] = []
        for row in (probe["row"], probe["partner"]):
            if row is None:
                shown.append((None, None))
                continue
            image = decode(source.read(keys.index(cache.samples.keys[row])))
            floats = view_floats(view, cache.samples.hashes[[row]])
            its = parameters(view, [f[0].tolist() for f in floats], *image.shape[1:])
            shown.append((its, render.picture(image, its, size, view.interpolation)))
        (how, own), (other_how, other) = shown
        assert how is not None
        assert own is not None
        square = render.finish(own, how, view.interpolation, other).numpy()
        drawn = [how.to_json(), None if other_how is None else other_how.to_json()]
        text = json.dumps(drawn, sort_keys=True, separators=(",", ":"))
        assert probe["parameters"] == hashlib.sha256(text.encode()).hexdigest()
        assert probe["pixels"] == hashlib.sha256(square.tobytes()).hexdigest()
        (top, left), side = probe["at"], min(48, size)
        patch = np.ascontiguousarray(square[:, top : top + side, left : left + side])
        assert base64.b64decode(probe["patch"]) == patch.tobytes()


@pytest.mark.requirement("V8.5")
def test_a_square_that_differs_outside_of_its_patch_counts_as_1() -> None:
    patch = np.zeros((3, 48, 48), dtype=np.uint8)
    before = Fingerprint("v", 0, None, 64, "p", "a", 0, 0, patch)
    assert fingerprint_difference(before, replace(before, pixels="b")) == 1
    assert fingerprint_difference(before, before) == 0
    assert fingerprint_difference(before, replace(before, pixels="b", patch=patch + 7)) == 7
    assert fingerprint_difference(before, replace(before, parameters="q")) is None
