"""Mistakes at every command: no traceback, the right exit code, the reason, and nothing lost.

Errors of timm, torch, pydantic and rich are errors of this package by then. Texts in braces are
files of the fixture.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import typer
import yaml
from safetensors.torch import save_file

from logitcache.cli.app import app
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from tests.conftest import jpeg, shape_image, write_images, write_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cli.conftest import Outcome

USAGE, DATA, STOPPED, FAILED = 2, 1, 3, 4
TINY = "student.kwargs={stem_width: 16, channels: [16, 16, 16, 16]}"
BRACKETS = "runs [/old] [a] :smile:"
"""A name that rich would read as markup."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cache, a trained run and inputs as people have them, all below a folder with brackets."""
    root = tmp_path_factory.mktemp("world") / BRACKETS
    images = write_images(root / "images", 20)
    red = write_teacher(root / "red", classes=3, seed=1)
    cache = root / "cache"
    values = {"cache": str(cache), "data": str(images), "unit_rows": 16, "views": {"count": 2}}
    teachers = {"red": {"model": f"local-dir:{red}"}}
    build_cache(PrecomputeConfig.parse({**values, "teachers": teachers}, ""))
    damaged = root / "damaged"
    shutil.copytree(cache, damaged)
    next(damaged.glob("teachers/red/logp/c/*/*/*")).write_bytes(b"")
    _write_data(root)
    _write_weights(root)
    (root / "file").write_text("neither a cache nor a folder")
    (root / "other").mkdir()
    (root / "other" / "notes.txt").write_text("not a cache")
    (root / "bad.yaml").write_text("a: [")
    (root / "list.yaml").write_text("- 1")
    (root / "words.yaml").write_text("data: 3\nsteps: many\n")
    (root / "loop.yaml").write_text(yaml.safe_dump({"out": "o", "data": "digits", "stages": 3}))
    return {path.stem if path.is_file() else path.name: path for path in root.iterdir()} | {
        "root": root
    }


def _write_data(root: Path) -> None:
    (root / "empty").mkdir()
    write_images(root / "splits" / "train", 2)
    write_images(root / "splits" / "val", 2)
    write_images(root / "mixed", 2)
    (root / "mixed" / "loose.jpg").write_bytes(jpeg(shape_image(1)))
    write_images(root / "renamed", 2, ("bird", "Cat", "dog"))
    write_images(root, 4, ("flat",))
    write_images(root / "single", 4, ("only",))
    write_images(root / "cut", 4)
    (root / "cut" / "dog" / "zz.jpg").write_bytes(jpeg(shape_image(1))[:300])
    write_images(root / "changed", 20)
    (root / "changed" / "cat" / "000.jpg").write_bytes(jpeg(shape_image(77)))
    write_images(root / "nine", 3)
    (root / "table.csv").write_text("path,label\na.jpg,0\n")
    (root / "archive.zip").write_bytes(b"PK\x03\x04")
    (root / "broken.tar").write_bytes(b"none" * 200)


def _write_weights(root: Path) -> None:
    (root / "garbage.pth").write_bytes(b"\x93garbage" * 9)
    (root / "page.pt").write_text("<!DOCTYPE html><html>Sign in</html>")
    (root / "nothing.safetensors").write_bytes(b"")
    torch.save({"epoch": 3}, root / "epoch.ckpt")
    torch.save({"model": {"encoder.weight": torch.zeros(3, 3)}}, root / "strange.pth")
    save_file({"conv1.weight": torch.zeros(2, 3, 7, 7)}, root / "small.safetensors")
    np.save(root / "array.npy", np.zeros(3))
    np.savez(root / "outputs.npz", logits=np.zeros((7, 3)))
    pickled = io.BytesIO()
    torch.save({"x": Path("x")}, pickled)  # an object that weights_only refuses
    (root / "pickled.pth").write_bytes(pickled.getvalue())


def snapshot(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


PRECOMPUTE = ["precompute", "--cache", "{new}", "--data", "{images}", "--threads", "1"]
RED = ["--teacher", "red=local-dir:{red}"]
TRAIN = [
    *("train", "--out", "{new}", "--data", "{images}", "--steps", "2", "--batch-size", "8"),
    *("--student", "resnet10t", "--set", TINY, "--set", "student.size=32", "--threads", "1"),
]
IMPORT = ["import", "--cache", "{new}", "--data", "{images}", "--teacher", "t"]
SHOWN = ["--cache", "{cache}"]
NAMES = ["--set", "class_names=[bird, cat, dog]"]

MISTAKES: list[tuple[list[str], int, str]] = [
    # data
    ([*PRECOMPUTE[:3], "--data", "{root}/nowhere", *RED], DATA, "does not exist"),
    ([*PRECOMPUTE[:3], "--data", "{empty}", *RED], DATA, "no images found"),
    ([*PRECOMPUTE[:3], "--data", "{splits}", *RED], DATA, "train"),
    ([*PRECOMPUTE[:3], "--data", "{mixed}", *RED], DATA, "loose.jpg"),
    ([*PRECOMPUTE[:3], "--data", "{table}", *RED], DATA, "images of the table do not exist"),
    ([*PRECOMPUTE[:3], "--data", "{archive}", *RED], DATA, "tar"),
    ([*PRECOMPUTE[:3], "--data", "{broken}", *RED], DATA, "tar"),
    ([*PRECOMPUTE[:3], "--data", "s3://bucket/x", *RED], USAGE, "copy the images"),
    ([*PRECOMPUTE[:3], "--data", "{cut}", *RED, "--threads", "1"], DATA, "zz.jpg"),
    # teachers and their weights
    ([*PRECOMPUTE, "--teacher", "t=resnet10t@{garbage}"], DATA, "garbage.pth"),
    ([*PRECOMPUTE, "--teacher", "t=resnet10t@{page}"], DATA, "page.pt"),
    ([*PRECOMPUTE, "--teacher", "t=resnet10t@{nothing}"], DATA, "nothing.safetensors"),
    ([*PRECOMPUTE, "--teacher", "t=resnet10t@{epoch}"], DATA, "epoch.ckpt"),
    ([*PRECOMPUTE, "--teacher", "t=resnet10t@{strange}"], DATA, "encoder.weight"),
    ([*PRECOMPUTE, "--teacher", "t=resnet10t@{small}"], DATA, "small.safetensors"),
    ([*PRECOMPUTE, "--teacher", "t=resnet10t@{array}"], DATA, "array.npy"),
    ([*PRECOMPUTE, "--teacher", "t=resnet10t@{pickled}"], DATA, "pickled.pth"),
    ([*PRECOMPUTE, "--teacher", "t=resnet10t@{root}/none.pth"], DATA, "none.pth"),
    ([*PRECOMPUTE, "--teacher", "t=local-dir:{root}/none"], DATA, "none"),
    ([*PRECOMPUTE, "--teacher", "t=local-dir:{images}"], DATA, "images"),
    ([*PRECOMPUTE, "--teacher", "t=resnet10t"], DATA, "weights"),
    ([*PRECOMPUTE, *RED, "--set", "teachers.red.kwargs.depth=9"], DATA, "depth"),
    ([*PRECOMPUTE, *RED, "--feature", "red=layer9"], USAGE, "layer9"),
    ([*PRECOMPUTE, *RED, "--feature", "blue=layer1"], USAGE, "blue"),
    # numbers and settings
    ([*PRECOMPUTE, *RED, "--views", "-1"], USAGE, "views.count"),
    ([*PRECOMPUTE, *RED, "--top-k", "0"], USAGE, "top_k"),
    ([*PRECOMPUTE, *RED, "--unit-rows", "17"], USAGE, "unit_rows"),
    ([*PRECOMPUTE, *RED, "--batch-size", "many"], USAGE, "batch_size"),
    ([*PRECOMPUTE, *RED, "--precision", "float8"], USAGE, "precision"),
    ([*PRECOMPUTE, *RED, "--device", "gpu"], USAGE, "device"),
    ([*PRECOMPUTE, *RED, "--threads", "0"], USAGE, "threads"),
    ([*PRECOMPUTE, *RED, "--on-bad-image", "ignore"], USAGE, "on_bad_image"),
    ([*PRECOMPUTE, *RED, "--budget", "1B"], USAGE, "budget"),
    ([*PRECOMPUTE, *RED, "--max-kl", "small"], USAGE, "max_kl"),
    ([*PRECOMPUTE, *RED, "--set", "views.scale=[2, 1]"], USAGE, "scale"),
    ([*PRECOMPUTE, *RED, "--config", "{bad}"], USAGE, "bad.yaml"),
    ([*PRECOMPUTE, *RED, "--config", "{list}"], USAGE, "list.yaml"),
    ([*PRECOMPUTE, *RED, "--config", "{words}"], USAGE, "steps"),
    # caches
    ([*PRECOMPUTE[:1], "--cache", "{file}", *PRECOMPUTE[3:], *RED], DATA, "no cache here"),
    ([*PRECOMPUTE[:1], "--cache", "{other}", *PRECOMPUTE[3:], *RED], DATA, "no cache here"),
    ([*PRECOMPUTE[:1], *SHOWN, *PRECOMPUTE[3:], *RED, "--top-k", "1"], USAGE, "encoding"),
    ([*PRECOMPUTE[:1], *SHOWN, *PRECOMPUTE[3:], *RED, "--set", "views.seed=9"], USAGE, "recipe"),
    ([*PRECOMPUTE[:1], *SHOWN, "--data", "{changed}", *RED, "--threads", "1"], DATA, "cat/000.jpg"),
    (["plan", "--data", "{empty}", *RED], DATA, "no images found"),
    (["plan", "--cache", "{other}", "--data", "{images}", *RED], DATA, "no cache here"),
    (["plan", "--data", "{images}", *RED, "--set", "views.cuont=1"], USAGE, "count"),
    (["inspect", "{file}"], DATA, "no cache here"),
    (["inspect", "ftp://host/x"], USAGE, "ftp"),
    (["status", "{other}"], DATA, "no cache here"),
    (["report", "{root}/none"], USAGE, "nothing to report on"),
    (["verify", "{other}"], DATA, "no cache here"),
    (["verify", "{damaged}"], FAILED, ""),
    (["verify", "{cache}", "--data", "{changed}"], FAILED, ""),
    (["verify", "{cache}", "--teachers", "red=x"], USAGE, "--data"),
    (["verify", "{cache}", "--full"], USAGE, "--teachers"),
    (["verify", "{cache}", "--data", "{images}", "--teachers", "blue=resnet10t"], USAGE, "blue"),
    (["verify", "{cache}", "--data", "{images}", "--set", "data.limt=3"], USAGE, "limit"),
    (["repair", "{other}", "--data", "{images}"], DATA, "no cache here"),
    (["repair", "{damaged}", "--data", "{changed}", *RED], DATA, "cat/000.jpg"),
    (["repair", "{damaged}", "--data", "{images}", "--teacher", "red=resnet10t"], DATA, "red"),
    (["exclude", "{cache}", "cat/none.jpg"], USAGE, "cat/none.jpg"),
    (["exclude", "{other}", "cat/000.jpg"], DATA, "no cache here"),
    (["drop", "{cache}"], USAGE, ""),
    (["drop", "{cache}", "--teacher", "rde"], USAGE, "red"),
    (["drop", "{cache}", "--view", "7"], USAGE, "no view '7'"),
    (["drop", "{cache}", "--teacher", "red"], USAGE, ""),
    (["views", "show", "--data", "{images}", "--key", "none.jpg"], USAGE, "none.jpg"),
    (["views", "show", "--data", "{empty}"], DATA, "no images found"),
    (["views", "show", "--data", "{images}", "--view", "99"], USAGE, "99"),
    (["views", "sheet", "--data", "{images}", "--out", "{file}/x.png"], STOPPED, "file"),
    (["views", "check", "{other}"], USAGE, ""),
    (["tools", "fit-weights", "--cache", "{other}"], DATA, "no cache here"),
    (["tools", "fit-weights", "--cache", "{cache}", "--teacher", "rde"], USAGE, "rde"),
    (["tools", "pick-bits", "--network", "resnet10t@{garbage}"], DATA, "garbage.pth"),
    (["tools", "synthesize", "--data", "{empty}", "--out", "{new}"], DATA, "no images found"),
    (["tools", "synthesize", "--data", "{images}", "--out", "{images}"], USAGE, "new folder"),
    (["tools", "learn-prototypes", "--cache", "{other}"], DATA, "no cache here"),
    (["tools", "class-means", "--cache", "{other}", "--feature", "t/x"], DATA, "no cache here"),
    (["tools", "pick-hints", "--cache", "{other}"], DATA, "no cache here"),
    (["tools", "pick-hints", "--cache", "{cache}"], USAGE, "no layers to choose from"),
    # sharing
    (["slice", "{other}", "{new}"], DATA, "no cache here"),
    (["slice", "{cache}", "{new}", "--teacher", "rde"], USAGE, "red"),
    (["slice", "{cache}", "{new}", "--class", "cta"], USAGE, "cat"),
    (["slice", "{cache}", "{new}", "--top-k", "3"], USAGE, "no teacher stores more"),
    (["slice", "{cache}", "{new}", "--bits", "9"], USAGE, "bits"),
    (["slice", "{cache}", "{other}", "--teacher", "red"], DATA, "other"),
    (["slice", "{cache}", "{new}", "--keys", "{root}/none.txt"], USAGE, "none.txt"),
    (["merge", "{cache}", "{new}"], USAGE, ""),
    (["merge", "{cache}", "{other}", "{new}"], DATA, "no cache here"),
    ([*IMPORT, "{root}/none.npz"], USAGE, "none.npz"),
    ([*IMPORT, "{other}"], USAGE, "format of these outputs"),
    ([*IMPORT, "{array}"], USAGE, "--values"),
    ([*IMPORT, "{array}", "--values", "logit"], USAGE, "import.values"),
    ([*IMPORT, "{array}", "--values", "logits"], DATA, "shape"),
    ([*IMPORT, "{array}", "--format", "torch"], USAGE, "tinyvit"),
    ([*IMPORT, "{garbage}", "--format", "npz"], DATA, "garbage.pth"),
    ([*IMPORT, "{outputs}", "--keys", "{root}/none.txt"], USAGE, "none.txt"),
    ([*IMPORT, "{outputs}"], DATA, "7 rows"),
    ([*IMPORT, "{outputs}", "--on-bad-image", "ignore"], USAGE, "import.on_bad_image"),
    ([*IMPORT, "{outputs}", "--images", "tiles"], USAGE, "tiles"),
    (["export", "{other}", "{new}", "--format", "npz"], DATA, "no cache here"),
    (["export", "{cache}", "{new}", "--format", "npy"], USAGE, "tinyvit"),
    (["export", "{cache}", "{other}", "--format", "tinyvit"], USAGE, "already"),
    (["export", "{cache}", "{new}", "--format", "npz", "--teacher", "rde"], USAGE, "red"),
    (["export", "{cache}", "{new}", "--format", "npz", "--top-k", "4"], USAGE, "1 to 3"),
    (["diff", "{cache}", "{other}"], DATA, "no cache here"),
    (["diff", "{file}", "{cache}"], DATA, "no cache here"),
    (["gc", "{other}"], DATA, "no cache here"),
    (["gc", "{cache}", "--keep", "0"], USAGE, "keep"),
    (["push", "{cache}", "{other}"], DATA, "neither a cache nor empty"),
    (["push", "{cache}", "https://host/x"], USAGE, "https"),
    (["push", "{damaged}", "{new}"], FAILED, "logp"),
    (["pull", "{other}", "{new}"], DATA, "no cache here"),
    (["pull", "demo:digit", "{new}"], USAGE, "demo:digits"),
    (["pull", "shelf:../photos", "{new}"], USAGE, "LOGITCACHE_SHELF"),
    (["push", "{cache}", "demo:digits"], USAGE, "only read"),
    (["pull", "{cache}", "{new}", "--views", "9"], USAGE, "1 to 2"),
    (["pull", "{cache}", "{new}", "--signed-by", "{garbage}"], USAGE, "garbage.pth"),
    (["pull", "{cache}", "{new}", "--revision", "0" * 64], FAILED, "another revision"),
    (["sign", "{cache}", "--key", "{garbage}"], USAGE, "garbage.pth"),
    (["sign", "{cache}", "--key", "{root}/none.pem"], USAGE, "none.pem"),
    (["card", "{other}"], DATA, "no cache here"),
    (["timm-train", "--cache", "{other}", "--script", "{file}", "--", "x"], DATA, "no cache here"),
    (["timm-train", *SHOWN, "--script", "{root}/train.py", "--", "x"], USAGE, "train.py"),
    # training
    ([*TRAIN[:3], "--data", "{empty}", *TRAIN[5:]], DATA, "no images found"),
    ([*TRAIN[:3], "--data", "{flat}", *TRAIN[5:]], USAGE, "images have no labels"),
    ([*TRAIN[:3], "--data", "{single}", *TRAIN[5:]], DATA, "the same class"),
    ([*TRAIN, "--val", "{renamed}"], DATA, "Cat"),
    ([*TRAIN, "--val", "{splits}"], DATA, "train"),
    ([*TRAIN, "--val", "{flat}"], DATA, ""),
    ([*TRAIN, "--cache", "{other}"], DATA, "no cache here"),
    ([*TRAIN[:3], "--data", "{changed}", *TRAIN[5:], *SHOWN], DATA, "cat/000.jpg"),
    ([*TRAIN, *SHOWN, "--objective", "sfot"], USAGE, "soft"),
    ([*TRAIN, *SHOWN, "--use-views", "9"], USAGE, "no view '9'"),
    ([*TRAIN, *SHOWN, "--set", "objectives=[{soft: {teachers: [blue]}}]"], USAGE, "blue"),
    ([*TRAIN, "--set", "student.num_classes=0"], USAGE, "num_classes"),
    ([*TRAIN, "--set", "student.kwargs.in_chans=1"], USAGE, "in_chans"),
    ([*TRAIN, "--set", "student.kwargs.num_classes=2"], USAGE, "num_classes"),
    ([*TRAIN, "--set", "student.size=0"], USAGE, "size"),
    ([*TRAIN, "--set", "student.weights={garbage}"], DATA, "garbage.pth"),
    ([*TRAIN, "--lr", "-1"], USAGE, "lr"),
    ([*TRAIN, "--batch-size", "0"], USAGE, "batch_size"),
    ([*TRAIN, "--precision", "fp8"], USAGE, "precision"),
    ([*TRAIN, "--device", "tpu"], USAGE, "device"),
    ([*TRAIN, "--labels", "1000000"], USAGE, "label"),
    ([*TRAIN[:1], "--out", "{file}", *TRAIN[3:]], STOPPED, "file"),
    (["train", "--resume", "--out", "{other}"], USAGE, "no run"),
    (["train", "--resume"], USAGE, "--out"),
    ([*TRAIN[:7], "--student", "vitt"], USAGE, "vit"),
    (
        [*TRAIN[:7], "--student", "vit_tiny_patch16_224", "--set", "student.size=30"],
        USAGE,
        "30",
    ),
    # networks that are evaluated
    (["evaluate", "{other}", "--data", "{images}"], DATA, "other"),
    (["evaluate", "{red}", "--data", "{images}"], USAGE, "have no names"),
    (["evaluate", "{red}", "--data", "{renamed}", *NAMES], DATA, "Cat"),
    (["evaluate", "{red}", "--data", "{flat}", *NAMES], DATA, "label"),
    (["evaluate", "resnet10t@{garbage}", "--data", "{images}"], DATA, "garbage.pth"),
    (["evaluate", "{red}", "--data", "{images}", "--size", "-3"], USAGE, "size"),
    # pipelines
    (["run", "{root}/none.yaml"], USAGE, "none.yaml"),
    (["run", "{loop}"], USAGE, "loop.yaml"),
    (["run", "quickstart", "--only", "nothing"], USAGE, "nothing"),
    (["run", "quickstart", "--set", "seed=x", "--out", "{new}"], USAGE, "seed"),
    (["demo", "--out", "{file}"], STOPPED, "file"),
    (["demo", "--seeds", "0"], USAGE, "seeds"),
]


def _leaves(group: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in getattr(group, "commands", {}).items():
        if hasattr(command, "commands"):
            yield from _leaves(command, (*above, name))
        else:
            yield (*above, name)


def test_every_command_is_in_the_table() -> None:
    commands = {c for c in _leaves(typer.main.get_command(app)) if c != ("withdraw",)}
    tried = {tuple(arguments[: len(c)]) for arguments, *_ in MISTAKES for c in commands}
    assert commands <= tried


def _name(row: object) -> str:
    return " ".join(row)[:70] if isinstance(row, list) else ""


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES, ids=_name)
def test_a_mistake_is_explained_and_nothing_is_lost(
    logitcache: Callable[..., Outcome],
    world: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(world["root"])
    places = {**world, "new": tmp_path / BRACKETS}
    outcome = logitcache(*(_filled(text, places) for text in arguments))
    assert (outcome.code, words in outcome.err) == (code, True), outcome.err or outcome.out
    for text in (outcome.err, outcome.out):
        assert "Traceback" not in text
        assert "errors.pydantic.dev" not in text
    assert snapshot(world["root"]) == before


def _filled(text: str, places: dict[str, Path]) -> str:
    for name, path in places.items():
        text = text.replace(f"{{{name}}}", str(path))
    return text


def test_names_with_brackets_are_printed_as_they_are(
    logitcache: Callable[..., Outcome], world: dict[str, Path], tmp_path: Path
) -> None:
    for arguments in (
        ["inspect", world["cache"]],
        ["verify", world["cache"], "--data", world["images"]],
        ["plan", "--cache", world["cache"], "--data", world["images"], *RED],
        [*TRAIN, "--cache", world["cache"]],
        ["evaluate", world["red"], "--data", world["images"], *NAMES],
    ):
        places = {**world, "new": tmp_path / BRACKETS}
        done = logitcache(*(_filled(str(text), places) for text in arguments))
        assert done.code == 0, done.err
        assert BRACKETS in done.out or arguments[0] == "train", done.out


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(
    logitcache: Callable[..., Outcome], world: dict[str, Path], tmp_path: Path
) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        places = {**world, "new": tmp_path / "new"}
        refused = logitcache(*(_filled(text, places) for text in [*PRECOMPUTE, *RED]))
    finally:
        tmp_path.chmod(stat.S_IRWXU)
    assert refused.code == STOPPED
    assert "Traceback" not in refused.err
