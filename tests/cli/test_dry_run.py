"""``logitcache run --dry-run``: what is printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Outcome


def test_the_dry_run_prints_plan_bytes_steps_and_differences(
    logitcache: Callable[..., Outcome],
) -> None:
    shown = logitcache("run", "full/nkd", "--dry-run")
    assert shown.code == 0, shown.err
    words = " ".join(shown.out.split())
    assert "cnn (resnet34, 21.8 M) at 224 │ 1281167 │ 100" in words
    assert "resnet18, 11.7 M at 224 │ 1281167 │ │ 100 │ 500500" in words
    assert "bytes per image and view, cache: cnn 80 B" in words
    assert "published: ResNet-18 69.90 to 71.96 % top-1" in words
    assert "differs: targets of the 50 most likely classes" in words
    assert "not known: schedule" in words
    found: dict[str, Any] = json.loads(logitcache("run", "full/nkd", "--dry-run", "--json").out)
    assert [stage["steps"] for stage in found["stages"]] == [None, 500_500, 500_500]
    assert found["paper"]["unknown"]


def test_a_dry_run_is_of_all_stages(logitcache: Callable[..., Outcome]) -> None:
    for option in (["--only", "student"], ["--seeds", "2"]):
        refused = logitcache("run", "nkd", "--dry-run", *option)
        assert (refused.code, "all stages and one seed" in refused.err) == (2, True), refused.err
