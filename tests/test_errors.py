from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from logitcache import errors
from logitcache.errors import Interrupted, LogitcacheError, UsageError, nearest


def test_a_message_has_its_parts_in_order() -> None:
    error = UsageError("wrong", where="here", expected="a", got="b", hint="do c")
    assert str(error).splitlines() == [
        "wrong",
        "  where:    here",
        "  expected: a",
        "  got:      b",
        "  next:     do c",
    ]
    assert str(UsageError("wrong")) == "wrong"


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = dict(re.findall(r"([A-Z]\w+) +(?:exit )?(\d)", errors.__doc__ or ""))
    real = {
        name: value.exit_code
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, LogitcacheError)
    }
    assert drawn.keys() | {"Interrupted"} == real.keys()
    assert all(int(drawn[name]) == code for name, code in real.items() if name != "Interrupted")


@pytest.mark.parametrize(("kept", "code"), [(True, 3), (False, 130)])
def test_an_interruption_leaves_with_what_it_kept(kept: bool, code: int) -> None:
    assert Interrupted("stopped", kept=kept).exit_code == code


@pytest.mark.parametrize(
    "error",
    [
        UsageError("wrong", where=Path("here"), got=["a"], hint="do c"),
        Interrupted("stopped", kept=True),
    ],
)
def test_an_error_crosses_to_another_process(error: LogitcacheError) -> None:
    crossed = pickle.loads(pickle.dumps(error))
    assert type(crossed) is type(error)
    assert (str(crossed), crossed.render()) == (str(error), error.render())
    assert crossed.exit_code == error.exit_code


def test_the_nearest_names_are_offered() -> None:
    assert nearest("resnet51", ["resnet50", "vit", "rednet50"]).startswith(
        "did you mean 'resnet50'"
    )
    assert nearest("x", ["soft", "label"]) == "one of 'label', 'soft'"
    assert "100" in nearest("x", [f"name{i}" for i in range(100)])
