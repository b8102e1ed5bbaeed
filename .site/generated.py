"""Pages of the site that are made while it is built, and links that leave ``docs/``.

A hook of MkDocs (``hooks`` in ``mkdocs.yml``). The home page is README.md; ``options.md`` is made
from the command line, ``python.md`` from the public names, so neither can be out of date.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import typer.main
from mkdocs.structure.files import File

import logitcache
from logitcache.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SHIM = Path(__file__).parent / "iframe-worker"
"""iframe-worker 1.0.4 (MIT): search in pages opened as files, where browsers refuse workers."""
NAMESPACES = ("configs", "errors", "objectives", "testing", "views")
"""Public modules, next to the names of the package itself."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of a folder where the navigation names the folder."""
    config.nav = [_listed(entry) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and the script, that are not files of ``docs/``."""
    pages = {"index.md": home_page(), "options.md": options_page(), "python.md": python_page()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    for path in SHIM.iterdir():
        name = f"assets/{SHIM.name}/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replace links to folders, and to files outside of ``docs/``, by their text."""
    depth = page.file.src_uri.count("/")
    outside = "../" * (depth + 1)
    markdown = markdown.replace(f"]({outside}README.md", f"]({'../' * depth}index.md")
    outside_or_folder = rf"\[([^\]]*)\]\((?:{re.escape(outside)}[^)]*|[\w/]+)\)"
    return re.sub(outside_or_folder, r"\1", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Remove the roles of Sphinx, which docstrings have in front of names."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):<code>[.~]*", "<code>", html)


def _listed(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _listed(below) for title, below in entry.items()}
    if isinstance(entry, list):
        return [_listed(one) for one in entry]
    if not entry.endswith("/"):
        return entry
    return [str(path.relative_to(DOCS)) for path in sorted((DOCS / entry).glob("*.md"))]


def home_page() -> str:
    """Return README.md with its links relative to ``docs/``."""
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]*)\]\((?:logitcache|tests|pipelines)/[^)]*\)", r"\1", text)


def options_page() -> str:
    """Return the reference of the command line."""
    root = typer.main.get_command(app)
    parts = ["# Options of all commands", "", _sentences(root.help), ""]
    for path, command in [("logitcache", root), *_commands(root, "logitcache")]:
        context = command.context_class(command, info_name=path)
        usage = " ".join([path, *command.collect_usage_pieces(context)])
        found = [each for each in command.get_params(context) if each.name != "help"]
        rows = [_row(parameter) for parameter in found]
        parts += [f"## {path}", "", "```text", usage, "```", "", _sentences(command.help), ""]
        parts += ["| option or argument | value | purpose |", "|---|---|---|", *rows, ""]
    return "\n".join(parts)


def python_page() -> str:
    """Return the reference of the public names, for mkdocstrings."""
    parts = [
        "# Python",
        "",
        "The public names of `logitcache`, then those of its public modules.",
        "",
    ]
    parts += _section("logitcache", logitcache)
    for name in NAMESPACES:
        module = importlib.import_module(f"logitcache.{name}")
        parts += _section(f"logitcache.{name}", module)
    return "\n".join(parts)


def _section(title: str, module: Any) -> list[str]:
    """Return the names of a module; those of its modules for a package that has no names itself."""
    if not hasattr(module, "__all__"):
        below = [
            f"{module.__name__}.{found.name}" for found in pkgutil.iter_modules(module.__path__)
        ]
        return [line for name in below for line in _section(name, importlib.import_module(name))]
    names = [n for n in module.__all__ if not isinstance(getattr(module, n), ModuleType)]
    lines = [f"## {title}", ""]
    for name in sorted(names, key=str.casefold):
        lines += [_documented(module, name, f"{title}.{name}"), ""]
    return lines


def _documented(module: Any, name: str, heading: str) -> str:
    """Return the directive of mkdocstrings for a public name, at the place that defines it."""
    found = getattr(module, name)
    place = f"{module.__name__}.{name}"
    if inspect.isclass(found) or inspect.isfunction(found):
        place = f"{found.__module__}.{found.__qualname__}"
    options = f"{{heading: {heading}, toc_label: {name}, heading_level: 3}}"
    return f"::: {place}\n    options: {options}"


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the full name and the command of all commands; groups alone do nothing."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, child in below.items():
        if not child.hidden:
            yield from _commands(child, f"{path} {name}")


def _row(parameter: Any) -> str:
    """Return the row of an option or argument; the bars of a metavar divide no columns."""
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    value = f"`{parameter.metavar}`" if parameter.metavar else ""
    cells = [names, value, _sentences(getattr(parameter, "help", None))]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _sentences(text: str | None) -> str:
    """Return a help text in one paragraph per blank line, without signs of layout."""
    paragraphs = (text or "").replace("\b", "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
