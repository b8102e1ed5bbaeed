"""Audits: no false alarm for any view, encoding and feature; a changed row is found and named."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from logitcache.cache.format.ledger import read_commits
from logitcache.cache.format.names import commit_key
from logitcache.cache.read.reader import open_cache
from logitcache.cache.store.open import locate
from logitcache.cache.verify.integrity import verify
from logitcache.cache.write.exclude import withdraw_images
from logitcache.cache.write.unit_commit import Conditions
from logitcache.cache.write.writer import CacheWriter
from logitcache.check.audit import TeacherAudit, _sampled, audit_teacher, audit_teachers
from logitcache.data.readers import open_source
from logitcache.errors import NonFiniteLogits, UsageError
from logitcache.precompute.build import build_cache
from logitcache.teachers.member import Member, TeacherConfig
from logitcache.views.notation import parse_derived
from logitcache.views.render import BatchRequest
from logitcache.views.spec import ViewsConfig, parse_view
from tests.golden.caches_of import (
    ENCODINGS,
    FEATURES,
    HERE,
    IMAGES,
    VIEWS,
    config_of,
    teacher,
    unpack,
    workplace,
    write_odd_images,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from logitcache.cache.read.reader import Cache
    from logitcache.data.source import Source
    from logitcache.views.spec import View

STORED = {
    "codes-8": {**ENCODINGS["codes-8"], "bits": 8},  # which was the default of 0.1
    **{name: ENCODINGS[name] for name in ("codes-5", "float16-k", "dense", "dense-8")},
}
TAP = {"layer1": {"values": "int8"}}


class EveryView:
    """Stands for the views of all the configurations, which are computed in one go."""

    def views(self) -> list[View]:
        return [view for values in VIEWS for view in ViewsConfig.parse(values, "").views()]


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache of every operation of a view, in every encoding."""
    root = tmp_path_factory.mktemp("every")
    with workplace(root, per_class=1):
        for name, encoding in STORED.items():
            features = TAP if name == "dense-8" else {}
            config = config_of({name: teacher("cnn", features=features)}, {}, encoding)
            build_cache(config.model_copy(update={"views": EveryView()}))
    return root


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache of every kind of stored feature, one view mixed."""
    root = tmp_path_factory.mktemp("features")
    with workplace(root, per_class=2):
        views = {"count": 1, "eval": True, "cutmix_alpha": 1.0}
        for name, taps in FEATURES.items():
            config = config_of({name: teacher(name, features=taps)}, views, {"kind": "dense"})
            build_cache(config)
    return root


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache of a teacher whose outputs differ a lot between images."""
    root = tmp_path_factory.mktemp("telling")
    views = {"count": 1, "eval": True, "mixup_alpha": 0.8}
    taps = {"blocks.0": {"values": "int8"}}
    with workplace(root, per_class=2):
        for name, encoding in STORED.items():
            config = teacher("vit", features=taps if name == "dense-8" else {})
            build_cache(config_of({f"vit-{name}": config}, views, encoding))
    return root


def opened(root: Path) -> tuple[Cache, Source]:
    cache = open_cache(root / "cache")
    return cache, open_source(str(root / "images"), listing=cache.listing)


def networks(root: Path, cache: Cache) -> dict[str, dict[str, Any]]:
    """Return the teachers of a cache, wherever the tests run."""
    return {
        name: teacher(network, weights=str(root / f"{network}.safetensors"))
        for name in cache.teachers
        for network in ["vit" if name.startswith("vit") else "cnn"]
    }


def audits(root: Path, **how: Any) -> list[TeacherAudit]:
    cache, source = opened(root)
    return audit_teachers(str(root / "cache"), source, networks(root, cache), **how)


def test_no_false_alarm_for_any_operation_and_encoding(every: Path) -> None:
    found = audits(every, samples=None)
    assert {audit.teacher for audit in found} == set(STORED)
    for audit in found:
        assert audit.ok, audit
        assert (audit.samples, audit.pairs, audit.views) == (192, 192, 16)
        assert audit.detection == 1.0
        assert (audit.agreement or 0.0) > 0.99
        assert audit.kl is not None
        assert audit.kl < 1e-3
    (dense,) = [audit for audit in found if audit.teacher == "dense-8"]
    assert dense.taps == {"layer1": 192}
    sparse = next(audit for audit in found if audit.teacher == "codes-8")
    assert (sparse.truncation or 0.0) > 10 * abs(sparse.coding or 1.0)


def test_no_false_alarm_for_a_sample(every: Path) -> None:
    for audit in audits(every, samples=50):
        assert audit.ok, audit
        assert (audit.samples, audit.pairs) == (50, 192)
        assert audit.detection == pytest.approx(1 - (1 - 1 / 2000) ** 50)


def test_no_false_alarm_for_any_feature(features: Path) -> None:
    for samples, compared in ((None, 48), (20, 20)):
        for audit in audits(features, samples=samples):
            assert audit.ok, audit
            assert audit.taps == dict.fromkeys(FEATURES[audit.teacher], compared)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_two_threads")
def test_no_false_alarm_in_another_batch_on_two_threads(features: Path) -> None:
    cache, source = opened(features)
    for name, values in networks(features, cache).items():
        record = cache.manifest.teachers[name]
        other = record.model_copy(update={"canonical_batch": 3})
        teachers = {**cache.manifest.teachers, name: other}
        cache.manifest = cache.manifest.changed(teachers=teachers)
        member = Member(
            name,
            TeacherConfig.parse(values, ""),
            device=torch.device("cpu"),
            precision="float32",
        )
        audit = audit_teacher(cache, source, member, samples=8)
        assert audit.ok, audit


@contextlib.contextmanager
def tensor_float_32() -> Iterator[None]:
    """Round what goes into convolutions as a GPU does: to the 10 bits of TF32's fraction."""

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.contiguous().view(torch.int32)
        return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    def before(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = rounded(module.weight.data)
            return tuple(rounded(tensor) for tensor in inputs)
        return None

    handle = torch.nn.modules.module.register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_no_false_alarm_for_another_machine_or_half_precision(
    tmp_path: Path, precision: str
) -> None:
    taps = {name: how for name, how in FEATURES["cnn"].items() if name != "layer1.0.bn2"}
    config = config_of({"cnn": teacher("cnn", features=taps)}, {"count": 2}, {"top_k": 5})
    if precision == "bfloat16":
        config = config.model_copy(update={"precision": precision})
    on_a_gpu = tensor_float_32() if precision == "tf32" else contextlib.nullcontext()
    with workplace(tmp_path), on_a_gpu:
        build_cache(config)
    (audit,) = audits(tmp_path, samples=None)
    assert audit.ok, audit
    assert ((audit.kl or 0.0) > 0) == (precision == "tf32"), (
        "rounding differs, and is not taken for a fault"
    )


def test_the_output_for_another_image_is_found_in_a_cache_of_another_machine(
    tmp_path: Path,
) -> None:
    with workplace(tmp_path, per_class=2), tensor_float_32():
        build_cache(config_of({"vit": teacher("vit")}, {"count": 1}, {"top_k": 5, "lse": False}))
    assert audits(tmp_path, samples=None)[0].ok
    cache = open_cache(tmp_path / "cache")
    row = int(cache.samples.readable[7])
    change_row(tmp_path, "vit", next(iter(cache.views)), row, of_another_image)
    (audit,) = audits(tmp_path, samples=None)
    assert [mismatch.key for mismatch in audit.mismatches] == [cache.samples.keys[row]]


RENDERED = {"encodings": {"more": True, "bad": True}, "views": IMAGES["views"]}


COMPUTED = sorted(
    (path.parent.name, name)
    for name in ("encodings", "features", "views", "odd")
    for path in HERE.glob(f"*/{name}.tar.xz")
)


@pytest.mark.parametrize(("version", "name"), COMPUTED)
def test_caches_of_released_versions_pass(tmp_path: Path, version: str, name: str) -> None:
    with workplace(tmp_path, **RENDERED.get(name, {})):
        if name == "odd":
            write_odd_images(Path("images"))
        unpack(HERE / version / f"{name}.tar.xz", Path("cache"))
    for audit in audits(tmp_path, samples=None):
        assert audit.ok, audit
        assert audit.samples == audit.pairs > 30


def test_rows_mixed_with_an_excluded_image_are_left_out(every: Path, tmp_path: Path) -> None:
    root = shutil.copytree(every, tmp_path / "copy")
    withdraw_images(str(root / "cache"), ["class-c/000.png"], "")
    mixed = sum(
        parse_view(recipe, "").mixing is not None for recipe in opened(root)[0].views.values()
    )
    cache, source = opened(root)
    values = {"dense": networks(root, cache)["dense"]}
    (audit,) = audit_teachers(str(root / "cache"), source, values, samples=None)
    assert audit.ok, audit
    assert mixed == 4
    assert audit.pairs == 16 * 11 - mixed


def change_row(
    root: Path, name: str, view_id: str, row: int, change: Callable[[dict[str, Any], int], None]
) -> None:
    """Change one stored row, and seal the cache again as if it had been computed like that."""
    writer = CacheWriter.open(locate(root / "cache", write=True))
    group = writer.row_groups()[name]
    unit = row // group.unit_rows
    rows = unit * group.unit_rows, (unit + 1) * group.unit_rows
    arrays: Any = writer.read_rows(group, view_id, *rows, list(group.specs()))
    change(arrays, row % group.unit_rows)
    before = read_commits(writer.location, group.path, view_id, [unit])[unit]
    writer.location.delete(commit_key(group.path, view_id, unit))
    conditions = Conditions(before.canonical_batch, before.precision, before.threads)
    writer.write_unit(group, view_id, unit, arrays, conditions)
    writer.reseal([(group.path, view_id)])
    assert verify(root / "cache").ok, "no digest tells"


def of_another_image(arrays: dict[str, Any], row: int) -> None:
    """Let a row hold what was computed for its neighbor."""
    for content in arrays.values():
        content[row] = content[row - 1 if row else 1]


def one_code(arrays: dict[str, Any], row: int) -> None:
    arrays["codes"][row, 0] -= 1


def one_number(arrays: dict[str, Any], row: int) -> None:
    arrays["logp"][row, 3] -= np.float16(0.02)


def one_level(arrays: dict[str, Any], row: int) -> None:
    level = arrays["logp"][row, 3]
    arrays["logp"][row, 3] = level + 1 if level < 200 else level - 1


def one_logsumexp(arrays: dict[str, Any], row: int) -> None:
    arrays["lse"][row] += 0.01


def one_feature(arrays: dict[str, Any], row: int) -> None:
    value = arrays["values"][row, 2, 1]
    arrays["values"][row, 2, 1] = value - 2 if value > 0 else value + 2


WHOLE = ("targets", "lse", "label_logp")
TAP_OF_VIT = "features/blocks.0"
PLAIN, MIXED = 0, 1


@pytest.mark.parametrize(
    ("name", "change", "arrays", "view"),
    [
        ("codes-8", of_another_image, WHOLE, PLAIN),
        ("codes-5", of_another_image, WHOLE, MIXED),
        ("float16-k", of_another_image, WHOLE, PLAIN),
        ("dense", of_another_image, WHOLE, MIXED),
        ("dense-8", of_another_image, WHOLE, PLAIN),
        ("codes-8", one_code, ("targets",), MIXED),
        ("codes-5", one_code, ("targets",), PLAIN),
        ("dense", one_number, ("targets",), MIXED),
        ("dense-8", one_level, ("targets",), PLAIN),
        ("dense", one_logsumexp, ("lse",), MIXED),
        (f"dense-8/{TAP_OF_VIT}", of_another_image, (TAP_OF_VIT,), PLAIN),
        (f"dense-8/{TAP_OF_VIT}", one_feature, (TAP_OF_VIT,), MIXED),
    ],
)
def test_a_changed_row_is_found_and_named(
    telling: Path, tmp_path: Path, name: str, change: Any, arrays: tuple[str, ...], view: int
) -> None:
    root = shutil.copytree(telling, tmp_path / "copy")
    cache, source = opened(root)
    view_id, row = list(cache.views)[view], int(cache.samples.readable[5])
    change_row(root, f"vit-{name}", view_id, row, change)
    of = f"vit-{name.partition('/')[0]}"
    values = {of: networks(root, cache)[of]}
    (audit,) = audit_teachers(str(root / "cache"), source, values, samples=None)
    assert not audit.ok
    assert audit.mismatched == 1
    (mismatch,) = audit.mismatches
    assert (mismatch.key, mismatch.view) == (cache.samples.keys[row], view_id)
    assert mismatch.arrays == arrays
    assert audit.to_json()["mismatches"] == [
        {"key": mismatch.key, "view": view_id, "arrays": arrays}
    ]


def test_only_the_chosen_views_are_compared(every: Path) -> None:
    cache, source = opened(every)
    values = {"dense": networks(every, cache)["dense"]}
    some = list(cache.views)[3:5]
    (audit,) = audit_teachers(
        str(every / "cache"), source, values, samples=None, views=some, threads=1
    )
    assert audit.ok
    assert (audit.samples, audit.views, audit.all_views) == (24, 2, 16)
    with pytest.raises(UsageError, match="none of the selected views"):
        audit_teachers(str(every / "cache"), source, values, samples=None, views=["v0"])


def test_progress_counts_rows(every: Path) -> None:
    cache, source = opened(every)
    seen: list[tuple[int, int]] = []
    audit_teachers(
        str(every / "cache"),
        source,
        {"dense": networks(every, cache)["dense"]},
        samples=20,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(8, 20), (16, 20), (20, 20)]


def test_a_sample_is_drawn_from_all_rows_of_all_views_alike() -> None:
    rows = {"a": np.arange(40), "b": np.arange(100, 105), "c": np.arange(7)}
    drawn = np.zeros((3, 110))
    for seed in range(2000):
        runs, count, pairs = _sampled(rows.__getitem__, list(rows), 13, np.random.default_rng(seed))
        found = [(view_id, chosen) for view_id, chosen in runs if len(chosen)]
        assert (sum(len(chosen) for _, chosen in found), count, pairs) == (13, 13, 52)
        for view_id, chosen in found:
            assert len(np.unique(chosen)) == len(chosen)
            drawn["abc".index(view_id), chosen] += 1
    assert (drawn[0, :40].min(), drawn[1, 100:105].min(), drawn[2, :7].min()) > (400, 400, 400)
    assert drawn.max() < 600
    assert drawn.sum() == 13 * 2000
    runs, count, pairs = _sampled(rows.__getitem__, list(rows), 52, np.random.default_rng(0))
    assert (count, pairs, sum(len(all_rows) for _, all_rows in runs)) == (52, 52, 52)


def test_detection_is_the_probability_of_one_changed_row_in_2000() -> None:
    audit = TeacherAudit("a", 256, 24000, 2, 2, {}, 0, (), *[0.0] * 9)
    assert audit.detection == pytest.approx(0.1202, abs=5e-5)
    rows = np.random.default_rng(0).random((4000, 256)) < 1 / 2000
    assert rows.any(axis=1).mean() == pytest.approx(audit.detection, abs=0.02)


def test_a_request_for_a_mixing_view_without_partners_is_refused() -> None:
    view = ViewsConfig(mixup_alpha=1.0, derive=["rot90(1)"]).random_view(1)
    turned = view.derived(parse_derived("rot90(1)"))
    rows, hashes = np.arange(3), np.arange(3, dtype=np.uint64)
    for mixing in (view, turned):
        with pytest.raises(ValueError, match="mixes images: set partners"):
            BatchRequest(mixing, rows, hashes)
        with pytest.raises(ValueError, match="mixes images: set partners"):
            BatchRequest(mixing, rows, hashes, partners=rows)
        BatchRequest(mixing, rows, hashes, partners=rows, partner_hashes=hashes)
        BatchRequest(mixing.unmixed, rows, hashes)
    assert view.unmixed == ViewsConfig().random_view(1)
    assert turned.unmixed.operations == view.unmixed.operations
    assert view.unmixed.unmixed == view.unmixed


def test_a_teacher_that_gives_nan_now_is_an_error(
    every: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Member.start

    def broken(self: Member, pixels: Any, taps: Any, shown: Any) -> Any:
        logits, kept = start(self, pixels, taps, shown)
        return (lambda: logits() * np.float32(np.nan)), kept

    monkeypatch.setattr(Member, "start", broken)
    with pytest.raises(NonFiniteLogits, match="returned NaN"):
        audits(every, samples=16)
