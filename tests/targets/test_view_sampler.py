"""Views chosen by scores, next to the original: frequencies, batches, and state."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.batch import DenseLogits, SparseLogits, TargetBatch
from logitcache.cache.read.reader import Cache, open_cache
from logitcache.data.identity import key_hash
from logitcache.draws import Purpose, unit_floats, words
from logitcache.errors import Interrupted, UsageError
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.epochs.sampled_epoch import label_log_probs
from logitcache.targets.loader import loader
from logitcache.targets.view_scores import SamplerConfig, ViewScores
from logitcache.training.config import TrainConfig
from logitcache.training.loop import train_student
from logitcache.training.run.checkpoint import read_last_checkpoint
from logitcache.training.run.journal import read_journal
from logitcache.views.spec import ViewsConfig
from tests.processes import forking, run_ranks
from tests.training.test_loop import VIT, assert_equal_runs, stop_after

if TYPE_CHECKING:
    import multiprocessing

VIEWS = 4
DRAWS = 4000
BANK = tuple(ViewsConfig(count=VIEWS).views())
SAMPLER = {"tau": 0.5, "refresh": 1}
PLAIN = {  # without dropout, which processes draw differently
    "model": "vit_tiny_patch16_224",
    "kwargs": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
}


def sampler(tau: float = 0.5, refresh: int = 1, rows: int = 3) -> ViewScores:
    return ViewScores(SamplerConfig(tau=tau, refresh=refresh), BANK, rows)


def choices(scores: ViewScores, row: int, teacher_V: list[float]) -> np.ndarray[Any, Any]:
    """Return the choices for a row in many epochs."""
    hashes = np.array([key_hash(f"{row}.jpg")], dtype=np.uint64)
    one = np.array([row]), hashes, np.array([teacher_V])
    return np.array([scores.choose(7, epoch, *one)[0] for epoch in range(DRAWS)])


def shares(chosen: np.ndarray[Any, Any]) -> list[float]:
    found: list[float] = (np.bincount(chosen, minlength=VIEWS) / len(chosen)).tolist()
    return found


def softmax(scores: list[float], tau: float) -> list[float]:
    weights = [math.exp(score / tau) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


@pytest.mark.parametrize("tau", [0.3, 0.5, 2.0])
def test_views_are_chosen_with_the_probability_of_their_scores(tau: float) -> None:
    scores = sampler(tau)
    teacher = [math.log(p) for p in (0.9, 0.5, 0.7, 0.2)]
    student = [math.log(1 - p) for p in (0.8, 0.1, 0.5, 0.0)]
    ones = np.ones(VIEWS, dtype=np.int64)
    scores.note(ones, np.arange(VIEWS), np.array(student, dtype=np.float32))
    scores.end_epoch(0)
    expected = softmax([t + s for t, s in zip(teacher, student, strict=True)], tau)
    # four standard deviations of a share
    tolerance = 4 * math.sqrt(0.25 / DRAWS)
    assert shares(choices(scores, 1, teacher)) == pytest.approx(expected, abs=tolerance)


def test_a_planted_view_is_nearly_always_chosen() -> None:
    """The teacher is right and the student wrong in one view; elsewhere it is the reverse."""
    scores, planted = sampler(), 2
    right, wrong = math.log(0.95), math.log(0.05)
    known = [wrong if view != planted else right for view in range(VIEWS)]  # of 1 - p_s
    scores.note(
        np.zeros(VIEWS, dtype=np.int64), np.arange(VIEWS), np.array(known, dtype=np.float32)
    )
    scores.end_epoch(0)
    teacher = [right if view == planted else wrong for view in range(VIEWS)]
    assert shares(choices(scores, 0, teacher))[planted] > 0.9


def test_equal_scores_give_any_view() -> None:
    assert shares(choices(sampler(), 0, [0.0] * VIEWS)) == pytest.approx([0.25] * 4, abs=0.03)


@pytest.mark.requirement("V3.4")
def test_a_choice_is_a_function_of_seed_key_and_epoch() -> None:
    hashes = np.array([key_hash("a"), key_hash("b")], dtype=np.uint64)
    teacher = np.log(np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]))
    chosen = sampler(tau=1.0).choose(5, 9, np.array([0, 1]), hashes, teacher)
    drawn = unit_floats(words(5, hashes, draw=9, purpose=Purpose.VIEW_CHOICE, count=1))[:, 0]
    assert Purpose.VIEW_CHOICE.value == 71
    for row, u in enumerate(drawn.tolist()):
        upto = np.exp(teacher[row]).cumsum()
        assert chosen[row] == next(v for v in range(VIEWS) if upto[v] > u * upto[-1])


def test_what_the_student_knows_counts_after_a_refresh() -> None:
    scores, hashes = sampler(refresh=3), np.zeros(1, dtype=np.uint64)
    one = np.zeros(1, dtype=np.int64), hashes, np.zeros((1, VIEWS))
    before = [scores.choose(0, epoch, *one)[0] for epoch in range(100)]
    scores.note(np.zeros(3, dtype=np.int64), np.arange(3), np.full(3, -100, dtype=np.float32))
    for epoch in (0, 1):
        scores.end_epoch(epoch)
        assert [scores.choose(0, e, *one)[0] for e in range(100)] == before
    scores.end_epoch(2)
    assert {int(scores.choose(0, e, *one)[0]) for e in range(100)} == {3}


def test_the_state_of_other_rows_is_refused() -> None:
    state = sampler(rows=3).state_dict()
    with pytest.raises(RuntimeError, match="3, 4"):
        sampler(rows=4).load_state_dict(state)


def test_the_log_probability_of_a_label_is_that_of_dense_and_sparse_targets() -> None:
    log_probs = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    labels = torch.tensor([0, 3, 4])
    expected = [log_probs[i, y].item() for i, y in enumerate(labels.tolist())]
    assert label_log_probs(DenseLogits(log_probs), labels).tolist() == pytest.approx(expected)
    kept = log_probs[:, :4]
    tail = torch.stack([log_probs[:, 4], log_probs[:, 4] / 4], 1)
    sparse = SparseLogits(torch.arange(4).expand(3, 4), kept, tail, 5)
    assert label_log_probs(sparse, labels).tolist() == pytest.approx(expected)


@pytest.fixture(scope="module")
def cache(
    images: Path, teachers: dict[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Cache:
    """Return a cache of an original view and three others."""
    path = tmp_path_factory.mktemp("bank") / "cache"
    values = {
        "cache": str(path),
        "data": str(images),
        "views": {"eval": True, "count": 3},
        "unit_rows": 16,
        "teachers": {"cnn": {**teachers["cnn"], "features": {"pre_logits": {}}}},
        "encoding": {"kind": "dense"},
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return open_cache(path)


def run(out: Path, images: Path, sealed: Cache, **fields: object) -> TrainConfig:
    values: dict[str, object] = {
        "out": str(out),
        "data": str(images),
        "cache": sealed.url,
        "student": VIT,
        "objectives": ["soft", {"label": {"views": ["chosen"]}}],
        "sampler": SAMPLER,
        "epochs": 3,
        "batch_size": 16,
        "threads": 1,
        "device": "cpu",
        **fields,
    }
    return TrainConfig.parse(values, "train")


class Seen:
    """What the batches of a run were, by ``answer``."""

    def __init__(self, kill_at: int = 0) -> None:
        self.batches: list[tuple[torch.Tensor, TargetBatch]] = []
        self._kill_at = kill_at

    def __call__(self, images: torch.Tensor, targets: TargetBatch) -> TargetBatch:
        self.batches.append((images.clone(), targets))
        if len(self.batches) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return targets


def by_row(cache: Cache, images: Path, view: str) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return the pixels and the teacher's outputs of every row in one view."""
    found = {}
    size, mean = 8, (0.5, 0.5, 0.5)
    with loader(cache, str(images), views=[view], size=size, mean=mean, std=mean) as batches:
        for pixels, targets in batches:
            for i, row in enumerate(targets.rows.tolist()):
                found[row] = pixels[i], targets.teachers["cnn"].log_probs[i]
    return found


def test_a_batch_has_every_image_in_a_chosen_view_and_in_the_original(
    cache: Cache, images: Path, tmp_path: Path
) -> None:
    """Pixels and targets are those of loaders of the single views."""
    seen = Seen()
    fields = {"epochs": 2, "target_memory": 1}
    train_student(run(tmp_path / "run", images, cache, **fields), answer=seen)
    single = [by_row(cache, images, view) for view in cache.views]
    used = set()
    for pixels, targets in seen.batches:
        assert targets.views == ("chosen", "base")
        assert targets.chosen is not None
        half = len(targets) // 2
        assert targets.rows[:half].tolist() == targets.rows[half:].tolist()
        assert targets.chosen[half:].tolist() == [-1] * half
        for i, (row, number) in enumerate(
            zip(targets.rows.tolist(), targets.chosen.tolist(), strict=True)
        ):
            own, outputs = single[number + 1][row]  # the original is view 0
            assert torch.equal(pixels[i], own)
            assert torch.equal(targets.teachers["cnn"].log_probs[i], outputs)
            used.add(number)
    assert used == {-1, 0, 1, 2}
    assert sum(len(t) for _, t in seen.batches) == 2 * 2 * 60


def test_scores_are_those_of_the_last_time_that_a_row_was_shown(
    cache: Cache, images: Path, tmp_path: Path
) -> None:
    """The student's part after a run, against the outputs of its steps."""
    expected: dict[tuple[int, int], float] = {}

    class Outputs:
        def on_step(self, step: Any) -> None:
            probs = step.outputs.logits.softmax(1)
            for i, number in enumerate(step.targets.chosen.tolist()):
                if number >= 0:
                    p = probs[i, step.targets.labels[i]].item()
                    expected[int(step.targets.rows[i]), number] = math.log(1 - p + 1e-8)

        def on_epoch(self, epoch: int) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    train_student(run(tmp_path / "run", images, cache), hooks={"outputs": Outputs()})
    checkpoint = read_last_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    state = checkpoint.hooks["sampler"]
    assert torch.equal(state["used"], state["latest"])  # the run ends at a refresh
    for (row, number), wrong in expected.items():
        assert state["latest"][row, number].item() == pytest.approx(wrong, abs=1e-4)
    assert (state["latest"] != 0).sum() == len(expected)


def test_a_resumed_run_ends_with_the_same_weights(
    cache: Cache, images: Path, tmp_path: Path
) -> None:
    """Stopped inside of an epoch, whose rows that were already shown count."""
    train_student(run(tmp_path / "whole", images, cache))
    for number, steps in enumerate([5, 2]):
        with pytest.raises(Interrupted):
            train_student(
                run(tmp_path / "parts", images, cache),
                resume=number > 0,
                should_stop=stop_after(steps),
            )
    train_student(run(tmp_path / "parts", images, cache), resume=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def killed(out: str, images: str, url: str, at: int) -> None:
    train_student(run(Path(out), Path(images), open_cache(url)), answer=Seen(at))


def test_a_killed_run_ends_with_the_same_weights_and_scores(
    cache: Cache, images: Path, tmp_path: Path
) -> None:
    train_student(run(tmp_path / "whole", images, cache))
    process: multiprocessing.Process = forking().Process(
        target=killed, args=(str(tmp_path / "killed"), str(images), cache.url, 6)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    train_student(run(tmp_path / "killed", images, cache), resume=True)
    states = []
    for name in ("whole", "killed"):
        checkpoint = read_last_checkpoint(tmp_path / name)
        assert checkpoint is not None
        states.append(checkpoint)
    ours, theirs = states
    for name in ("used", "latest"):
        assert torch.equal(ours.hooks["sampler"][name], theirs.hooks["sampler"][name])
    assert all(
        torch.equal(value, theirs.modules["model"][name])
        for name, value in ours.modules["model"].items()
    )


def trained(rank: int, values: dict[str, Any]) -> list[list[tuple[int, int]]]:
    """Train as one process of several; return rows and chosen views of every step."""
    seen = Seen()
    train_student(TrainConfig.parse(values, ""), answer=seen)
    found = []
    for _, targets in seen.batches:
        assert targets.chosen is not None
        half = len(targets) // 2
        found.append(
            list(zip(targets.rows[:half].tolist(), targets.chosen[:half].tolist(), strict=True))
        )
    return found


def test_two_processes_choose_as_one(cache: Cache, images: Path, tmp_path: Path) -> None:
    values = {
        name: run(tmp_path / name, images, cache, student=PLAIN).model_dump(
            mode="json", exclude_unset=True
        )
        for name in ("one", "two")
    }
    alone = trained(0, values["one"])
    first, second = run_ranks(2, trained, values["two"])
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    ours, theirs = (read_journal(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose([e["loss"] for e in theirs], [e["loss"] for e in ours], rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_views": ["0"]}, "needs the original view and others"),
        ({"sampler": {"original": 9}}, "needs the original view and others"),
        ({"cache": None}, "give a cache"),
        ({"show": ["base", "rot90(1)"]}, "remove show"),
        ({"sampler": {"kind": "best"}}, "view-scores"),
        ({"objectives": [{"label": {"views": ["other"]}}]}, "chosen, base"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    cache: Cache, images: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_student(run(tmp_path / "run", images, cache, **fields))
