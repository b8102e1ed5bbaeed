"""Prototypes of cached tokens: what is read, written, and kept of a stopped run."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from logitcache.cache.read.reader import open_cache
from logitcache.cli.app import main
from logitcache.errors import Interrupted, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.tools.learn_prototypes import LearnPrototypesConfig, learn_prototypes
from logitcache.tools.soft_clustering import State, improved

if TYPE_CHECKING:
    from pathlib import Path

PASSES, UNITS = 4, 4


@pytest.fixture(scope="module")
def cache(
    images: Path, teachers: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a cache of 60 images with maps, some tokens, a vector and an energy."""
    path = tmp_path_factory.mktemp("prototypes") / "cache"
    features = {"stem": {"pool": 2}, "layer1": {"pool": 2}, "pre_logits": {}}
    red = {**teachers["red"], "features": {**features, "maxpool": {"reduce": "energy"}}}
    values = {"cache": str(path), "data": str(images), "teachers": {"red": red}, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 1}}, ""))
    return path


def _noted(seen: list[tuple[int, int]], done: int, total: int) -> None:
    seen.append((done, total))


def parsed(cache: Path, out: Path, **values: object) -> LearnPrototypesConfig:
    known = {"cache": str(cache), "out": str(out), "tap": "layer1", "count": 5, "passes": PASSES}
    return LearnPrototypesConfig.parse({**known, **values}, "")


def test_a_pass_reads_every_token_of_every_image(cache: Path, tmp_path: Path) -> None:
    """The last pass is that over all maps at once, after the passes before it."""
    files = [tmp_path / "before.safetensors", tmp_path / "after.safetensors"]
    found = [
        learn_prototypes(parsed(cache, file, passes=passes))
        for file, passes in zip(files, (1, 2), strict=True)
    ]
    opened = open_cache(cache)
    group = opened.tap("red/layer1")
    values = group.encoding.decode(
        opened.read(group.name, opened.views_of([], ["red/layer1"])[0], 0, opened.rows_end)
    )
    tokens = np.moveaxis(values, 1, 3).reshape(-1, values.shape[1])
    assert (found[1].images, found[1].tokens) == (60, len(tokens)) == (60, 240)
    before, after = (load_file(file) for file in files)
    scale = float(-before["bias"][0] / np.square(before["centers"][0]).sum())
    np.testing.assert_allclose(before["weight"], 2 * scale * before["centers"], rtol=1e-5)
    state = improved(iter([tokens]), State(torch.from_numpy(before["centers"]).double(), scale))
    np.testing.assert_allclose(after["centers"], state.centers, rtol=1e-3, atol=1e-4)
    assert found[1].explained == pytest.approx(state.explained, abs=1e-4)
    assert found[1].explained > found[0].explained > 0


@pytest.mark.parametrize("stops", [[1], [UNITS + 2], [2 * UNITS, 1, 2]])
def test_a_stopped_run_goes_on_to_the_very_same_file(
    cache: Path, tmp_path: Path, stops: list[int]
) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    learn_prototypes(parsed(cache, whole))
    for units in stops:
        left = iter([False] * units + [True])
        with pytest.raises(Interrupted, match="stopped in pass"):
            learn_prototypes(parsed(cache, cut), should_stop=partial(next, left))
        assert not cut.exists()
    seen: list[int] = []
    learn_prototypes(parsed(cache, cut), on_progress=lambda done, _: seen.append(done))
    kept = (sum(units // UNITS for units in stops)) * 60
    assert seen[0] == kept + 16, "the passes that ended are not done again"
    assert seen[-1] == 60 * PASSES
    assert cut.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [cut.name, whole.name]


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_a_killed_run_goes_on_to_the_very_same_file(cache: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    learn_prototypes(parsed(cache, whole))

    def killed(after: int) -> None:
        def kill(done: int, _: int) -> None:
            if done >= after:
                os.kill(os.getpid(), signal.SIGKILL)

        learn_prototypes(parsed(cache, cut), on_progress=kill)

    for after in (20, 75, 200):
        child = multiprocessing.get_context("fork").Process(target=killed, args=(after,))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not cut.exists()
    learn_prototypes(parsed(cache, cut))
    assert cut.read_bytes() == whole.read_bytes()


def test_other_settings_and_damaged_states_start_again(cache: Path, tmp_path: Path) -> None:
    cut, saved = tmp_path / "p.safetensors", tmp_path / "p.safetensors.unfinished"
    for content in ("other settings", "damage"):
        left = iter([False] * UNITS + [True])
        with pytest.raises(Interrupted):
            learn_prototypes(parsed(cache, cut, seed=1), should_stop=partial(next, left))
        if content == "damage":
            saved.write_bytes(saved.read_bytes()[:-9])
        seen: list[tuple[int, int]] = []
        values = {} if content == "damage" else {"count": 6}
        learn_prototypes(parsed(cache, cut, seed=1, **values), on_progress=partial(_noted, seen))
        assert seen[0] == (16, 60 * PASSES)
        assert not saved.exists()
        cut.unlink()


def test_the_command_writes_a_file_that_the_terms_read(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.safetensors"
    command = ["logitcache", "tools", "learn-prototypes", "--cache", str(cache), "--tap", "stem"]
    command += ["--count", "3", "--passes", "2", "--out", str(out)]
    for flags, text in (([], "3 prototypes of red/stem"), (["--json"], '"explained"')):
        monkeypatch.setattr("sys.argv", [*command, *flags])
        with pytest.raises(SystemExit, match="0"):
            main()
        printed = capsys.readouterr().out
        assert text in printed
    assert json.loads(printed)["count"] == 3
    assert {name: len(tensor) for name, tensor in load_file(out).items()} == {
        "centers": 3,
        "weight": 3,
        "bias": 3,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tap": None}, "several layers"),
        ({"tap": "layer9"}, "did you mean 'red/layer1'"),
        ({"tap": "pre_logits"}, "channels at every position"),
        ({"tap": "maxpool"}, "the energy of the channels"),
        ({"count": 241}, "fewer tokens than prototypes"),
        ({"teacher": "rde"}, "did you mean 'red'"),
    ],
)
def test_what_has_no_prototypes_is_refused(
    cache: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        learn_prototypes(parsed(cache, tmp_path / "p", **values))
