from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.cluster import KMeans

from logitcache.cli.app import main
from logitcache.errors import UsageError
from logitcache.networks.build import NetworkConfig, build_network, input_spec
from logitcache.students.build import StudentConfig, build_student
from logitcache.tools.pick_bits import BITS, PickBitsConfig, clustering_errors, pick_bits
from logitcache.training.export.export import export_network

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

THRESHOLDS = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-12]


def normal(count: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(count)


def least_error(numbers: NDArray[np.float64], clusters: int) -> float:
    """The smallest mean squared distance of all divisions into intervals."""
    numbers, best = np.sort(numbers), np.inf
    for cuts in itertools.combinations(range(1, len(numbers)), clusters - 1):
        parts = np.split(numbers, cuts)
        best = min(best, sum(float(((p - p.mean()) ** 2).sum()) for p in parts))
    return best / len(numbers)


@pytest.mark.parametrize("seed", range(5))
def test_four_clusters_are_nearly_the_best_of_all_divisions(seed: int) -> None:
    numbers = normal(24, seed)
    found, best = clustering_errors(numbers)[2], least_error(numbers, 4)
    assert best * (1 - 1e-9) <= found <= 1.25 * best


@pytest.mark.parametrize("bits", [3, 5, 7])
def test_errors_are_those_of_scikit_learn(bits: int) -> None:
    numbers = normal(2000)
    theirs = KMeans(2**bits, n_init=1, random_state=0).fit(numbers[:, None]).inertia_ / 2000
    assert clustering_errors(numbers)[bits] == pytest.approx(theirs, rel=0.1)


def test_more_clusters_have_a_smaller_error_and_few_numbers_have_none() -> None:
    errors = clustering_errors(normal(5000))
    assert list(errors) == list(BITS)
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    two = clustering_errors(np.repeat([-0.5, 0.25], 50))
    assert max(two.values()) == pytest.approx(0, abs=1e-15)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a convolution network, exported, whose layers have weights of several scales."""
    folder = tmp_path_factory.mktemp("bits") / "cnn"
    torch.manual_seed(0)
    kwargs = {"channels": [16, 16, 16, 16], "stem_width": 16}
    made = build_network(NetworkConfig(model="resnet10t", kwargs=kwargs), 5)
    export_network(made, input_spec(made), folder)
    return f"local-dir:{folder}"


def picked(network: str, out: Path, threshold: float) -> Any:
    values = {"network": {"model": network}, "out": str(out), "threshold": threshold}
    return pick_bits(PickBitsConfig.parse(values, "pick_bits"))


def test_bits_grow_as_the_threshold_falls(network: str, tmp_path: Path) -> None:
    """In every layer: from 2 at a threshold that all meet to 8 at one that none does."""
    found = [picked(network, tmp_path / "bits.yaml", threshold) for threshold in THRESHOLDS]
    for coarse, fine in itertools.pairwise(found):
        assert all(fine.bits[name] >= bits for name, bits in coarse.bits.items())
        assert fine.mean_bits >= coarse.mean_bits
    assert set(found[0].bits.values()) == {2}
    assert set(found[-1].bits.values()) == {8}
    middle = found[4]
    assert len(set(middle.bits.values())) > 1, "layers differ"
    for name, bits in middle.bits.items():
        assert middle.errors[name] < 1e-5 or bits == 8
    assert "fc" not in middle.bits


def test_the_file_is_what_a_student_is_quantized_with(
    network: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bits.yaml"
    folder = network.removeprefix("local-dir:")
    command = ["logitcache", "tools", "pick-bits", "--network", folder, "--out", str(out)]
    command += ["--threshold", "1e-5"]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    printed = json.loads(capsys.readouterr().out)
    written = yaml.safe_load(out.read_text())
    assert {"schema_version": 1, **written} == printed
    surgery = {"fake_quant": {"bits": str(out)}}
    config = StudentConfig.parse({"model": network, "surgery": surgery}, "student")
    stored = config.model_dump(mode="json")["surgery"]["fake_quant"]
    assert stored["bits"] == written["bits"], "stored runs have the numbers"
    made: Any = build_student(config, 5)
    for name, bits in written["bits"].items():
        assert len(made.get_submodule(name).weight.unique()) <= 2**bits
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="0"):
        main()
    *_, shown, used = capsys.readouterr().out.splitlines()
    assert "bits a weight" in shown
    line = used[used.index("student:") :]  # to be pasted as it is
    pasted = {"model": network, **yaml.safe_load(line)["student"]}
    assert StudentConfig.parse(pasted, "student") == config


def test_new_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give weights, or the folder of an exported network"):
        picked("resnet10t", tmp_path / "bits.yaml", 1e-5)
