from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import yaml

from logitcache.cache.read.reader import open_cache
from logitcache.cli.app import main
from logitcache.draws import Purpose, chosen
from logitcache.errors import UsageError
from logitcache.objectives.combine import ObjectiveConfig
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.tools.fit_weights import FitWeightsConfig, _probs, best_weights, fit_weights

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def answers(labels: NDArray[np.int32], noise: list[float], classes: int) -> NDArray[np.float32]:
    """Return teachers that know the label up to noise of their own."""
    generator = np.random.default_rng(0)
    logits = np.stack(
        [
            np.eye(classes)[labels] + level * generator.standard_normal((len(labels), classes))
            for level in noise
        ]
    )
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rounded: NDArray[np.float32] = probs.astype(np.float32)
    return rounded


def test_a_teacher_that_knows_nothing_counts_for_nothing() -> None:
    labels = np.random.default_rng(1).integers(0, 5, 400).astype(np.int32)
    probs = answers(labels, [0.4, 0.4, 30.0], 5)
    weights = best_weights(probs, labels, 0)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] < 0.1
    assert min(weights[:2]) > 0.15


def test_a_planted_mixture_is_recovered() -> None:
    """The only mixture that separates all rows: three parts of the first to one of the second."""
    generator = np.random.default_rng(2)
    first, second = generator.uniform(0.0, 1.0, (2, 2000))
    right = 0.75 * first + 0.25 * second > 0.5
    probs = np.stack([np.stack([1 - p, p], 1) for p in (first, second)]).astype(np.float32)
    weights = best_weights(probs, right.astype(np.int32), 0)
    assert weights.tolist() == pytest.approx([0.75, 0.25], abs=0.01)
    again = best_weights(probs, right.astype(np.int32), 0)
    assert weights.tolist() == again.tolist()


@pytest.fixture(scope="module")
def cache(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("weights") / "cache"
    values = {"cache": str(path), "data": str(images), "teachers": teachers, "unit_rows": 16}
    encoding = {"kind": "sparse", "top_k": 2, "bits": 8}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 1}, "encoding": encoding}, ""))
    return path


def test_probabilities_of_sparse_answers_sum_to_one(cache: Path) -> None:
    found = open_cache(cache)
    rows = found.samples.readable[::7]
    for name, group in found.teachers.items():
        probs = _probs(found, group, found.views_of([name])[0], rows)
        assert probs.shape == (len(rows), 3)
        assert probs.sum(1) == pytest.approx(1, abs=1e-3)


def test_what_is_written_is_what_soft_takes(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "below" / "weights.yaml"
    command = ["logitcache", "tools", "fit-weights", "--cache", str(cache), "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    document = json.loads(capsys.readouterr().out)
    written = yaml.safe_load(out.read_text())
    assert document["teachers"] == written["teachers"]
    assert set(written["teachers"]) == {"cnn", "red"}
    assert sum(written["teachers"].values()) == pytest.approx(1, abs=1e-3)
    assert written["accuracy"] >= max(*written["single"].values(), written["uniform"])
    config = ObjectiveConfig.parse({"soft": {"teachers": str(out)}}, "")
    assert config.term.needs.teachers == ("cnn", "red")
    assert config.model_dump(exclude_unset=True) == {"soft": {"teachers": written["teachers"]}}
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="0"):
        main()
    *_, shown, used = capsys.readouterr().out.splitlines()
    assert "ensemble" in shown
    line = used[used.index("objectives:") :]  # to be pasted as it is
    (term,) = yaml.safe_load(line)["objectives"]
    pasted = ObjectiveConfig.parse(term, "").soft
    assert pasted is not None
    assert pasted.teachers == pytest.approx(written["teachers"], abs=1e-4)


def test_images_that_teachers_learnt_from_are_left_out(cache: Path, tmp_path: Path) -> None:
    values = {"cache": str(cache), "out": str(tmp_path / "w.yaml")}
    fitted = fit_weights(FitWeightsConfig.parse({**values, "seen": {"count": 45, "seed": 3}}, ""))
    assert fitted.rows == 15
    assert fit_weights(FitWeightsConfig.parse({**values, "rows": 10}, "")).rows == 10
    with pytest.raises(UsageError, match="no labeled image is left"):
        fit_weights(FitWeightsConfig.parse({**values, "seen": {"count": 60, "seed": 3}}, ""))
    with pytest.raises(UsageError, match="did you mean 'red'"):
        fit_weights(FitWeightsConfig.parse({**values, "teachers": ["redd"]}, ""))


def test_who_is_drawn_does_not_depend_on_the_order() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 50).astype(np.uint64)
    drawn = set(hashes[chosen(1, hashes, 20, purpose=Purpose.LABELLED_ROWS)])
    turned = hashes[::-1].copy()
    assert drawn == set(turned[chosen(1, turned, 20, purpose=Purpose.LABELLED_ROWS)])
    assert len(drawn) == 20
