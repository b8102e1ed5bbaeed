from __future__ import annotations

import pickle
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.batch import SparseLogits, TargetBatch
from logitcache.cache.read.reader import Cache, open_cache
from logitcache.data.decode import decode
from logitcache.data.readers import open_source
from logitcache.errors import CacheDamaged, DataMismatch, UsageError
from logitcache.targets.images.image_rows import match_rows, number_rows
from logitcache.targets.loader import Loader, loader
from logitcache.targets.selection import Targets
from logitcache.targets.settings import LoaderSettings
from logitcache.views.algorithm import parameters, view_floats
from logitcache.views.render import render
from logitcache.views.spec import ViewsConfig
from tests.conftest import jpeg, shape_image

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Teachers = dict[str, dict[str, str]]
Epoch = list[tuple["Tensor", TargetBatch]]


def epoch_of(found: Loader, epoch: int, **kwargs: Any) -> Epoch:
    with found:
        return list(found.epoch(epoch, **kwargs))


def by_row(batches: Epoch) -> dict[int, tuple[Tensor, dict[str, Any]]]:
    """Return what was shown of every row, whatever batch it was in."""
    shown = {}
    for images, targets in batches:
        for i, row in enumerate(targets.rows.tolist()):
            teachers = {
                name: (t.class_ids[i], t.log_probs[i])
                if isinstance(t, SparseLogits)
                else t.log_probs[i]
                for name, t in targets.teachers.items()
            }
            shown[row] = (images[i], {"label": targets.labels[i], **teachers})
    return shown


def assert_same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_every_row_comes_once_with_its_image_label_and_answers(cache: Cache, images: Path) -> None:
    found = loader(cache, str(images), batch_size=16, size=8, mean=(0, 0, 0), std=(1, 1, 1))
    view = found.view(0)
    shown = by_row(epoch_of(found, 0))
    assert sorted(shown) == cache.samples.readable.tolist()
    source = open_source(str(images))
    position = {key: index for index, key in enumerate(source.keys)}
    floats = view_floats(view, cache.samples.hashes)
    dense = cache.teacher("cnn").encoding.decode(cache.read("cnn", view.id, 0, 64))
    sparse: Any = cache.teacher("red").encoding.decode(cache.read("red", view.id, 0, 64))
    for row, (pixels, targets) in shown.items():
        index = position[cache.samples.keys[row]]
        image = decode(source.read(index))
        how = parameters(view, [f[row].tolist() for f in floats], *image.shape[1:])
        expected = render(image, how, 8, view.interpolation).float() / 255
        torch.testing.assert_close(pixels, expected)
        assert int(targets["label"]) == source.labels[index]
        assert_same(targets["cnn"], torch.from_numpy(dense.log_probs[row]))
        assert_same(targets["red"][0], torch.from_numpy(sparse.class_ids[row]))
        assert_same(targets["red"][1], torch.from_numpy(sparse.log_probs[row]))


@pytest.mark.parametrize(
    ("batch_size", "threads", "target_memory"), [(7, 1, 1), (64, 4, 2**30), (16, 2, 2000)]
)
def test_batches_threads_and_memory_change_no_pixel_and_no_target(
    cache: Cache, images: Path, batch_size: int, threads: int, target_memory: int
) -> None:
    expected = by_row(epoch_of(loader(cache, str(images), batch_size=60, size=8), 3))
    got = loader(
        cache,
        str(images),
        batch_size=batch_size,
        size=8,
        threads=threads,
        target_memory=target_memory,
    )
    shown = by_row(epoch_of(got, 3))
    assert sorted(shown) == sorted(expected)
    for row, value in expected.items():
        assert_same(shown[row], value)


@pytest.mark.parametrize(
    ("image_memory", "decodings"), [(0, 180), (10 * 40 * 32 * 3, 160), (2**20, 60)]
)
def test_images_that_fit_into_memory_are_decoded_in_the_first_epoch_only(
    cache: Cache,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    image_memory: int,
    decodings: int,
) -> None:
    settings: dict[str, Any] = {"batch_size": 16, "size": 8, "threads": 2}
    with loader(cache, str(images), **settings) as plain:
        expected = [by_row(list(plain)) for _ in range(3)]
    decoded: list[int] = []

    def counting(image: bytes, *arguments: Any) -> Any:
        decoded.append(len(image))
        return decode(image, *arguments)

    with loader(cache, str(images), **settings, image_memory=image_memory) as kept:
        monkeypatch.setattr("logitcache.views.render.decode", counting)
        shown = [by_row(list(kept)) for _ in range(3)]
    assert len(decoded) == decodings
    for epoch, of_plain in zip(shown, expected, strict=True):
        assert epoch.keys() == of_plain.keys()
        for row, value in of_plain.items():
            assert_same(epoch[row], value)


def test_child_processes_keep_no_images(cache: Cache, images: Path) -> None:
    with pytest.raises(UsageError, match=r"image_memory is for threads[\s\S]*2 workers"):
        loader(cache, str(images), batch_size=16, size=8, workers=2, image_memory=1)


def test_an_epoch_can_be_entered_at_any_batch(cache: Cache, images: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 7, "size": 8, "target_memory": 1}
    whole = epoch_of(loader(cache, str(images), **settings), 1)
    assert [len(targets) for _, targets in whole] == [7] * 8 + [4]
    for first in (1, 4, 8, 9):
        rest = epoch_of(loader(cache, str(images), **settings), 1, first_batch=first)
        assert len(rest) == len(whole) - first
        for (a, b), (c, d) in zip(rest, whole[first:], strict=True):
            assert_same(a, c)
            assert_same(b.rows, d.rows)
            assert_same(b.teachers["cnn"].log_probs, d.teachers["cnn"].log_probs)


def test_iterating_walks_epoch_after_epoch_and_view_after_view(cache: Cache, images: Path) -> None:
    with loader(cache, str(images), batch_size=60, size=8) as found:
        assert len(found) == 1
        (first,), (second,) = list(found), list(found)
        assert found.next_epoch == 2
    assert not torch.equal(first[1].rows, second[1].rows)
    assert {found.view(0).id, found.view(1).id} == set(cache.views)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_size_of_the_next_epoch_can_be_set(cache: Cache, images: Path, workers: int) -> None:
    """Also while an epoch is used, in the size that it has begun with."""
    fresh = {
        size: loader(cache, str(images), batch_size=16, size=size, threads=1) for size in (8, 12)
    }
    with loader(cache, str(images), batch_size=16, size=8, threads=1, workers=workers) as found:
        first = iter(found)
        batches = [next(first)]
        found.set_size(12)
        state = found.state_dict()
        batches += first
        for epoch, (shown, size) in enumerate(((batches, 8), (list(found), 12))):
            expected, got = by_row(epoch_of(fresh[size], epoch)), by_row(shown)
            assert sorted(got) == sorted(expected)
            for row, value in expected.items():
                assert_same(got[row], value)
        with pytest.raises(UsageError, match="size of a loader is too"):
            found.set_size(0)
        other = fresh[8]
        other.load_state_dict(state)  # the position does not depend on the size
        assert len(list(other)) == len(batches) - 1


def test_drop_last(cache: Cache, images: Path) -> None:
    with loader(cache, str(images), batch_size=16, size=8, drop_last=True) as found:
        assert len(found) == 3
        assert [len(targets) for _, targets in found] == [16, 16, 16]


def test_images_are_normalized(cache: Cache, images: Path) -> None:
    plain = epoch_of(loader(cache, str(images), size=8, mean=(0, 0, 0), std=(1, 1, 1)), 0)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    other = epoch_of(loader(cache, str(images), size=8, mean=mean, std=std), 0)
    expected = (plain[0][0] - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(other[0][0], expected)


def test_some_teachers_only(cache: Cache, images: Path) -> None:
    (batch,) = epoch_of(loader(cache, str(images), size=8, teachers=["red"]), 0)
    assert list(batch[1].teachers) == ["red"]
    assert isinstance(batch[1].teachers["red"], SparseLogits)
    with pytest.raises(UsageError, match="did you mean 'red'"):
        loader(cache, str(images), teachers=["rad"])


def test_shuffled_targets_are_other_rows_of_the_same_unit(cache: Cache, images: Path) -> None:
    source = open_source(str(images))
    rows, settings = match_rows(cache, source), LoaderSettings(batch_size=60, size=8)
    own = Targets.of(cache, ["cnn"])
    shuffled = Targets.of(cache, ["cnn"], shuffled=True)
    straight = by_row(epoch_of(Loader(rows, settings, targets=own), 0))
    mixed = by_row(epoch_of(Loader(rows, settings, targets=shuffled), 0))
    answers = {row: tuple(value[1]["cnn"].tolist()) for row, value in straight.items()}
    moved = 0
    for row, value in mixed.items():
        got = tuple(value[1]["cnn"].tolist())
        unit = [r for r in answers if r // 16 == row // 16]
        assert got in [answers[r] for r in unit]
        moved += got != answers[row]
        assert torch.equal(value[0], straight[row][0]), "the image stays"
    assert moved > 40


def test_a_cache_can_be_pickled(cache: Cache, images: Path) -> None:
    copy: Cache = pickle.loads(pickle.dumps(cache))
    assert by_row(epoch_of(loader(copy, str(images), size=8), 0)).keys()


def test_without_a_cache_every_epoch_draws_a_new_view(images: Path) -> None:
    source = open_source(str(images))
    settings = LoaderSettings(batch_size=60, size=8)
    with Loader(number_rows(source), settings, views=ViewsConfig()) as found:
        ((first, targets),) = list(found)
        ((second, _),) = list(found)
        assert [found.view(e).draw for e in (0, 1, 7)] == [1, 2, 8]
    assert targets.teachers == {}
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="either"):
        Loader(number_rows(source), settings)


def test_another_order_and_root_are_the_same_images(
    cache: Cache, images: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    expected = by_row(epoch_of(loader(cache, str(images), size=8), 0))
    for row, value in by_row(epoch_of(loader(cache, str(moved), size=8), 0)).items():
        assert_same(value, expected[row])


def test_missing_images_are_named_unless_a_subset_is_allowed(
    cache: Cache, images: Path, tmp_path: Path
) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    (fewer / "bird" / "004.jpg").unlink()
    with pytest.raises(DataMismatch, match=r"1 missing[\s\S]*bird/004\.jpg"):
        loader(cache, str(fewer))
    shown = by_row(epoch_of(loader(cache, str(fewer), size=8, subset=True), 0))
    assert len(shown) == 59
    assert shown.keys() < set(cache.samples.readable.tolist())


def test_added_images_are_counted_and_left_out(cache: Cache, images: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(images, more)
    (more / "cat" / "new.jpg").write_bytes(jpeg(shape_image(900)))
    rows = match_rows(cache, open_source(str(more)))
    assert (len(rows), rows.left_out) == (60, 1)


def test_other_data_are_refused(cache: Cache) -> None:
    with pytest.raises(DataMismatch, match=r"60 missing"):
        loader(cache, "digits")


@pytest.mark.requirement("V5.21")
def test_an_image_with_other_content_is_refused_when_first_read(
    cache: Cache, images: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(images, other)
    victim = other / "dog" / "011.jpg"
    content = bytearray(victim.read_bytes())
    content[-20] ^= 1
    victim.write_bytes(content)
    with pytest.raises(
        DataMismatch, match=r"not the one that the teachers were given[\s\S]*dog/011\.jpg"
    ):
        epoch_of(loader(cache, str(other), size=8), 0)


def test_a_damaged_unit_stops_the_epoch(cache_path: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(cache_path, tmp_path / "c")
    (tmp_path / "c/teachers/red/codes/c/1/2/0").write_bytes(b"")
    found = loader(open_cache(tmp_path / "c"), str(images), size=8)
    cache_views = [found.view(epoch).id for epoch in (0, 1)]
    damaged_view = cache_views.index(open_cache(tmp_path / "c").teacher("red").view_ids[1])
    with pytest.raises(CacheDamaged, match="codes/c/1/2/0"):
        epoch_of(found, damaged_view)


@pytest.mark.parametrize("wanted", [["1"], ["1", "0"], ["0-1"], []])
def test_views_can_be_chosen(cache: Cache, images: Path, wanted: list[str]) -> None:
    ids = list(cache.views)
    expected = {ids[int(name)] for name in wanted if "-" not in name} or set(ids)
    with loader(cache, str(images), batch_size=60, size=8, views=wanted) as found:
        assert {found.view(epoch).id for epoch in range(4)} == expected
        for (_, targets), epoch in zip(found, range(1), strict=False):
            whole = cache.read("cnn", found.view(epoch).id, 0, 60)["logp"]
            stored = torch.from_numpy(whole[targets.rows.numpy()].astype(np.float32))
            given = targets.teachers["cnn"].log_probs
            torch.testing.assert_close(given, stored, rtol=0, atol=1e-2)


@pytest.mark.parametrize("wanted", [["2"], ["vfffe"], ["0-2"]])
def test_views_that_are_not_there_are_refused(
    cache: Cache, images: Path, wanted: list[str]
) -> None:
    with pytest.raises(UsageError, match="no view"):
        loader(cache, str(images), size=8, views=wanted)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"size": -1},
        {"rank": 0, "ranks": 0},
        {"rank": 2, "ranks": 2},
        {"rank": -1, "ranks": 1},
        {"rank": 0},
        {"ranks": 2},
        {"threads": 0},
        {"workers": -1},
        {"on_bad_image": "Skip"},
    ],
)
def test_settings_that_cannot_be_are_refused(
    cache: Cache, images: Path, wrong: dict[str, Any]
) -> None:
    expected = r"rank is out of range|[01] or more|only one of rank|error or skip"
    with pytest.raises(UsageError, match=expected):
        loader(cache, str(images), **{"size": 8, **wrong})


def test_a_batch_moves_as_a_whole(cache: Cache, images: Path) -> None:
    ((_, targets),) = epoch_of(loader(cache, str(images), size=8), 0)
    moved = targets.to(torch.device("meta"))
    assert moved.labels.is_meta
    assert all(t.log_probs.is_meta for t in moved.teachers.values())
    assert len(moved) == 60
    assert np.all([t.num_classes == 3 for t in moved.teachers.values()])
