"""Views that drop patches through both stages: what is shown, stored, resumed and checked."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from logitcache.cache.format.manifest import read_manifest
from logitcache.cache.format.names import FEATURES, VISIBLE_PATCHES
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.write.drop import drop_from_cache
from logitcache.check.audit import audit_teachers
from logitcache.data.readers import open_source
from logitcache.errors import UnsupportedFormat, UsageError
from logitcache.networks import patch_drop
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.precompute.build import build_cache
from logitcache.share.slicing import slice_cache
from logitcache.targets.cache_targets import open_cache as open_targets
from logitcache.targets.cached_dataset import CachedDataset
from logitcache.targets.loader import loader
from logitcache.teachers.member import Member
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.run.journal import read_journal
from logitcache.views.spec import parse_view
from logitcache.views.tokens import shown_patches
from tests.precompute.test_building import config
from tests.processes import forking, run_ranks
from tests.teachers.test_headless import IMAGES, write_backbone, write_unlabeled
from tests.training.test_loop import assert_equal_runs

if TYPE_CHECKING:
    import multiprocessing

GRID, SHOWN = 2, 2  # of the teacher's images of 16 pixels in patches of 8
VIEWS = {"count": 2, "patch_drop_rate": 0.5, "patch_drop_grid": GRID}
STUDENT = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
LAYERS = {"blocks.0": {"values": "float16"}}
OBJECTIVES = [
    {"reconstruct": {"width": 16, "depth": 1, "heads": 2}},
    {"match": {"teacher": "vit", "tap": "blocks.0", "metric": "l1", "normalize": "l2"}},
]
STEPS = 7  # 24 images in batches of 10, 10 and 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_unlabeled(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    backbone = write_backbone(tmp_path_factory.mktemp("backbone"))
    return {**backbone, "head": "none", "features": LAYERS}


@pytest.fixture(scope="module")
def cache(data: Path, teacher: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dropped") / "cache"
    build_cache(config(path, data, {"vit": teacher}, views=VIEWS))
    return path


def run(out: Path, data: Path, cache: Path | None, **fields: object) -> TrainConfig:
    values: dict[str, object] = {
        "out": str(out),
        "data": str(data),
        "cache": cache and str(cache),
        "student": STUDENT,
        "objectives": OBJECTIVES,
        "steps": STEPS,
        "batch_size": 10,
        "threads": 1,
        "checkpoint_every": 100,
        **fields,
    }
    return TrainConfig.parse(values, "train")


def test_both_stages_run_networks_on_the_same_patches(
    data: Path, teacher: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the hooks of teacher and student keep, for every image and view, by its first patch."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    whole = patch_drop._visible

    def noted(network: Any, visible: torch.Tensor, *arguments: Any) -> torch.Tensor:
        kept.append((visible.clone(), arguments[-1].detach().clone()))
        return whole(network, visible, *arguments)

    monkeypatch.setattr(patch_drop, "_visible", noted)
    build_cache(config(tmp_path / "cache", data, {"vit": teacher}, views=VIEWS))
    before, kept = [ids for ids, _ in kept if ids.shape[1] == SHOWN], []
    in_stage_1 = {tuple(map(tuple, ids.tolist())) for ids in before}
    train_student(
        run(tmp_path / "run", data, tmp_path / "cache", batch_size=8, epochs=2, steps=None)
    )
    # one patch is the trial before the first step, whether the student can drop any
    in_stage_2 = torch.cat([ids for ids, _ in kept if ids.shape[1] == SHOWN])
    cache = open_cache(tmp_path / "cache")
    expected = []
    for view_id, recipe in cache.views.items():
        shown = shown_patches(parse_view(recipe, view_id), cache.samples.hashes[:IMAGES])
        assert shown is not None
        expected += [tuple(row) for row in shown.indices.tolist()]
        for start in range(0, IMAGES, 8):  # batches of 8, as they are given to the teacher
            assert tuple(map(tuple, shown.indices[start : start + 8].tolist())) in in_stage_1
    assert sorted(map(tuple, in_stage_2.tolist())) == sorted(expected)
    assert len(set(expected)) > 1


@pytest.mark.requirement("F8.7.1", "V4.25.2")
def test_the_stored_features_are_those_of_the_visible_patches(
    data: Path, cache: Path, teacher: dict[str, Any]
) -> None:
    """The blocks of the teacher again, by hand, on the images of the loader."""
    network: Any = build_network(
        NetworkConfig.parse({k: teacher[k] for k in ("model", "weights", "kwargs")}, ""), 0
    ).eval()
    half = (0.5, 0.5, 0.5)
    with loader(
        open_cache(cache), str(data), features=["vit/blocks.0"], batch_size=8, size=16, mean=half,
        std=half, threads=1,
    ) as batches:  # fmt: skip
        images, targets = next(iter(batches))
    stored, visible = targets.features["vit/blocks.0"], targets.visible
    assert visible is not None
    assert (visible.grid, visible.indices.shape) == (GRID, (8, SHOWN))
    assert stored.positions is not None
    assert torch.equal(stored.positions, visible.indices)
    for row in range(8):
        with torch.no_grad():
            every = network.patch_embed(images[row : row + 1]) + network.pos_embed[:, 1:]
            first = network.cls_token + network.pos_embed[:, :1]
            tokens = torch.cat([first, every[:, visible.indices[row]]], 1)
            expected = network.blocks[0](tokens)[0]
        torch.testing.assert_close(stored.values[row], expected, atol=5e-3, rtol=5e-3)


def test_the_teacher_is_run_to_its_tapped_block_only(
    data: Path, teacher: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: dict[str, set[int]] = {}
    made = Member.__init__

    def counting(self: Member, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        for name in ("0", "1"):
            block = self._network.get_submodule(f"blocks.{name}")
            block.register_forward_pre_hook(
                lambda _m, inputs, name=name: tokens.setdefault(name, set()).add(
                    inputs[0].shape[:2].numel() if len(inputs[0]) == 8 else 0
                )
            )

    monkeypatch.setattr(Member, "__init__", counting)
    build_cache(config(tmp_path / "cache", data, {"vit": teacher}, views=VIEWS))
    assert 8 * (1 + SHOWN) in tokens["0"]
    assert 8 * (1 + SHOWN) not in tokens["1"]


@pytest.mark.requirement("F2.5.7")
def test_an_older_reader_refuses_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert VISIBLE_PATCHES in read_manifest(locate(cache)).requires
    monkeypatch.delitem(FEATURES, VISIBLE_PATCHES)
    with pytest.raises(UnsupportedFormat, match="requires features") as caught:
        open_cache(cache)
    assert VISIBLE_PATCHES in str(caught.value)


@pytest.mark.requirement("F2.5.7")
def test_the_requirement_follows_the_views(
    data: Path, teacher: dict[str, Any], tmp_path: Path
) -> None:
    whole = {"count": 1, "eval": True, "patch_drop_rate": 0.5, "patch_drop_grid": GRID}
    vectors = {**teacher, "features": {"pre_logits": {}}}  # of views with and without patches
    path = tmp_path / "cache"
    with pytest.raises(UsageError, match="different numbers of patches"):
        build_cache(config(path, data, {"vit": vectors}, views=whole))
    shutil.rmtree(path, ignore_errors=True)
    build_cache(config(path, data, {"vit": teacher}, views=VIEWS))
    slice_cache(str(path), str(tmp_path / "slice"), views=["0"])
    assert VISIBLE_PATCHES in read_manifest(locate(tmp_path / "slice")).requires
    drop_from_cache(path, views=[next(iter(open_cache(path).views))])
    assert VISIBLE_PATCHES in read_manifest(locate(path)).requires


def test_an_audit_recomputes_the_features(data: Path, cache: Path, teacher: dict[str, Any]) -> None:
    networks = {"vit": teacher}
    (found,) = audit_teachers(str(cache), open_source(str(data)), networks, samples=None)
    assert (found.mismatched, found.samples) == (0, 2 * IMAGES)


def test_a_map_style_data_set_and_rows_of_the_cache_have_the_same_patches(
    data: Path, cache: Path
) -> None:
    opened = open_targets(cache)
    items = CachedDataset(opened, str(data), size=16, features=["vit/blocks.0"], teachers=[])
    batch = next(iter(DataLoader(items, 5, collate_fn=items.collate)))[1]
    assert batch.visible is not None
    rows = opened.targets(batch.rows, items.view, teachers=[], features=["vit/blocks.0"])
    assert rows.visible is not None
    assert torch.equal(rows.visible.indices, batch.visible.indices)
    joined = items.collate([items[i] for i in range(5)])[1]
    assert joined.visible is not None
    assert torch.equal(joined.visible.indices, batch.visible.indices)


@pytest.mark.requirement("V4.25.3")
def test_networks_that_cannot_drop_patches_are_refused(
    data: Path, cache: Path, teachers: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="cannot be run on some of the patches") as caught:
        build_cache(config(tmp_path / "cache", images, {"cnn": teachers["cnn"]}, views=VIEWS))
    assert "teacher 'cnn'" in str(caught.value)
    assert not (tmp_path / "cache").exists(), "other views can be cached there"
    cnn = {"model": "resnet10t", "kwargs": {"channels": [16] * 4, "stem_width": 16}, "size": 32}
    term = {"match": {"teacher": "vit", "tap": "blocks.0", "student": "layer4"}}
    with pytest.raises(UsageError, match="cannot be run on some of the patches") as caught:
        train_student(run(tmp_path / "run", data, cache, student=cnn, objectives=[term]))
    assert caught.value.where == "student"


def test_a_reconstruction_needs_views_that_drop_patches(data: Path, tmp_path: Path) -> None:
    values = run(tmp_path / "run", data, None, objectives=OBJECTIVES[:1])
    with pytest.raises(UsageError, match="no dropped patches"):
        train_student(values)


def test_a_map_of_some_patches_is_not_enlarged(data: Path, cache: Path, tmp_path: Path) -> None:
    match = {"against": "pixels", "student": "blocks.1", "projector": "pixel-shuffle"}
    values = run(tmp_path / "run", data, cache, objectives=[{"match": match}])
    with pytest.raises(UsageError, match=r"show all patches \(patch_drop_rate: 0\)"):
        train_student(values)


def killed(out: str, data: str, cache: str, at: int) -> None:
    """Train with a checkpoint every epoch, and kill this process at a step."""
    seen = [0]

    def answer(images: Any, targets: Any) -> Any:
        seen[0] += 1
        if seen[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return targets

    values = run(Path(out), Path(data), Path(cache), checkpoint_every=1)
    train_student(values, answer=answer)


def test_a_killed_run_ends_with_the_same_weights(data: Path, cache: Path, tmp_path: Path) -> None:
    train_student(run(tmp_path / "whole", data, cache, checkpoint_every=1))
    process: multiprocessing.Process = forking().Process(
        target=killed, args=(str(tmp_path / "killed"), str(data), str(cache), 5)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    train_student(run(tmp_path / "killed", data, cache, checkpoint_every=1), resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


def trained(rank: int, values: dict[str, Any]) -> list[tuple[list[int], list[list[int]]]]:
    """Train as one process of two; return the rows and visible patches of every step."""
    seen = []

    def answer(images: Any, targets: Any) -> Any:
        seen.append((targets.rows.tolist(), targets.visible.indices.tolist()))
        return targets

    train_student(TrainConfig.parse(values, ""), answer=answer)
    return seen


def test_two_processes_have_the_losses_of_one(data: Path, cache: Path, tmp_path: Path) -> None:
    values = {
        name: run(tmp_path / name, data, cache, checkpoint_every=1, device="cpu").model_dump(
            mode="json", exclude_unset=True
        )
        for name in ("one", "two")
    }
    alone = trained(0, values["one"])
    first, second = run_ranks(2, trained, values["two"])
    for whole, a, b in zip(alone, first, second, strict=True):
        assert a[0] + b[0] == whole[0]
        assert a[1] + b[1] == whole[1]
    ours, theirs = (read_journal(tmp_path / name) for name in ("one", "two"))
    for term in ("reconstruct", "match"):
        np.testing.assert_allclose(
            [event[term] for event in theirs], [event[term] for event in ours], rtol=1e-4
        )


def test_a_layer_over_pairs_of_patches_is_refused(
    data: Path, teacher: dict[str, Any], tmp_path: Path
) -> None:
    scores = {**teacher, "features": {"blocks.0.attn.scores": {}}}
    with pytest.raises(UsageError, match="other shapes where patches are dropped"):
        build_cache(config(tmp_path / "cache", data, {"vit": scores}, views=VIEWS))
