from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from logitcache.cache.read.reader import open_cache
from logitcache.cli.app import main
from logitcache.errors import UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.tools.pick_hints import PickHintsConfig, cka_distances, medoids, pick_hints
from tests.objectives import feature_reference as reference

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def planted(
    groups: list[int], rows: int = 80, noise: float = 0.1
) -> tuple[list[NDArray[np.float32]], list[list[int]]]:
    """Return layers that are rotations of a response per group with noise, and the groups."""
    generator = np.random.default_rng(0)
    layers: list[NDArray[np.float32]] = []
    members: list[list[int]] = []
    for size in groups:
        base = generator.standard_normal((rows, 6))
        members.append(list(range(len(layers), len(layers) + size)))
        for _ in range(size):
            turned = base @ np.linalg.qr(generator.standard_normal((6, 6)))[0]
            noisy = turned + noise * generator.standard_normal(turned.shape)
            layers.append((10 ** generator.uniform(-2, 2) * noisy).astype(np.float32))
    return layers, members


@pytest.mark.parametrize("groups", [[3, 4, 2], [1, 5], [2, 2, 2, 3]])
def test_planted_groups_of_layers_are_recovered(groups: list[int]) -> None:
    layers, members = planted(groups)
    distances = cka_distances(layers)
    centers = medoids(distances, len(groups))
    of_center = distances[:, centers].argmin(1)
    assert [np.flatnonzero(of_center == n).tolist() for n in range(len(groups))] == members


def test_distances_are_those_of_the_plain_loops() -> None:
    generator = np.random.default_rng(1)
    layers = [generator.standard_normal((7, width)).astype(np.float32) for width in (3, 5, 2)]
    distances = cka_distances(layers)
    for a in range(3):
        assert distances[a, a] == 0
        for b in set(range(3)) - {a}:
            expected = reference.cka(layers[a].tolist(), layers[b].tolist())
            assert distances[a, b] == pytest.approx(expected, abs=1e-5)


def test_distances_do_not_change_with_rotation_scale_and_offset() -> None:
    generator = np.random.default_rng(2)
    a, b = (generator.standard_normal((40, 4)).astype(np.float32) for _ in range(2))
    turned = 3.0 * a @ np.linalg.qr(generator.standard_normal((4, 4)))[0] + 5.0
    distances = cka_distances([a, b, turned.astype(np.float32)])
    assert distances[0, 2] == pytest.approx(0, abs=1e-5)
    assert distances[0, 1] == pytest.approx(distances[2, 1], abs=1e-5)


def test_a_layer_that_is_the_same_for_all_images_is_far_from_all_others() -> None:
    layers, _ = planted([2])
    distances = cka_distances([*layers, np.ones((80, 3), np.float32)])
    assert distances[2, :2].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_medoids_are_the_best_of_all_sets(count: int) -> None:
    """Against plain loops over subsets, of distances without structure."""
    raw = np.random.default_rng(count).random((5, 5))
    distances = raw + raw.T
    np.fill_diagonal(distances, 0)

    def cost(centers: list[int]) -> float:
        return float(sum(min(distances[i, c] for c in centers) for i in range(5)))

    subsets = [[i for i in range(5) if mask >> i & 1] for mask in range(32)]
    costs = [cost(subset) for subset in subsets if len(subset) == count]
    assert cost(medoids(distances, count)) == pytest.approx(min(costs))


def test_too_many_sets_and_too_few_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="fewer layers than hint points"):
        medoids(np.zeros((2, 2)), 3)
    with pytest.raises(UsageError, match="sets of hint points"):
        medoids(np.zeros((60, 60)), 10)


@pytest.fixture(scope="module")
def cache(
    images: Path, teachers: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a cache with a whole map, a mean and an energy, and a layer of another teacher."""
    path = tmp_path_factory.mktemp("hints") / "cache"
    features = {"stem": {}, "layer1": {"reduce": "mean"}, "pre_logits": {}}
    red = {**teachers["red"], "features": {**features, "maxpool": {"reduce": "energy"}}}
    values = {"cache": str(path), "data": str(images), "teachers": {"red": red}, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 2}}, ""))
    return path


CANDIDATES = ["stem", "layer1", "pre_logits"]


def parsed(cache: Path, tmp_path: Path, **values: object) -> PickHintsConfig:
    known = {"cache": str(cache), "out": str(tmp_path / "below" / "hints.yaml")}
    return PickHintsConfig.parse({**known, "taps": CANDIDATES, "count": 2, **values}, "")


def test_what_is_written_names_layers_and_their_groups(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pick_hints(parsed(cache, tmp_path))
    written = yaml.safe_load((tmp_path / "below" / "hints.yaml").read_text())
    assert written == found.to_json()
    assert sorted(tap for group in found.groups.values() for tap in group) == sorted(CANDIDATES)
    assert list(found.groups) == found.taps
    assert found.taps == [tap for tap in CANDIDATES if tap in found.taps], "order of the network"
    assert (found.teacher, found.rows) == ("red", 60)
    command = ["logitcache", "tools", "pick-hints", "--cache", str(cache), "--count", "2"]
    command += [flag for tap in CANDIDATES for flag in ("--tap", tap)]
    command += ["--out", str(tmp_path / "hints.yaml")]
    monkeypatch.setattr("sys.argv", [*command, "--json"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert json.loads(capsys.readouterr().out)["taps"] == found.taps
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="0"):
        main()
    assert f"--feature red={found.taps[0]}" in capsys.readouterr().out


def test_layers_are_compared_by_their_means(cache: Path, tmp_path: Path) -> None:
    """The mean of a map, computed here from the decoded rows, gives the same distance."""
    opened = open_cache(cache)
    view = opened.views_of([], ["red/stem", "red/layer1"])[0]

    def decoded(tap: str) -> NDArray[np.float32]:
        group = opened.tap(f"red/{tap}")
        return group.encoding.decode(opened.read(group.name, view, 0, opened.rows_end))

    vectors = [decoded("stem").mean((2, 3)).tolist(), decoded("layer1").tolist()]
    found = pick_hints(parsed(cache, tmp_path, taps=["stem", "layer1"], count=1))
    assert found.distance == pytest.approx(reference.cka(*vectors) / 2, abs=1e-4)


def test_who_is_sampled_depends_on_the_seed_alone(cache: Path, tmp_path: Path) -> None:
    first, again = (pick_hints(parsed(cache, tmp_path, rows=20, seed=1)) for _ in range(2))
    assert (first, first.rows) == (again, 20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher": "rde"}, "did you mean 'red'"),
        ({"taps": ["layer9"]}, "did you mean 'red/layer1'"),
        ({"taps": ["layer1", "layer1"]}, "given twice"),
        ({"taps": None}, "only an energy"),
        ({"count": 4}, "fewer layers"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    cache: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pick_hints(parsed(cache, tmp_path, **values))


def test_a_cache_without_features_has_no_layers(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    values = {"cache": str(tmp_path / "c"), "data": str(images), "views": {"count": 1}}
    build_cache(PrecomputeConfig.parse({**values, "teachers": {"red": teachers["red"]}}, ""))
    with pytest.raises(UsageError, match="no layers to choose from"):
        pick_hints(parsed(tmp_path / "c", tmp_path))
