"""Every block of code in the pages is run, compared, parsed, or has a reason why it is not."""

from __future__ import annotations

import ast
import json
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
import typer.main
import yaml

from logitcache.cli.app import app
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from tests.guides import ROOT
from tests.notebook import PAGE, notebook
from tests.pages.blocks import PAGES, TUTORIALS, Block, blocks_of, named

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMAND = typer.main.get_command(app)
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:torchrun .*-m )?logitcache (.*)")


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.kind == kind]


def test_there_are_blocks_of_every_class() -> None:
    assert len(BLOCKS) > 180
    for kind in ("run", "settings", "output", "not executed", "executed by", "excerpt of"):
        assert of_kind(kind), f"no block is '{kind}': is the directive read?"


@pytest.mark.parametrize(
    ("fence", "kind"),
    [
        ("```\nx\n```", None),
        ("```json\n{}\n```", None),
        ("<!-- not executed: needs a GPU -->\n```\nx\n```", "not executed"),
        ("```diff\n# x.py\n```", "run"),
        ("```yaml\n# logitcache train --config a.yaml\n```", "run"),
        ("<!-- blocks executed by tests/a.py -->\n\n```\nx\n```", "executed by"),
    ],
)
def test_a_block_is_of_the_class_of_its_directive(
    fence: str, kind: str | None, tmp_path: Path
) -> None:
    (tmp_path / "page.md").write_text(f"# Page\n\n{fence}\n")
    (block,) = blocks_of(tmp_path / "page.md")
    assert block.kind == kind


@pytest.mark.parametrize(
    "comment",
    ["<!-- not run: x -->", "<!-- not executed: -->", "<!-- file: a -->\n<!-- file: b -->"],
)
def test_a_comment_that_is_no_directive_is_found(comment: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"# Page\n\n{comment}\n```bash\nls\n```\n")
    with pytest.raises(AssertionError, match=r"no directive|two directives"):
        blocks_of(tmp_path / "page.md")


def test_a_block_that_is_not_executed_has_a_reason_other_than_time() -> None:
    for block in BLOCKS:
        if block.kind == "not executed":
            assert len(block.detail.split()) >= 2, block.place
            if re.search(r"slow|minutes|takes", block.detail):
                assert ".ci/matrix" in block.detail, f"{block.place}: {block.detail}"


def test_what_directives_name_exists() -> None:
    (entries,) = re.findall(r"^entries=\((.+)\)$", (ROOT / ".ci/matrix").read_text(), re.M)
    for block in BLOCKS:
        path, *rest = re.findall(r"\.ci/matrix \w+|[\w./-]*/[\w./-]+\.py", block.detail) or [""]
        assert not rest, block.place
        if path.startswith(".ci/matrix"):
            assert path.split()[1] in entries.split(), block.place
        elif path:
            assert (ROOT / path).is_file(), f"{block.place}: {path}"
        if block.kind in {"executed by", "compared by"} and path:
            where = (ROOT / path).read_text()
            assert block.page.stem in where, f"{path} does not read {named(block.page)}"


def test_output_follows_what_prints_it() -> None:
    for previous, block in zip([None, *BLOCKS], BLOCKS, strict=False):
        if block.kind == "output":
            assert previous is not None
            assert previous.page == block.page, block.place
            assert previous.language in {"bash", "python"}, block.place


def test_files_of_a_page_are_used_on_it() -> None:
    for block in BLOCKS:
        if block.kind == "run" and block.file and not block.command:
            other = "".join(
                other.before + other.text
                for other in blocks_of(block.page)
                if other.text != block.text
            )
            module = block.file.removesuffix(".py").replace("/", ".")
            assert re.search(rf"\b{re.escape(block.file)}|\b{re.escape(module)}\b", other), (
                f"{block.place}: {block.file} is not used"
            )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_settings_are_not_indented(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"\n\n {4}(?:logitcache |\w+: \{).*", text) == []


@pytest.mark.parametrize("block", of_kind("excerpt of"))
def test_an_excerpt_is_part_of_its_pipeline(block: Block) -> None:
    part = yaml.safe_load(block.text)
    pipeline = yaml.safe_load((ROOT / block.detail).read_text())
    assert any(contains(node, part) for node in nodes(pipeline)), f"not in {block.detail}"


def nodes(document: Any) -> Iterator[Any]:
    """Yield all values of a document of YAML."""
    yield document
    children = document.values() if isinstance(document, dict) else document
    if isinstance(document, dict | list):
        for child in children:
            yield from nodes(child)


def contains(whole: Any, part: Any) -> bool:
    """Return whether a part has only what the whole has, in its order; ``…`` is anything."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key == "…" or (key in whole and contains(whole[key], value))
            for key, value in part.items()
        )
    if isinstance(part, list):
        rest = iter(whole if isinstance(whole, list) else [])
        return all(value == "…" or any(contains(each, value) for each in rest) for value in part)
    return bool(whole == part)


def test_an_excerpt_with_another_value_is_found() -> None:
    whole = {"a": [{"b": 1, "c": 2}, {"d": 3}]}
    assert contains(whole, {"a": [{"c": 2}, "…"]})
    assert not contains(whole, {"a": [{"c": 3}]})
    assert not contains(whole, {"a": [{"d": 3}, {"b": 1}]})
    assert not contains(whole, {"a": [{"e": 2}]})


@pytest.mark.parametrize("block", of_kind("settings"))
def test_settings_are_accepted(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("siamese,cat\n")
    for values in fragments(yaml.safe_load(block.text)):
        if "teachers" in values:
            PrecomputeConfig.parse({"cache": "c", "data": "d", **values}, block.place)
        else:
            smallest = {"out": "o", "cache": "c", "student": {"model": "m"}, "epochs": 1}
            TrainConfig.parse({**smallest, **values}, block.place)


def fragments(document: Any) -> list[dict[str, Any]]:
    """Return a fragment as settings of a training or a cache."""
    if isinstance(document, list):
        return [{"objectives": [term]} for term in document]
    (first, value), *_ = document.items()
    if first in {"train", "precompute"}:
        return [value]
    return (
        [document]
        if first in TrainConfig.model_fields or first == "teachers"
        else fragments([document])
    )


def commands(block: Block) -> list[str]:
    """Return the arguments of the calls of logitcache in a block."""
    found = []
    for line in f"{block.before}{block.text}".replace("\\\n", " ").splitlines():
        call = re.sub(r"\"\$\(.*\)\"", "VALUE", line)  # shlex does not know substitutions
        if match := _COMMAND.match(re.sub(r" (&|>.*)(?= |$)", " ", call)):
            found.append(match[1])
    return found


def check(arguments: str) -> None:
    """Parse the arguments of a call.

    Raises:
        UsageError: Of typer, for a command or an option that does not exist, or lacks its value.
    """
    command: Any = COMMAND
    words = shlex.split(arguments, comments=True)
    context = command.make_context("logitcache", words)
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, words, parent=context)


def test_commands_exist_with_their_options() -> None:
    calls = [
        (block.place, call)
        for block in BLOCKS
        if block.language in {"bash", "sh"}
        for call in commands(block)
    ]
    assert len(calls) > 100
    for place, call in calls:
        try:
            check(call)
        except Exception as error:
            raise AssertionError(f"{place}: {error}") from error


def test_a_command_or_an_option_that_does_not_exist_is_found() -> None:
    for wrong in ("trian --out runs/a", "train --otu runs/a", "card runs/cache --citation"):
        with pytest.raises(Exception, match=r"No such|requires an argument"):
            check(wrong)


def test_code_can_be_parsed() -> None:
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text, block.place)


def test_there_are_eight_tutorials() -> None:
    assert [page.name.partition("-")[0] for page in TUTORIALS] == [str(n) for n in range(1, 9)]


def test_the_notebook_is_that_of_its_page() -> None:
    assert json.loads(PAGE.with_suffix(".ipynb").read_text()) == notebook(PAGE), (
        "python -m tests.notebook"
    )
