"""An objective's own parameters are trained, saved and shared as the network's are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from logitcache.cache.read.reader import open_cache
from logitcache.errors import Interrupted
from logitcache.networks.build import NetworkConfig, build_network
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.tools.learn_prototypes import LearnPrototypesConfig, learn_prototypes
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.run.checkpoint import latest_checkpoint, read_checkpoint
from logitcache.training.run.journal import read_journal
from tests.processes import Failed, run_ranks
from tests.training.test_ranks import Record, alone, train

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Teachers = dict[str, dict[str, Any]]
EPOCHS, STEPS = 3, 12  # 60 images in batches of 16, 16, 16 and 12
TERMS = ("route", "adversarial", "fuse", "gate", "assign", "attend")
LOSSES = ("loss", "label", "soft", "match", "relation", "gap", *TERMS)
OWN = tuple(f"objective.{name}." for name in ("match.projector", *TERMS))


def vit(**kwargs: object) -> dict[str, Any]:
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return {"model": "vit_tiny_patch16_224", "kwargs": {**shape, **kwargs}}


HELD = {"teacher": "red", "tap": "layer1", "student": "blocks.0"}


def match(projector: object) -> dict[str, Any]:
    return {"match": {**HELD, "projector": projector, "weight": 0.5}}


MLP = match({"kind": "mlp", "hidden": 12})
GENERATOR = match("generator")
PRIOR = match({"kind": "prior", "blocks": 1})
PAIRS = [
    {"teacher": "red", "tap": "stem", "student": "blocks.0"},
    {"teacher": "red", "tap": "layer1", "student": "blocks.1"},
]
FUSION: dict[str, Any] = {"match": {"pairs": PAIRS, "projector": "fusion", "weight": 0.5}}
FUSE: dict[str, Any] = {"fuse": {"pairs": PAIRS, "scales": 2, "weight": 0.5}}
LAYERS = {"taps": ["stem", "layer1"], "students": ["blocks.0"]}
ROUTE: dict[str, Any] = {"route": {"teacher": "red", **LAYERS, "width": 8}}
GATE: dict[str, Any] = {"gate": {"pairs": PAIRS, "width": 8, "weight": 400}}
ADVERSARIAL: dict[str, Any] = {
    "adversarial": {
        "teacher": "red",
        "tap": "layer1",
        "student": "blocks.0",
        "projector": {"kind": "group-linear", "side": 1, "dropout": 0.3},
        "hidden": 8,
        "lr_scale": 0.1,
        "weight": {"value": 0.5, "initial": 0.1, "start": 0.1, "length": 0.5},
    }
}
UNDROPPED = {"adversarial": {**ADVERSARIAL["adversarial"], "projector": "linear"}}


@pytest.fixture(scope="module")
def cache(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("projectors") / "cache"
    red = {**teachers["red"], "features": {"layer1": {"pool": 2}, "stem": {"pool": 2}}}
    values = {"cache": str(path), "data": str(images), "teachers": {"red": red}, "unit_rows": 16}
    build_cache(PrecomputeConfig.parse({**values, "views": {"count": 2}}, ""))
    return path


def config(out: Path, images: Path, cache: Path, **fields: object) -> dict[str, Any]:
    return {
        "out": str(out),
        "data": str(images),
        "cache": str(cache),
        "student": vit(),
        "objectives": ["soft", MLP],
        "epochs": EPOCHS,
        "batch_size": 16,
        "optimizer": {"clip_grad": 0.5},
        "device": "cpu",
        "threads": 1,
        "checkpoint_every": 100,
        **fields,
    }


def prototypes(cache: Path, folder: Path) -> Path:
    """Return the file of prototypes of the teacher's layer."""
    file = folder / "prototypes.safetensors"
    values = {"cache": str(cache), "out": str(file), "tap": "layer1", "count": 4, "passes": 2}
    learn_prototypes(LearnPrototypesConfig.parse(values, ""))
    return file


def trained(out: Path) -> dict[str, Tensor]:
    """Return all that was trained, the projector too, as the last checkpoint has it."""
    found = latest_checkpoint(out)
    assert found is not None
    weights = read_checkpoint(found).modules["model"]
    assert any(name.startswith(OWN) for name in weights)
    return weights


def losses(out: Path) -> list[float]:
    """Return the means of the epochs, of all terms and of their sum."""
    events = read_journal(out)
    return [event[name] for event in events for name in event if name.startswith(LOSSES)]


def assert_equal(ours: Path, theirs: Path) -> None:
    expected, got = trained(theirs), trained(ours)
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []


@pytest.mark.parametrize(
    ("term", "stops"),
    [
        pytest.param(MLP, [3], id="mlp-3"),
        pytest.param(MLP, [4, 5], id="mlp-4-5"),
        pytest.param(GENERATOR, [3], id="generator-3"),
        pytest.param(GENERATOR, [4, 5], id="generator-4-5"),
        pytest.param(PRIOR, [3], id="prior-3"),
        pytest.param(ROUTE, [3], id="route-3"),
        pytest.param(FUSION, [3], id="fusion-3"),
        pytest.param(ADVERSARIAL, [3], id="adversarial-3"),
        pytest.param(FUSE, [3], id="fuse-3"),
        pytest.param(GATE, [3], id="gate-3"),
    ],
)
def test_a_resumed_projector_is_the_very_same(
    images: Path, cache: Path, tmp_path: Path, term: dict[str, Any], stops: list[int]
) -> None:
    """Stopped inside an epoch and at its end; most draw random numbers in every step."""
    surgery = {"fake_quant": 4} if term is GATE else {}
    student = {**vit(drop_path_rate=0.2), "surgery": surgery}
    fields = {"objectives": ["soft", term], "student": student, "ema": 0.9}
    train_student(TrainConfig.parse(config(tmp_path / "whole", images, cache, **fields), ""))
    cut = TrainConfig.parse(config(tmp_path / "cut", images, cache, **fields), "")
    before: list[dict[str, Tensor]] = []
    for index, steps in enumerate(stops):
        left = partial(next, iter([False] * (steps - 1)), True)
        with pytest.raises(Interrupted):
            train_student(cut, resume=index > 0, should_stop=left)
        before.append(trained(tmp_path / "cut"))
    train_student(cut, resume=True)
    assert_equal(tmp_path / "cut", tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    after = trained(tmp_path / "cut")
    own = [name for name in after if name.startswith(OWN)]
    assert not any(torch.equal(before[-1][name], after[name]) for name in own), "they are trained"
    exported = timm.create_model(f"local-dir:{tmp_path / 'cut' / 'export'}", pretrained=True)
    plain = build_network(NetworkConfig(**vit()), 3)
    assert exported.state_dict().keys() == plain.state_dict().keys(), "and none is exported"


def test_a_resumed_attention_is_the_very_same_and_its_prototypes_stay(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    file = prototypes(cache, tmp_path)
    assign = {**HELD, "file": str(file)}
    attend = {"student": "blocks.1", "file": str(file), "width": 8}
    terms = ["label", {"assign": assign}, {"attend": attend}]
    whole, cut = (
        TrainConfig.parse(config(tmp_path / name, images, cache, objectives=terms), "")
        for name in ("whole", "cut")
    )
    train_student(whole)
    with pytest.raises(Interrupted):
        train_student(cut, should_stop=partial(next, iter([False, False, True])))
    train_student(cut, resume=True)
    assert_equal(tmp_path / "cut", tmp_path / "whole")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    weights = trained(tmp_path / "cut")
    for prefix in ("attend.attention", "assign"):
        kept = weights[f"objective.{prefix}.table.centers"]
        assert torch.equal(kept, load_file(file)["centers"])
    exported = load_file(tmp_path / "cut" / "export" / "model.safetensors")
    own = {name.removeprefix("network.network.") for name in weights if "objective" not in name}
    assert exported.keys() == own, "what is trained with the student leaves nothing in the export"


def test_a_batch_of_one_image_is_joined_for_the_batch_norm_of_a_projector(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    """The network has no batch norm, so it could learn from one image."""
    notes = {}
    for name, term in {"fusion": FUSION, "mlp": MLP}.items():
        values = config(tmp_path / name, images, cache, objectives=[term], epochs=1, batch_size=59)
        notes[name] = train_student(TrainConfig.parse(values, "")).notes
    joined = {
        name: any("too small for batch norm" in note for note in notes[name]) for name in notes
    }
    assert joined == {"fusion": True, "mlp": False}


def assert_close(ours: Path, theirs: Path) -> None:
    """Compare losses and weights; statistics of batch norm are those of the first process."""
    expected, got = trained(theirs), trained(ours)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        if "running" in name or "tracked" in name:
            continue
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-3)


def first_positions(rows: int, patches: int, count: Any, device: torch.device) -> Tensor:
    positions_BP = torch.arange(patches, device=device).expand(rows, patches)
    return positions_BP.lt(count)


def without_draws(patch: pytest.MonkeyPatch) -> None:
    """Hide the first positions instead of drawn ones, and give gates no noise."""
    for module in ("projector", "prior"):
        patch.setattr(f"logitcache.objectives.{module}.drawn_positions", first_positions)
    patch.setattr("logitcache.objectives.gate._gumbel", torch.zeros_like)


def train_without_draws(rank: int, values: dict[str, Any]) -> Record:
    with pytest.MonkeyPatch.context() as patch:
        without_draws(patch)
        return train(rank, values)


@pytest.mark.parametrize("terms", ["match alone", "terms on rows"])
def test_two_processes_train_the_parameters_of_one(
    images: Path, cache: Path, tmp_path: Path, terms: str
) -> None:
    """Few labels, unevenly spread; most slices of three rows lack one of the parts of a term."""
    file = str(prototypes(cache, tmp_path))
    student = {**vit(), "surgery": {"fake_quant": 4}}
    fields: dict[str, object] = {"objectives": [MLP, GENERATOR], "student": student}
    if terms != "match alone":
        part = {"match": {**MLP["match"], "parts": ["cat"]}}
        assign = {"assign": {**HELD, "file": file}}
        attend = {"attend": {"student": "blocks.1", "file": file, "width": 8}}
        pseudo = {"label": {"pseudo": "red", "above": 0.34, "parts": ["dog"]}}
        own = [ROUTE, UNDROPPED, part, assign, attend, pseudo]
        fields = {"objectives": ["soft", *own], "labels": 25, "batch_size": 6, "epochs": 1}
        fields["seed"] = 1  # here the first slices have a row of the part, and later ones lack it
    whole = train_without_draws(0, config(tmp_path / "one", images, cache, **fields))
    parts = run_ranks(2, train_without_draws, config(tmp_path / "two", images, cache, **fields))
    assert not [part for part in parts if isinstance(part, Failed)], parts
    assert len(whole.losses) == (STEPS if terms == "match alone" else 10)
    for record in parts:
        assert record.losses == pytest.approx(whole.losses, rel=1e-4)
    assert_close(tmp_path / "two", tmp_path / "one")
    head = "network.network.head.weight"
    same = torch.equal(trained(tmp_path / "two")[head], trained(tmp_path / "one")[head])
    assert same == (terms == "match alone"), "without a gradient it is not even decayed"


def test_of_what_is_computed_across_rows_each_process_has_that_of_its_slice(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    """Two processes are one that divides its batch in two parts, where terms compare rows.

    One process refuses to divide the batch of such terms; here this check is left out.
    """
    rows = {"teacher": "red", "tap": "layer1", "student": "blocks.1"}
    terms = [
        {"relation": {**rows, "over": "batch", "form": "distance"}},
        {"gap": {"parts": ["bird", "dog"]}},
        FUSION,
        FUSE,
        PRIOR,
        GATE,
    ]
    # plain steps: where a gradient is zero but for rounding, Adam would make it a step of lr
    plain = {"name": "sgd", "lr": 0.05, "clip_grad": 0.5}
    fields: dict[str, object] = {"objectives": terms, "epochs": 1, "optimizer": plain}
    values = config(tmp_path / "two", images, cache, **fields)
    assert run_ranks(2, train_without_draws, values)[0].losses
    divided = TrainConfig.parse({**values, "out": str(tmp_path / "parts")}, "")
    with pytest.MonkeyPatch.context() as patch:
        without_draws(patch)
        train_student(divided.model_copy(update={"accumulate": 2}))
        train_student(divided.model_copy(update={"out": str(tmp_path / "one")}))
    assert_close(tmp_path / "two", tmp_path / "parts")
    ours, theirs = losses(tmp_path / "parts"), losses(tmp_path / "one")
    same = [a == pytest.approx(b, rel=1e-5) for a, b in zip(ours, theirs, strict=True)]
    assert not any(same), "and of the whole batch each term has another loss"


def test_an_episode_is_that_of_the_rows_of_a_process(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    """The loss is the mean over slices, weighted by queries, of episodes that are run alone."""
    fields: dict[str, object] = {"epochs": 1, "optimizer": {"name": "sgd", "lr": 1e-30}}
    fields["objectives"] = [{"episode": {"student": "norm", "scale": 5}}]
    parts = run_ranks(2, train, config(tmp_path / "two", images, cache, **fields))
    whole = alone(config(tmp_path / "whole", images, cache, **fields))
    slices = alone(config(tmp_path / "slices", images, cache, **fields, batch_size=8))
    labels = open_cache(cache).samples.labels
    for step in range(3):  # those of two slices of eight rows
        rows = slices.rows[2 * step : 2 * step + 2]
        assert rows == [part.rows[step] for part in parts]
        queries = [_queries(labels[own].tolist()) for own in rows]
        pairs = zip(queries, slices.losses[2 * step : 2 * step + 2], strict=True)
        expected = sum(count * loss for count, loss in pairs) / sum(queries)
        assert [part.losses[step] for part in parts] == pytest.approx([expected] * 2, rel=1e-5)
        assert whole.losses[step] != pytest.approx(expected, rel=1e-3)


def _queries(classes: list[int]) -> int:
    """Return how many rows are queries: every second row, if a row of its class is between."""
    return sum(name in classes[::2] for name in classes[1::2])


def test_two_processes_go_on_with_the_very_same_projector(
    images: Path, cache: Path, tmp_path: Path
) -> None:
    fields: dict[str, object] = {"objectives": ["soft", GENERATOR], "epochs": 2}
    whole = run_ranks(2, train, config(tmp_path / "whole", images, cache, **fields))
    assert all(isinstance(record, Record) for record in whole), whole
    cut = config(tmp_path / "cut", images, cache, **fields)
    stopped = run_ranks(2, train, cut, False, 3)
    assert [found.kind for found in stopped] == ["Interrupted"] * 2, stopped
    rest = run_ranks(2, train, cut, True)
    assert rest[0].losses == rest[1].losses == whole[0].losses[3:]
    assert_equal(tmp_path / "cut", tmp_path / "whole")
    # what was lost before is kept as one sum, not as that of each process
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
