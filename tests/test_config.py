from __future__ import annotations

import pytest

from logitcache.errors import UsageError
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig

TRAIN = {"out": "x", "data": "digits", "student": {"model": "resnet10t"}, "steps": 1}


@pytest.mark.parametrize(
    ("path", "offered"),
    [
        (("epoch",), "epochs"),
        (("optimizer", "weight_decy"), "weight_decay"),
        (("student", "modl"), "model"),
        (("views", "hfilp"), "hflip"),
        (("labels", "cuont"), "count"),
    ],
)
def test_an_unknown_key_is_named_with_its_nearest(path: tuple[str, ...], offered: str) -> None:
    values: dict[str, object] = dict(TRAIN)
    if len(path) == 2:
        inner = values.get(path[0], {})
        assert isinstance(inner, dict)
        values[path[0]] = {**inner, path[1]: 1}
    else:
        values[path[0]] = 1
    with pytest.raises(UsageError) as caught:
        TrainConfig.parse(values, "train")
    assert caught.value.where == ".".join(["train", *path])
    assert offered in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": None}, "either epochs or steps"),
        ({"epochs": 2}, "either epochs or steps"),
        ({"cache": "c", "views": {"count": 1}}, "a cache has its own views"),
        ({"shuffle_targets": True}, "no targets to shuffle"),
        ({"objectives": [{"soft": {}, "label": {}}]}, "one key"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"views": {"scale": [0.9, 0.1]}}, "smaller number first"),
        ({"data": {"name": "digits", "split": "test"}}, "'train' or 'val'"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrainConfig.parse({**TRAIN, **change}, "train")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        PrecomputeConfig.parse({"data": "digits", "teachers": {"a": {"model": "m"}}}, "precompute")
    assert caught.value.where == "precompute.cache"
    assert caught.value.what == "option 'cache' is missing"


def test_a_batch_is_a_power_of_two() -> None:
    values = {"cache": "c", "data": "digits", "teachers": {"a": {"model": "m"}}, "batch_size": 48}
    with pytest.raises(UsageError, match="power of two"):
        PrecomputeConfig.parse(values, "precompute")


def test_short_forms() -> None:
    config = TrainConfig.parse({**TRAIN, "labels": 300, "objectives": "label"}, "train")
    assert config.labels.count == 300
    assert config.terms[0].label is not None
    cached = TrainConfig.parse({**TRAIN, "cache": "c"}, "train")
    assert cached.terms[0].soft is not None


@pytest.mark.parametrize(
    ("written", "meant"),
    [("2GB", 2 * 10**9), ("1.5 MiB", 1536 * 1024), ("300", 300), (7, 7), ("80b", 80)],
)
def test_bytes_are_written_with_their_unit(written: object, meant: int) -> None:
    assert TrainConfig.parse({**TRAIN, "target_memory": written}, "train").target_memory == meant


@pytest.mark.parametrize("written", ["2 pounds", "-1GB", "ib", ""])
def test_what_is_no_number_of_bytes_is_refused(written: str) -> None:
    with pytest.raises(UsageError, match="write 2GB"):
        TrainConfig.parse({**TRAIN, "target_memory": written}, "train")
