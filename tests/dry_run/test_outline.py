"""Dry runs: numbers against formulas, and errors of pipelines that could not be run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from logitcache.dry_run.networks import forward_flops, image_shape, network_shape, shown
from logitcache.dry_run.stages import OUTLINES, outline_pipeline
from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.run import Pipeline
from logitcache.pipeline.stage_kinds import STAGE_KINDS

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def outline(stages: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    config = {"name": "p", "out": "runs/none", "data": "nowhere", "stages": stages, **values}
    parsed = PipelineConfig.parse(config, "p.yaml")
    return {stage.name: stage for stage in outline_pipeline(Pipeline(parsed))}


def stages(**student: Any) -> list[dict[str, Any]]:
    network = {"model": "vit_tiny_patch16_224", "kwargs": VIT}
    teacher = {"model": "stage:vit", "features": {"blocks.1": {"values": "int8"}}}
    cache = {"teachers": {"vit": teacher}, "views": {"count": 3}, "encoding": {"kind": "dense"}}
    learns = {"student": network, "cache": "stage:cache", "steps": 7, **student}
    return [
        {"name": "vit", "train": {"student": network, "epochs": 2, "batch_size": 64}},
        {"name": "cache", "precompute": cache},
        {"name": "student", "train": learns},
    ]


def test_numbers_follow_from_images_views_and_batches() -> None:
    found = outline(stages(), data_set={"images": 1000, "classes": 20})
    assert (found["vit"].steps, found["vit"].images) == (2 * 16, 1000)
    assert found["student"].epochs == pytest.approx(7 / 8)
    # dense float16 of 20 classes with lse and the label's; 17 tokens of 32 bytes and a scale each
    logits, tokens = (
        found["cache"].row_bytes["vit"],
        found["cache"].row_bytes["vit/features/blocks.1"],
    )
    assert tokens == 17 * 32 + 17 * 2
    assert found["cache"].bytes == round(3 * 1000 * (logits + tokens))
    assert "nowhere does not exist here" in found["cache"].notes[0]


def test_operations_of_a_vision_transformer_equal_the_formula() -> None:
    config = NetworkConfig(model="vit_tiny_patch16_224", kwargs=VIT)
    network = network_shape(config, {}, num_classes=10)
    tokens, width = 17, 32
    patches = 16 * 3 * 8 * 8 * width
    block = tokens * width * 12 * width + 2 * tokens * tokens * width
    assert forward_flops(network, image_shape(32)) == 2 * (patches + 2 * block + width * 10)


@pytest.mark.parametrize("model", ["rednet26", "civt_tiny_patch16_224", "tiny_vit_5m_224"])
def test_a_network_without_memory_has_the_parameters_of_the_real_one(model: str) -> None:
    config = NetworkConfig(model=model)
    shape = network_shape(config, {}, num_classes=7)
    assert {p.device.type for p in shape.parameters()} == {"meta"}
    real = build_network(config, 7, untrained=True)
    assert shown(shape) == shown(real)
    assert {n: p.shape for n, p in shape.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }


def test_teachers_that_see_some_patches_store_and_compute_less() -> None:
    whole = stages()
    cache = whole[1]["precompute"]
    before = outline(whole, data_set={"images": 100, "classes": 10})["cache"]
    cache["views"] |= {"patch_drop_rate": 0.75, "patch_drop_grid": 4}
    found = outline(whole, data_set={"images": 100, "classes": 10})["cache"]
    assert found.row_bytes["vit/features/blocks.1"] == 5 * 32 + 5 * 2  # the class token and 4 of 16
    assert found.flops == pytest.approx(before.flops / 4)


def test_a_student_on_cached_vectors_runs_its_classifier_alone() -> None:
    whole = stages()
    whole[1]["precompute"]["teachers"]["vit"]["features"] = {"pre_logits": {}}
    whole[2]["train"]["student"] = {"model": "stage:vit", "head_on": "vit/pre_logits"}
    found = outline(whole, data_set={"images": 128, "classes": 10})["student"]
    assert found.flops == pytest.approx(2 * 32 * 10 * 128 * 7 * 3)


def test_a_chosen_view_next_to_the_original_doubles_the_operations() -> None:
    one = outline(stages(), data_set={"images": 100, "classes": 10})["student"]
    two = outline(stages(sampler={}), data_set={"images": 100, "classes": 10})["student"]
    assert (two.flops, two.steps) == (2 * one.flops, one.steps)


def test_images_that_a_stage_would_write_are_counted() -> None:
    whole = stages()
    made = {"data": {"name": "nowhere", "limit": 50}, "count": 300}
    parts = {"real": made["data"], "made": {"name": "stage:made", "unlabeled": True}}
    whole[1]["precompute"]["data"] = {"parts": parts}
    whole.insert(1, {"name": "made", "synthesize": made})
    found = outline(whole, data_set={"images": 1000, "classes": 10})
    assert (found["made"].images, found["cache"].images) == (300, 350)
    assert found["made"].notes == ("made: bytes of the images are not counted",)
    assert found["cache"].notes == (
        "not all of real, made exist here: sizes follow from those of the file",
    )


def test_image_sets_that_do_not_exist_have_sizes_by_name() -> None:
    whole = stages()
    whole[1]["precompute"]["data"] = {"name": "other/train", "limit": 70}
    sizes = {"data_set": {"images": 40, "classes": 4}}
    found = outline(whole, **sizes, data_sets={"other/train": {"images": 90, "classes": 9}})
    assert (found["vit"].images, found["cache"].images) == (40, 70)
    assert outline(whole, **sizes)["cache"].images == 40


def test_weights_are_not_read() -> None:
    config = NetworkConfig(model="resnet18", weights="no such file.pth")
    assert isinstance(network_shape(config, {}), nn.Module)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": [{"match": {"teacher": "vit", "tap": "blocks.0"}}]}, "lack targets"),
        ({"objectives": [{"soft": {"teachers": {"cnn": 1.0}}}]}, "lack targets"),
        ({"student": {"model": "resnet1"}}, "unknown model"),
        pytest.param(
            {"student": {"model": "resnet10t", "kwargs": {"stem_width": 0}}},
            "cannot be run on",
            marks=pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
        ),
        ({"student": {"model": "local-dir:elsewhere"}}, "earlier stages only"),
        ({"cache": "runs/elsewhere"}, "earlier stages only"),
        ({"objectives": [{"soft": {"head": "blocks.0"}}]}, "is not a classifier head"),
        ({"objectives": [{"soft": {"logits": {"vit": "blocks.1"}}}]}, "not a vector of logits"),
        ({"show": ["base", "rot90(1)"]}, "no base view of the cache"),
        ({"use_views": ["7"]}, "no view '7'"),
        ({"labels": 101}, "larger than the number of images"),
        ({"sampler": {"original": 4}}, "a number below 3"),
        ({"data": {"parts": {"a": "nowhere"}}, "objectives": [{"label": {"parts": ["b"]}}]}, "'b'"),
    ],
)
def test_what_could_not_be_run_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        outline(stages(**change), data_set={"images": 100, "classes": 10})


@pytest.mark.parametrize(
    ("change", "objective", "message"),
    [
        ({"views": {"count": 1, "mixup_alpha": 0.8}}, "split", "mixed images have two"),
        ({"encoding": {"kind": "sparse", "top_k": 3}}, {"split": {"form": "dkd"}}, "sparse"),
    ],
)
def test_targets_that_do_not_fit_a_term_are_an_error(
    change: dict[str, Any], objective: object, message: str
) -> None:
    whole = stages(objectives=[objective])
    whole[1]["precompute"] |= change
    with pytest.raises(UsageError, match=message):
        outline(whole, data_set={"images": 100, "classes": 10})


def test_a_class_map_determines_the_classes_of_the_student() -> None:
    merged = {"vit": {"odd": ["1", "3"], "even": ["0", "2"]}}
    plain, mapped = (
        outline(stages(**change), data_set={"images": 100, "classes": 10})["student"].flops
        for change in ({}, {"class_map": merged, "objectives": ["soft", "label"]})
    )
    assert plain is not None
    assert mapped is not None
    assert plain - mapped == pytest.approx(2 * 32 * (10 - 2) * 700 * 3)


def test_students_that_cannot_drop_patches_are_an_error() -> None:
    whole = stages(student={"model": "resnet10t", "size": 32})
    whole[1]["precompute"]["views"] |= {"patch_drop_rate": 0.75, "patch_drop_grid": 4}
    with pytest.raises(UsageError, match="cannot be run on some of the patches"):
        outline(whole, data_set={"images": 100, "classes": 10})


def test_bytes_of_a_fitted_encoding_are_those_of_dense_logits() -> None:
    whole = stages()
    dense = outline(whole, data_set={"images": 100, "classes": 300})["cache"]
    whole[1]["precompute"]["encoding"] = {"kind": "transform"}
    fitted = outline(whole, data_set={"images": 100, "classes": 300})["cache"]
    assert fitted.row_bytes["vit"] == dense.row_bytes["vit"]
    assert "bytes of vit: for dense logits" in fitted.notes[0]


def test_images_that_do_not_exist_need_a_number() -> None:
    with pytest.raises(UsageError, match="the pipeline does not have their number"):
        outline(stages())


def test_networks_of_other_stages_are_evaluated() -> None:
    whole = [*stages()[:1], {"name": "score", "evaluate": {"network": {"model": "stage:vit"}}}]
    found = outline(whole, val="nowhere", data_set={"images": 100, "classes": 10})
    assert found["score"].what == found["vit"].what.partition(" at ")[0]


def test_outlines_are_of_kinds_of_stages() -> None:
    assert OUTLINES.keys() <= STAGE_KINDS.keys()


def test_files_of_earlier_stages_do_not_have_to_exist() -> None:
    """Terms that read them are left out of the fit; their layers are looked up all the same."""
    learned = {"name": "prototypes", "learn_prototypes": {"cache": "stage:cache"}}
    attend = {"attend": {"student": "blocks.0", "file": "stage:prototypes"}}
    train = {**stages()[2]["train"], "objectives": ["label", attend]}
    whole = [*stages()[:2], learned, {"name": "student", "train": train}]
    found = outline(whole, data_set={"images": 100, "classes": 10})
    assert found["prototypes"].what == "vit/blocks.1"
    assert any("attend is not fitted" in note for note in found["student"].notes)
    learned["learn_prototypes"] = {"cache": "stage:cache", "tap": "blocks.9"}
    with pytest.raises(UsageError, match="prototypes of one layer"):
        outline(whole, data_set={"images": 100, "classes": 10})


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"pick_hints": {"taps": ["blocks.1", "blocks.7"]}}, "lack what this stage reads"),
        ({"pick_hints": {"taps": ["blocks.1", "pre_logits"]}}, "fewer layers than hint points"),
        ({"pick_hints": {"taps": ["blocks.0", "blocks.1"]}}, "only an energy was cached"),
        ({"class_means": {"feature": "vit/blocks.1"}}, "one vector for each image"),
        ({"class_means": {"feature": "vit/pre_logit"}}, "lack what this stage reads"),
        ({"learn_prototypes": {"tap": "pre_logits"}}, "the channels at every position"),
        ({"fit_weights": {"teachers": ["vit", "cnn"]}}, "lack what this stage reads"),
        ({"pick_bits": {"network": {"model": "resnet10t"}}}, "the network has new ones"),
        ({"train": {"student": {"head_on": "vit/pre_logit"}}}, "lack the vectors"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_tool_would_refuse_is_an_error(stage: dict[str, Any], message: str) -> None:
    """Before anything is computed, with what the cache would have; and what to do next."""
    whole = stages()[:2]
    layers = {"blocks.0": {"reduce": "energy"}, "blocks.1": {}, "pre_logits": {}}
    whole[1]["precompute"]["teachers"]["vit"]["features"] = layers
    ((kind, settings),) = stage.items()
    if kind == "train":
        student = {"model": "stage:vit", **settings["student"]}
        settings = {"student": student, "steps": 1, "objectives": ["label"]}
    if kind != "pick_bits":
        settings = {"cache": "stage:cache", **settings}
    with pytest.raises(UsageError, match=message) as caught:
        outline([*whole, {"name": "made", kind: settings}], data_set={"images": 9, "classes": 3})
    assert "stages.made" in str(caught.value.where)
    assert caught.value.hint


def test_a_missing_class_table_is_a_note() -> None:
    student = {"model": "stage:vit", "surgery": {"adapter": {"table": "no.npz"}}}
    train = {"student": student, "cache": "stage:cache", "steps": 1, "objectives": ["label"]}
    whole = [*stages()[:2], {"name": "student", "train": train}]
    found = outline(whole, data_set={"images": 9, "classes": 3})
    assert "no.npz does not exist here: the run needs it" in found["student"].notes


def test_networks_of_stages_pass_through_surgeries() -> None:
    whole = [*stages()[:2]]
    student = {"model": "stage:vit", "surgery": {"depth": 2, "lora": {"rank": 2}}}
    match = {"teacher": "vit", "tap": "blocks.1", "student": "blocks.0", "metric": "l1"}
    learns = {
        "student": student,
        "cache": "stage:cache",
        "steps": 1,
        "objectives": [{"match": match}],
    }
    probe = {"student": {"model": "stage:student", "surgery": {"probe": True}}, "steps": 1}
    whole += [{"name": "student", "train": learns}, {"name": "probe", "train": probe}]
    found = outline(whole, data_set={"images": 100, "classes": 10})
    kept = build_network(
        NetworkConfig(model="vit_tiny_patch16_224", kwargs={**VIT, "depth": 1}), 10, untrained=True
    )
    assert found["probe"].what == f"{shown(kept)} at 32"
    assert torch.get_default_device().type == "cpu"
