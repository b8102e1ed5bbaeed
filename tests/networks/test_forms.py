"""Names of networks: the first form that matches."""

from __future__ import annotations

import pytest

from logitcache.cli.options import network
from logitcache.errors import UsageError
from logitcache.networks.build import BUILDERS, check_model_name
from logitcache.networks.forms import FORMS, kind_of_name
from logitcache.students.build import StudentConfig, build_student


def test_every_form_has_a_builder() -> None:
    assert list(BUILDERS) == list(FORMS)
    assert list(FORMS)[-1] == "timm", "it matches every name"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet50", "timm"),
        ("resnet50.a1_in1k", "timm"),
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", "timm"),
        ("local-dir:runs/teacher.pt2", "local-dir"),
        ("hf-hub:timm/resnet18.a1_in1k", "hf-hub"),
        ("torchvision/resnet18", "torchvision"),
        ("models:dino", "factory"),
        ("project.models.vit:Builder.small", "factory"),
        ("modèle:réseau", "factory"),
        ("exports/vit.pt2", "exported"),
        ("C:\\exports\\vit.PT2", "exported"),
        ("vit.torchscript", "torchscript"),
        ("vit.ts", "torchscript"),
        ("vit.pt", "torchscript"),
        ("models:", "timm"),
        ("models:two words", "timm"),
    ],
)
def test_a_name_has_a_form(name: str, kind: str) -> None:
    assert kind_of_name(name) == kind


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("resnet50@r.pth", {"model": "resnet50", "weights": "r.pth"}),
        (
            "torchvision/resnet18@pretrained",
            {"model": "torchvision/resnet18", "weights": "pretrained"},
        ),
        ("models:dino@w.safetensors", {"model": "models:dino", "weights": "w.safetensors"}),
        ("models:dino", {"model": "models:dino"}),
        ("local-dir:a@b", {"model": "local-dir:a@b"}),
        ("vit.pt2", {"model": "vit.pt2"}),
        ("resnet50@vit.pt2", {"model": "resnet50", "weights": "vit.pt2"}),
    ],
)
def test_the_command_line_divides_names_by_their_form(text: str, fields: dict[str, str]) -> None:
    assert network(text) == fields


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("resnet5O", "unknown model 'resnet5O'", "resnet50"),
        ("torchvision/resnet19", "no classification network 'resnet19'", "resnet18"),
        ("torchvision/fcn_resnet50", "no classification network 'fcn_resnet50'", "resnet50"),
        ("no_such_folder/vit.pt2", "the file of the program does not exist", "MODEL@FILE"),
        ("resnet50.pth", "the file of the program does not exist", "MODEL@FILE"),
        ("runs/vit.onnx", "ONNX files are not run", "torch.export.save"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_model_name(name)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "models:dino", "vit.pt2", "vit.ts"])
def test_students_are_networks_of_timm(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a student") as caught:
        build_student(StudentConfig(model=name), 3)
    assert caught.value.expected == "local-dir:FOLDER or hf-hub:REPOSITORY or NAME"
