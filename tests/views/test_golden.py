from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from logitcache.views import geometry
from logitcache.views.golden import check_vectors, golden_files
from logitcache.views.randaugment import LEVELS
from tests.golden import drops, policies
from tests.golden import views as golden

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.requirement("V1.2", "V4.5", "V4.21")
def test_every_vector_holds_on_this_machine() -> None:
    report = check_vectors(golden_files())
    written = [
        len(json.loads(path.read_text())) for path in (golden.PATH, policies.PATH, drops.PATH)
    ]
    assert report.vectors == sum(written)
    assert report.sound, report.to_json()


def test_the_vectors_are_those_of_their_recipes_and_cover_everything() -> None:
    written = json.loads(policies.PATH.read_text())
    assert [entry["id"] for entry in written[::2]] == [view.id for view in policies.views()]
    steps = {
        step[0]
        for entry in written
        for step in [*entry["parameters"]["steps"], *entry["parameters"]["after"]]
    }
    assert len(steps) > 20
    assert {"noise", "mask", "lowres", "rot90", "hue", "grey", "flip_vertical"} <= steps
    alone = {entry["view"]["operations"][1]["names"][0] for entry in written[-2 * len(LEVELS) :]}
    assert alone == set(LEVELS)


def altered(change: Callable[[dict[str, Any]], None], path: Path) -> Path:
    entries = json.loads(policies.PATH.read_text())[:2]
    change(entries[0])
    path.write_text(json.dumps(entries))
    return path


def other_word(entry: dict[str, Any]) -> None:
    entry["words"]["horizontal_flip"] = ["0" * 16]


def other_box(entry: dict[str, Any]) -> None:
    entry["parameters"]["crop"][0] += 1


def other_pixel(entry: dict[str, Any]) -> None:
    entry["sha256"]["16"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "kind"), [(other_word, "words"), (other_box, "parameters"), (other_pixel, "pixels")]
)
def test_a_difference_is_told_by_kind(
    change: Callable[[dict[str, Any]], None], kind: str, tmp_path: Path
) -> None:
    report = check_vectors([altered(change, tmp_path / "x-1.json")])
    assert not report.sound
    found = report.to_json()
    assert [name for name in ("words", "parameters", "pixels") if found[name]] == [kind]
    assert "random_resized_crop" in found[kind][0]


def test_another_resizer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        geometry,
        "_resize",
        lambda image, height, width, _: torch.zeros(3, height, width, dtype=torch.uint8),
    )
    assert len(check_vectors([golden.PATH]).pixels) == 72
