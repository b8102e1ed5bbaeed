"""Every requirement of the cache format and of the views is held by a test that names it."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.guides import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES = {"F": ROOT / "docs" / "format.md", "V": ROOT / "docs" / "views.md"}
NUMBER = re.compile(r"\*\*([FV]\d+(?:\.\d+)*)\*\*")


def numbers_of(page: Path) -> list[str]:
    """Return the numbers of a page, in its order."""
    return NUMBER.findall(page.read_text())


def parts_of(number: str) -> tuple[int, ...]:
    return tuple(map(int, number[1:].split(".")))


@cache
def marked_tests() -> list[tuple[str, ast.Call]]:
    """Return every marker of a requirement with its test, without importing any."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            for decorator in node.decorator_list:
                if ast.unparse(decorator).startswith("pytest.mark.requirement"):
                    assert isinstance(decorator, ast.Call), f"{path}: {node.name}"
                    found.append((f"{path.relative_to(ROOT)}: {node.name}", decorator))
    return found


def held_numbers() -> dict[str, list[str]]:
    """Return the tests that hold each requirement."""
    held: dict[str, list[str]] = {}
    for test, marker in marked_tests():
        for number in marker.args:
            assert isinstance(number, ast.Constant), f"{test} computes a number"
            held.setdefault(str(number.value), []).append(test)
    return held


@pytest.mark.parametrize("letter", PAGES)
def test_numbers_are_unique_and_in_the_order_of_the_page(letter: str) -> None:
    numbers = numbers_of(PAGES[letter])
    assert len(numbers) > 50
    assert {number[0] for number in numbers} == {letter}
    assert len(set(numbers)) == len(numbers)
    assert numbers == sorted(numbers, key=parts_of)


@pytest.mark.parametrize("letter", PAGES)
def test_every_requirement_is_held_by_a_test(letter: str) -> None:
    held = held_numbers()
    assert [number for number in numbers_of(PAGES[letter]) if number not in held] == []


def test_no_test_names_an_unknown_requirement() -> None:
    known = {number for page in PAGES.values() for number in numbers_of(page)}
    unknown = {number: tests for number, tests in held_numbers().items() if number not in known}
    assert unknown == {}


def test_a_marker_names_each_number_once_and_belongs_to_a_test() -> None:
    for test, marker in marked_tests():
        assert not marker.keywords, test
        named = [ast.unparse(number) for number in marker.args]
        assert named, test
        assert len(set(named)) == len(named), test
        assert test.rpartition(": ")[2].lower().startswith("test"), test
