"""What the documentation names exists: links, modules, tables, entries of the matrix, words."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from logitcache import errors
from tests.end_to_end.test_systems import SYSTEMS
from tests.guides import ROOT, files_of
from tests.pages.blocks import PAGES as ALL_PAGES
from tests.pages.blocks import blocks_of

if TYPE_CHECKING:
    from pathlib import Path

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.glob("*.md"))
CURRENT = [README, *PAGES, *sorted((DOCS / "measurements").glob("*.md"))]
"""Pages about the present version; design/ and changes/ are about earlier ones, too."""


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, *sorted(DOCS.rglob("*.md"))], ids=named)
def test_links_lead_to_files_and_sections(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
        target = (page.parent / path) if path else page
        assert target.exists(), f"no such file: {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target), f"no such section: {path}#{anchor}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "glossary.md"], ids=lambda page: page.name
)
def test_a_page_links_to_the_glossary(page: Path) -> None:
    assert "](glossary.md)" in page.read_text()


@pytest.mark.parametrize("page", CURRENT, ids=named)
def test_files_that_are_named_exist(page: Path) -> None:
    made = set(files_of(page))
    for path in re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|json|yaml|md|svg))\b", page.read_text()):
        places = [ROOT / path, ROOT / "logitcache" / path]
        assert path in made or any(place.exists() for place in places), path


def test_tests_that_are_named_exist() -> None:
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"def (test_\w+)\(", code))
    for page in CURRENT:
        for name in re.findall(r"`(?:\S+::)?(test_\w+)`", page.read_text()):
            assert name in defined, f"{page.name}: {name}"


@pytest.mark.parametrize("page", CURRENT, ids=named)
def test_modules_and_names_that_are_named_exist(page: Path) -> None:
    made = {name.removesuffix(".py").replace("/", ".") for name in files_of(page)}
    for name in set(re.findall(r"\blogitcache(?:\.[A-Za-z_]\w*)+", page.read_text())):
        if name.endswith((".py", ".git")) or any(f"{name}.".startswith(f"{m}.") for m in made):
            continue
        assert exists(name), name


def exists(name: str) -> bool:
    """Return whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", ALL_PAGES, ids=named)
def test_a_test_checks_every_block_of_code(page: Path) -> None:
    """Its class is its language or a comment in front of it: CONTRIBUTING.md, code in pages."""
    assert [block.place for block in blocks_of(page) if block.kind is None] == []


def test_words_are_in_alphabetical_order_and_defined_somewhere() -> None:
    rows = re.findall(
        r"^\| \*\*(.+?)\*\* \| (.+) \| (.+) \|$", (DOCS / "glossary.md").read_text(), re.M
    )
    words = [word for word, _, _ in rows]
    assert len(words) > 40
    assert words == sorted(words, key=str.casefold)
    assert len(set(words)) == len(words)
    for word, meaning, place in rows:
        assert meaning.count(". ") <= 2, f"{word} has more than three sentences"
        assert re.search(r"\]\((format|views|objectives|systems)\.md|`logitcache/", place), word


def test_open_tables_are_dictionaries_of_the_package() -> None:
    section = (DOCS / "CONTRIBUTING.md").read_text().partition("## Open tables")[2]
    tables = re.findall(r"^\| `([A-Z_]+)` \| `(\S+)` \|", section, re.M)
    assert len(tables) >= 7
    for name, path in tables:
        assigned = {
            node.target.id: node.value
            for node in ast.parse((ROOT / path).read_text()).body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        assert isinstance(assigned.get(name), ast.Dict), f"{path} has no dictionary {name}"


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = (ROOT / ".site" / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named_pages = set(re.findall(r"- (?:[\w ]+: )?([\w./-]+\.md)$", navigation, re.M))
    folders = re.findall(r"- (?:[\w ]+: )?([\w/-]+/)$", navigation, re.M)
    made = {"index.md", "options.md", "python.md"}  # by .site/generated.py
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert named_pages - made <= pages
    assert {p for p in pages - named_pages if not p.startswith(tuple(folders))} == set()


def test_the_guide_has_a_row_for_every_system() -> None:
    rows = re.findall(
        r"^\| .* \| `(\w+)` \| [^|]+ \|$", (DOCS / "choosing-a-system.md").read_text(), re.M
    )
    assert len(rows) == 24
    assert set(SYSTEMS) <= set(rows) <= {path.stem for path in (ROOT / "pipelines").glob("*.yaml")}


def test_every_class_of_errors_has_a_row() -> None:
    rows = re.findall(r"^\| (?:\S )?`(\w+)` \| (\S+)", (DOCS / "errors.md").read_text(), re.M)
    classes: dict[str, Any] = {
        name: found for name in errors.__all__ if isinstance(found := getattr(errors, name), type)
    }
    assert sorted(name for name, _ in rows) == sorted(classes)
    for name, code in rows:
        if name != "Interrupted":  # whose code depends on what was kept
            assert code == str(classes[name].exit_code), name


def test_entries_of_the_matrix_are_described() -> None:
    (entries,) = re.findall(r"^entries=\((.+)\)$", (ROOT / ".ci" / "matrix").read_text(), re.M)
    page = (DOCS / "CONTRIBUTING.md").read_text().partition("## How CI runs")[2]
    assert re.findall(r"^\| `(\w+)` \|", page, re.M) == entries.split()


def test_files_of_the_documentation_check_exist() -> None:
    (line,) = re.findall(
        r"^\| documentation \| `pytest (.+)` \|$", (DOCS / "CONTRIBUTING.md").read_text(), re.M
    )
    assert all((ROOT / path).exists() for path in line.split())


def test_measurements_have_a_date_and_a_command() -> None:
    pages = sorted((DOCS / "measurements").glob("*.md"))
    assert len(pages) >= 6
    for page in pages:
        assert re.search(r"^Measured in [A-Z][a-z]+ 20\d\d", page.read_text(), re.M), page.name
        assert re.search(r"python -m tests\.|\.ci/matrix", page.read_text()), page.name


def test_the_citation_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version = {{{version}}}" in README.read_text()
