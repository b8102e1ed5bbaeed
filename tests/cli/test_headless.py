"""Teachers without classes on the command line: columns of logits are left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.teachers.test_headless import VIT, write_backbone, write_unlabeled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Outcome

OPTIONS = "--set teachers.vit.head=none --feature vit=pre_logits --views 1 --threads 1"


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    weights = write_backbone(tmp_path / "weights")["weights"]
    write_unlabeled(tmp_path / "images")
    kwargs = [
        part
        for name, value in VIT.items()
        for part in ("--set", f"teachers.vit.kwargs.{name}={value}")
    ]
    teacher = f"vit=vit_tiny_patch16_224@{weights}"
    where = ["--data", str(tmp_path / "images"), "--teacher", teacher]
    return [*where, *OPTIONS.split(), *kwargs]


def test_every_command_shows_features_alone(
    logitcache: Callable[..., Outcome], tmp_path: Path, flags: list[str]
) -> None:
    planned = logitcache("plan", *flags)
    assert planned.code == 0, planned.err
    assert "vit_tiny_patch16_224, features alone" in planned.out
    assert "KL T=1" not in planned.out
    cache = tmp_path / "cache"
    done = logitcache("precompute", "--cache", cache, *flags)
    assert done.code == 0, done.err
    assert "vit/features/pre_logits" in done.out
    inspected = logitcache("inspect", cache)
    assert (inspected.code, "features alone" in inspected.out) == (0, True)
    (teacher,) = logitcache("inspect", cache, "--json").json["teachers"]
    assert (teacher["num_classes"], teacher["encoding"], teacher["accuracy"]) == (None, None, {})
    status = logitcache("status", cache)
    assert "teachers/vit/features/pre_logits" in status.out
    assert "complete, revision 1" in status.out
    at = flags.index("--teacher") + 1
    verify = ["verify", cache, "--data", flags[1], "--teachers", flags[at]]
    checked = logitcache(*verify, "--full")
    assert checked.code == 0, checked.err
    assert "features alone" in checked.out
    assert "rows of features compared: 24 of pre_logits" in checked.out
    survey = logitcache("inspect", cache, "--survey")
    assert survey.code == 1
    assert "the cache has no logits" in survey.err


def test_without_head_none_the_message_leads_to_it(
    logitcache: Callable[..., Outcome], tmp_path: Path, flags: list[str]
) -> None:
    at = flags.index("teachers.vit.head=none")
    done = logitcache("precompute", "--cache", tmp_path / "c", *flags[: at - 1], *flags[at + 1 :])
    assert done.code == 1
    assert "head: none caches the features of a backbone" in " ".join(done.err.split())
