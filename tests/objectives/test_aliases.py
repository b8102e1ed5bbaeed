"""Names of published losses are the terms that the shipped pipelines write in full."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from logitcache.batch import DenseLogits, Features, Outputs, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.aliases import ALIASES, long_forms
from logitcache.objectives.combine import ObjectiveConfig, WeightedSum, build_objective
from logitcache.training.config import TrainConfig
from tests.objectives.features import maps, tokens, vector
from tests.objectives.features import noise as noise_of

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).parents[2]
TRAIN = {"data": "digits", "out": "run", "student": {"model": "resnet10t"}, "epochs": 1}
BLOCKS = [{"teacher": "vit", "tap": "blocks.0"}, {"teacher": "vit", "tap": "patch_embed"}]
LAST = {"teacher": "vit", "tap": "blocks.3", "student": "blocks.1"}

OF_PIPELINES: dict[str, tuple[str, list[Any]]] = {
    "kd": ("rkd/kd", ["label", "kd"]),
    "tinyvit": ("tinyvit/student", ["tinyvit"]),
    "nkd": ("nkd/student", ["label", "nkd"]),
    "nfd": (
        "nfd/student",
        ["label", {"nfd": {"teacher": "rednet", "tap": "layer2", "student": "layer4"}}],
    ),
    "wecolora": ("wecolora/student", [{"wecolora": LAST}]),
    "rkd": (
        "rkd/student",
        ["label", {"rkd": {"teacher": "cnn", "tap": "pre_logits", "weight": 25}}],
    ),
    "gram": ("gram/student", ["label", "kd", {"gram": {"pairs": [*BLOCKS, LAST]}}]),
    "vitkd_mimicking": (
        "vitkd/student",
        [
            "label",
            {"nkd": {"others": 1.0, "mixed": "likelier"}},
            {"vitkd_mimicking": {"teacher": "vit", "tap": "blocks.0", "weight": 1.47e-3}},
            {"vitkd_mimicking": {"teacher": "vit", "tap": "blocks.1", "weight": 1.47e-3}},
            {"vitkd_generation": {"teacher": "vit", "tap": "norm", "weight": 2.94e-4}},
        ],
    ),
}
"""Pipeline and stage, and the same objectives by alias."""

IN_FULL: dict[str, tuple[Any, Any]] = {
    "dkd": ("dkd", {"split": {"form": "dkd", "target": 1, "others": 8, "temperature": 4}}),
    "fitnet": (
        {"fitnet": {"teacher": "cnn", "tap": "layer2"}},
        {"match": {"teacher": "cnn", "tap": "layer2", "metric": "l2", "reduction": "mean"}},
    ),
    "vitkd_mimicking": (
        {"vitkd_mimicking": {"teacher": "vit", "tap": "blocks.0"}},
        {"match": {"teacher": "vit", "tap": "blocks.0", "reduction": "sum", "weight": 3e-5}},
    ),
}
"""Losses that no pipeline has, and published weights that the small pipelines rescale."""


def of_pipeline(stage: str) -> list[Any]:
    pipeline, name = stage.split("/")
    document = yaml.safe_load((ROOT / "pipelines" / f"{pipeline}.yaml").read_text())
    (found,) = (s["train"]["objectives"] for s in document["stages"] if s["name"] == name)
    return list(found)


def terms(objectives: Any) -> list[ObjectiveConfig]:
    return TrainConfig.parse({**TRAIN, "objectives": objectives}, "train").objectives


def noise(*shape: int, seed: int) -> Tensor:
    return noise_of(*shape, seed=seed).float()


def student_features() -> dict[str, Features]:
    return {
        "blocks.0": tokens(noise(4, 5, 3, seed=2), prefix=1),
        "blocks.1": tokens(noise(4, 5, 3, seed=3), prefix=1),
        "norm": tokens(noise(4, 5, 3, seed=4), prefix=1),
        "patch_embed": tokens(noise(4, 4, 3, seed=5)),
        "layer4": maps(noise(4, 3, 2, 2, seed=6)),
        "layer2": maps(noise(4, 3, 2, 2, seed=7)),
        "pre_logits": vector(noise(4, 3, seed=8)),
    }


def teacher_features() -> dict[str, Features]:
    return {
        "vit/blocks.0": tokens(noise(4, 5, 6, seed=10), prefix=1),
        "vit/blocks.1": tokens(noise(4, 5, 6, seed=11), prefix=1),
        "vit/blocks.3": tokens(noise(4, 5, 6, seed=12), prefix=1),
        "vit/patch_embed": tokens(noise(4, 4, 6, seed=13)),
        "vit/norm": tokens(noise(4, 5, 6, seed=14), prefix=1),
        "rednet/layer2": maps(noise(4, 6, 2, 2, seed=15)),
        "cnn/layer2": maps(noise(4, 6, 2, 2, seed=16)),
        "cnn/pre_logits": vector(noise(4, 6, seed=17)),
    }


def loss_of(configs: list[ObjectiveConfig]) -> float:
    """Return the value on random tensors, with the projectors of one seed."""
    objective: WeightedSum = build_objective(configs)
    outputs = Outputs(noise(4, 3, seed=0), student_features())
    log_probs = noise(4, 3, seed=1).log_softmax(1)
    targets = TargetBatch(
        torch.arange(4),
        torch.tensor([0, 2, 1, -1]),
        {"cnn": DenseLogits(log_probs)},
        features=teacher_features(),
    )
    torch.manual_seed(0)
    objective.fit(outputs, targets)
    torch.manual_seed(1)
    value: float = objective(outputs, targets).item()
    return value


def test_every_alias_is_tested() -> None:
    written = [name for _, entries in OF_PIPELINES.values() for name in names_in(entries)]
    assert {*ALIASES} == {*IN_FULL, *written} - {"label"}


def names_in(entries: list[Any]) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


@pytest.mark.parametrize("alias", OF_PIPELINES)
def test_an_alias_is_what_the_shipped_pipeline_writes_in_full(alias: str) -> None:
    stage, by_alias = OF_PIPELINES[alias]
    in_full = terms(of_pipeline(stage))
    assert [config.model_dump() for config in terms(by_alias)] == [
        config.model_dump() for config in in_full
    ]
    assert loss_of(terms(by_alias)) == loss_of(in_full)


@pytest.mark.parametrize("alias", IN_FULL)
def test_an_alias_has_the_published_settings(alias: str) -> None:
    by_alias, in_full = IN_FULL[alias]
    assert loss_of(terms([by_alias])) == loss_of(terms([in_full]))


def test_what_is_written_next_to_an_alias_overrides_its_defaults() -> None:
    (config,) = terms([{"nkd": {"form": "dkd", "others": 2.0}}])
    assert config.split is not None
    assert (config.split.form, config.split.others) == ("dkd", 2.0)


@pytest.mark.parametrize(
    ("weight", "at_half"),
    [(0.5, (0.5, 1.0)), ({"value": 4.0, "initial": 2.0, "length": 1.0}, (3.0, 6.0))],
)
def test_a_weight_keeps_the_published_ratio_of_several_terms(
    weight: Any, at_half: tuple[float, float]
) -> None:
    rkd = terms([{"rkd": {"teacher": "cnn", "tap": "pre_logits", "weight": weight}}])
    assert tuple(config.term.weight.at(0.5) for config in rkd) == at_half


def test_an_alias_of_one_term_is_accepted_without_a_list() -> None:
    assert ObjectiveConfig.parse("kd", "objectives") == ObjectiveConfig.parse("soft", "objectives")
    assert terms({"kd": {"temperature": 2}}) == terms({"soft": {"temperature": 2}})
    with pytest.raises(UsageError, match="'rkd' consists of 2 terms: give it in a list"):
        ObjectiveConfig.parse("rkd", "objectives")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("dkdd", "unknown objective 'dkdd': did you mean 'dkd'"),
        ({"fitnets": {}}, "did you mean 'fitnet'"),
        ({"vitkd": {}}, "or 'vitkd_mimicking'"),
        ({"kd": {}, "label": {}}, "one key of label, soft"),
        ({"kd": 3}, "has to be a mapping"),
        ({"kd": {"temprature": 2}}, "did you mean 'temperature'"),
        ({"rkd": {"teacher": "t", "tap": "x", "weight": "much"}}, "weight"),
    ],
)
def test_a_name_that_is_unknown_is_explained(written: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        terms([written])
    assert message in str(caught.value)


def test_an_entry_without_an_alias_stays_as_it_is() -> None:
    entries: list[object] = ["label", {"soft": {}}, {"kd": {}, "label": {}}, 3]
    for entry in entries:
        assert long_forms(entry) == [entry]
