"""Sources and data sets from Python, in place of names, in every verb that takes images."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset
from torchvision.datasets import ImageFolder

import logitcache
from logitcache.data.readers import READERS, has_splits, open_source
from logitcache.data.readers.reader import Reader
from logitcache.data.source import notes_of
from logitcache.errors import DataError, UsageError
from logitcache.precompute.config import PrecomputeConfig
from logitcache.testing import SourceContract
from logitcache.training.config import TrainConfig
from tests.guides import ROOT
from tests.reliability.kills import snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.data.source import Source

Values = dict[str, Any]
CLASSES = ["bird", "cat", "dog"]


class Files:
    """A source of one's own: the protocol and nothing else."""

    description = "files of my own"

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))
        self.keys = [path.relative_to(folder).as_posix() for path in self.paths]
        self.sizes = np.array([path.stat().st_size for path in self.paths])
        self.class_names = CLASSES
        numbers = [CLASSES.index(path.parent.name) for path in self.paths]
        self.labels = np.array(numbers, dtype=np.int32)

    def read(self, index: int) -> bytes:
        return self.paths[index].read_bytes()


@dataclasses.dataclass
class Items(Dataset[Any]):
    """A data set of any items, drawn by a function of the index."""

    items: list[Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def pixels(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 6), (10 * index, 0, 0)) for index in range(count)]


class TestOwnSource(SourceContract):
    @pytest.fixture
    def source(self, images: Path) -> Source:
        return Files(images)


class TestDataset(SourceContract):
    @pytest.fixture
    def source(self) -> Source:
        return open_source(Items([(image, index % 3) for index, image in enumerate(pixels(12))]))


class TestImageFolder(SourceContract):
    @pytest.fixture
    def source(self, images: Path) -> Source:
        return open_source(ImageFolder(images, transform=torch.nn.Identity()))


class TestSubset(SourceContract):
    @pytest.fixture
    def source(self, images: Path) -> Source:
        return open_source(Subset(ImageFolder(images), range(5, 40, 2)))


def test_an_image_folder_and_its_parts_have_the_keys_of_the_folder(images: Path) -> None:
    folder = open_source(str(images))
    found = open_source(ImageFolder(images))
    assert list(found.keys) == list(folder.keys)
    assert found.read(30) == folder.read(30)
    some = open_source(Subset(Subset(ImageFolder(images), [50, 3, 7]), [2, 0]))
    assert list(some.keys) == [folder.keys[7], folder.keys[50]]
    assert some.read(0) == folder.read(7)
    assert list(some.class_names) == CLASSES


@pytest.mark.parametrize(
    ("item", "shape"),
    [
        (Image.new("L", (8, 6)), (6, 8)),
        (Image.new("RGBA", (8, 6)), (6, 8, 3)),
        (Image.new("P", (8, 6)), (6, 8, 3)),
        (torch.zeros(3, 6, 8, dtype=torch.uint8), (6, 8, 3)),
        (torch.zeros(1, 6, 8, dtype=torch.uint8), (6, 8)),
        (np.zeros((6, 8, 3), np.uint8), (6, 8, 3)),
        (np.zeros((6, 8), np.uint8), (6, 8)),
    ],
)
def test_images_of_items_are_pixels(item: Any, shape: tuple[int, ...]) -> None:
    for whole in (item, (item, 0), {"image": item, "label": 0}, [item, 0, "more"]):
        image = open_source(Items([whole])).read(0)
        assert isinstance(image, np.ndarray)
        assert image.shape == shape
        assert image.dtype == np.uint8


def test_channels_of_tensors_are_moved_last() -> None:
    tensor = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    image = open_source(Items([tensor])).read(0)
    assert isinstance(image, np.ndarray)
    np.testing.assert_array_equal(image, tensor.permute(1, 2, 0).numpy())


def test_labels_and_classes_come_from_attributes_items_or_arguments() -> None:
    items = Items([(image, index) for index, image in enumerate(pixels(3))])
    by_item = open_source(items)
    assert (by_item.labels.tolist(), list(by_item.class_names)) == ([0, 1, 2], ["0", "1", "2"])
    assert len(notes_of(by_item)) == 2
    items.targets, items.classes = torch.tensor([2, 1, 0]), CLASSES  # type: ignore[attr-defined]
    by_attribute = open_source(items)
    assert (by_attribute.labels.tolist(), by_attribute.class_names) == ([2, 1, 0], CLASSES)
    assert notes_of(by_attribute) == []
    given = logitcache.DatasetSource(
        items, keys=["a", "./b", "c\u0301"], labels=[-1, 0, 1], class_names=["x", "y"]
    )
    assert (given.keys, given.class_names) == (["a", "b", "\u0107"], ["x", "y"])
    assert given.labels.tolist() == [-1, 0, 1]
    none = open_source(Items([*pixels(2)]))
    assert (none.labels.tolist(), list(none.class_names)) == ([-1, -1], [])
    some = open_source(Items(list(zip(pixels(2), [None, torch.tensor(1)], strict=True))))
    assert some.labels.tolist() == [-1, 1]


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(pixels(2))


class Random(Items):
    def __getitem__(self, index: int) -> Any:
        return torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8)


IMAGE = pixels(1)[0]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (Endless(), UsageError, r"not map-style[\s\S]*Endless"),
        (Items([]), DataError, "no images"),
        (Random(pixels(2)), DataError, r"another image each time[\s\S]*random transforms"),
        (Items([torch.rand(3, 8, 8)]), DataError, r"float32[\s\S]*remove ToTensor"),
        (Items([np.zeros((4, 8, 8), np.uint8)]), DataError, r"shape \(4, 8, 8\)"),
        (Items(["x.jpg"]), DataError, r"not an image[\s\S]*index 0[\s\S]*str"),
        (Items([{"pixel_values": IMAGE}]), DataError, "NoneType"),
        (Items([(IMAGE, [1, 0.5])]), UsageError, r"not one set of classes[\s\S]*0.5"),
        (Items([(IMAGE, [1, -2])]), UsageError, r"in no list of classes[\s\S]*-2"),
        (Items([(IMAGE, np.array([0, 2]))]), UsageError, r"not one set of classes[\s\S]*2"),
        (Items([(IMAGE, 0.5)]), UsageError, r"not one class[\s\S]*float64"),
        (Items([(IMAGE, -7)]), UsageError, "not one class"),
        (Items([(IMAGE, "cat")]), UsageError, "not one class"),
        ({"train": Items([IMAGE])}, UsageError, r"not an image set[\s\S]*dict[\s\S]*'train'"),
        (7, UsageError, r"not an image set[\s\S]*int"),
        (None, UsageError, "'data' is missing"),
    ],
)
def test_objects_that_are_no_image_sets(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keys": ["a"]}, "2 keys[\\s\\S]*1 keys"),
        ({"keys": ["a", "a"]}, "2 keys, 1 of them different"),
        ({"labels": [0]}, r"not one class[\s\S]*shape \(1,\)"),
        ({"labels": [0, 3], "class_names": CLASSES}, r"no list of classes[\s\S]*0 to 2[\s\S]*3"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Values, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        logitcache.DatasetSource(Items(list(pixels(2))), **arguments)


def test_an_error_of_the_data_set_has_its_index() -> None:
    class Broken(Items):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                raise KeyError("no such row")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"raised an error[\s\S]*index 1[\s\S]*no such row"):
        logitcache.DatasetSource(Broken(list(pixels(2)))).read(1)


@pytest.fixture(scope="module")
def base(teachers: dict[str, dict[str, str]]) -> Values:
    return {"teachers": {"red": teachers["red"]}, "views": {"count": 2}, "unit_rows": 16}


@pytest.fixture(scope="module")
def cache(images: Path, base: Values, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of a source from Python."""
    path = tmp_path_factory.mktemp("python") / "cache"
    config = PrecomputeConfig(**base, cache=str(path))
    logitcache.build_cache(config, data=Files(images))
    return path


def test_a_cache_of_a_source_is_the_one_of_its_folder(
    images: Path, base: Values, cache: Path, tmp_path: Path
) -> None:
    config = PrecomputeConfig.parse(
        {**base, "cache": str(tmp_path / "folder"), "data": str(images)}, ""
    )
    logitcache.build_cache(config)
    folder, found = snapshot(tmp_path / "folder"), snapshot(cache)
    committed = {name for name in folder if "/c/" in name or name.startswith("commits/")}
    assert len(committed) > 10
    assert {name: found[name] for name in committed} == {name: folder[name] for name in committed}


@pytest.mark.parametrize("kind", [Files, ImageFolder, str])
def test_every_verb_takes_it(kind: Any, images: Path, base: Values, cache: Path) -> None:
    data = kind(images)
    config = PrecomputeConfig(**base, cache=str(cache))
    assert logitcache.build_cache(config, data=data).computed == 0
    estimate = logitcache.estimate(config, data=data)
    assert estimate.images == 60
    report = logitcache.verify(cache, data=data, teachers=base["teachers"], samples=4)
    assert report.ok
    assert report.images is not None
    _, targets = next(
        iter(logitcache.loader(logitcache.open_cache(cache), data, batch_size=60, size=8))
    )
    assert len(targets) == 60


def test_a_cache_is_repaired_with_it(
    images: Path, base: Values, cache: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "cache"
    shutil.copytree(cache, damaged)
    shard = next(path for path in sorted(damaged.rglob("c/*")) if path.is_file())
    shard.write_bytes(b"damaged")
    config = logitcache.configs.RepairConfig(cache=str(damaged), teachers=base["teachers"])
    with pytest.raises(UsageError, match="'data' is missing"):
        logitcache.repair(config)
    assert logitcache.repair(config, data=Files(images)).remaining == ()
    assert logitcache.verify(damaged).ok


def test_a_student_of_a_source_is_the_one_of_its_folder(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    """From the cache and from labels; validated, resumed and exported without a name of images."""
    values: Values = {
        "student": {"model": "resnet10t", "kwargs": {"channels": [8, 8, 8, 8]}, "size": 8},
        "batch_size": 16,
        "epochs": 1,
        "threads": 1,
    }
    for name, of in (("cached", {"cache": str(cache)}), ("labels", {})):
        config = TrainConfig(**values, **of, out=str(tmp_path / name))
        result = logitcache.train_student(config, data=Files(images), val=ImageFolder(images))
        folder = {**values, **of, "data": str(images), "val": str(images)}
        expected = logitcache.train_student(
            TrainConfig.parse({**folder, "out": str(tmp_path / f"{name}-of-folder")}, "")
        )
        assert result.evaluation == expected.evaluation
        assert weights_of(tmp_path / name) == weights_of(tmp_path / f"{name}-of-folder")
        card = (tmp_path / name / "export/README.md").read_text()
        assert "datasets" not in card.split("---")[1]
        longer = TrainConfig(**{**values, "epochs": 2}, **of, out=str(tmp_path / name))
        resumed = logitcache.train_student(longer, data=Files(images), resume=True)
        assert resumed.steps == 2 * result.steps
        with pytest.raises(UsageError, match=r"'data' is missing|does not contain its images"):
            logitcache.train_student(
                TrainConfig(**values, **of, out=str(tmp_path / f"{name}-without"))
            )


def weights_of(out: Path) -> str:
    """Return the sha256 of the exported weights of a run."""
    return hashlib.sha256((out / "export/model.safetensors").read_bytes()).hexdigest()


def test_a_cache_of_a_data_set(base: Values, tmp_path: Path) -> None:
    items = [(image, index % 3) for index, image in enumerate(pixels(20))]
    config = PrecomputeConfig(**base, cache=str(tmp_path / "cache"))
    summary = logitcache.build_cache(config, data=Items(items))
    assert summary.images == 20
    assert logitcache.build_cache(config, data=Items(items)).computed == 0
    items[3] = (Image.new("RGB", (8, 6), (0, 0, 99)), 0)
    report = logitcache.verify(tmp_path / "cache", data=Items(items))
    assert not report.ok


def test_without_images(base: Values, tmp_path: Path) -> None:
    config = PrecomputeConfig(**base, cache=str(tmp_path / "cache"))
    for verb in (logitcache.build_cache, logitcache.estimate):
        with pytest.raises(UsageError, match=r"'data' is missing[\s\S]*pass data"):
            verb(config)
    assert not (tmp_path / "cache").exists()


def test_the_page_on_images_shows_what_runs(
    images: Path,
    teachers: dict[str, dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/images.md").read_text(), re.DOTALL)
    teacher = '{"model": "resnet50", "weights": "cnn.pth"}'
    assert teacher in code
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "train").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    found: Values = {}
    exec(code.replace(teacher, repr(teachers["red"])), found)
    assert found["images"].shape == (60, 3, 224, 224)


def test_readers_and_adapters_of_other_packages(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry is all that it takes; settings that a reader does not use are still refused."""
    reader = Reader(lambda config, listing: Files(images), "a .lst file", splits=True)
    monkeypatch.setitem(READERS, ".lst", reader)
    (tmp_path / "x.lst").touch()
    assert len(open_source(f"{tmp_path}/x.lst").keys) == 60
    assert has_splits("x.lst")
    with pytest.raises(UsageError, match="class_list can only be set for"):
        logitcache.DataConfig(name=f"{tmp_path}/x.lst", class_list="x")
    with pytest.raises(DataError, match=r"a \.lst file"):
        open_source(__file__)
    adapters = {f"{Endless.__module__}.Endless": lambda data: Files(images)}
    monkeypatch.setattr("logitcache.data.readers.adapters.ADAPTERS", adapters)
    assert len(open_source(Endless()).keys) == 60
