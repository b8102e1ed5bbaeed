"""Mistakes with every term, surgery, sampler and tool: refused before the first step, with a place.

A new block needs a row here. Texts in braces are files of the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from logitcache.errors import LogitcacheError
from logitcache.objectives.combine import TERMS, ObjectiveConfig
from logitcache.objectives.projector import PROJECTORS
from logitcache.pipeline.stage_kinds import STAGE_KINDS
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.students.surgery import SURGERIES
from logitcache.targets.view_scores import SAMPLERS
from logitcache.tools.class_means import ClassMeansConfig, class_means
from logitcache.tools.learn_prototypes import LearnPrototypesConfig, learn_prototypes
from logitcache.training import loop
from logitcache.training.config import TrainConfig
from tests.conftest import jpeg, shape_image, write_images, write_teacher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}
CNN = {"model": "resnet10t", "kwargs": {"channels": [16] * 4, "stem_width": 16}, "size": 32}
HELD: dict[str, Any] = {"teacher": "red", "tap": "layer1", "student": "blocks.0"}
PAIRS = [HELD, {"teacher": "red", "tap": "stem", "student": "blocks.1"}]

VALID: dict[str, dict[str, Any]] = {
    "label": {},
    "soft": {},
    "split": {},
    "match": HELD,
    "relation": {**HELD, "form": "distance"},
    "route": {"teacher": "red", "taps": ["layer1"], "students": ["blocks.0"], "width": 8},
    "adversarial": {**HELD, "hidden": 8},
    "fuse": {"pairs": PAIRS, "scales": 2},
    "assign": {**HELD, "file": "{prototypes.safetensors}"},
    "attend": {"student": "blocks.1", "file": "{prototypes.safetensors}", "width": 8},
    "episode": {"student": "norm"},
    "reconstruct": {"width": 16, "heads": 2, "depth": 1},
    "gate": {"pairs": PAIRS, "width": 8},
    "gap": {"parts": ["bird", "dog"]},
}
"""Settings of each term that can be trained."""

DROPPED = {"cache": None, "views": {"patch_drop_rate": 0.5, "patch_drop_grid": 2}}
FIELDS: dict[str, dict[str, Any]] = {"reconstruct": DROPPED}
"""Other settings that a term needs."""


POSITIVE = {"temperature", "scale", "width", "scales", "hidden", "depth", "heads"}
"""Options that are above zero wherever a term has them."""


class Started(Exception):
    """A run has come to its first step."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with image sets, caches, files of tools, and other files."""
    root = tmp_path_factory.mktemp("blocks")
    images = write_images(root / "images", 4)
    write_images(root / "single", 2, ("bird",))
    (root / "flat").mkdir()
    for number in range(12):
        (root / "flat" / f"{number}.jpg").write_bytes(jpeg(shape_image(number)))
    red = {"model": f"local-dir:{write_teacher(root / 'red', classes=3, seed=1)}"}
    layers: dict[str, Any] = {"layer1": {}, "stem": {}, "pre_logits": {}}
    for name, data, teacher, more in (
        ("cache", images, {**red, "features": layers}, {"views": {"count": 2}}),
        ("plain", images, red, {"encoding": {"kind": "sparse", "top_k": 2}}),
        ("mixed", images, {**red, "features": layers}, {"views": {"count": 2, "mixup_alpha": 0.8}}),
        ("unlabeled", root / "flat", {**red, "features": layers}, {"views": {"count": 2}}),
    ):
        values = {"cache": str(root / name), "data": str(data), "teachers": {"red": teacher}}
        build_cache(PrecomputeConfig.parse({**values, "unit_rows": 16, **more}, ""))
    cache = {"cache": str(root / "cache")}
    file = {"out": str(root / "prototypes.safetensors"), "tap": "layer1", "count": 2, "passes": 1}
    learn_prototypes(LearnPrototypesConfig.parse({**cache, **file}, ""))
    table = {"out": str(root / "table.safetensors"), "feature": "red/pre_logits"}
    class_means(ClassMeansConfig.parse({**cache, **table}, ""))
    (root / "notes.txt").write_text("mine")
    return root


def filled(value: Any, root: Path) -> Any:
    """Return settings with the paths of files in braces."""
    if isinstance(value, dict):
        return {name: filled(one, root) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, root) for one in value]
    braced = isinstance(value, str) and value.startswith("{")
    return str(root / value[1:-1]) if braced else value


def refusal(root: Path, objectives: list[Any], **fields: Any) -> LogitcacheError | None:
    """Return the error of a run before its first step; None if it comes to that."""
    values = {
        "out": "{out}",
        "data": "{images}",
        "cache": "{cache}",
        "student": VIT,
        "objectives": objectives,
        "steps": 1,
        "batch_size": 4,
        "device": "cpu",
        "threads": 1,
        **fields,
    }

    def start(_: object) -> None:
        raise Started

    given = {name: one for name, one in filled(values, root).items() if one is not None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "train", start)
        try:
            loop.train_student(TrainConfig.parse(given, "train"))
        except LogitcacheError as error:
            return error
        except Started:
            return None
    raise AssertionError("a run neither starts nor fails")


def assert_explained(error: LogitcacheError | None, words: str, case: object) -> None:
    assert error is not None, f"{case} is not refused"
    text = str(error)
    assert words in text, f"{case}: {text}"
    assert "where:" in text, f"{case}: {text}"


def changed(value: Any, key: str, new: object) -> Any:
    """Return settings of a term with another value of a key, in the first of several pairs."""
    if "pairs" in value and key in PAIRS[0]:
        first, *others = value["pairs"]
        return {**value, "pairs": [{**first, key: new}, *others]}
    return {**value, key: new}


def mistakes(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Yield the mistakes that can be made with a term: its settings, other settings, words."""
    valid = VALID[name]
    layers = valid["pairs"][0] if "pairs" in valid else valid
    yield {**valid, "wieght": 1}, {}, "did you mean 'weight'"
    yield {**valid, "weight": -1}, {}, f"objectives.0.{name}.weight"
    yield {**valid, "weight": float("inf")}, {}, f"objectives.0.{name}.weight"
    yield {**valid, "views": ["rot90(1)"]}, {}, f"{name}.views: rot90(1) is not among"
    if name != "gap":
        yield {**valid, "parts": ["cta"]}, {}, "no image is in a part 'cta'"
    for key, new, words in (
        ("teacher", "rde", "red/layer1"),
        ("tap", "layer9", "no features 'red/layer9'"),
        ("taps", ["layer9"], "no features 'red/layer9'"),
        ("student", "blocks.9", "did you mean 'blocks.1'"),
        ("students", ["blocks.9"], "did you mean 'blocks.1'"),
        ("file", "{none.safetensors}", "no such file"),
        ("file", "{notes.txt}", "not of this format"),
        ("file", "{red/model.safetensors}", "learn-prototypes"),
    ):
        if key in layers:
            yield changed(valid, key, new), {}, words
    if {"teacher", "tap", "student"} <= layers.keys() and name != "relation":
        yield changed(valid, "student", "pre_logits"), {}, "choose a student layer with maps"
    if "teacher" in layers:
        yield valid, {"cache": "{plain}"}, "no features 'red/"
    if "teacher" in layers or name in {"soft", "split"}:
        yield valid, {"cache": None}, f"objectives: {name}"
    if name in {"label", "split", "episode", "gap", "attend"}:
        words = "number of classes is not known" if name in {"label", "gap", "attend"} else name
        yield valid, {"cache": "{unlabeled}", "data": "{flat}"}, words
    if name in {"relation", "episode", "gap"}:
        yield valid, {"batch_size": 1}, f"{name} compares the images of a batch"
        yield valid, {"accumulate": 2}, f"{name} compares the images of a batch"
    known = type(ObjectiveConfig.model_validate({name: valid}).term).model_fields
    for key in sorted(POSITIVE & known.keys()):
        yield {**valid, key: 0}, {}, f"objectives.0.{name}.{key}"


@pytest.mark.parametrize("name", sorted(TERMS))
def test_mistakes_with_a_term_are_refused_before_the_first_step(root: Path, name: str) -> None:
    fields = FIELDS.get(name, {})
    assert refusal(root, [{name: VALID[name]}], **fields) is None
    for settings, more, words in mistakes(name):
        error = refusal(root, [{name: settings}], **{**fields, **more})
        assert_explained(error, words, (name, settings, more))


OTHERS: list[tuple[Any, dict[str, Any], str]] = [
    ("sfot", {}, "did you mean 'soft'"),
    ({"soft": {"temperature": float("inf")}}, {}, "soft.temperature"),
    ({"soft": {"teachers": {"rde": 1}}}, {}, "did you mean 'red'"),
    ({"soft": {"teachers": {"red": -1}}}, {}, "0 or more"),
    ({"soft": {"teachers": {"red": 0}}}, {}, "above 0"),
    ({"soft": {"teachers": "{none.yaml}"}}, {}, "none.yaml"),
    ({"soft": {"logits": {"red": "layer1"}}}, {}, "vector of logits"),
    ({"soft": {"logits": {"red": "pre_logits"}}}, {}, "objectives.soft"),
    ({"soft": {"head": "branches.layer1"}}, {}, "branches.layer1"),
    ({"soft": {"head": "norm"}}, {}, "objectives.soft, head norm"),
    ({"split": {"temperature": 4}}, {"cache": "{plain}"}, "dense targets"),
    ("split", {"cache": "{mixed}"}, "objectives.split"),
    ({"episode": {"student": "norm"}}, {"cache": "{mixed}"}, "objectives.episode"),
    ({"label": {"joint": True}}, {}, "several views"),
    ({"label": {"pseudo": "rde"}}, {}, "did you mean 'red'"),
    ("label", {"student": {**VIT, "kwargs": {**VIT["kwargs"], "num_classes": 2}}}, "at least 3"),
    ("soft", {"student": {**VIT, "kwargs": {**VIT["kwargs"], "num_classes": 5}}}, "num_classes"),
    ("label", {"labels": 99}, "at most 12"),
    ("label", {"cache": None, "data": "{single}"}, "the same class"),
    ("soft", {"data": "{single}"}, "10 missing"),
    ({"reconstruct": VALID["reconstruct"]}, {}, "views that drop patches"),
    ({"gap": {"parts": ["bird", "bird"]}}, {}, "two parts"),
    ({"gap": {"parts": ["bird", "cta"]}}, {}, "no image is in a part 'cta'"),
    ({"route": {**VALID["route"], "taps": ["stem", "stem"]}}, {}, "stem is given twice"),
    ({"assign": {**VALID["assign"], "tap": "stem"}}, {}, "another number of channels"),
    ({"fuse": {**VALID["fuse"], "scales": 40}}, {}, "a divisor of"),
    ({"match": {"against": "pixels", "student": "pre_logits"}}, {}, "of pixels"),
    ("soft", {"show": ["base", "rot90(1)"]}, "no base view of the cache has all"),
    ("soft", {"use_views": ["7"]}, "no view '7'"),
    ("soft", {"student": {**VIT, "head_on": "red/pre_logits"}}, "head_on"),
]


@pytest.mark.parametrize(("objective", "fields", "words"), OTHERS, ids=lambda _: "")
def test_other_mistakes_with_objectives_are_refused(
    root: Path, objective: Any, fields: dict[str, Any], words: str
) -> None:
    assert_explained(refusal(root, [objective], **fields), words, (objective, fields))


NEEDS_MAPS = set(PROJECTORS) - {"auto", "none", "linear", "mlp"}


@pytest.mark.parametrize("kind", sorted(PROJECTORS))
def test_a_projector_is_refused_where_the_layers_do_not_fit(root: Path, kind: str) -> None:
    """Nearly all need positions on both sides; ``none`` needs equal channels."""
    error = refusal(root, [{"match": {**HELD, "student": "pre_logits", "projector": kind}}])
    assert_explained(error, "the student's vector", kind)
    vector = refusal(root, [{"match": {**HELD, "tap": "pre_logits", "projector": kind}}])
    if kind in NEEDS_MAPS:
        assert_explained(vector, "objectives.match of red/pre_logits", kind)
    elif kind == "none":
        assert_explained(vector, "set projector: linear", kind)
    else:
        assert vector is None, "the mean of the student's positions is compared with a vector"


SURGERY: dict[str, list[tuple[Any, dict[str, Any], str]]] = {
    "depth": [
        ({"blocks": [9]}, VIT, "blocks 0 to 1"),
        ({"every": 9}, VIT, "1 to 2"),
        ({}, VIT, "either every or blocks"),
        (2, CNN, "vision transformer"),
    ],
    "lora": [
        ({"rank": 0}, VIT, "lora.rank"),
        ({"targets": ["qq"]}, VIT, "lora.targets"),
        ({}, CNN, "choose a vision transformer"),
    ],
    "probe": [({"normalise": 3}, VIT, "normalize")],
    "adapter": [
        ({"table": "{none.safetensors}"}, VIT, "none.safetensors"),
        ({"table": "{table.safetensors}"}, VIT, "16 numbers"),
        ({"share": 2}, VIT, "adapter.share"),
    ],
    "branches": [
        ({"at": ["layer9"]}, CNN, "no stage 'layer9'"),
        ({"at": ["layer1"]}, CNN, "no objective uses a branch"),
        ({"at": []}, CNN, "branches.at"),
    ],
    "fake_quant": [
        (1, VIT, "fake_quant.bits"),
        ({"bits": {"blocks.9.attn.qkv": 4}}, VIT, "did you mean 'blocks.1.attn.qkv'"),
        ("{none.yaml}", VIT, "none.yaml"),
        ("{notes.txt}", VIT, "no mapping 'bits'"),
    ],
}


@pytest.mark.parametrize("name", sorted(SURGERIES))
def test_mistakes_with_a_surgery_are_refused_before_the_first_step(root: Path, name: str) -> None:
    for settings, student, words in SURGERY[name]:
        error = refusal(root, ["soft"], student={**student, "surgery": {name: settings}})
        assert_explained(error, words, (name, settings))


@pytest.mark.parametrize("kind", sorted(SAMPLERS))
def test_mistakes_with_a_sampler_are_refused_before_the_first_step(root: Path, kind: str) -> None:
    assert refusal(root, ["soft"], sampler={"kind": kind}) is None
    for settings, fields, words in (
        ({"kind": f"{kind}s"}, {}, "expected one of"),
        ({"tau": 0}, {}, "sampler.tau"),
        ({"original": 9}, {}, "a number below 2"),
        ({}, {"cache": "{plain}"}, "at least two views"),
        ({}, {"cache": "{mixed}", "use_views": ["0", "1"]}, "whole images"),
        ({}, {"cache": None}, "give a cache"),
        ({}, {"cache": "{unlabeled}", "data": "{flat}"}, "no image has one"),
    ):
        error = refusal(root, ["soft"], sampler={"kind": kind, **settings}, **fields)
        assert_explained(error, words, (settings, fields))


CACHED = {"cache": "{cache}", "out": "{new}"}
TOOLS: dict[str, tuple[dict[str, Any], list[tuple[dict[str, Any], str]]]] = {
    "fit_weights": (
        CACHED,
        [
            ({"teachers": ["rde"]}, "did you mean 'red'"),
            ({"rows": 0}, "fit_weights.rows"),
            ({"cache": "{unlabeled}"}, "label"),
            ({"seen": {"count": 999, "seed": 0}}, "999"),
        ],
    ),
    "pick_hints": (
        {**CACHED, "taps": ["stem", "layer1", "pre_logits"], "count": 2},
        [
            ({"teacher": "rde"}, "red"),
            ({"taps": ["layer9"]}, "layer9"),
            ({"count": 9}, "9"),
            ({"count": 0}, "pick_hints.count"),
            ({"cache": "{plain}"}, "no layers to choose from"),
        ],
    ),
    "class_means": (
        {**CACHED, "feature": "red/pre_logits"},
        [
            ({"feature": "rde/pre_logits"}, "did you mean 'red/pre_logits'"),
            ({"feature": "red"}, "class_means.feature"),
            ({"feature": "red/layer1"}, "one vector"),
            ({"cache": "{unlabeled}"}, "label"),
            ({"cache": "{plain}"}, "--feature red=pre_logits"),
        ],
    ),
    "pick_bits": (
        {"network": VIT, "out": "{new}"},
        [
            ({"threshold": 0}, "pick_bits.threshold"),
            ({"threshold": float("inf")}, "pick_bits.threshold"),
            ({"network": {"model": "vitt"}}, "vitt"),
            ({"network": {**VIT, "weights": "{notes.txt}"}}, "notes.txt"),
        ],
    ),
    "synthesize": (
        {"data": "{images}", "out": "{new}"},
        [
            ({"count": 0}, "synthesize.count"),
            ({"mix": 2}, "synthesize.mix"),
            ({"warp": float("nan")}, "synthesize.warp"),
            ({"data": "{none}"}, "none"),
            ({"out": "{images}"}, "new folder"),
        ],
    ),
    "learn_prototypes": (
        {**CACHED, "tap": "layer1", "count": 2, "passes": 1},
        [
            ({"teacher": "rde"}, "red"),
            ({"tap": "layer9"}, "layer9"),
            ({"tap": "pre_logits"}, "pre_logits"),
            ({"count": 1}, "learn_prototypes.count"),
            ({"count": 10**6}, "1000000"),
            ({"sharpness": 0}, "learn_prototypes.sharpness"),
            ({"cache": "{plain}"}, "feature"),
        ],
    ),
}
"""Settings of each tool that can be run, and mistakes: settings instead of these, words."""
OTHER_STAGES = {"precompute", "train", "evaluate"}


@pytest.mark.parametrize("name", sorted(STAGE_KINDS.keys() - OTHER_STAGES))
def test_mistakes_with_a_tool_are_refused_and_nothing_is_written(root: Path, name: str) -> None:
    kind, (valid, wrong) = STAGE_KINDS[name], TOOLS[name]
    for settings, words in wrong:
        values = filled({**valid, **settings}, root)
        before = {path for path in root.rglob("*") if path.is_file()}
        with pytest.raises(LogitcacheError) as caught:
            kind.runner()(kind.config_class().parse(values, name))
        assert_explained(caught.value, words, (name, settings))
        assert {path for path in root.rglob("*") if path.is_file()} == before
