"""The import table of the house: who may know whom, and where third parties live."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "logitcache"

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "text": set(),
    "config": set(),
    "platforms": set(),
    "files": {"platforms"},
    "draws": set(),
    "batch": set(),
    "encoding": set(),
    "data": set(),
    "networks": set(),
    "views": {"draws", "data.decode"},
    "cache": {"encoding", "views.recipe", "views.spec"},
    "teachers": {"networks", "encoding", "data.classes"},
    "precompute": {
        "data",
        "views",
        "teachers",
        "encoding",
        "cache",
        "networks.device",
        "networks.digest",
    },
    "targets": {"batch", "data", "views", "cache", "encoding", "draws"},
    "objectives": {"batch", "encoding"},
    "students": {"networks"},
    "training": {
        "students",
        "targets",
        "objectives",
        "data",
        "views",
        "networks",
        "batch",
        "draws",
    },
    "tools": {"cache", "encoding", "data", "draws"},
    "pipeline": {"yaml_text"},
    "yaml_text": set(),
    "cli": {"pipeline", "tools", "data", "precompute", "cache", "targets", "training", "views"},
    "__main__": {"cli"},
    "__init__": {
        "batch",
        "cache",
        "data",
        "encoding",
        "errors",
        "networks",
        "objectives",
        "precompute",
        "targets",
        "teachers",
        "training",
        "views",
    },
}
EVERYBODY_MAY_IMPORT = {"errors", "config", "platforms", "files", "text"}

HOMES: dict[str, set[str]] = {
    "zarr": {"cache"},
    "numcodecs": {"cache"},
    "google_crc32c": {"cache"},
    "fsspec": {"cache"},
    "aiohttp": {"cache"},
    "typer": {"cli"},
    "rich": {"cli"},
    "accelerate": {"training"},
    "dask": {"cache", "precompute"},
    "distributed": {"precompute"},
    "simplejpeg": {"data"},
    "PIL": {"data", "views"},
    "psutil": {"platforms"},
    "sklearn": {"data"},
    "scipy": {"tools"},
    "yaml": {"yaml_text", "tools", "training"},
}

MODULES = sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a module imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    allowed = MAY_IMPORT[room] | EVERYBODY_MAY_IMPORT | {room}
    for name in imports_of(path):
        inner = name.removeprefix("logitcache.")
        if inner == name:
            continue
        assert any(inner == a or inner.startswith(f"{a}.") for a in allowed), (
            f"{room} must not import {name}"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_third_party_stays_in_its_home(path: Path) -> None:
    for name in imports_of(path):
        package = name.partition(".")[0]
        if package in HOMES:
            assert room_of(path) in HOMES[package], f"{package} is imported by {path}"


def test_the_table_names_every_room() -> None:
    assert {room_of(path) for path in MODULES} == set(MAY_IMPORT)


def test_no_room_imports_in_a_circle() -> None:
    edges = {room: {a.partition(".")[0] for a in allowed} for room, allowed in MAY_IMPORT.items()}
    order: list[str] = []

    def visit(room: str, above: tuple[str, ...]) -> None:
        assert room not in above, " -> ".join([*above, room])
        if room not in order:
            for other in edges[room]:
                visit(other, (*above, room))
            order.append(room)

    for room in edges:
        visit(room, ())
