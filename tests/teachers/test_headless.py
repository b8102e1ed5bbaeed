"""Teachers without classes: features alone, through every stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import HEADLESS
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.drop import drop_from_cache
from logitcache.check.audit import audit_teachers
from logitcache.check.repair import RepairConfig, repair_cache
from logitcache.check.stored_rows import StoredReader, StoredRows
from logitcache.data.readers import open_source
from logitcache.errors import CacheError, UsageError
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.precompute.build import build_cache
from logitcache.precompute.estimate.estimate import estimate_cache
from logitcache.report.describe import describe
from logitcache.report.survey import survey
from logitcache.targets.loader import loader
from logitcache.teachers.member import TeacherConfig
from logitcache.tools.fit_weights import FitWeightsConfig, fit_weights
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from tests.conftest import jpeg, shape_image
from tests.precompute.test_building import commits, config

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TAPS: dict[str, Any] = {"blocks.1": {"values": "float16"}, "pre_logits": {"views": 1}}
IMAGES = 24


def write_unlabeled(root: Path) -> Path:
    """Write images without class folders."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(IMAGES):
        (root / f"{number:02d}.jpg").write_bytes(jpeg(shape_image(number)))
    return root


def write_backbone(folder: Path) -> dict[str, Any]:
    """Write a ViT without a classifier, with random weights."""
    torch.manual_seed(0)
    model = {"model": "vit_tiny_patch16_224", "kwargs": VIT}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vit.safetensors"
    save_file(build_network(NetworkConfig.parse(model, ""), 0).state_dict(), path)
    return {**model, "weights": str(path)}


@pytest.fixture(scope="module")
def unlabeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unlabeled(tmp_path_factory.mktemp("unlabeled"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def headless(backbone: dict[str, Any]) -> dict[str, Any]:
    return {**backbone, "head": "none", "features": TAPS}


@pytest.fixture(scope="module")
def built(
    unlabeled: Path, headless: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("headless") / "cache"
    build_cache(config(path, unlabeled, {"vit": headless}))
    return path


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "cache"))


@pytest.mark.requirement("F2.5.1", "F12.8.1")
def test_unlabeled_images_give_features_alone(built: Path) -> None:
    cache = open_cache(built)
    assert dict(cache.teachers) == {}
    assert set(cache.features) == {"vit/blocks.1", "vit/pre_logits"}
    assert len(cache.views) == 2
    manifest = read_manifest(locate(built))
    assert HEADLESS in manifest.requires
    assert manifest.teachers["vit"].lock["head"] == "none"
    assert manifest.teachers["vit"].accuracy == {}
    arrays = {str(p.relative_to(built).parent) for p in built.glob("teachers/**/zarr.json")}
    assert not arrays & {"teachers/vit/logp", "teachers/vit/class_ids"}
    report = verify(str(built))
    assert (report.ok, report.orphans) == (True, ())


def test_the_features_are_what_the_network_computes(built: Path, headless: dict[str, Any]) -> None:
    """Forwarded again by timm's own functions, for the images of the loader."""
    cache = open_cache(built)
    network: Any = build_network(
        NetworkConfig.parse({k: headless[k] for k in ("model", "weights", "kwargs")}, ""), 0
    )
    network.eval()
    half = (0.5, 0.5, 0.5)
    batches = loader(
        cache,
        str(unlabeled_of(cache)),
        features=["vit/pre_logits", "vit/blocks.1"],
        batch_size=8,
        size=16,
        mean=half,
        std=half,
    )
    count = 0
    for images, targets in batches:
        with torch.no_grad():
            tokens = network.forward_intermediates(
                images, indices=[1], output_fmt="NLC", return_prefix_tokens=True
            )[1][0]
            pooled = network.forward_head(network.forward_features(images), pre_logits=True)
        stored = targets.features["vit/blocks.1"].values
        expected = torch.cat([tokens[1], tokens[0]], dim=1)
        torch.testing.assert_close(stored, expected, rtol=2e-3, atol=2e-3)
        stored = targets.features["vit/pre_logits"].values
        torch.testing.assert_close(stored, pooled, rtol=2e-3, atol=2e-3)
        assert targets.teachers == {}
        count += len(images)
    assert count == IMAGES


def unlabeled_of(cache: Any) -> str:
    """Return the folder that a cache was computed from."""
    return str(cache.manifest.data.description.split(" ")[-1])


def test_a_run_that_was_stopped_is_resumed(
    unlabeled: Path, headless: dict[str, Any], built: Path, tmp_path: Path
) -> None:
    one_tap = {**headless, "features": {"blocks.1": TAPS["blocks.1"]}}
    build_cache(config(tmp_path / "cache", unlabeled, {"vit": one_tap}))
    build_cache(config(tmp_path / "cache", unlabeled, {"vit": headless}))
    assert commits(tmp_path / "cache") == commits(built)


def test_other_weights_are_refused_by_the_lock(
    copied: Path, unlabeled: Path, headless: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = build_network(NetworkConfig.parse({"model": headless["model"], "kwargs": VIT}, ""), 0)
    save_file(network.state_dict(), tmp_path / "other.safetensors")
    other = {**headless, "weights": str(tmp_path / "other.safetensors")}
    with pytest.raises(CacheError, match="another teacher named 'vit'"):
        build_cache(config(copied, unlabeled, {"vit": other}))


def test_a_classifier_in_the_weights_is_left_out(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Labeled images, and a teacher with logits in the same cache."""
    bare: dict[str, Any] = {**teachers["cnn"], "head": "none", "features": {"pre_logits": {}}}
    summary = build_cache(config(tmp_path / "c", images, {"bare": bare, "red": teachers["red"]}))
    assert set(summary.accuracy) == {"red"}
    assert set(summary.sizes) == {"red", "bare/features/pre_logits"}
    cache = open_cache(tmp_path / "c")
    assert list(cache.teachers) == ["red"]
    found = describe(tmp_path / "c")
    assert found.complete
    described = {teacher.name: teacher for teacher in found.teachers}
    assert (described["bare"].num_classes, described["bare"].encoding) == (None, None)
    assert (described["bare"].views, described["bare"].units) == (2, 0)
    assert described["red"].num_classes == 3
    left = drop_from_cache(tmp_path / "c", teachers=["bare"])
    assert left.left_teachers == ("red",)
    assert HEADLESS not in read_manifest(locate(tmp_path / "c")).requires
    assert verify(str(tmp_path / "c")).ok


def test_a_file_of_dinov2_is_read(unlabeled: Path, tmp_path: Path) -> None:
    """Its names are those of timm, with a mask token, for images of another size."""
    kwargs = {"img_size": 56, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = {"model": "vit_small_patch14_reg4_dinov2", "kwargs": kwargs}
    torch.manual_seed(0)
    state = build_network(NetworkConfig.parse(model, ""), 0).state_dict()
    published = {
        **{name.replace("reg_token", "register_tokens"): t for name, t in state.items()},
        "mask_token": torch.zeros(1, 24),
        "pos_embed": torch.cat([torch.zeros(1, 1, 24), state["pos_embed"]], dim=1),
        "cls_token": torch.ones(1, 1, 24),
    }
    torch.save(published, tmp_path / "dinov2.pth")
    teacher = {**model, "weights": str(tmp_path / "dinov2.pth"), "head": "none"}
    features: dict[str, Any] = {"blocks.0": {}, "pre_logits": {}}
    views = {"count": 1}
    requested: dict[str, Any] = {"dino": {**teacher, "features": features}}
    build_cache(config(tmp_path / "c", unlabeled, requested, views=views))
    tokens = open_cache(tmp_path / "c").tap("dino/blocks.0").encoding
    assert (tokens.shape, tokens.grid, tokens.prefix_tokens) == ((21, 24), 4, 5)


def test_the_last_features_are_not_dropped_alone(copied: Path) -> None:
    drop_from_cache(copied, features=["vit/pre_logits"])
    with pytest.raises(UsageError, match="nothing of it would be left"):
        drop_from_cache(copied, features=["vit/blocks.1"])
    assert set(open_cache(copied).features) == {"vit/blocks.1"}


def test_views_are_dropped_by_the_numbers_of_the_reader(copied: Path) -> None:
    first, second = open_cache(copied).views
    dropped = drop_from_cache(copied, views=["1"])
    assert (dropped.views, dropped.left_views) == ((second,), (first,))


def test_views_of_logits_are_numbered_before_those_of_features_alone(
    unlabeled: Path, headless: dict[str, Any], backbone: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever the names of the teachers, by the reader and by drop alike."""
    cache = tmp_path / "cache"
    build_cache(config(cache, unlabeled, {"a": headless}, views={"count": 1}))
    torch.manual_seed(3)
    path = tmp_path / "z.safetensors"
    save_file(
        build_network(NetworkConfig.parse(without_weights(backbone), ""), 4).state_dict(), path
    )
    other = {**without_weights(backbone), "weights": str(path)}
    flips = {"count": 1, "hflip": 0.1}
    build_cache(config(cache, unlabeled, {"z": other}, views=flips, add_views=True))
    opened = open_cache(cache)
    of_logits, of_features = opened.views
    assert opened.views_of(["z"]) == [of_logits]
    assert opened.views_of([], ["a/pre_logits"]) == [of_features]
    with pytest.raises(UsageError, match="'z' would be left without a view"):
        drop_from_cache(cache, views=["0"])
    found = survey(str(cache))
    assert [[view.view for view in teacher.views] for teacher in found.teachers] == [[of_logits]]


def without_weights(network: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in network.items() if name != "weights"}


def test_features_are_audited(
    copied: Path, unlabeled: Path, backbone: dict[str, Any], headless: dict[str, Any]
) -> None:
    """The settings of the lock are taken, so neither head nor features are given again."""
    source = open_source(str(unlabeled))
    (audit,) = audit_teachers(str(copied), source, {"vit": backbone}, samples=None)
    assert audit.ok, audit
    assert (audit.samples, audit.views) == (2 * IMAGES, 2)
    assert audit.taps == {"blocks.1": 2 * IMAGES, "pre_logits": IMAGES}
    assert (audit.agreement, audit.kl, audit.eps) == (None, None, None)
    json.dumps(audit.to_json(), allow_nan=False)


def test_features_of_other_images_are_found(
    built: Path, unlabeled: Path, backbone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = StoredReader.read

    def shifted(self: StoredReader, runs: Any) -> StoredRows:
        stored = read(self, runs)
        other = stored.take(np.roll(np.arange(len(stored.rows)), 1))
        return replace(stored, arrays=other.arrays, has=other.has)

    monkeypatch.setattr(StoredReader, "read", shifted)
    source = open_source(str(unlabeled))
    (audit,) = audit_teachers(str(built), source, {"vit": backbone}, samples=None)
    assert audit.mismatched > IMAGES
    assert audit.mismatches[0].arrays in {
        ("features/blocks.1",),
        ("features/blocks.1", "features/pre_logits"),
    }


def test_damaged_features_are_computed_again(
    copied: Path, built: Path, unlabeled: Path, backbone: dict[str, Any]
) -> None:
    for shard in (copied / "teachers/vit/features/pre_logits/values/c/0").rglob("*"):
        if shard.is_file():
            shard.write_bytes(b"\0" * shard.stat().st_size)
            break
    assert not verify(str(copied)).ok
    values = {"cache": str(copied), "data": str(unlabeled), "teachers": {"vit": backbone}}
    done = repair_cache(RepairConfig.parse(values, "repair"))
    assert (done.recomputed, done.differing, done.remaining) == (1, 0, ())
    assert commits(copied) == commits(built)


def test_the_plan_has_no_encodings(unlabeled: Path, headless: dict[str, Any], built: Path) -> None:
    found = estimate_cache(config(built, unlabeled, {"vit": headless}), locate(built))
    teacher = found.teachers["vit"]
    assert (teacher.num_classes, teacher.accuracy, teacher.chosen) == (None, None, None)
    assert set(teacher.taps) == {"blocks.1", "pre_logits"}
    assert teacher.seconds["cpu"] > 0
    assert found.by_views[0].bytes > 0
    assert found.lacking is not None
    assert {n: g.rows for n, g in found.lacking.groups.items()} == {
        "vit/features/blocks.1": 0,
        "vit/features/pre_logits": 0,
    }


def training(built: Path, data: Path, out: Path, **fields: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "out": str(out),
        "data": str(data),
        "cache": str(built),
        "student": {"model": "vit_tiny_patch16_224", "kwargs": {**VIT, "depth": 1}},
        "objectives": [
            {"match": {"teacher": "vit", "tap": "pre_logits", "projector": "linear"}},
            {"match": {"teacher": "vit", "tap": "blocks.1", "student": "blocks.0"}},
        ],
        "epochs": 12,
        "batch_size": 8,
        "optimizer": {"lr": 3e-3},
        "threads": 1,
        **fields,
    }
    return TrainConfig.parse(values, "train")


def test_a_student_learns_the_features_of_unlabeled_images(
    built: Path, unlabeled: Path, tmp_path: Path
) -> None:
    train_student(training(built, unlabeled, tmp_path / "run"))
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert losses[-1] < 0.5 * losses[0]
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    assert "pipeline_tag: image-feature-extraction" in card
    exported = NetworkConfig(model=f"local-dir:{tmp_path / 'run' / 'export'}")
    network = build_network(exported, 0).eval()
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 24)


def test_a_student_without_classes_is_not_validated(
    built: Path, unlabeled: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot be validated by its accuracy"):
        train_student(training(built, unlabeled, tmp_path / "run", val=str(images)))


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (["soft"], "no teacher of this cache has logits"),
        ([{"soft": {"teachers": {"vit": 1.0}}}], "teacher 'vit' has no logits"),
        (["label"], "the number of classes is not known"),
    ],
)
def test_objectives_on_logits_are_refused(
    built: Path, unlabeled: Path, tmp_path: Path, objectives: list[Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        train_student(training(built, unlabeled, tmp_path / "run", objectives=objectives))
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


def test_what_needs_logits_has_a_message(built: Path, unlabeled: Path, tmp_path: Path) -> None:
    cache = open_cache(built)
    with pytest.raises(UsageError, match="no teacher of this cache has logits"):
        loader(cache, str(unlabeled))
    with pytest.raises(UsageError, match="teacher 'vit' has no logits"):
        loader(cache, str(unlabeled), teachers=["vit"])
    with pytest.raises(CacheError, match="has no logits"):
        survey(str(built))
    fit = FitWeightsConfig.parse({"cache": str(built), "out": str(tmp_path / "w.yaml")}, "")
    with pytest.raises(UsageError, match="no teacher of this cache has logits"):
        fit_weights(fit)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_map": "position"}, "no classes: remove class_map"),
        ({"class_embeddings": True}, "no classes: remove class_embeddings"),
    ],
)
def test_settings_of_classes_are_refused(
    headless: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        TeacherConfig.parse({**headless, **fields}, "teachers.vit")


def test_without_features_nothing_would_be_cached(
    backbone: dict[str, Any], unlabeled: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'vit' with head: none has no logits") as caught:
        config(tmp_path / "c", unlabeled, {"vit": {**backbone, "head": "none"}})
    assert "--feature vit=pre_logits" in caught.value.what
    TeacherConfig.parse({**backbone, "head": "none"}, "teachers.vit")  # as verify may be given it


def test_a_backbone_as_a_classifier_is_told_of_head_none(
    backbone: dict[str, Any], unlabeled: Path, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="no classifier") as caught:
        build_cache(config(tmp_path / "c", unlabeled, {"vit": backbone}))
    assert "head: none" in str(getattr(caught.value, "hint", ""))
    assert not (tmp_path / "c").exists()
