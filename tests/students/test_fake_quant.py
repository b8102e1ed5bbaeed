"""Weights and activations that are rounded in training, with a straight-through gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch

from logitcache.errors import UsageError
from logitcache.networks.build import input_spec
from logitcache.students.build import StudentConfig, build_student, converted
from logitcache.students.fake_quant import FakeQuantized, quantized_weight, rounded
from logitcache.training.config import TrainConfig
from logitcache.training.export.card import write_card
from logitcache.training.export.export import export_network

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CNN: dict[str, Any] = {
    "model": "resnet10t",
    "kwargs": {"channels": [16, 16, 16, 16], "stem_width": 16},
    "size": 16,
}
VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
}


def student(network: dict[str, Any], **fake_quant: Any) -> Any:
    torch.manual_seed(0)
    values = {**network, "surgery": {"fake_quant": fake_quant}}
    return build_student(StudentConfig.parse(values, "student"), 5).eval()


def values_of(weight: Tensor) -> int:
    """Return the number of different values."""
    return len(set(weight.flatten().tolist()))


def by_loops(weights: list[float], bits: int, *, rescale: bool) -> list[float]:
    """DoReFa's quantizer, one number after another."""
    largest = max(abs(math.tanh(w)) for w in weights)
    levels = 2**bits - 1
    found = []
    for w in weights:
        share = math.tanh(w) / (2 * largest) + 0.5
        value = 2 * round(levels * share) / levels - 1
        found.append(value * largest if rescale else value)
    return found


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("rescale", [True, False])
def test_weights_and_their_gradient_are_those_of_the_plain_loops(bits: int, rescale: bool) -> None:
    """Rounding has the gradient 1: what is left is that of tanh, with the scale as a constant."""
    weights = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    weights.requires_grad_()
    got = quantized_weight(weights, bits, rescale=rescale)
    expected = by_loops(weights.tolist(), bits, rescale=rescale)
    assert got.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert values_of(got) <= 2**bits
    (gradient,) = torch.autograd.grad(got.sum(), weights)
    largest = 1.0 if rescale else max(abs(math.tanh(w)) for w in weights.tolist())
    slopes = [(1 - math.tanh(w) ** 2) / largest for w in weights.tolist()]
    assert gradient.tolist() == pytest.approx(slopes, rel=1e-9)


def test_rounding_passes_its_gradient_straight_through() -> None:
    x = torch.tensor([-1.6, -0.2, 0.5, 2.7], requires_grad=True)
    y = rounded(x)
    assert torch.equal(y, x.detach().round())
    upstream = torch.tensor([3.0, -1.0, 0.5, 7.0])
    (gradient,) = torch.autograd.grad(y, x, upstream)
    assert torch.equal(gradient, upstream)


def test_activations_are_clamped_and_rounded_and_only_those_inside_have_a_gradient() -> None:
    layer = torch.nn.Linear(4, 1, bias=False)
    quantized = FakeQuantized(layer, 8, 2, rescale=True)
    x = torch.tensor([[-0.5, 0.3, 0.6, 1.5]], requires_grad=True)
    weight = quantized.weight.detach()
    out = quantized(x)
    expected = torch.tensor([[0.0, 1 / 3, 2 / 3, 1.0]]) @ weight.T
    torch.testing.assert_close(out, expected)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    inside = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(gradient, inside * weight)


def test_weights_that_are_all_zero_stay_finite() -> None:
    zeros = torch.zeros(6, requires_grad=True)
    got = quantized_weight(zeros, 4, rescale=True)
    (gradient,) = torch.autograd.grad(got.sum(), zeros)
    assert torch.isfinite(got).all()
    assert torch.isfinite(gradient).all()
    assert got.abs().max() < 1e-30


def test_more_bits_are_closer_to_the_weights() -> None:
    weights = 0.1 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    errors = [
        float((quantized_weight(weights, bits, rescale=True) - weights).square().mean())
        for bits in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("network", [CNN, VIT], ids=["cnn", "vit"])
def test_the_export_of_rounded_weights_is_a_plain_network_with_the_same_output(
    network: dict[str, Any], tmp_path: Path
) -> None:
    """timm loads it; every layer but the classifier has at most 2^3 values."""
    made = student(network, bits=3, rescale=False)
    layers = {n: m for n, m in made.named_modules() if isinstance(m, FakeQuantized)}
    before = {name: value.clone() for name, value in made.state_dict().items()}
    export_network(converted(made), input_spec(made), tmp_path)
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(IMAGES), made(IMAGES))
    plain = timm.create_model(network["model"], **network["kwargs"], num_classes=5)
    assert again.state_dict().keys() == plain.state_dict().keys()
    for name, module in again.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            is_head = module is again.get_classifier()
            assert (name in layers) != is_head
            assert (values_of(module.weight) <= 8) != is_head, name
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_layers_have_the_bits_that_are_given_by_name() -> None:
    made = student(CNN, bits={"layer1.0.conv1": 2, "layer3.0.conv2": 5})
    quantized = {n: m for n, m in made.named_modules() if isinstance(m, FakeQuantized)}
    counts = {name: values_of(layer.weight) for name, layer in quantized.items()}
    assert counts.keys() == {"layer1.0.conv1", "layer3.0.conv2"}
    assert counts["layer1.0.conv1"] <= 4 < counts["layer3.0.conv2"] <= 32


def test_a_linear_probe_is_not_rounded_and_the_network_before_it_is() -> None:
    values = {**CNN, "surgery": {"probe": {"normalize": True}, "fake_quant": 2}}
    made: Any = build_student(StudentConfig.parse(values, "student"), 5)
    assert type(made.fc.linear) is torch.nn.Linear
    assert values_of(made.layer1[0].conv1.weight) <= 4
    assert {n for n, p in made.named_parameters() if p.requires_grad} == {
        *("fc.linear.weight", "fc.linear.bias")
    }


def test_the_images_are_not_rounded_but_all_other_inputs_are() -> None:
    made = student(CNN, bits=8, activations=3)
    inputs: dict[str, Tensor] = {}
    for name, module in made.named_modules():
        if isinstance(module, FakeQuantized):
            module.layer.register_forward_pre_hook(
                lambda _, args, name=name: inputs.__setitem__(name, args[0])
            )
    with torch.no_grad():
        made(IMAGES)
    first, *others = inputs
    assert torch.equal(inputs[first], IMAGES)
    assert len(others) > 5
    for name in others:
        assert values_of(inputs[name]) <= 8
        assert 0 <= float(inputs[name].min()) <= float(inputs[name].max()) <= 1


def test_what_an_export_lacks_is_noted() -> None:
    def notes(**fields: Any) -> list[str]:
        values = {**CNN, "surgery": {"fake_quant": fields}}
        return StudentConfig.parse(values, "student").surgery.notes

    (weights_only,) = notes(bits=4)
    assert "at most 2^4 values" in weights_only
    assert "accuracy is another one" not in weights_only
    (both,) = notes(bits={"layer1.0.conv1": 4}, activations=4)
    assert "rounded to 4 bits" in both
    assert "not by the exported network, whose accuracy is another one" in both
    assert StudentConfig.parse(CNN, "student").surgery.notes == []


def test_the_model_card_has_the_note(tmp_path: Path) -> None:
    values = {**CNN, "surgery": {"fake_quant": {"bits": 4, "activations": 4}}}
    config = TrainConfig.parse({"out": "run", "data": "digits", "student": values, "steps": 1}, "")
    made = student(CNN, bits=4, activations=4)
    facts: dict[str, Any] = {"architecture": "resnet10t", "parameters": 1, "steps": 1}
    write_card(tmp_path, config, input_spec(made), **facts, evaluation=None, cache=None)
    text = (tmp_path / "README.md").read_text()
    assert "not by the exported network, whose accuracy is another one" in text


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        ({"fake_quant": {"bits": {"layer1.0.convv": 4}}}, "did you mean.*'layer1.0.conv1'"),
        ({"fake_quant": {"bits": {"fc": 4}}}, "that is not the classifier"),
        ({"fake_quant": 1}, "greater than or equal to 2"),
        ({"fake_quant": {"bits": 9}}, "less than or equal to 8"),
        ({"fake_quant": 4, "lora": {}}, "remove lora, or remove fake_quant"),
    ],
)
def test_a_quantization_that_is_not_possible_is_explained(
    surgery: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_student(StudentConfig.parse({**CNN, "surgery": surgery}, "student"), 5)
