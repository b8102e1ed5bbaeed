from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.objectives.combine import WeightedSum
from logitcache.students.build import StudentConfig, build_student, converted
from logitcache.students.linear_probe import NormalizedLinear
from logitcache.students.lora import LoraLinear, Target
from logitcache.students.surgery import SURGERIES, Surgery
from logitcache.training.export.export import export_network
from logitcache.training.optimization.trainable_student import TrainableStudent

if TYPE_CHECKING:
    from pathlib import Path

VIT: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 6,
    "num_heads": 2,
    "mlp_ratio": 2.0,
}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a vision transformer of six blocks, exported."""
    torch.manual_seed(0)
    network = build_network(NetworkConfig(model="vit_tiny_patch16_224", kwargs=VIT), 5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("teacher")
    export_network(network, input_spec(network), folder)
    return f"local-dir:{folder}"


def student(teacher: str, **surgery: Any) -> Any:
    config = StudentConfig.parse({"model": teacher, "surgery": surgery}, "student")
    return build_student(config, 5).eval()


def truncated(teacher: str, kept: list[int]) -> Any:
    """Return the teacher itself, its other blocks taken out by hand."""
    network: Any = timm.create_model(teacher, pretrained=True).eval()
    network.blocks = nn.Sequential(*(network.blocks[i] for i in kept))
    return network


@pytest.mark.parametrize(
    ("depth", "kept"), [(2, [0, 2, 4]), (3, [0, 3]), ([0, 1, 5], [0, 1, 5]), ({"every": 4}, [0, 4])]
)
@pytest.mark.parametrize("lora", [None, {"rank": 3}, {"rank": 3, "targets": ["q", "v"]}])
def test_at_first_it_is_the_truncated_teacher_bit_for_bit(
    teacher: str, depth: object, kept: list[int], lora: dict[str, Any] | None
) -> None:
    network, expected = student(teacher, depth=depth, lora=lora), truncated(teacher, kept)
    with torch.no_grad():
        assert torch.equal(network(IMAGES), expected(IMAGES))
        assert torch.equal(network.forward_features(IMAGES), expected.forward_features(IMAGES))


def learnt(network: Any) -> Any:
    """Return a network whose updates are no longer zero."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, LoraLinear):
            module.lora_b.data.normal_(generator=generator)
    return network


def test_an_update_is_added_to_the_slices_that_are_named() -> None:
    torch.manual_seed(0)
    base = nn.Linear(4, 6).double()
    layer = LoraLinear(base, 2, slices=3, updated=[0, 2]).double()
    nn.init.normal_(layer.lora_b)
    x = torch.randn(5, 7, 4, dtype=torch.float64)
    q, k, v = base(x).chunk(3, dim=-1)
    expected = [
        q + x @ layer.lora_a[0].T @ layer.lora_b[0].T,
        k,
        v + x @ layer.lora_a[1].T @ layer.lora_b[1].T,
    ]
    torch.testing.assert_close(layer(x), torch.cat(expected, -1))
    torch.testing.assert_close(F.linear(x, layer.plain().double().weight, base.bias), layer(x))


def test_only_updates_learn(teacher: str) -> None:
    network = student(teacher, depth=2, lora={"rank": 3})
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    layers = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    expected = {f"blocks.{i}.{x}.lora_{p}" for i in range(3) for x in layers for p in "ab"}
    assert learning == expected
    torch.autograd.backward(network(IMAGES).sum())
    grads = {name for name, p in network.named_parameters() if p.grad is not None}
    assert grads == expected


@pytest.mark.parametrize("targets", [["q", "v"], ["k", "fc2"], list(get_args(Target))])
def test_a_plain_student_does_the_same_and_is_opened_by_timm(
    teacher: str, targets: list[str], tmp_path: Path
) -> None:
    network = learnt(student(teacher, depth=2, lora={"rank": 3, "targets": targets}))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_network(converted(network), input_spec(network), tmp_path)
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert len(again.blocks) == 3
    assert not [m for m in again.modules() if isinstance(m, LoraLinear)]
    with torch.no_grad():
        torch.testing.assert_close(again(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(again(IMAGES), truncated(teacher, [0, 2, 4])(IMAGES))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_probe_learns_a_fresh_classifier_alone(teacher: str) -> None:
    network = student(teacher, depth=2, probe=True)
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
    }
    old = truncated(teacher, [0, 2, 4])
    assert not torch.equal(network.head.weight, old.head.weight)
    with torch.no_grad():
        features = [n.forward_features(IMAGES) for n in (network, old)]
    assert torch.equal(*features)


@pytest.mark.parametrize(
    "surgery",
    [{"depth": 2}, {"lora": {"rank": 3}}, {"probe": True}, {"probe": {"normalize": True}}],
)
def test_a_bare_file_of_another_size_and_number_of_classes_is_a_student(
    teacher: str, surgery: dict[str, Any], tmp_path: Path
) -> None:
    whole: Any = timm.create_model(teacher, pretrained=True)
    state = {f"model.{name}": tensor for name, tensor in whole.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    kwargs = {name: value for name, value in VIT.items() if name != "img_size"}
    config = StudentConfig.parse(
        {
            "model": "vit_tiny_patch16_224",
            "weights": str(tmp_path / "w.ckpt"),
            "kwargs": kwargs,
            "surgery": surgery,
        },
        "student",
    )
    network: Any = build_student(config, 9).eval()
    assert input_spec(network).size == VIT["img_size"]
    expected = truncated(teacher, [0, 2, 4] if "depth" in surgery else list(range(6)))
    with torch.no_grad():
        assert network(IMAGES).shape == (3, 9)
        assert torch.equal(network.forward_features(IMAGES), expected.forward_features(IMAGES))


def test_statistics_of_frozen_norms_stay() -> None:
    values = {"model": "resnet10t", "surgery": {"probe": True}}
    config = StudentConfig.parse({**values, "kwargs": {"channels": [16] * 4}}, "student")
    lesson = TrainableStudent(
        build_student(config, 5), WeightedSum([]), size=16, features={}
    ).train()
    before = {name: value.clone() for name, value in lesson.named_buffers()}
    lesson(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in lesson.named_buffers())
    assert lesson.network.training


@pytest.mark.parametrize(
    ("model", "surgery", "message"),
    [
        ("resnet10t", {"depth": 2}, "needs a network with a sequence of blocks"),
        ("resnet10t", {"lora": {}}, "needs a network with a sequence of blocks"),
        ("mixer_s32_224", {"lora": {}}, "no linear layer attn.qkv to update"),
        ("vit", {"depth": [0, 6]}, "no block 6"),
        ("vit", {"depth": [3, 1]}, "ascending"),
        ("vit", {"depth": {}}, "either every or blocks"),
        ("vit", {"lora": {}, "probe": True}, "remove lora"),
        ("vit", {"lora": {"targets": ["fc3"]}}, "'fc1' or 'fc2'"),
        ("vit", {"lorra": {}}, "did you mean 'lora'"),
        ("deit_tiny_distilled_patch16_224", {"probe": True}, "several classifiers"),
    ],
)
def test_a_surgery_that_cannot_be_done_is_explained(
    teacher: str, model: str, surgery: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        student(teacher if model == "vit" else model, **surgery)


def test_a_normalized_probe_is_folded_into_a_linear_classifier(
    teacher: str, tmp_path: Path
) -> None:
    """Its output in evaluation mode is that of float64 arithmetic, before and after export."""
    network = student(teacher, depth=2, probe={"normalize": True})
    learning = {n for n, p in network.named_parameters() if p.requires_grad}
    assert learning == {"head.linear.weight", "head.linear.bias"}
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(IMAGES)
        network.eval()
        features = network.forward_head(network.forward_features(IMAGES), pre_logits=True).double()
        norm, linear = network.head.norm, network.head.linear
        scaled = (features - norm.running_mean) / (norm.running_var.double() + 1e-6).sqrt()
        expected = scaled @ linear.weight.double().T + linear.bias
        torch.testing.assert_close(network(IMAGES).double(), expected, rtol=1e-4, atol=1e-5)
        export_network(converted(network), input_spec(network), tmp_path)
        again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        assert type(again.head) is nn.Linear
        torch.testing.assert_close(again(IMAGES).double(), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(network.head, NormalizedLinear)  # a copy was converted


@pytest.mark.parametrize("normalize", [False, True])
def test_a_probe_starts_as_that_of_masked_autoencoders(teacher: str, normalize: bool) -> None:
    """Weights of standard deviation 0.01, biases zero."""
    network = student(teacher, probe={"normalize": normalize})
    linear = network.head.linear if normalize else network.head
    assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.3)
    assert not linear.bias.any()


def test_surgeries_prepare_in_order_and_convert_backwards(
    teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def recording(name: str, surgery: Surgery) -> Surgery:
        def prepare(network: nn.Module, settings: Any, config: NetworkConfig) -> nn.Module:
            order.append(f"prepare {name}")
            return surgery.prepare(network, settings, config)

        def convert(network: nn.Module) -> nn.Module:
            order.append(f"convert {name}")
            return surgery.convert(network)

        return replace(surgery, prepare=prepare, convert=convert)

    for name, surgery in list(SURGERIES.items()):
        monkeypatch.setitem(SURGERIES, name, recording(name, surgery))
    converted(student(teacher, depth=2, lora={"rank": 3}))
    assert order == [
        *("prepare depth", "prepare lora"),
        *(f"convert {name}" for name in reversed(SURGERIES)),
    ]


def test_a_probe_that_is_off_is_no_surgery() -> None:
    config = StudentConfig.parse({"model": "m", "surgery": {"probe": False, "lora": {}}}, "student")
    assert list(config.surgery.chosen) == ["lora"]
