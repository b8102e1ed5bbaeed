"""View groups: the base view and views derived from it in one batch, each with its targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torchvision.transforms import v2

from logitcache.batch import PIXELS, DenseLogits, Outputs, TargetBatch
from logitcache.cache.read.reader import Cache, open_cache
from logitcache.data.readers import open_source
from logitcache.errors import Interrupted, UsageError
from logitcache.objectives.combine import ObjectiveConfig, build_objective
from logitcache.precompute.build import build_cache
from logitcache.precompute.config import PrecomputeConfig
from logitcache.targets.images.alignment import Alignment
from logitcache.targets.images.image_rows import number_rows
from logitcache.targets.loader import Loader, loader
from logitcache.targets.settings import LoaderSettings
from logitcache.targets.view_group import ViewGroup, shown_views
from logitcache.training.loop import train_student
from logitcache.views.spec import ViewsConfig
from tests.conftest import jpeg, shape_image
from tests.training.test_loop import assert_equal_runs, config, stop_after

if TYPE_CHECKING:
    from pathlib import Path

    from logitcache.training.config import TrainConfig

Teachers = dict[str, dict[str, str]]
SHOW = ["base", "rot90(1)", "rot90(2)"]


@pytest.fixture(scope="module")
def cache(images: Path, teachers: Teachers, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Return a cache of two random views, each with two rotations; sparse targets and a layer."""
    path = tmp_path_factory.mktemp("groups") / "cache"
    values = {
        "cache": str(path),
        "data": str(images),
        "views": {"count": 2, "derive": ["rot90(1)", "rot90(2)"]},
        "unit_rows": 16,
        "teachers": {"cnn": {**teachers["cnn"], "features": {"layer1": {}}}},
        "encoding": {"top_k": 2},
    }
    build_cache(PrecomputeConfig.parse(values, ""))
    return open_cache(path)


def opened(cache: Cache, images: Path, **kwargs: Any) -> Loader:
    values = {"batch_size": 10, "size": 8, "features": ["cnn/layer1"], **kwargs}
    return loader(cache, str(images), **values)


def parts(batch: tuple[torch.Tensor, TargetBatch]) -> list[tuple[torch.Tensor, TargetBatch]]:
    """Return the images and targets of a batch view by view."""
    images, targets = batch
    index = [targets.rows_of_views([name]) for name in targets.views]
    return [(images[i], targets.take(i)) for i in index]


def test_a_batch_has_the_same_images_in_every_view_with_their_targets(
    cache: Cache, images: Path
) -> None:
    """Pixels are the base's, rotated; targets are what a loader of that view alone returns."""
    alone: dict[str, dict[int, Any]] = {}
    for view_id in cache.views:
        with opened(cache, images, views=[view_id]) as found:
            for _, targets in found.epoch(0):
                for place, row in enumerate(targets.rows.tolist()):
                    own = targets.take(torch.tensor([place]))
                    layer = own.features["cnn/layer1"].values[0]
                    alone.setdefault(view_id, {})[row] = (own.teachers["cnn"], layer)
    with opened(cache, images, show=SHOW) as found:
        for epoch in (0, 1):
            base = found.view(epoch)
            ids = [base.id, *(v for v, text in cache.views.items() if text.get("base") == base.id)]
            rows = []
            for batch in found.epoch(epoch):
                shown = parts(batch)
                assert batch[1].views == tuple(SHOW)
                first, first_targets = shown[0]
                rows += first_targets.rows.tolist()
                for turns, (pixels, targets) in enumerate(shown):
                    assert torch.equal(pixels, torch.rot90(first, turns, (-2, -1)))
                    assert torch.equal(targets.rows, first_targets.rows)
                    assert torch.equal(targets.labels, first_targets.labels)
                    for place, row in enumerate(targets.rows.tolist()):
                        answer, layer = alone[ids[turns]][row]
                        own = targets.take(torch.tensor([place]))
                        assert torch.equal(own.teachers["cnn"].log_probs, answer.log_probs)
                        assert torch.equal(own.features["cnn/layer1"].values[0], layer)
            assert sorted(rows) == cache.samples.readable.tolist()


def resized(images: torch.Tensor, *sides: int) -> torch.Tensor:
    """Return images as bytes, resized to each side in turn."""
    bytes_B3SS = images.round().to(torch.uint8)
    for side in sides:
        bytes_B3SS = v2.functional.resize(
            bytes_B3SS, [side, side], v2.InterpolationMode.BICUBIC, antialias=True
        )
    return bytes_B3SS.float()


def test_a_student_may_be_shown_another_view_than_its_targets_are_of(
    cache: Cache, images: Path
) -> None:
    """Only target views have to be cached. A low resolution is a resize of the same crop."""
    show = [
        {"student": "lowres(2)", "targets": "base"},
        {"student": "rot90(2)", "targets": "base"},
        {"student": "base", "targets": "rot90(1)"},
    ]
    bytes_of = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    with opened(cache, images, show=["base", "rot90(1)"], **bytes_of) as found:
        plain = list(found.epoch(0))
    with opened(cache, images, show=show, pixels=True, **bytes_of) as found:
        shown = list(found.epoch(0))
    for batch, (pixels, targets) in zip(plain, shown, strict=True):
        (base, of_base), (turned, of_turned) = parts(batch)
        answers = [part.teachers["cnn"].log_probs for part in (of_base, of_base, of_turned)]
        assert targets.views == ("lowres(2)", "rot90(2)", "base")
        assert torch.equal(targets.teachers["cnn"].log_probs, torch.cat(answers))
        assert torch.equal(targets.rows, of_base.rows.repeat(3))
        low, half_turned, same = pixels.chunk(3)
        assert torch.equal(low.round(), resized(base, 4, 8))
        assert torch.equal(half_turned, torch.rot90(base, 2, (-2, -1)))
        assert torch.equal(same, base)
        wanted = targets.features[PIXELS]
        assert torch.equal(wanted.values, torch.cat([base, base, turned]))
        assert (wanted.layout, wanted.grid) == ("NCHW", 8)


def test_pixels_of_the_shown_views_take_no_memory(cache: Cache, images: Path) -> None:
    with opened(cache, images, show=SHOW, pixels=True) as found:
        pixels, targets = next(found.epoch(0))
    assert targets.features[PIXELS].values is pixels


def test_the_alarm_for_outputs_of_other_images_is_for_base_views(
    cache: Cache, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher may be wrong about turned images, and its accuracy is known for the first view."""
    compared: list[int] = []
    monkeypatch.setattr(Alignment, "is_settled", False)
    monkeypatch.setattr(Alignment, "see", lambda _, rows, *__: compared.append(len(rows)))
    for show, count in ((["rot90(1)"], 0), ([{"student": "rot90(1)", "targets": "base"}], 1)):
        with opened(cache, images, show=show) as found:
            next(found.epoch(0))
        assert len(compared) == count


def test_only_base_views_are_walked(cache: Cache, images: Path) -> None:
    with opened(cache, images, show=SHOW) as found:
        walked = {found.view(epoch).id for epoch in range(4)}
    assert walked == {v for v, text in cache.views.items() if text.get("base") is None}


@pytest.mark.parametrize("kwargs", [{}, {"workers": 1}, {"target_memory": 1}])
def test_an_epoch_is_entered_at_any_batch(
    cache: Cache, images: Path, kwargs: dict[str, Any]
) -> None:
    with opened(cache, images, show=SHOW) as found:
        whole = list(found.epoch(0))
    with opened(cache, images, show=SHOW, **kwargs) as found:
        rest = list(found.epoch(0, first_batch=2))
    if "target_memory" not in kwargs:  # which decides what is shuffled together
        assert len(rest) == len(whole) - 2
        for (pixels, targets), (other, expected) in zip(rest, whole[2:], strict=True):
            assert torch.equal(pixels, other)
            assert torch.equal(targets.rows, expected.rows)
    assert all(len(pixels) == 3 * len(set(targets.rows.tolist())) for pixels, targets in rest)


def test_processes_share_a_batch_by_images(cache: Cache, images: Path) -> None:
    with opened(cache, images, show=SHOW) as found:
        whole = list(found.epoch(0))
    ranks = []
    for rank in range(2):
        with opened(cache, images, show=SHOW, rank=rank, ranks=2) as found:
            ranks.append(list(found.epoch(0)))
    for batch, first, second in zip(whole, *ranks, strict=True):
        for view, a, b in zip(parts(batch), parts(first), parts(second), strict=True):
            assert torch.equal(view[0], torch.cat([a[0], b[0]]))
            assert torch.equal(view[1].rows, torch.cat([a[1].rows, b[1].rows]))


def test_an_image_that_cannot_be_decoded_is_left_out_of_every_view(
    tmp_path: Path,
) -> None:
    for number in range(4):
        path = tmp_path / "a" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image" if number == 2 else jpeg(shape_image(number)))
    rows = number_rows(open_source(str(tmp_path)))
    show = shown_views(["base", "rot90(1)"])
    settings = LoaderSettings(batch_size=4, size=8, on_bad_image="skip", show=show)
    with Loader(rows, settings, views=ViewsConfig(count=1)) as found:
        ((pixels, targets),) = list(found.epoch(0))
    assert pixels.shape[0] == 6
    base, turned = parts((pixels, targets))
    assert torch.equal(turned[0], torch.rot90(base[0], 1, (-2, -1)))
    assert torch.equal(base[1].rows, turned[1].rows)
    keys = {rows.key(position) for position in rows.positions(base[1].rows.numpy()).tolist()}
    assert keys == {"a/0.jpg", "a/1.jpg", "a/3.jpg"}


@pytest.mark.parametrize(
    ("show", "message"),
    [
        ([], "at least 1 item"),
        (["base", "base"], "have to be distinct"),
        (["base", "rot91(1)"], "rot91"),
        (["base", "rot90(3)"], "no base view of the cache has all"),
        ([{"student": "rot90(1)"}], "option 'targets' is missing"),
        ([{"student": "base", "targets": "rot90(3)"}], "no base view of the cache has all"),
        ([{"student": "base", "targets": "base"}, "base"], "have to be distinct"),
    ],
)
def test_views_that_cannot_be_shown_are_refused(
    cache: Cache, images: Path, show: list[Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        opened(cache, images, show=show)


def test_mixed_views_are_refused() -> None:
    view = ViewsConfig.parse({"count": 1, "mixup_alpha": 0.8}, "views").random_view(1)
    assert ViewGroup.of(view, shown_views(["base"])).shown == {"base": view}
    for show in (SHOW, [{"student": "lowres(2)", "targets": "base"}]):
        with pytest.raises(UsageError, match="cannot mix images"):
            ViewGroup.of(view, shown_views(show))


def test_a_term_can_be_of_some_views() -> None:
    """Its value, gradient and number of rows are those of a batch of these views alone."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = TargetBatch(
        rows=torch.arange(6),
        labels=torch.tensor([0, 1, 0, 1, -1, 2]),
        teachers={"t": DenseLogits(torch.randn(6, 4, generator=generator).log_softmax(-1))},
        views=("base", "rot90(1)", "rot90(2)"),
    )
    terms = [{"label": {"views": ["rot90(2)"]}}, {"soft": {"views": ["base", "rot90(1)"]}}]
    objective = build_objective([ObjectiveConfig.parse(term, "") for term in terms])
    found = objective.parts(Outputs(logits), targets)
    plain = build_objective([ObjectiveConfig.parse(name, "") for name in ("label", "soft")])
    for name, index in (("label", [4, 5]), ("soft", [0, 1, 2, 3])):
        own = torch.tensor(index)
        alone = plain.parts(Outputs(logits).take(own), targets.take(own))[name]
        assert torch.equal(found[name], alone)
        (gradient,) = torch.autograd.grad(found[name], logits, retain_graph=True)
        assert gradient.abs().sum(-1).nonzero().flatten().tolist() == (
            [5] if name == "label" else index
        )
    assert {name: int(count) for name, count in objective.counts(targets).items()} == {
        "label": 1,
        "soft": 4,
    }
    taken = targets.of_views(["rot90(2)", "base"])
    assert (taken.views, taken.rows.tolist()) == (("rot90(2)", "base"), [4, 5, 0, 1])
    with pytest.raises(UsageError, match="no view 'rot90'"):
        targets.rows_of_views(["rot90"])


def test_a_student_learns_from_a_group_and_resumes(
    cache: Cache, images: Path, tmp_path: Path
) -> None:

    def values(name: str) -> TrainConfig:
        return config(
            tmp_path / name,
            images,
            cache=str(cache.url),
            show=SHOW,
            objectives=["soft", {"label": {"views": ["base"]}}],
            epochs=2,
        )

    train_student(values("whole"))
    with pytest.raises(Interrupted):
        train_student(values("parts"), should_stop=stop_after(3))
    train_student(values("parts"), resume=True)
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


def test_a_term_of_a_view_that_is_not_shown_is_refused(images: Path, tmp_path: Path) -> None:
    objectives = [{"label": {"views": ["rot90(1)"]}}]
    with pytest.raises(UsageError, match="not among the views of a batch"):
        config(tmp_path, images, objectives=objectives)
