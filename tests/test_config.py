from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar

import pytest

from logitcache.config import Config, Former
from logitcache.errors import UsageError
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig

if TYPE_CHECKING:
    from pathlib import Path

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
    ("change", "message"),
    [
        ({"steps": None}, "either epochs or steps"),
        ({"epochs": 2}, "either epochs or steps"),
        ({"shuffle_targets": True}, "no targets to shuffle"),
        ({"objectives": [{"soft": {}, "label": {}}]}, "one key"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"views": {"scale": [0.9, 0.1]}}, "smaller number first"),
        ({"data": {"name": "digits", "split": "test"}}, "'train' or 'val'"),
    ],
)
def test_values_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig.parse({**TRAIN, **change}, "train")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("bits: [", "is not a YAML file"),
        ("errors: {fc: 1}", "has no mapping 'bits'"),
        ("bits: 4", "has no mapping 'bits'"),
        ("bits: {fc: 30}", "less than or equal to 8"),
    ],
)
def test_a_file_in_place_of_a_mapping_has_to_contain_it(
    content: str | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "bits.yaml"
    if content is not None:
        file.write_text(content)
    student = {"model": "resnet10t", "surgery": {"fake_quant": {"bits": str(file)}}}
    with pytest.raises(UsageError, match=said) as caught:
        TrainConfig.parse({**TRAIN, "student": student}, "train")
    where = str(caught.value.where)
    assert where.removesuffix(".fc") == "train.student.surgery.fake_quant.bits"


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
    with pytest.raises(UsageError, match="write for example 2GB"):
        TrainConfig.parse({**TRAIN, "target_memory": written}, "train")


def test_no_message_repeats_what_opens_a_store() -> None:
    values = {**TRAIN, "cache": "https://me:hunter2@host/c?token=hunter3"}
    for change in ({"steps": None}, {"batch_size": [values["cache"]]}):
        with pytest.raises(UsageError) as caught:
            TrainConfig.parse({**values, **change}, "train")
        assert "hunter" not in str(caught.value)
    assert "https://***@host" in str(caught.value)  # shown without the secret


def test_a_message_repeats_no_whole_section_and_no_long_value() -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig.parse({**TRAIN, "epochs": 2}, "train")
    assert caught.value.got is None
    with pytest.raises(UsageError) as caught:
        TrainConfig.parse({**TRAIN, "batch_size": "9" * 5000}, "train")
    assert len(str(caught.value)) < 500


def test_a_place_names_options_only() -> None:
    values = {"cache": "c", "data": "digits", "teachers": {"a": {"model": "m"}}, "batch_size": -3}
    with pytest.raises(UsageError) as caught:
        PrecomputeConfig.parse(values, "precompute")
    assert caught.value.where == "precompute.batch_size"


def test_a_wrong_indent_is_told() -> None:
    left = {"cache": "c", "data": "digits", "teachers": None, "cnn": {"model": "m"}}
    with pytest.raises(UsageError, match="'teachers', above it, is empty") as caught:
        PrecomputeConfig.parse(left, "precompute")
    assert caught.value.where == "precompute.cnn"
    right = {"cache": "c", "data": "digits", "teachers": {"cnn": None, "model": "m"}}
    with pytest.raises(UsageError, match="'cnn' has to be a mapping") as caught:
        PrecomputeConfig.parse(right, "precompute")
    assert caught.value.where == "precompute.teachers.cnn"
    assert "indented below it" in str(caught.value)


def test_what_no_flag_reaches_is_said() -> None:
    with pytest.raises(UsageError, match="set the whole list") as caught:
        TrainConfig.parse({**TRAIN, "objectives": ["match"]}, "train")
    assert caught.value.where == "train.objectives.0.match.pairs"


@pytest.mark.parametrize(
    ("val", "split"),
    [
        ("digits", "val"),
        ({"name": "torch/cifar10:here"}, "val"),
        ({"name": "digits", "split": "train"}, "train"),
        ("photos/val", "train"),  # which says nothing: a folder has no splits
    ],
)
def test_a_student_is_evaluated_on_what_is_held_out(val: object, split: str) -> None:
    config = TrainConfig.parse({**TRAIN, "val": val}, "train")
    assert config.val is not None
    assert config.val.split == split
    assert config.data is not None
    assert config.data.split == "train"
    assert TrainConfig.parse(config.model_dump(mode="json"), "train") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"student": {"model": "a"}, "steps": 1, "data": "d"}, "option 'out' is missing"),
        ({**TRAIN, "epoch": 1}, "did you mean 'epochs'"),
        ({**TRAIN, "batch_size": "many"}, r"TrainConfig\.batch_size"),
        ({**TRAIN, "optimizer": {"lr": -1}}, r"TrainConfig\.optimizer\.lr"),
        ({**TRAIN, "epochs": 2}, "give either epochs or steps"),
    ],
)
def test_python_calls_raise_what_files_raise(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        TrainConfig(**values)
    assert "pydantic" not in str(caught.value)
    assert caught.value.__cause__ is None


class Renamed(Config):
    """A configuration with former names."""

    normalize: str = "none"
    other: int = 0
    former: ClassVar[Former] = Former(
        keys={"normalise": "normalize"}, values={"normalize": {"standardise": "standardize"}}
    )


def test_a_former_name_works_and_names_the_new_one() -> None:
    with pytest.warns(FutureWarning) as found:
        values = Renamed.parse({"normalise": "standardise", "other": 1}, "x")
    assert (values.normalize, values.other) == ("standardize", 1)
    assert [str(w.message).partition(";")[0] for w in found] == [
        "option 'normalise' is now 'normalize'",
        "value 'standardise' of 'normalize' is now 'standardize'",
    ]


def test_both_names_of_one_option_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown option 'normalise'"):
        Renamed.parse({"normalise": "a", "normalize": "b"}, "x")


def test_a_new_name_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Renamed(normalize="standardize").normalize == "standardize"
