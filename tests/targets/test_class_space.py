"""Caches read in the classes of a student: whole pipelines with teachers of other classes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache import loader, open_cache
from logitcache.batch import DenseLogits
from logitcache.cache.write.drop import drop_from_cache
from logitcache.check.verify import verify
from logitcache.data.classes import class_positions
from logitcache.errors import Interrupted, UsageError
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.pipeline.settings import read_yaml
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.report.class_shares import class_shares
from logitcache.report.describe import describe
from logitcache.report.survey import survey
from logitcache.targets.cached_dataset import CachedDataset
from logitcache.training.config import TrainConfig
from logitcache.training.export.export import export_network
from logitcache.training.loop import train_student
from tests.conftest import CLASSES

if TYPE_CHECKING:
    from pathlib import Path

OWN = ("tabby", "lynx", "beagle", "pug", "robin", "sofa", "lamp")
OWN_MAP = {"cat": ["tabby", "lynx"], "dog": ["beagle", "pug"], "bird": ["robin"]}
GROUPS = {"pet": ["cat", "dog"]}
"""A map of the classes of the images: birds are left out."""

VIT = {
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2},
}


def named_teacher(folder: Path, names: tuple[str, ...], seed: int) -> Path:
    torch.manual_seed(seed)
    kwargs = {
        "num_classes": len(names),
        "channels": [16, 16, 16, 16],
        "stem_width": 16,
    }
    network = build_network(NetworkConfig(model="resnet10t", kwargs=kwargs))
    with torch.no_grad():  # confident outputs, which differ between classes
        network.get_classifier().weight.mul_(20)  # type: ignore[operator]  # a module
    export_network(network, input_spec(network, 16), folder, names)
    return folder


def build(path: Path, images: Path, teachers: dict[str, Any], **fields: Any) -> Path:
    values = {"data": str(images), "teachers": teachers, "unit_rows": 16, "threads": 1}
    values |= {"views": {"count": 2}, "min_accuracy": 0, **fields}
    build_cache(PrecomputeConfig.parse({"cache": str(path), **values}, ""))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    root = tmp_path_factory.mktemp("teachers")
    return {
        "own": {"model": f"local-dir:{named_teacher(root / 'own', OWN, 1)}", "class_map": "own"},
        "same": {"model": f"local-dir:{named_teacher(root / 'same', CLASSES, 2)}"},
    }


@pytest.fixture(scope="module")
def cache(images: Path, folders: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with classes of its own, and one with those of the images."""
    return build(tmp_path_factory.mktemp("classes") / "cache", images, folders)


def train_config(out: Path, images: Path, cache: Path, **fields: Any) -> TrainConfig:
    values = {"out": str(out), "data": str(images), "val": str(images), "cache": str(cache)}
    return TrainConfig.parse(
        {**values, "student": VIT, "epochs": 2, "batch_size": 16, "threads": 1, **fields}, "train"
    )


def by_loops(log_probs: torch.Tensor, own: tuple[str, ...], groups: dict[str, list[str]]) -> Any:
    """Return the sum of the probabilities of each group of classes, in plain loops."""
    return np.array(
        [
            [sum(row[own.index(member)] for member in members) for members in groups.values()]
            for row in log_probs.double().exp().tolist()
        ]
    )


@pytest.mark.requirement("F2.5.2", "F10.3.1")
def test_a_cache_has_the_class_names_of_a_teacher_and_requires_readers_to_know(
    cache: Path, images: Path, folders: dict[str, Any], tmp_path: Path
) -> None:
    opened = open_cache(cache)
    assert "teacher-classes" in opened.manifest.requires
    assert opened.teacher("own").class_names == OWN
    assert "label_logp" not in opened.teacher("own").optional
    assert opened.teacher("same").class_names is None
    assert opened.manifest.teachers["own"].accuracy == {}
    described = {teacher.name: teacher for teacher in describe(str(cache)).teachers}
    assert described["own"].class_names == list(OWN)
    assert {t.teacher: t.views[0].accuracy for t in survey(str(cache)).teachers}["own"] is None
    copy = build(tmp_path / "copy", images, folders)
    build(copy, images, folders)  # resumed: nothing is refused
    drop_from_cache(copy, teachers=["own"])
    assert "teacher-classes" not in open_cache(copy).manifest.requires
    build(copy, images, {"same": folders["same"]})


def test_outputs_of_a_teacher_with_own_classes_are_verified(
    cache: Path, images: Path, folders: dict[str, Any]
) -> None:
    own = {"own": {"model": folders["own"]["model"]}}
    report = verify(cache, data=str(images), teachers=own, samples=8)
    assert report.ok


def test_a_teacher_without_class_names_is_not_stored_with_its_own(
    images: Path, folders: dict[str, Any], tmp_path: Path
) -> None:
    model = {"model": folders["own"]["model"], "class_map": "own"}
    with pytest.raises(UsageError, match=r"7 different names[\s\S]*2 names"):
        build(tmp_path / "c", images, {"t": {**model, "class_names": ["a", "b"]}})
    with pytest.raises(UsageError, match=r"twice: a"):
        build(tmp_path / "c", images, {"t": {**model, "class_names": list("aabcdef")}})
    with pytest.raises(UsageError, match=r"no list of classes[\s\S]*imagenet-1k"):
        build(tmp_path / "c", images, {"t": {**model, "class_names": "imagenet-3k"}})
    with pytest.raises(UsageError, match="class_map: own only"):
        build(tmp_path / "c", images, {"t": {**model, "class_map": None, "class_names": OWN}})
    assert not (tmp_path / "c").exists()


def test_the_loader_sums_the_probabilities_of_merged_classes(cache: Path, images: Path) -> None:
    opened = open_cache(cache)
    mapped = loader(
        opened, str(images), batch_size=16, size=8, class_map={"own": OWN_MAP}, threads=1
    )
    with mapped:
        _, targets = next(iter(mapped))
    view = mapped.view(0).id
    own = targets.teachers["own"]
    assert isinstance(own, DenseLogits)
    stored = opened.teacher("own").encoding.decode(opened.read("own", view, 0, 64)).log_probs
    plain = torch.from_numpy(stored[targets.rows.numpy()])
    expected = by_loops(plain, OWN, {name: OWN_MAP[name] for name in CLASSES})
    np.testing.assert_allclose(own.log_probs.exp(), expected, rtol=2e-5, atol=1e-7)
    outside = by_loops(plain, OWN, {"": ["sofa", "lamp"]})[:, 0]
    assert own.outside is not None
    np.testing.assert_allclose(own.outside.exp(), outside, rtol=2e-5, atol=1e-7)
    same = opened.targets(targets.rows, view, teachers=["same"]).teachers["same"].log_probs
    torch.testing.assert_close(targets.teachers["same"].log_probs, same, rtol=0, atol=0)


def test_every_way_to_read_targets_has_the_same_classes(cache: Path, images: Path) -> None:
    opened, class_map = open_cache(cache), {"own": OWN_MAP, "same": GROUPS}
    with pytest.raises(UsageError, match="leads to 'cat', which is not a class of the student"):
        loader(opened, str(images), class_map=class_map)
    class_map["own"] = {"pet": ["tabby", "lynx", "beagle", "pug"]}
    mapped = loader(opened, str(images), batch_size=60, size=8, class_map=class_map, threads=1)
    with mapped:
        _, targets = next(iter(mapped))
    data = CachedDataset(opened, str(images), view=mapped.view(0).id, size=8, class_map=class_map)
    positions = data.rows.find(targets.rows.numpy())
    _, items = data.collate(data.__getitems__(positions.tolist()))
    read = opened.targets(targets.rows, mapped.view(0).id, class_map=class_map)
    for other in (items, read):
        torch.testing.assert_close(other.labels, targets.labels)
        for name in ("own", "same"):
            assert other.teachers[name].num_classes == 1
            torch.testing.assert_close(
                other.teachers[name].log_probs, targets.teachers[name].log_probs, rtol=0, atol=0
            )


def test_labels_are_mapped_with_the_teachers_of_their_classes(cache: Path, images: Path) -> None:
    opened = open_cache(cache)
    class_map = {"same": {"pet": ["cat"], "Bird": ["bird"]}}
    plain, mapped = (
        opened.targets(np.arange(60), teachers=["same"], class_map=given)
        for given in (None, class_map)
    )
    names = ["Bird", "pet"]  # in natural order
    of_data = {"bird": "Bird", "cat": "pet"}
    expected = [
        names.index(of_data[CLASSES[label]]) if CLASSES[label] in of_data else -1
        for label in plain.labels.tolist()
    ]
    assert mapped.labels.tolist() == expected
    probs = by_loops(plain.teachers["same"].log_probs, CLASSES, {"B": ["bird"], "p": ["cat"]})
    np.testing.assert_allclose(mapped.teachers["same"].log_probs.exp(), probs, rtol=1e-5)


def test_a_teacher_whose_classes_contain_those_of_the_images_needs_no_map(
    images: Path, tmp_path: Path
) -> None:
    wide = ("lamp", *CLASSES, "sofa")
    folder = named_teacher(tmp_path / "wide", wide, 3)
    path = build(
        tmp_path / "c", images, {"w": {"model": f"local-dir:{folder}", "class_map": "own"}}
    )
    found = open_cache(path).targets(range(4)).teachers["w"]
    assert found.num_classes == len(CLASSES)
    assert isinstance(found, DenseLogits)
    assert found.outside is not None
    total = found.log_probs.exp().sum(1) + found.outside.exp()
    torch.testing.assert_close(total, torch.ones(4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sparse", "transform"])
def test_other_encodings_are_mapped_too(
    images: Path, folders: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    encoding: dict[str, Any] = {"kind": kind}
    encoding |= {"top_k": 3} if kind == "sparse" else {}
    path = build(tmp_path / "c", images, {"own": folders["own"]}, encoding=encoding)
    opened = open_cache(path)
    group, view = opened.teacher("own"), next(iter(opened.views))
    found = opened.targets(range(12), view, class_map={"own": OWN_MAP}).teachers["own"]
    probs = group.encoding.decode(opened.read("own", view, 0, 12)).probs()
    expected = by_loops(torch.from_numpy(probs).log(), OWN, {n: OWN_MAP[n] for n in CLASSES})
    np.testing.assert_allclose(found.log_probs.exp(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        (None, r"'own' has classes of its own[\s\S]*bird, cat, dog[\s\S]*--class-map"),
        ({"ow": OWN_MAP}, r"unknown teacher 'ow'[\s\S]*did you mean 'own'"),
        ({"own": {"fish": ["tabby"]}}, r"leads to 'fish'[\s\S]*bird, cat, dog"),
        ({"own": {"cat": ["tabbi"]}}, r"names 'tabbi'[\s\S]*class_map of own"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(
    cache: Path, class_map: dict[str, Any] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        open_cache(cache).targets([0], class_map=class_map)


def test_unlabeled_images_take_the_classes_of_the_map(
    images: Path, folders: dict[str, Any], tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(images.rglob("*.jpg"))):
        (flat / f"{number}.jpg").write_bytes(path.read_bytes())
    path = build(tmp_path / "c", flat, {"own": folders["own"]})
    rows = loader(open_cache(path), str(flat), size=8, class_map={"*": OWN_MAP}).rows
    assert rows.class_names == ("bird", "cat", "dog")
    without = {"own": {"model": folders["own"]["model"]}}
    unnamed = build(tmp_path / "d", flat, without)
    with pytest.raises(UsageError, match=r"have no names[\s\S]*class_map=own"):
        loader(open_cache(unnamed), str(flat), size=8, class_map={"*": OWN_MAP})


@pytest.mark.parametrize(
    ("objective", "advice"),
    [
        (
            {},
            r"outside: auto of the term soft.*weight of the 48 images.*soft: {outside: renorm}",
        ),
        ({"outside": "uniform"}, "outside: uniform.*is spread over the classes of all"),
        ({"outside": "renorm"}, None),
    ],
)
def test_much_probability_outside_of_a_map_is_explained(
    objective: dict[str, str],
    advice: str | None,
    cache: Path,
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    term = {"soft": {"teachers": {"own": 1.0}, **objective}}
    few = {name: owns[-1:] for name, owns in OWN_MAP.items()}
    fields: dict[str, Any] = {"class_map": {"own": few}, "objectives": [term]}
    fields["labels"] = {"count": 12}
    result = train_student(train_config(tmp_path / "run", images, cache, **fields))
    (share,) = [note for note in result.notes if "outside of the class map" in note]
    assert float(share.split("with ")[1].split("%")[0]) > 10
    found = [note for note in result.notes if note.startswith("outside:")]
    if advice is None:
        assert not found
    else:
        assert re.search(advice, found[0])
        assert found[0] in caplog.text


def test_a_student_has_the_classes_of_the_map_and_resumes_bit_for_bit(
    cache: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "map.csv").write_text(
        "".join(f"{own},{name}\n" for name, owns in OWN_MAP.items() for own in owns)
    )
    fields: dict[str, Any] = {"class_map": {"own": str(tmp_path / "map.csv")}}
    whole = train_config(tmp_path / "whole", images, cache, **fields)
    result = train_student(whole)
    (note,) = [note for note in result.notes if "outside of the class map" in note]
    assert note.startswith("teacher own: 2 of 7 classes are outside")
    assert "renorm" not in " ".join(result.notes), "all images have a label"
    cut = train_config(tmp_path / "cut", images, cache, **fields)
    stops = iter([False, False, True])
    with pytest.raises(Interrupted):
        train_student(cut, should_stop=lambda: next(stops))
    (tmp_path / "map.csv").unlink()  # its content is part of the run
    saved = read_yaml(tmp_path / "cut" / "config.yaml")
    train_student(TrainConfig.parse(saved, "train"), resume=True)
    files = [tmp_path / name / "export" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    exported = json.loads((tmp_path / "cut" / "export" / "config.json").read_text())
    assert exported["label_names"] == list(CLASSES)


def test_validation_images_may_have_the_classes_of_the_cache_or_of_the_map(
    cache: Path, images: Path, tmp_path: Path
) -> None:
    class_map = {"same": {"pet": ["cat", "dog"], "other": ["bird"]}}
    merged = tmp_path / "merged"
    for name in CLASSES:
        folder = merged / ("other" if name == "bird" else "pet")
        folder.mkdir(parents=True, exist_ok=True)
        for path in (images / name).iterdir():
            (folder / f"{name}{path.name}").write_bytes(path.read_bytes())
    objectives = [{"soft": {"teachers": {"same": 1.0}}}, "label"]
    found = [
        train_student(
            train_config(
                tmp_path / out,
                images,
                cache,
                val=str(val),
                class_map=class_map,
                objectives=objectives,
                epochs=1,
            )
        )
        for out, val in (("a", images), ("b", merged))
    ]
    evaluations = [result.evaluation for result in found]
    assert evaluations[0] is not None
    assert evaluations[1] is not None
    assert evaluations[0].top1 == evaluations[1].top1
    assert "60 of 60 images have a label in the classes of the class map" in found[0].notes


def test_shares_of_classes_are_those_of_the_stored_probabilities(cache: Path) -> None:
    found = class_shares(str(cache), {"own": OWN_MAP})
    assert found.class_names == list(CLASSES)
    assert found.labels == [20, 20, 20]
    (own,) = found.teachers
    opened = open_cache(cache)
    decoded = opened.teacher("own").encoding.decode(opened.read("own", own.view, 0, 64))
    mean = decoded.probs()[decoded.computed].mean(axis=0)
    assert own.rows == 60
    for share in own.classes:
        positions = class_positions(OWN_MAP[share.name], OWN)
        assert share.classes == len(positions)
        assert share.mass == pytest.approx(
            sum(mean[p] for p in positions if p is not None), rel=1e-5
        )
    assert own.outside.classes == 2
    assert own.outside.mass == pytest.approx(mean[5] + mean[6], rel=1e-5)
    assert {one.name for one in own.largest} == {"sofa", "lamp"}
