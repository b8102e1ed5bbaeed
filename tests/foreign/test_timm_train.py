"""``logitcache timm-train``: timm's train.py with images and a teacher from a cache.

A script with the structure of train.py stands in for it, since no package contains train.py. With
its path in the environment variable ``TIMM_TRAIN_PY``, it is run itself.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import timm.data
import torch
from timm.data.mixup import mixup_target

import logitcache
from logitcache.errors import DataError, DataMismatch, UsageError
from logitcache.targets.cached_teacher import CachedTeacher
from logitcache.training.timm_train.loader import CacheForTimm
from logitcache.training.timm_train.mixing import CachedMixing, soft_labels
from logitcache.training.timm_train.script import run_timm_script
from tests.conftest import write_images, write_teacher
from tests.foreign.timm_train import Setting, compare, prepare, train
from tests.guides import ROOT
from tests.label_set_images import TAGS, write_listing
from tests.processes import forking

STAND_IN = Path(__file__).with_name("stand_in_train.py")
GENUINE = os.environ.get("TIMM_TRAIN_PY")
SCRIPTS = [
    STAND_IN,
    pytest.param(
        Path(GENUINE or "train.py"),
        marks=pytest.mark.skipif(GENUINE is None, reason="TIMM_TRAIN_PY names no train.py"),
    ),
]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return prepare(tmp_path_factory.mktemp("timm"), per_class=12)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Return a setting whose views mix most images, by mixup or cutmix."""
    root = tmp_path_factory.mktemp("mixed")
    return prepare(root, per_class=12, mixup_alpha=0.8, cutmix_alpha=1.0, mix_prob=0.9)


@pytest.mark.parametrize("script", SCRIPTS, ids=["stand_in", "genuine"])
def test_images_and_losses_are_those_of_a_plain_loop(
    script: Path, setting: Setting, tmp_path: Path
) -> None:
    """Two epochs, without the teacher's weights; the loss of each within 1e-5."""
    done = train(script, setting, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    compared = compare(setting, tmp_path)
    assert not (tmp_path / "forks.txt").exists(), "a worker was forked from a process with threads"
    assert compared["images"] == 2 * 32, "the script drops the last batch"
    assert compared["losses"][0] != compared["losses"][1]
    for line in (
        "logitcache: images: 36 of folder ",
        "logitcache: views: 2 of the cache, one an epoch, for example random_resized_crop (scale ",
        "logitcache: not used, as the cache has the views: ",
        "--hflip 0.5",
        "logitcache: teacher: 'cnn' of the cache; no network is built for it",
    ):
        assert line in done.stderr


def test_every_process_gets_its_part_of_each_batch(setting: Setting, tmp_path: Path) -> None:
    """timm's own script needs GPUs for that."""
    done = train(STAND_IN, setting, tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr[-4000:]
    assert compare(setting, tmp_path, ranks=2)["images"] == 2 * 32
    assert not (tmp_path / "forks.txt").exists(), "a worker was forked from a process with threads"
    assert done.stderr.count("logitcache: teacher:") == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=["stand_in", "genuine"])
def test_the_command_of_the_page_trains_a_student(
    script: Path, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/timm-train.md").read_text()
    (command,) = re.findall(r"^logitcache timm-train (.*?[^\\])\n", page, re.M | re.S)
    flags = shlex.split(command.replace("\\\n", " "))
    (tmp_path / "photos").symlink_to(setting.images, target_is_directory=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/cache").symlink_to(setting.cache, target_is_directory=True)
    (tmp_path / "train.py").symlink_to(script)
    monkeypatch.chdir(tmp_path)
    forking()  # the fork server that this starts is that of later tests, too
    assert flags[:4] == ["--cache", "runs/cache", "--script", "train.py"]
    assert flags[4] == "--"
    run_timm_script("train.py", flags[5:], cache="runs/cache")
    assert list((tmp_path / "runs/timm").rglob("summary.csv"))


@pytest.mark.parametrize("script", SCRIPTS, ids=["stand_in", "genuine"])
def test_views_that_mix_images_have_soft_labels(
    script: Path, mixed: Setting, tmp_path: Path
) -> None:
    """Two epochs; images by digest, and the losses on labels and on the teacher."""
    done = train(script, mixed, tmp_path, extra=("--workers", "0"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert compare(mixed, tmp_path)["images"] == 2 * 32
    assert "--mixup 0.8 --cutmix 1 --mixup-prob 0.9 --mixup-switch-prob 0.5" in done.stderr
    assert "labels are soft, with smoothing 0.1" in done.stderr


def test_labels_of_mixed_images_are_those_of_mixup_of_timm() -> None:
    labels, lam = torch.tensor([2, 0, 1, 1]), torch.tensor([0.25, 1.0, 0.0, 0.625])
    targets = logitcache.TargetBatch(
        torch.arange(4), labels, {}, partner_labels=labels.flip(0), lam=lam
    )
    for smoothing in (0.0, 0.1):
        mixed: Any = mixup_target  # without types
        expected = mixed(labels, 3, lam[:, None], smoothing)
        torch.testing.assert_close(soft_labels(targets, 3, smoothing), expected)


@pytest.mark.parametrize("flags", [["--no-prefetcher"], ["--bce-loss"], ["--mixup", "0.1"]])
def test_mixed_views_work_with_flags_of_the_script(mixed: Setting, flags: list[str]) -> None:
    run(mixed, "--num-classes", "3", "--task-loss-weight", "0.5", *flags)


def test_flags_that_views_with_mixing_cannot_serve_are_refused(
    mixed: Setting, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"mix images in every epoch[\s\S]*--mixup-off-epoch"):
        run(mixed, "--num-classes", "3", "--mixup-off-epoch", "1")
    with pytest.raises(UsageError, match="mix images in every epoch"):
        CachedMixing().mixup_enabled = False
    script = tmp_path / "train.py"
    script.write_text(STAND_IN.read_text().replace("mixed = args.mixup > 0", "mixed = False", 1))
    script.write_text(script.read_text().replace("or args.cutmix > 0", ""))
    with pytest.raises(UsageError, match=r"script takes one label for each image[\s\S]*--use-v"):
        run(mixed, "--num-classes", "3", script=script)


def run(setting: Setting, *arguments: str, script: Path = STAND_IN, **options: Any) -> None:
    """Run the stand-in for a short time in this process."""
    given = ["--data-dir", str(setting.images), "--model", "resnet10t", "--img-size", "8"]
    given += ["--epochs", "1", "--batch-size", "8", "--output", str(setting.images.parent / "o")]
    run_timm_script(script, [*given, *arguments], cache=str(setting.cache), **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-classes", "5"], r"differs from the teacher's[\s\S]*3 classes[\s\S]*5 classes"),
        (["--kd-model-name", "resnet50"], r"no logits of a teacher 'resnet50'[\s\S]*'cnn'"),
        (["--mixup", "0.2"], r"other images than the views[\s\S]*--mixup"),
        (["--kd-temperature", "warm"], r"arguments of the script cannot be read[\s\S]*warm"),
    ],
)
def test_arguments_that_a_cache_cannot_serve_are_refused(
    setting: Setting, arguments: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(setting, "--num-classes", "3", *arguments)
    assert timm.data.create_loader is timm.data.loader.create_loader
    assert timm.data.create_loader.__module__ == "timm.data.loader", "timm is as it was"


def test_classes_in_another_order_are_refused(setting: Setting, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("dog\ncat\nbird\n")
    with pytest.raises(DataMismatch, match=r"another order[\s\S]*bird, cat, dog[\s\S]*dog, cat"):
        run(setting, "--num-classes", "3", "--class-map", str(names))


def test_a_script_that_does_not_use_the_cache_is_an_error(setting: Setting, tmp_path: Path) -> None:
    script = tmp_path / "other.py"
    script.write_text("import sys\nprint(sys.argv[1:], __name__)\n")
    with pytest.raises(UsageError, match="built no training loader, so the cache was not used"):
        run(setting, script=script)
    with pytest.raises(
        UsageError, match=r"no such script[\s\S]*pytorch-image-models/v[\s\S]*train"
    ):
        run(setting, script=tmp_path / "train.py")
    with pytest.raises(UsageError, match="only while logitcache timm-train runs"):
        timm.create_model("logitcache_teacher")


def test_the_temperature_and_the_teacher_may_be_in_a_config_file(
    setting: Setting, tmp_path: Path
) -> None:
    config = tmp_path / "args.yaml"
    config.write_text("kd_temperature: 2\nkd_model_name: other\n")
    with pytest.raises(UsageError, match="no logits of a teacher 'other'"):
        run(setting, "--config", str(config))


def loader(setting: Setting, dataset: Any, **arguments: Any) -> Any:
    """Call what takes the place of ``timm.data.create_loader``."""
    cache = logitcache.open_cache(setting.cache)
    served = CacheForTimm(
        cache,
        CachedTeacher(cache),
        data=arguments.pop("data", str(setting.images / "train")),
        views=["1"],
        on_report=lambda line: None,
    )
    given = {"mean": (0, 0, 0), "std": (1, 1, 1), "device": torch.device("cpu"), **arguments}
    return served.loader(dataset, given.pop("input_size", (3, 8, 8)), 8, **given)


def test_the_loader_has_the_attributes_and_types_that_the_script_uses(setting: Setting) -> None:
    dataset = SimpleNamespace()
    found = loader(setting, dataset, img_dtype=torch.bfloat16, input_size=8)
    assert found.dataset is dataset
    assert not hasattr(found.batch_sampler, "set_epoch")
    found.sampler.set_epoch(4)
    found.mixup_enabled = False
    batches = list(found)
    assert len(batches) == len(found) == 36 // 8
    images, labels = batches[0]
    assert (images.dtype, labels.dtype) == (torch.bfloat16, torch.int64)
    assert images.shape == (8, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_aug_splits": 2}, "--aug-splits"),
        ({"num_aug_repeats": 3}, "--aug-repeats"),
        ({"input_size_choices": [8, 16]}, "--train-img-sizes"),
        ({"collate_fn": print}, "collate_fn"),
        ({"input_size": (3, 8, 16)}, "squares of three channels"),
        ({"input_size": (1, 8, 8)}, "squares of three channels"),
    ],
)
def test_other_images_than_the_views_are_refused(
    setting: Setting, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        loader(setting, SimpleNamespace(), **arguments)


def build(
    setting: Setting, tmp_path: Path, data: Path, images: str | None = None, **views: Any
) -> Setting:
    """Return the setting with another cache, of a teacher that is written for it."""
    teacher = write_teacher(tmp_path / "teacher", classes=3, model="cnn")
    values = {
        "cache": str(tmp_path / "cache"),
        "data": str(data),
        "teachers": {"cnn": {"model": f"local-dir:{teacher}"}},
        "views": {"count": 2, **views},
        "images": images,
    }
    logitcache.build_cache(logitcache.PrecomputeConfig.parse(values, ""))
    return setting._replace(cache=tmp_path / "cache")


def test_images_without_labels_are_refused(setting: Setting, tmp_path: Path) -> None:
    flat = write_images(tmp_path / "flat", 12, classes=("",))
    unlabeled = build(setting._replace(images=tmp_path), tmp_path, flat)
    (tmp_path / "train").symlink_to(flat, target_is_directory=True)
    with pytest.raises(DataError, match="12 of 12 images without a label"):
        loader(unlabeled, SimpleNamespace())


def test_images_with_label_sets_are_refused(setting: Setting, tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher", classes=len(TAGS), model="cnn")
    data = write_listing(write_images(tmp_path / "photos", 4), tmp_path / "t.jsonl")
    values: dict[str, Any] = {"data": data}
    values["teachers"] = {"t": {"model": f"local-dir:{teacher}"}}
    values |= {"cache": str(tmp_path / "cache"), "images": "packed:16", "views": {"count": 2}}
    logitcache.build_cache(logitcache.PrecomputeConfig.parse(values, ""))
    with pytest.raises(DataError, match="one label for each image, and these have label sets"):
        loader(setting._replace(cache=tmp_path / "cache"), SimpleNamespace(), data=None)


def test_a_teacher_with_a_sigmoid_for_each_class_is_refused(
    setting: Setting, tmp_path: Path
) -> None:
    teacher = {"model": f"local-dir:{write_teacher(tmp_path / 'teacher', classes=3, model='cnn')}"}
    values: dict[str, Any] = {"data": str(setting.images / "train"), "views": {"count": 1}}
    values |= {
        "cache": str(tmp_path / "cache"),
        "teachers": {"cnn": {**teacher, "head": "sigmoid"}},
    }
    logitcache.build_cache(logitcache.PrecomputeConfig.parse(values, ""))
    with pytest.raises(UsageError, match=r"'cnn'[\s\S]*head: softmax[\s\S]*logitcache train"):
        run(setting._replace(cache=tmp_path / "cache"), "--num-classes", "3")


def test_images_in_the_cache_need_no_training_folder(setting: Setting, tmp_path: Path) -> None:
    packed = build(setting, tmp_path, setting.images / "train", images="packed:16")
    found = loader(packed, SimpleNamespace(), data=None)
    assert sum(len(images) for images, _ in found) == 32, "the last batch is left out"
    with pytest.raises(DataMismatch, match="these are the original images"):
        loader(packed, SimpleNamespace(), data=str(setting.images / "train"))


def test_a_data_set_that_is_no_folder_needs_data(setting: Setting) -> None:
    cache = logitcache.open_cache(setting.cache)
    served = CacheForTimm(
        cache, CachedTeacher(cache), data=None, views=(), on_report=lambda line: None
    )
    with pytest.raises(UsageError, match=r"not a folder[\s\S]*--data IMAGES"):
        served.loader(
            SimpleNamespace(), 8, 8, mean=(0, 0, 0), std=(1, 1, 1), device=torch.device("cpu")
        )
