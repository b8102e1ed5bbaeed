from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from logitcache.errors import LogitcacheError, NetworkError, UsageError
from logitcache.networks.build import (
    NetworkConfig,
    architecture,
    build_network,
    class_names_of,
    input_spec,
    is_own_model,
    size_is_known,
)
from logitcache.networks.digest import weights_digest
from logitcache.training.export.export import export_network

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

SMALL: dict[str, Any] = {"channels": [16, 16, 16, 16], "stem_width": 16}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=7, **SMALL).state_dict(), path)
    return path


def test_a_weights_file_decides_the_size_of_the_head(weights: Path) -> None:
    config = NetworkConfig(model="resnet10t", weights=str(weights), kwargs=SMALL)
    network = build_network(config)
    assert network.num_classes == 7
    again = build_network(config)
    assert weights_digest(network) == weights_digest(again)


def test_an_export_opens_by_timm_and_here(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(model="resnet10t", kwargs=SMALL), 5)
    export_network(network, input_spec(network, 24), tmp_path / "export")
    name = f"local-dir:{tmp_path / 'export'}"
    ours = build_network(NetworkConfig(model=name))
    theirs = timm.create_model(name, pretrained=True)
    assert weights_digest(ours) == weights_digest(theirs) == weights_digest(network)
    assert input_spec(ours).size == 24
    described = architecture(ours, NetworkConfig(model=name))
    assert described["architecture"] == "resnet10t"
    assert described["kwargs"]["channels"] == [16, 16, 16, 16]


def test_digests_tell_weights_apart_but_not_devices_or_orders() -> None:
    network: Any = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = weights_digest(network)
    assert before == weights_digest(network)
    network[1].running_mean[0] += 1e-6
    assert weights_digest(network) != before


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"model": "resnet51"}, UsageError, "resnet50"),
        ({"model": "local-dir:/no/such"}, NetworkError, "no exported network"),
        (
            {"model": "resnet10t", "weights": "/no/such"},
            NetworkError,
            "weights file does not exist",
        ),
        ({"model": "resnet10t", "kwargs": {"color": 1}}, NetworkError, "color"),
    ],
)
def test_what_cannot_be_built_says_why(
    values: dict[str, object], error: type[LogitcacheError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_network(NetworkConfig.model_validate(values))


def test_weights_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("cannot find the requested files")  # as huggingface_hub has it

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(NetworkError, match="cannot be downloaded") as caught:
        build_network(NetworkConfig(model="resnet10t", weights="pretrained"))
    assert caught.value.where == "resnet10t@pretrained"
    with pytest.raises(NetworkError, match="cannot be downloaded"):
        build_network(NetworkConfig(model="hf-hub:timm/resnet10t.c3_in1k"))


def test_weights_that_do_not_fit(weights: Path) -> None:
    with pytest.raises(NetworkError, match="do not fit"):
        build_network(NetworkConfig(model="resnet10t", weights=str(weights)))
    wide = {**SMALL, "stem_width": 32}
    with pytest.raises(NetworkError, match=r"conv1.0.weight \(24, 3, 3, 3\)"):
        build_network(NetworkConfig(model="resnet10t", weights=str(weights), kwargs=wide), 10)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("this must not run",))


def test_a_pickle_with_code_is_not_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}, "hook": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(NetworkError, match="contains more than tensors"):
        build_network(NetworkConfig(model="resnet10t", weights=str(tmp_path / "evil.pth")))
    assert "must not run" not in capsys.readouterr().out


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    with pytest.raises(NetworkError, match="cannot be read"):
        build_network(NetworkConfig(model="resnet10t", weights=str(tmp_path / "w.safetensors")))


def test_a_size_the_network_does_not_take() -> None:
    vit = build_network(
        NetworkConfig(
            model="vit_tiny_patch16_224",
            kwargs={"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 1},
        ),
        3,
    )
    assert input_spec(vit).size == 16
    with pytest.raises(UsageError, match="does not accept"):
        input_spec(vit, 20)


TINY_VIT: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 1, "patch_size": 4}
EXPORTS: dict[str, dict[str, Any]] = {
    "resnet10t": SMALL,
    "vit_tiny_patch16_224": {**TINY_VIT, "img_size": 16},
    "rednet26_small": {"layers": [1], "width": 32, "kernel_size": 3},
    "civt_tiny_patch16_224": {**TINY_VIT, "img_size": 16, "heads": ["a"], "stems": []},
}


def exported(folder: Path, model: str, classes: int = 5, **kwargs: Any) -> tuple[str, nn.Module]:
    """Return the name and the network of an export."""
    network = timm.create_model(model, num_classes=classes, **{**EXPORTS[model], **kwargs})
    names = [f"class {index}" for index in range(classes)]
    export_network(network, input_spec(network), folder, names)
    return f"local-dir:{folder}", network


@pytest.mark.parametrize("model", EXPORTS)
def test_an_export_gets_a_fresh_classifier_for_another_number_of_classes(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name, network = exported(tmp_path, model)
    student = build_network(NetworkConfig(model=name), 9)
    assert student.num_classes == 9
    ours, theirs = student.state_dict(), network.state_dict()
    assert ours.keys() == theirs.keys()
    changed = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    assert changed
    assert all(key.startswith(("head", "fc")) and len(ours[key]) == 9 for key in changed)
    assert class_names_of(student) is None
    assert class_names_of(build_network(NetworkConfig(model=name))) == [
        f"class {index}" for index in range(5)
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "resnet10t", "kwargs": {"in_chans": 1}}, "views are RGB images"),
        ({"model": "resnet10t", "kwargs": {"num_classes": 0}}, "no classes"),
        ({"model": "vit_small_patch14_dinov2", "kwargs": TINY_VIT}, "no classes"),
        ({"model": "resnet10t", "kwargs": {"features_only": True}}, "no classes"),
        ({"model": "grey"}, "views are RGB images"),
        ({"model": "export", "kwargs": {"num_classes": 0}}, "no classes"),
        ({"model": "export", "kwargs": {"num_classes": 3}}, "another number of classes"),
        ({"model": "export", "kwargs": {"in_chans": 4}}, "views are RGB images"),
        ({"model": "export", "weights": "w.pth"}, "has weights of its own"),
    ],
)
def test_a_teacher_that_makes_no_sense_is_refused(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    exports = {
        "grey": lambda: exported(tmp_path, "resnet10t", in_chans=1)[0],
        "export": lambda: exported(tmp_path, "resnet10t")[0],
    }
    model = exports[values["model"]]() if values["model"] in exports else values["model"]
    with pytest.raises(UsageError, match=message):
        build_network(NetworkConfig.model_validate({**values, "model": model}))


def test_a_student_without_a_classifier_is_refused() -> None:
    config = NetworkConfig(model="resnet10t", kwargs={**SMALL, "features_only": True})
    with pytest.raises(UsageError, match="no classifier of the required size"):
        build_network(config, 4)


@pytest.mark.parametrize(
    ("model", "own"),
    [
        ("rednet26", True),
        ("civt_tiny_patch16_224", True),
        ("resnet50", False),
        ("resnet50.a1_in1k", False),
    ],
)
def test_own_models_are_those_that_this_package_registers(model: str, own: bool) -> None:
    assert is_own_model(model) is own


def with_cfg(classes: int, **cfg: Any) -> nn.Module:
    with torch.device("meta"):
        network = timm.create_model("resnet10t", num_classes=classes, **SMALL)
    network.pretrained_cfg.update(cfg)  # type: ignore[union-attr, operator]  # a dict
    return network


@pytest.mark.parametrize(
    ("classes", "cfg", "names"),
    [
        (2, {"label_names": ["a", "b"]}, ["a", "b"]),
        (2, {"label_names": ("a", "b")}, ["a", "b"]),
        (2, {"label_names": {"1": "b", "0": "a"}}, ["a", "b"]),
        (2, {"label_names": {1: "b", 0: "a"}}, ["a", "b"]),
        (2, {"label_names": {"0": "a", "2": "b"}}, None),
        (2, {"label_names": ["a", "b", "c"]}, None),
        (2, {"label_names": ["a", 1]}, None),
        (2, {"label_names": []}, None),
        (2, {}, None),
        (1000, {"source": "local-dir"}, None),
        (1000, {"source": "hf-hub", "hf_hub_id": "somebody/network"}, None),
        (1000, {"num_classes": 21843}, None),
        (1000, {"label_names": ["x"]}, None),
    ],
)
def test_class_names_are_those_of_the_weights_or_unknown(
    classes: int, cfg: dict[str, Any], names: list[str] | None
) -> None:
    assert class_names_of(with_cfg(classes, **cfg)) == names


@pytest.mark.parametrize("cfg", [{}, {"source": "hf-hub", "hf_hub_id": "timm/resnet10t.c3_in1k"}])
def test_the_classes_of_weights_of_timm_are_wordnet_ids(cfg: dict[str, Any]) -> None:
    names = class_names_of(with_cfg(1000, **cfg))
    assert names is not None
    assert names[:2] == ["n01440764", "n01443537"]
    assert len(set(names)) == 1000


def test_fresh_networks_and_bare_files_have_no_class_names(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", **SMALL)
    assert network.num_classes == 1000
    torch.save(network.state_dict(), tmp_path / "w.pth")
    config = NetworkConfig(model="resnet10t", weights=str(tmp_path / "w.pth"), kwargs=SMALL)
    assert class_names_of(build_network(config)) is None
    assert class_names_of(build_network(config, 1000, untrained=True)) is None
    assert class_names_of(build_network(NetworkConfig(model="resnet10t", kwargs=SMALL))) is None


def test_the_size_is_unknown_for_a_bare_file_without_positions_only(
    weights: Path, tmp_path: Path
) -> None:
    bare = NetworkConfig(model="resnet10t", weights=str(weights), kwargs=SMALL)
    network = build_network(bare)
    assert not size_is_known(network, bare)
    assert size_is_known(network, bare.model_copy(update={"size": 64}))
    fresh = NetworkConfig(model="resnet10t", kwargs=SMALL)
    assert size_is_known(build_network(fresh, 3), fresh)
    name, _ = exported(tmp_path / "export", "resnet10t")
    local = NetworkConfig(model=name)
    assert size_is_known(build_network(local), local)
    kwargs = EXPORTS["vit_tiny_patch16_224"]
    torch.save(
        timm.create_model("vit_tiny_patch16_224", num_classes=3, **kwargs).state_dict(),
        tmp_path / "vit.pth",
    )
    vit = NetworkConfig(
        model="vit_tiny_patch16_224", weights=str(tmp_path / "vit.pth"), kwargs=TINY_VIT
    )
    assert size_is_known(build_network(vit), vit)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("junk"), "cannot build"),
        (
            lambda folder: (folder / "config.json").write_text('{"architecture": "unheard_of"}'),
            "cannot build",
        ),
        (lambda folder: (folder / "config.json").unlink(), "no exported network"),
    ],
)
def test_a_damaged_export_is_explained(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    name, _ = exported(tmp_path, "resnet10t")
    damage(tmp_path)
    with pytest.raises(NetworkError, match=message):
        build_network(NetworkConfig(model=name))


@pytest.mark.parametrize(
    "kwargs", [{"channels": [-1, 2, 3, 4]}, {"channels": []}, {"block_fn": "x"}, {"cardinality": 0}]
)
@pytest.mark.parametrize("trained", [False, True])
def test_arguments_that_a_model_cannot_have_are_explained(
    kwargs: dict[str, Any], trained: bool, weights: Path
) -> None:
    file = str(weights) if trained else None
    with pytest.raises(NetworkError, match="cannot build the model"):
        build_network(NetworkConfig(model="resnet10t", weights=file, kwargs=kwargs), 3)
