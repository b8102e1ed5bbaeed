"""The import table: which packages may import which, and where third-party libraries belong."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parent.parent / "logitcache"

_STORE = {"cache.store"}
_FORMAT = {"cache.format", "encoding", *_STORE}
_READ = {"cache.read", *_FORMAT}
_WRITE = {"cache.write", *_READ}
_VERIFY = {"cache.verify", *_WRITE}
_PRECOMPUTE = {
    "data",
    "label_sets",
    "views",
    "teachers",
    "networks.device",
    "networks.forms",
    "networks.taps",
    "precompute.environment",
}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "text": set(),
    "markdown": {"text"},
    "moved": set(),
    "config": {"yaml_text"},
    "platforms": set(),
    "files": {"platforms"},
    "draws": set(),
    "batch": set(),
    "label_sets": set(),
    "encoding": set(),
    "data": {"label_sets"},
    "networks": set(),
    "views": {"draws", "data.decode"},
    "cache": set(),
    "cache.store": set(),
    "cache.format": {"views.recipe", "label_sets", *_FORMAT},
    "cache.read": {"label_sets", *_FORMAT},
    "cache.write": {"views.recipe", *_READ},
    "cache.verify": {"views.spec", *_WRITE},
    "teachers": {"networks", "encoding", "data.classes", "views.tokens"},
    "precompute": set(),
    "precompute.config": {"cache.format.card", "data", "encoding", "teachers", "views"},
    "precompute.environment": {"views.environment"},
    "precompute.sample": {*_FORMAT, *_PRECOMPUTE},
    "precompute.plan": {"precompute.config", "precompute.sample", *_VERIFY, *_PRECOMPUTE},
    "precompute.run": {"precompute.plan", *_WRITE, *_PRECOMPUTE},
    "precompute.estimate": {
        "precompute.config",
        "precompute.sample",
        "precompute.plan",
        "precompute.run.compared_rows",
        *_FORMAT,
        *_PRECOMPUTE,
    },
    "precompute.cluster": {
        "precompute.config",
        "precompute.plan",
        "precompute.run",
        *_WRITE,
        *_PRECOMPUTE,
    },
    "precompute.build": {"precompute", *_WRITE, *_PRECOMPUTE},
    "check": {
        "targets.images.fingerprint_check",
        "targets.images.image_source",
        "precompute.plan",
        "precompute.run",
        *_VERIFY,
        *_PRECOMPUTE,
    },
    "targets": {"batch", "data", "label_sets", "views", "draws", *_READ},
    "objectives": {"batch", "encoding"},
    "students": {"networks"},
    "training": {
        "students",
        "targets",
        "objectives",
        "data",
        "label_sets",
        "views",
        "networks",
        "batch",
        "draws",
        "yaml_text",
    },
    "report": {
        "targets",
        "data",
        "views",
        "objectives.aliases",
        "pipeline",
        "precompute.estimate.break_even",
        "training",
        *_READ,
    },
    "share": {"label_sets", "data", "views", "precompute.run.summary", "report", *_VERIFY},
    "exchange": {
        "data",
        "views.spec",
        "precompute.plan",
        "precompute.run",
        "precompute.environment",
        *_VERIFY,
    },
    "tools": {
        "data",
        "draws",
        "label_sets",
        "networks",
        "objectives.prototypes.table",
        *_READ,
    },
    "testing": {"batch", "data", "encoding", "objectives", "cache.store"},
    "pipeline": {"yaml_text"},
    "dry_run": {
        "batch",
        "cache.format",
        "cache.read.view_selection",
        "data",
        "encoding",
        "networks",
        "objectives",
        "pipeline",
        "precompute.config",
        "students",
        "targets",
        "teachers",
        "tools",
        "training",
        "views",
    },
    "yaml_text": set(),
    "cli": {
        "dry_run",
        "pipeline",
        "yaml_text",
        "objectives.aliases",
        "networks.forms",
        "tools",
        "data",
        "precompute",
        "check",
        "report",
        "share",
        "exchange",
        "cache",
        "targets",
        "training",
        "views",
    },
    "__main__": {"cli"},
    "configs": {
        "cache.format.card",
        "check",
        "data",
        "encoding",
        "exchange",
        "networks",
        "objectives",
        "pipeline",
        "precompute",
        "students",
        "teachers",
        "tools",
        "training",
        "views",
    },
    "__init__": {
        "check",
        "label_sets",
        "configs",
        "report",
        "exchange",
        "share",
        "testing",
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
EVERYBODY_MAY_IMPORT = {"errors", "config", "platforms", "files", "text", "moved", "markdown"}

HOMES: dict[str, set[str]] = {
    "zarr": {"cache.format", "cache.store", "cache.write"},
    "numcodecs": {"cache.format"},
    "google_crc32c": {"cache.format"},
    "fsspec": {"cache.store", "data.readers"},
    "cryptography": {"cache.format"},
    "huggingface_hub": {"cache.store", "report"},
    "aiohttp": {"cache.store"},
    "typer": {"cli"},
    "rich": {"cli"},
    "jinja2": {"report.page.render"},
    "accelerate": {"training"},
    "dask": {"precompute.cluster", "report"},
    "distributed": {"precompute.cluster"},
    "simplejpeg": {"data"},
    "PIL": {"data", "views"},
    "psutil": {"platforms"},
    "sklearn": {"data"},
    "pyarrow": {"check", "data", "exchange", "share"},
    "datasets": {"data"},
    "scipy": {"tools"},
    "yaml": {"yaml_text", "tools", "training"},
}

MODULES = sorted(ROOT.rglob("*.py"))
SUB_ROOMS = {"cache", "precompute"}
"""Packages whose sub-packages, and files next to them, have rows of their own in the table."""
MOST_LINES = 450


def name_of(path: Path) -> str:
    """Return the dotted name of a module below ``logitcache``; empty for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: Path) -> str:
    """Return the row of the table that a module belongs to."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] in SUB_ROOMS and parts[1] != "__init__":
        return ".".join(parts[:2])
    return parts[0]


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a module imports anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def below(name: str, package: str) -> bool:
    """Return whether a dotted name is a package or something in it."""
    return name == package or name.startswith(f"{package}.")


def circles(edges: Mapping[str, set[str]]) -> list[str]:
    """Return the circles of a directed graph that a depth-first search meets."""
    found: list[str] = []
    finished: set[str] = set()

    def visit(node: str, above: tuple[str, ...]) -> None:
        if node in above:
            found.append(" -> ".join([*above[above.index(node) :], node]))
        elif node not in finished:
            for other in sorted(edges.get(node, ())):
                visit(other, (*above, node))
            finished.add(node)

    for node in sorted(edges):
        visit(node, ())
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    allowed = MAY_IMPORT[room] | EVERYBODY_MAY_IMPORT | {room}
    for name in imports_of(path):
        inner = name.removeprefix("logitcache.")
        if inner != name:
            assert any(below(inner, a) for a in allowed), f"{room} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_third_party_stays_in_its_home(path: Path) -> None:
    for name in imports_of(path):
        package = name.partition(".")[0]
        if package in HOMES:
            homes = HOMES[package]
            assert any(below(name_of(path), h) for h in homes), f"{package} is imported by {path}"


def test_the_table_names_every_room() -> None:
    assert {room_of(path) for path in MODULES} == set(MAY_IMPORT)


def test_no_room_imports_in_a_circle() -> None:
    rooms = set(MAY_IMPORT)

    def room_named(name: str) -> str:
        return max((room for room in rooms if below(name, room)), key=len)

    edges = {
        room: {room_named(a) for a in allowed} - {room}
        for room, allowed in MAY_IMPORT.items()
        if room not in SUB_ROOMS
    }
    assert not circles(edges)


def test_no_file_imports_in_a_circle() -> None:
    """Imports for annotations count: two files that need each other's names are one idea."""
    modules = {name_of(path): path for path in MODULES}
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        inner = {i.removeprefix("logitcache.") for i in imports_of(path) if "logitcache." in i}
        edges[name] = {
            other
            for other in (i if i in modules else i.rpartition(".")[0] for i in inner)
            if other and other != name
        }
    assert not circles(edges)


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a -> b -> c -> a"]
    assert not circles({"a": {"b", "c"}, "b": {"c"}})


def test_files_and_functions_stay_short() -> None:
    """No file is over 450 lines; under 2 % of the functions are over 40."""
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}
    functions = [
        (node.end_lineno or 0) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert sum(lines > 40 for lines in functions) < 0.02 * len(functions)


def test_the_repository_holds_no_large_file_and_no_stray_one() -> None:
    """A folder that git does not track (an unpacked source distribution) has nothing to compare."""
    root = ROOT.parent
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a checkout of git")
    tracked = listed.stdout.splitlines()
    top_level = {path.partition("/")[0] for path in tracked}
    visible = {name for name in top_level if not name.startswith(".")}
    wanted = {"LICENSE", "README.md", "docs", "logitcache", "pipelines", "pyproject.toml", "tests"}
    assert visible == wanted
    sizes = {path: (root / path).stat().st_size for path in tracked if (root / path).exists()}
    assert {path: size for path, size in sizes.items() if size > 200_000} == {}
