"""One export evaluated on folders as people have them: the right number, or an error."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from logitcache.data.decode import decode
from logitcache.errors import DataError, DataMismatch, UsageError
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.students.build import StudentConfig, build_student
from logitcache.training.classes import reorder_classifier
from logitcache.training.config import TrainConfig
from logitcache.training.evaluation.evaluate import EvaluateConfig, evaluate_network
from logitcache.training.export.export import export_network
from logitcache.training.loop import train_student
from logitcache.views.geometry import crop_center
from tests.conftest import jpeg, shape_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLASSES = ["bird", "cat", "dog"]
CNN = {"channels": [16, 16, 16, 16], "stem_width": 16}


COLORS = {"bird": (200, 40, 40), "cat": (40, 200, 40), "dog": (40, 40, 200)}
WRONG = {"bird": 1, "cat": 3, "dog": 4}  # of ten images, which show another class's color


def write_colors(root: Path, wrong: dict[str, int]) -> Path:
    """Write ten images of a class, the first of them in the color of the next class."""
    generator = np.random.default_rng(0)
    for name, following in zip(CLASSES, [*CLASSES[1:], CLASSES[0]], strict=True):
        (root / name).mkdir(parents=True)
        for number in range(10):
            color = COLORS[following if number < wrong.get(name, 0) else name]
            pixels = generator.integers(-30, 30, (32, 32, 3)) + np.array(color)
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            (root / name / f"{number}.jpg").write_bytes(jpeg(picture))
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colors(tmp_path_factory.mktemp("images") / "val", WRONG)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a trained network with the names of its classes."""
    folder = tmp_path_factory.mktemp("run")
    values = {
        "out": str(folder / "out"),
        "data": str(write_colors(folder / "train", {})),
        "student": {"model": "resnet10t", "kwargs": CNN, "size": 32},
        "epochs": 8,
        "batch_size": 10,
        "threads": 1,
        "optimizer": {"lr": 3e-3},
    }
    train_student(TrainConfig.parse(values, ""))
    return folder / "out" / "export"


def evaluated(export: Path, data: Path, **fields: Any) -> Any:
    values = {"network": {"model": f"local-dir:{export}"}, "data": str(data), "batch_size": 7}
    return evaluate_network(EvaluateConfig.parse({**values, "threads": 1, **fields}, ""))


@pytest.fixture(scope="module")
def right(export: Path, images: Path) -> dict[str, list[bool]]:
    """Return which images of each class the network gets right, computed apart from labels."""
    whole = evaluated(export, images)
    right: dict[str, list[bool]] = {}
    network = build_network(NetworkConfig(model=f"local-dir:{export}")).eval()
    spec = input_spec(network)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    for name in CLASSES:
        for path in sorted((images / name).iterdir()):
            pixels = crop_center(decode(path.read_bytes()), spec.crop_pct, spec.size, "bicubic")
            with torch.inference_mode():
                answer = network(((pixels / 255 - mean) / std)[None])
            right.setdefault(name, []).append(int(answer.argmax()) == CLASSES.index(name))
    assert whole.evaluation.top1 == pytest.approx(
        np.mean([*right["bird"], *right["cat"], *right["dog"]])
    )
    assert len({np.mean(of_class) for of_class in right.values()}) == 3, "a fair test of mapping"
    return right


def copied(images: Path, tmp_path: Path) -> Path:
    shutil.copytree(images, tmp_path / "val")
    return tmp_path / "val"


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_that_is_missing_changes_no_other(
    export: Path, images: Path, tmp_path: Path, right: dict[str, list[bool]], name: str
) -> None:
    val = copied(images, tmp_path)
    shutil.rmtree(val / name)
    found = evaluated(export, val)
    expected = [hit for other, hits in right.items() if other != name for hit in hits]
    assert found.evaluation.top1 == pytest.approx(np.mean(expected))
    assert (found.classes, found.classes_with_images) == (3, 2)
    assert f"1 classes have no images here: {name}" in found.notes


def test_an_empty_class_is_like_a_missing_one(
    export: Path, images: Path, tmp_path: Path, right: dict[str, list[bool]]
) -> None:
    val = copied(images, tmp_path)
    shutil.rmtree(val / "bird")
    (val / "bird").mkdir()
    found = evaluated(export, val)
    assert found.evaluation.top1 == pytest.approx(np.mean(right["cat"] + right["dog"]))


def renamed(val: Path) -> None:
    (val / "cat").rename(val / "Katze")


def added(val: Path) -> None:
    (val / "ant").mkdir()
    (val / "ant" / "0.jpg").write_bytes(jpeg(shape_image(1)))


@pytest.mark.parametrize(("change", "got"), [(renamed, "Katze"), (added, "ant")])
def test_a_class_that_the_network_does_not_have_is_named(
    export: Path, images: Path, tmp_path: Path, change: Callable[[Path], None], got: str
) -> None:
    val = copied(images, tmp_path)
    change(val)
    with pytest.raises(DataMismatch, match=rf"not classes of the network[\s\S]*got: +{got}"):
        evaluated(export, val)


def test_a_flat_folder_has_no_labels(export: Path, images: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(images / "cat", flat)
    with pytest.raises(DataError, match="no labels to evaluate with"):
        evaluated(export, flat)


def test_names_are_needed_or_a_plain_word(
    images: Path, tmp_path: Path, export: Path, right: dict[str, list[bool]]
) -> None:
    network = build_network(NetworkConfig(model=f"local-dir:{export}"))
    export_network(network, input_spec(network, 32), tmp_path / "nameless", None)
    nameless = tmp_path / "nameless"
    with pytest.raises(UsageError, match="class_names=position"):
        evaluated(nameless, images)
    expected = pytest.approx(np.mean([*right["bird"], *right["cat"], *right["dog"]]))
    for names in ("position", CLASSES):
        assert evaluated(nameless, images, class_names=names).evaluation.top1 == expected
    shuffled = ["cat", "dog", "bird"]
    assert evaluated(nameless, images, class_names=shuffled).evaluation.top1 != expected
    with pytest.raises(UsageError, match="3 names"):
        evaluated(nameless, images, class_names=["cat", "dog"])
    with pytest.raises(UsageError, match="no trained weights"):
        evaluated(nameless, images, network={"model": "resnet10t"})


def test_what_was_trained_is_what_is_evaluated(images: Path, tmp_path: Path) -> None:
    values = {
        "out": str(tmp_path / "run"),
        "data": str(images),
        "val": str(images),
        "student": {"model": "resnet10t", "kwargs": CNN, "size": 32},
        "epochs": 1,
        "threads": 1,
    }
    result = train_student(TrainConfig.parse(values, ""))
    found = evaluated(tmp_path / "run" / "export", images)
    assert result.evaluation is not None
    assert found.evaluation.top1 == result.evaluation.top1
    assert found.evaluation.loss == pytest.approx(result.evaluation.loss, rel=1e-5)


def test_a_pretrained_classifier_is_put_into_the_order_of_the_run(export: Path) -> None:
    config = StudentConfig(model=f"local-dir:{export}")
    plain = build_student(config, 3).eval()
    moved = build_student(config, 3).eval()
    assert reorder_classifier(moved, config, ["dog", "bird", "cat"]) == []
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(moved(pixels), plain(pixels)[:, [2, 0, 1]])
    assert reorder_classifier(plain, config, CLASSES) == []
    (note,) = reorder_classifier(plain, config, ["ant", "bee", "cow"])
    assert "bird, cat, dog" in note


def test_a_class_map_adds_merged_classes_and_leaves_others_out(
    export: Path, images: Path, tmp_path: Path
) -> None:
    """Images of pets and birds, for a network of birds, cats and dogs."""
    for name, members in {"pet": ["cat", "dog"], "bird": ["bird"]}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for member in members:
            for path in (images / member).iterdir():
                shutil.copy(path, tmp_path / "data" / name / f"{member}{path.name}")
    (tmp_path / "map.csv").write_text("cat,pet\ndog,pet\nbird,bird\n")
    values: dict[str, Any] = {
        "network": {"model": f"local-dir:{export}"},
        "data": str(tmp_path / "data"),
    }
    merged = evaluate_network(
        EvaluateConfig.parse({**values, "class_map": str(tmp_path / "map.csv")}, "")
    )
    # a dog that looks like a bird, and a bird that looks like a cat, are wrong; a cat that looks
    # like a dog is a pet
    assert merged.evaluation.top1 == pytest.approx(1 - (WRONG["bird"] + WRONG["dog"]) / 30)
    assert merged.classes == 2
    assert "0.0% of the probability is outside of the class map" in merged.notes

    values |= {"class_map": {"pet": "dog", "bird": "bird"}, "crop_pct": 1.0}
    apart = evaluate_network(EvaluateConfig.parse(values, ""))
    network = build_network(NetworkConfig(model=f"local-dir:{export}")).eval()
    spec = input_spec(network, None)
    losses, outside = [], []
    for name, label in (("bird", 0), ("pet", 2)):  # in the network's order: bird, cat, dog
        for path in sorted((tmp_path / "data" / name).iterdir()):
            pixels = decode(path.read_bytes()).double() / 255
            mean, std = (
                torch.tensor(each).double()[:, None, None] for each in (spec.mean, spec.std)
            )
            image = ((pixels - mean) / std).float()
            with torch.inference_mode():
                p = network(image[None]).double().softmax(1)[0].tolist()
            losses.append(-np.log(p[label] / (p[0] + p[2])))
            outside.append(p[1])
    assert apart.evaluation.loss == pytest.approx(np.mean(losses), rel=1e-4)
    assert f"{np.mean(outside):.1%} of the probability is outside of the class map" in apart.notes


def test_a_class_map_names_classes_of_the_network_and_of_the_images(
    export: Path, images: Path
) -> None:
    values = {"network": {"model": f"local-dir:{export}"}, "data": str(images)}
    for class_map, error, words in (
        ({"bird": ["brid"]}, UsageError, "'brid', which is not a class of the teacher"),
        ({"bird": ["bird"]}, DataMismatch, "the class map"),
    ):
        with pytest.raises(error, match=words):
            evaluate_network(EvaluateConfig.parse({**values, "class_map": class_map}, ""))
