"""YAML from anywhere is read in bounded time and memory, or refused with the line."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from logitcache import yaml_text
from logitcache.errors import UsageError
from logitcache.pipeline.settings import override, read_yaml
from logitcache.yaml_text import load_yaml

if TYPE_CHECKING:
    from pathlib import Path


def laughs(first: str, line: str) -> str:
    """Return 25 lines, each of which stands for nine times the one before it."""
    lines = [f"a0: &a0 {first}"]
    for number in range(1, 25):
        before = ", ".join([f"*a{number - 1}"] * 9)
        lines.append(f"a{number}: &a{number} {line % before}")
    return "\n".join(lines)


HOSTILE = {
    "a list of aliases": (laughs("[x]", "[%s]"), "values with aliases expanded.* line 6"),
    "a mapping of aliases": (
        laughs("{x: 1}", "{b: [%s]}"),
        "values with aliases expanded.* line 6",
    ),
    "merged mappings": (laughs("{x: 1}", "{<<: [%s]}"), "values with aliases expanded.* line 6"),
    "an alias of itself": ("a: &a\n  b: *a", "an alias inside its own anchor.* line 2"),
    "deep brackets": ("[" * 300, "more than 64 levels.* line 1"),
    "deep lines": ("\n".join(f"{' ' * n}a:" for n in range(200)), "more than 64 levels.* line 64"),
    "a number of base 60": ("a: 1" + ":1" * 30_000, "number of more than 400 characters.* line 1"),
    "a long number": ("a: " + "1" * 5000, "number of more than 400 characters"),
    "a key twice": ("a: 1\nb: {c: 1}\na: 2", "the key 'a' is given twice.* line 3"),
    "a key twice in braces": ("a: {steps: 1, lr: 2, steps: 3}", "the key 'steps' is given twice"),
    "a control character": ("a: b\x1b[2J", "special characters are not allowed"),
    "a long file": ("#" * (2**21 + 1), "longer than 2097152 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_in_bounded_time_and_memory(name: str, tmp_path: Path) -> None:
    text, message = HOSTILE[name]
    path = tmp_path / "x.yaml"
    path.write_text(text)
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=f"invalid YAML[\\s\\S]*{message}"):
            read_yaml(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    assert time.monotonic() - started < 10, "a fraction of a second where nothing else is running"


def test_many_values_are_refused_while_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "_MOST_VALUES", 1000)
    with pytest.raises(ValueError, match=r"more than 1000 values[\s\S]*column 200"):
        load_yaml("[" + "1," * 100_000 + "]")
    assert load_yaml("[" + "1," * 990 + "]") == [1] * 990


def test_a_hostile_value_of_a_flag_is_refused() -> None:
    with pytest.raises(UsageError, match="invalid YAML"):
        override({}, ["a=" + "[" * 100])


def test_anchors_and_merged_mappings_work() -> None:
    text = "base: &b {a: 1, b: 2}\nx: {<<: *b, b: 3}\ny: [*b, *b]\nz: &z 3\nw: *z\n"
    one = {"a": 1, "b": 2}
    assert load_yaml(text) == {"base": one, "x": {"a": 1, "b": 3}, "y": [one, one], "z": 3, "w": 3}
    assert load_yaml("") is None
    assert load_yaml("a: é\nb: 漢字") == {"a": "é", "b": "漢字"}


def test_a_file_is_read_as_utf8_in_every_locale(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes("data: Straße\n".encode())
    assert read_yaml(path) == {"data": "Straße"}
    path.write_bytes(b"data: Stra\xdfe\n")
    with pytest.raises(UsageError, match="invalid YAML"):
        read_yaml(path)
