"""Weights files as people have them: wrappers, prefixes, other classifiers, other files."""

from __future__ import annotations

import argparse
import functools
import re
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from logitcache.errors import NetworkError
from logitcache.networks.build import NetworkConfig, build_network, input_spec, size_is_known

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    State = dict[str, Tensor]

CLASSES = 5
VIT: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 4}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet10t", {"channels": [16, 16, 16, 16], "stem_width": 16}),
    "vit": ("vit_tiny_patch16_224", {**VIT, "img_size": 16}),
    "rednet": ("rednet26_small", {"layers": [1], "width": 32, "kernel_size": 3}),
    "civt": ("civt_tiny_patch16_224", {**VIT, "img_size": 16, "stem_width": 32}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 28, "embed_dim": 12, "depths": [1, 1], "num_heads": [1, 2]},
    ),
}


@functools.cache
def trained(name: str, classes: int = CLASSES, seed: int = 0) -> nn.Module:
    """Return a network none of whose weights are those of a fresh one."""
    model, kwargs = ARCHITECTURES[name]
    network = timm.create_model(model, num_classes=classes, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return network


def state_of(name: str, **fields: int) -> State:
    return trained(name, **fields).state_dict()


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def load(path: Path, name: str, classes: int | None = None, **kwargs: Any) -> nn.Module:
    """Build a network around a file: a teacher's, or a student's with so many classes."""
    model, own = ARCHITECTURES[name]
    config = NetworkConfig(model=model, weights=str(path), kwargs={**own, **kwargs})
    return build_network(config, classes)


def load_saved(tmp_path: Path, content: object, name: str, *args: Any, **kwargs: Any) -> nn.Module:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    return load(path, name, *args, **kwargs)


def refusal(tmp_path: Path, content: object, name: str, *args: Any, **kwargs: Any) -> NetworkError:
    with pytest.raises(NetworkError) as caught:
        load_saved(tmp_path, content, name, *args, **kwargs)
    return caught.value


def assert_same(network: nn.Module, state: State) -> None:
    """Check that all tensors are those of a state dict, but for a classifier of another size."""
    own = network.state_dict()
    assert own.keys() == state.keys()
    for name, tensor in state.items():
        if name.startswith(("head", "fc")) and own[name].shape != tensor.shape:
            assert own[name].shape == (network.num_classes, *tensor.shape[1:])
        else:
            assert torch.equal(own[name], tensor), name


def optimizer(name: str) -> dict[str, Any]:
    """Return the state of an optimizer after a step."""
    copy = torch.nn.ParameterList(p.detach().clone() for p in trained(name).parameters())
    adam = torch.optim.AdamW(copy)
    for parameter in copy:
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    return adam.state_dict()


WRAPPERS: dict[str, Callable[[State, str], object]] = {
    "bare": lambda state, name: state,
    "training checkpoint": lambda state, name: {
        "epoch": 3,
        "optimizer": optimizer(name),
        "model_state_dict": state,
    },
    "timm": lambda state, name: {
        "epoch": 3,
        "arch": "some_model",
        "state_dict": under("module.", state),
        "optimizer": optimizer(name),
        "args": argparse.Namespace(lr=0.1),
        "amp_scaler": {"scale": 65536.0},
    },
    "lightning": lambda state, name: {
        "state_dict": {**under("model.", state), "criterion.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [optimizer(name)],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "pytorch-lightning_version": "2.6.0",
    },
    "DataParallel of a Lightning module of a compiled one": lambda state, name: {
        "state_dict": under("module.net._orig_mod.", state)
    },
    "compiled blocks": lambda state, name: {
        re.sub(r"^(layer1|blocks|layers|stages)\.", r"\1._orig_mod.", n): t
        for n, t in state.items()
    },
    "nested": lambda state, name: {"checkpoint": {"network": under("encoder.backbone.", state)}},
    "list": lambda state, name: [state, {"lr": 0.1}],
    "profiled": lambda state, name: {
        **state,
        "total_ops": torch.zeros(1, dtype=torch.float64),
        "head.total_params": torch.zeros(1),
    },
    "without counters": lambda state, name: {
        n: t for n, t in state.items() if not n.endswith("num_batches_tracked")
    },
    "half precision": lambda state, name: {
        n: t.half() if t.is_floating_point() else t for n, t in state.items()
    },
    "next to another network": lambda state, name: {
        **under("student.", state),
        **under("teacher.", state_of("resnet" if name == "vit" else "vit")),
    },
    "next to an average": lambda state, name: {
        "net": state,
        "net_ema": {n: t + 1 for n, t in state.items()},
    },
    "next to itself compiled": lambda state, name: {
        "state_dict": {**under("model.", state), **under("compiled._orig_mod.", state)}
    },
    "old file format": lambda state, name: state,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_are_found_in_their_wrapper(name: str, wrapper: str, tmp_path: Path) -> None:
    content = WRAPPERS[wrapper](state_of(name), name)
    path = tmp_path / "weights.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=wrapper != "old file format")
    expected = state_of(name)
    if wrapper == "half precision":
        expected = {n: t.half() if t.is_floating_point() else t for n, t in expected.items()}
    elif wrapper == "without counters":
        fresh = {n: torch.zeros_like(t) for n, t in expected.items() if n.endswith("_tracked")}
        expected = {**expected, **fresh}
    network = load(path, name)
    assert network.num_classes == CLASSES
    assert {t.dtype for t in network.state_dict().values()} <= {torch.float32, torch.int64}
    assert_same(
        network, {n: t.float() if t.is_floating_point() else t for n, t in expected.items()}
    )


PARTS = ["model", "net", "module", "_orig_mod", "encoder", "backbone", "0", "head", "layer1", "ema"]


@settings(max_examples=20)
@given(
    name=st.sampled_from(list(ARCHITECTURES)),
    keys=st.lists(st.sampled_from(["state_dict", "model", "weights", "ema", "x.y"]), max_size=3),
    parts=st.lists(st.sampled_from(PARTS), max_size=3),
    classes=st.sampled_from([None, CLASSES, CLASSES + 2]),
    safetensors=st.booleans(),
)
def test_weights_are_found_under_any_prefix(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    keys: list[str],
    parts: list[str],
    classes: int | None,
    safetensors: bool,
) -> None:
    state = under("".join(f"{part}." for part in parts), state_of(name))
    path = tmp_path_factory.mktemp("prefixes") / "weights.bin"
    if safetensors:
        save_file({n: t.contiguous() for n, t in state.items()}, path)
    else:
        # Next to the network's own names it would be taken for a part of the network.
        outside = any(part != "_orig_mod" for part in parts)
        content: object = {**state, **({"unrelated.bias": torch.ones(2)} if outside else {})}
        for key in keys:
            content = {key: content, "epoch": 1}
        torch.save(content, path)
    network = load(path, name, classes)
    assert network.num_classes == (classes or CLASSES)
    assert_same(network, state_of(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_student_gets_a_fresh_classifier_of_its_size_and_all_else_from_the_file(
    name: str, tmp_path: Path
) -> None:
    state = state_of(name)
    head = {n for n, t in state.items() if t.ndim and t.shape[0] == CLASSES and "head" in n} or {
        "fc.weight",
        "fc.bias",
    }
    other = load_saved(tmp_path, state, name, CLASSES + 1)
    assert other.num_classes == CLASSES + 1
    assert_same(other, state)
    backbone = {n: t for n, t in state.items() if n not in head}
    headless = load_saved(tmp_path, under("encoder.", backbone), name, CLASSES)
    own = headless.state_dict()
    assert all(torch.equal(own[n], t) for n, t in backbone.items())
    assert not any(torch.equal(own[n], state[n]) for n in head if n.endswith("weight"))
    assert_same(load_saved(tmp_path, state, name, CLASSES), state)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_backbone_is_no_teacher(name: str, tmp_path: Path) -> None:
    backbone = {
        n: t for n, t in state_of(name).items() if not n.startswith(("head.", "heads.", "fc."))
    }
    if name == "swin":  # its module named head has a norm elsewhere only
        assert "norm.weight" in backbone
    error = refusal(tmp_path, {**under("net.", backbone), "probe.weight": torch.ones(3, 16)}, name)
    assert "no classifier" in error.what
    assert "weight" in str(error.expected)
    assert error.got == "probe.weight (3, 16)"


def test_another_kind_of_classifier_is_left_out_for_students_only(tmp_path: Path) -> None:
    state = {n: t for n, t in state_of("resnet").items() if not n.startswith("fc.")}
    mlp = {"fc.0.weight": torch.ones(8, 16), "fc.2.weight": torch.ones(CLASSES, 8)}
    assert load_saved(tmp_path, {**state, **mlp}, "resnet", CLASSES).num_classes == CLASSES
    error = refusal(tmp_path, {**state, **mlp}, "resnet")
    assert error.got == "fc.0.weight (8, 16), fc.2.weight (5, 8)"
    more = {**state_of("resnet"), "fc.norm.weight": torch.ones(16)}
    assert "no classifier" in refusal(tmp_path, more, "resnet").what
    assert load_saved(tmp_path, more, "resnet", CLASSES).num_classes == CLASSES


def test_a_teacher_keeps_the_number_of_classes_of_its_file(tmp_path: Path) -> None:
    error = refusal(tmp_path, state_of("resnet"), "resnet", num_classes=3)
    assert (error.expected, error.got) == (3, CLASSES)


def test_several_networks_that_fit_are_named(tmp_path: Path) -> None:
    two = {"student": state_of("resnet"), "teacher": state_of("resnet", seed=1)}
    error = refusal(tmp_path, two, "resnet")
    assert "several fitting networks" in error.what
    assert error.got == "names under 'student.', 'teacher.'"
    assert load_saved(tmp_path, {"state_dict": two["student"], **two}, "resnet") is not None


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (("state_dict", "state_dict_ema"), 1),
        (("model", "model_ema"), 1),
        (("model", "ema"), 0),
        (("ema", "weights"), 1),
        (("weights", "ema.module"), 0),
    ],
)
def test_averages_are_taken_where_timm_takes_them(
    keys: tuple[str, str], chosen: int, tmp_path: Path
) -> None:
    states = [state_of("resnet"), state_of("resnet", seed=1)]
    network = load_saved(tmp_path, dict(zip(keys, states, strict=True)), "resnet")
    assert_same(network, states[chosen])


@pytest.mark.parametrize(
    ("content", "name", "kwargs", "expected", "got"),
    [
        (lambda: state_of("resnet"), "vit", {}, "patch_embed.proj.weight", "conv1.0.weight"),
        (lambda: state_of("vit"), "vit", {"depth": 3}, "blocks.2.norm1.weight", "none"),
        (lambda: state_of("vit"), "vit", {"depth": 1}, "no further", "blocks.1.norm1.weight (24,)"),
        (
            lambda: state_of("vit"),
            "vit",
            {"patch_size": 8, "img_size": 32},
            "patch_embed.proj.weight (24, 3, 8, 8)",
            "patch_embed.proj.weight (24, 3, 4, 4)",
        ),
        (
            lambda: {n: t for n, t in state_of("resnet").items() if "running_var" not in n},
            "resnet",
            {},
            "bn1.running_var (32,)",
            "none",
        ),
        (
            lambda: {
                n: (100 * t).char() if t.ndim == 4 else t for n, t in state_of("resnet").items()
            },
            "resnet",
            {},
            "conv1.0.weight (12, 3, 3, 3)",
            "conv1.0.weight (12, 3, 3, 3) int8",
        ),
        (
            lambda: {**state_of("resnet"), "layer1.0.se.weight": torch.ones(2)},
            "resnet",
            {},
            "no further",
            "layer1.0.se.weight (2,)",
        ),
        (
            lambda: {"\x1b[2J": torch.ones(2)},
            "resnet",
            {},
            "conv1.0.weight",
            "'model.\\x1b[2J' (2,)",
        ),
    ],
)
def test_weights_of_another_network_are_named_on_both_sides(
    content: Callable[[], State],
    name: str,
    kwargs: dict[str, Any],
    expected: str,
    got: str,
    tmp_path: Path,
) -> None:
    for classes in (None, CLASSES):
        error = refusal(tmp_path, {"model": content()}, name, classes, **kwargs)
        assert "do not fit" in error.what
        assert expected in str(error.expected)
        assert got in str(error.got)
        assert len(str(error.expected)) < 400


@pytest.mark.parametrize(
    ("make", "model", "hint"),
    [
        (
            lambda: torchvision.models.VisionTransformer(32, 16, 1, 1, 8, 8, num_classes=4),
            "vit_tiny_patch16_224",
            "vision transformer of torchvision",
        ),
        (
            lambda: torchvision.models.MobileNetV2(width_mult=0.25),
            "mobilenetv2_100",
            "MobileNet, EfficientNet",
        ),
        (lambda: trained("vit"), "resnet10t", "a vision transformer: give that model"),
        (lambda: trained("resnet"), "resnet18", "a ResNet with other arguments"),
        (lambda: nn.Linear(2, 2), "resnet10t", "that the file was saved from"),
    ],
)
def test_the_hint_says_whose_names_they_are(
    make: Callable[[], nn.Module], model: str, hint: str, tmp_path: Path
) -> None:
    torch.save(make().state_dict(), tmp_path / "w.pth")
    with pytest.raises(NetworkError) as caught:
        build_network(NetworkConfig(model=model, weights=str(tmp_path / "w.pth")))
    assert hint in str(caught.value.hint)


def test_the_architecture_that_the_file_names_is_in_the_hint(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"arch": "resnet26", "state_dict": state_of("resnet")}, "vit")
    assert "'resnet26'" in str(error.hint)


@pytest.mark.parametrize(
    ("model", "kwargs"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("civt_tiny_patch16_224", {"stem_width": 32}),
        ("civt_tiny_patch16_224", {"heads": ["a"], "stems": []}),
    ],
)
def test_the_image_size_follows_from_the_position_embedding(
    model: str, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    network = timm.create_model(model, num_classes=4, **VIT, **kwargs, img_size=24)
    path = tmp_path / "w.safetensors"
    save_file(network.state_dict(), path)
    config = NetworkConfig(model=model, weights=str(path), kwargs={**VIT, **kwargs})
    loaded = build_network(config)
    assert_same(loaded, network.state_dict())
    assert input_spec(loaded).size == 24
    assert size_is_known(loaded, config)


def test_another_image_size_is_only_used_when_the_user_sets_it(tmp_path: Path) -> None:
    resized = load_saved(tmp_path, state_of("vit"), "vit", img_size=24)
    assert input_spec(resized).size == 24
    positions: Any = resized.pos_embed
    assert positions.shape == (1, 37, 24)
    assert torch.equal(positions[:, :1], state_of("vit")["pos_embed"][:, :1])


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {**under("model.", state_of("vit")), "loss.a": torch.ones(1), "loss.b": torch.ones(1)}
    with caplog.at_level("INFO", logger="logitcache"):
        load_saved(tmp_path, content, "vit", 9)
    assert "2 tensors outside of 'model.' are not used: loss.a (1,), loss.b (1,)" in caplog.text
    assert "the classifier of 9 classes is newly initialized" in caplog.text
