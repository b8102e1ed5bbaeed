from __future__ import annotations

import pytest
import torch

from logitcache.batch import DenseLogits, Features, Outputs, TargetBatch
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig, WeightedSum, build_objective
from logitcache.objectives.label import Label
from logitcache.objectives.soft import Soft, SoftConfig
from logitcache.objectives.term import Needs, Weight

LABELS = torch.tensor([0, 3, 1])


def build(*configs: object) -> WeightedSum:
    return build_objective([ObjectiveConfig.parse(c, "objectives") for c in configs])


def test_a_number_is_a_weight_that_does_not_change() -> None:
    weight = Weight.model_validate(0.5)
    assert [weight.at(p) for p in (0.0, 0.3, 1.0)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("weight", "values"),
    [
        ({"value": 2.0, "length": 0.5}, [0.0, 1.0, 2.0, 2.0, 2.0]),
        ({"value": 0.2, "start": 0.25, "length": 0.5}, [0.0, 0.0, 0.1, 0.2, 0.2]),
        ({"value": 0.0, "initial": 1.0, "length": 1.0}, [1.0, 0.75, 0.5, 0.25, 0.0]),
        ({"value": 3.0, "initial": 1.0, "start": 0.5}, [1.0, 1.0, 3.0, 3.0, 3.0]),
    ],
)
def test_a_weight_is_a_function_of_the_share_of_the_run(
    weight: dict[str, float], values: list[float]
) -> None:
    built = Weight.model_validate(weight)
    assert [built.at(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(values)


def test_the_sum_follows_its_weights() -> None:
    total = build({"label": {"weight": {"value": 2.0, "length": 0.5}}}, {"label": {"weight": 1.0}})
    z, targets = torch.randn(3, 4), TargetBatch(torch.arange(3), LABELS, {})
    parts = total.parts(z, targets)
    for progress, factor in ((0.0, 1.0), (0.25, 2.0), (1.0, 3.0)):
        torch.testing.assert_close(total(z, targets, progress), factor * parts["label"])


def test_a_head_is_a_tap_with_logits() -> None:
    z, other, t = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4).log_softmax(1)
    outputs = Outputs(z, {"heads.cnn": Features(other, "vector")})
    targets = TargetBatch(torch.arange(3), LABELS, {"cnn": DenseLogits(t)})
    total = build("label", {"soft": {"head": "heads.cnn", "teachers": {"cnn": 1.0}}})
    assert total.needs == Needs(teachers=("cnn",), taps=("heads.cnn",), student_logits=True)
    parts = total.parts(outputs, targets)
    torch.testing.assert_close(parts["label"], Label()(z, targets))
    torch.testing.assert_close(parts["soft"], Soft()(other, targets))


def test_a_head_that_is_none_is_named() -> None:
    z, tokens = torch.randn(3, 4), torch.randn(3, 5, 4)
    targets = TargetBatch(torch.arange(3), LABELS, {"t": DenseLogits(z.log_softmax(1))})
    soft = Soft(SoftConfig(head="head"))
    with pytest.raises(UsageError, match="is not a classifier head"):
        soft(Outputs(z, {"head": Features(tokens, "NLC")}), targets)
    with pytest.raises(UsageError, match="did you mean 'heads'"):
        soft(Outputs(z, {"heads": Features(z, "vector")}), targets)
    with pytest.raises(UsageError, match="pass Outputs with features"):
        soft(z, targets)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"soft": {}, "label": {}}, "one key of label, soft"),
        ({"sofft": {}}, "did you mean 'soft'"),
        ({"soft": {"weight": -1}}, "greater than or equal to 0"),
        ({"soft": {"weight": {"value": 1, "lenght": 0.5}}}, "did you mean 'length'"),
    ],
)
def test_a_configuration_that_is_none_is_explained(config: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(config)


def test_a_configuration_is_read_back_as_it_was_written() -> None:
    for written in ("soft", {"soft": None}, {"label": {"smoothing": 0.1, "weight": {"value": 2}}}):
        config = ObjectiveConfig.parse(written, "objectives")
        assert ObjectiveConfig.parse(config.model_dump(mode="json"), "objectives") == config
