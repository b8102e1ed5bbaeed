"""A pipeline folder with a cache and three networks with two seeds, and a page as parsed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.evaluation.evaluator import Evaluation
from logitcache.training.run.result import TrainResult, write_result
from tests.conftest import write_images, write_teacher

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<img src=x onerror=alert(1)>"
CLASSES = (HOSTILE, "cat|dog", "owl")
SCORES = {"labels": (0.5, 0.54), "student": (0.7, 0.76), "shuffled": (0.3, 0.34)}
_VOID = {"meta", "link", "img", "br"}


@dataclass
class Element:
    """An element of a page."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None
    children: list[Element] = field(default_factory=list)
    own_text: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Text of the element and of all below it."""
        return "".join([*self.own_text, *(child.text for child in self.children)])

    def all(self, tag: str = "") -> list[Element]:
        """Return all elements below this one, in the order of the page."""
        below = [each for child in self.children for each in (child, *child.all())]
        return [each for each in below if not tag or each.tag == tag]


NO_BREAK = "\N{NO-BREAK SPACE}"


class Page(HTMLParser):
    """A parsed page that checks that its elements are nested; its spaces are all of one kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = self._at = Element("page", {}, None)
        self.feed(text.replace(NO_BREAK, " "))
        assert self._at is self.root, "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        element = Element(tag, {name: value or "" for name, value in attrs}, self._at)
        self._at.children.append(element)
        if tag not in _VOID:
            self._at = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._at.children.append(Element(tag, {n: v or "" for n, v in attrs}, self._at))

    def handle_endtag(self, tag: str) -> None:
        assert self._at.tag == tag, f"</{tag}> closes <{self._at.tag}>"
        assert self._at.parent is not None
        self._at = self._at.parent

    def handle_data(self, data: str) -> None:
        self._at.own_text.append(data)


def write_run(folder: Path, score: float | None, **settings: Any) -> Path:
    """Write the files of a training run; without a score, of one that is not finished."""
    folder.mkdir(parents=True)
    values = {"data": "images", "student": {"model": "resnet10t"}, "epochs": 3, **settings}
    config = TrainConfig.parse({"out": str(folder), **values}, "test")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    events = [
        {"event": "epoch", "step": step, "epoch": step - 1, "loss": 2.0 / step, "top1": 0.1 * step}
        for step in (1, 2, 3)
    ]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "journal.jsonl").write_text(lines)
    if score is not None:
        result = TrainResult(
            out=str(folder),
            evaluation=Evaluation(score, 1.0, 0.9, 200),
            steps=3,
            images=180,
            set_images=60,
            labeled=60,
            parameters=1234,
            seconds=12.5,
            data_wait=0.25,
        )
        write_result(result)
    return folder


@pytest.fixture(scope="session")
def hostile_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images, one of whose classes has the name of an HTML element."""
    return write_images(tmp_path_factory.mktemp("hostile"), 12, CLASSES)


@pytest.fixture(scope="session")
def pipeline(hostile_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output folder of a pipeline with two seeds."""
    root = tmp_path_factory.mktemp("pipeline")
    teachers = {
        "cnn": {"model": f"local-dir:{write_teacher(root / 't/cnn', classes=3, model='cnn')}"},
        "red": {"model": f"local-dir:{write_teacher(root / 't/red', classes=3, seed=1)}"},
    }
    folder = root / "runs"
    for seed in (0, 1):
        out = folder / f"seed-{seed}"
        cache = str(out / "cache")
        values = {
            "cache": cache,
            "data": str(hostile_images),
            "teachers": teachers,
            "views": {"count": 2},
            "encoding": {"kind": "sparse", "top_k": 2},
            "unit_rows": 16,
        }
        build_cache(PrecomputeConfig.parse(values, ""))
        write_run(out / "labels", SCORES["labels"][seed], seed=seed)
        write_run(out / "student", SCORES["student"][seed], seed=seed, cache=cache)
        shuffled = {"cache": cache, "shuffle_targets": True}
        write_run(out / "shuffled", SCORES["shuffled"][seed], seed=seed, **shuffled)
    return folder
