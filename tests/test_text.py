"""Text from data reaches terminals, messages, JSON and cards with all of its characters visible."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from logitcache.cli.layout import PlainConsole, new_table
from logitcache.cli.options import print_json
from logitcache.cli.progress import ProgressLine
from logitcache.errors import CacheError, UsageError
from logitcache.markdown import block, code, markdown
from logitcache.text import encodable, visible

if TYPE_CHECKING:
    from collections.abc import Callable

CLI = Path(__file__).parents[1] / "logitcache" / "cli"
HIDDEN = {
    "\x1b[2J\x1b]0;bytes: ok\x07": r"\x1b[2J\x1b]0;bytes: ok\x07",
    "a\nbytes: ok": r"a\nbytes: ok",
    "a\r\tb\x00\x7f\x9b": r"a\r\tb\x00\x7f\x9b",
    "\u202egpj.exe\u2066\u2069": r"\u202egpj.exe\u2066\u2069",
    "a\u200bb\u200dc\ufeff\u2028\u2029": r"a\u200bb\u200dc\ufeff\u2028\u2029",
    "caf\udce9.jpg": r"caf\udce9.jpg",
    "\U000e0041": r"\U000e0041",
}
PLAIN = [
    "plain, 100 % [bold] :smile: \\",
    "é",
    "漢字 Straße Ω",
    "👩\u200d👧 👍🏽 ✌\ufe0f",
    "a\u00a0b",
    "",
]


@pytest.mark.parametrize("text", HIDDEN)
def test_what_cannot_be_seen_is_written_out(text: str) -> None:
    assert visible(text) == HIDDEN[text]
    visible(text).encode()


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == encodable(text) == text


@pytest.mark.parametrize("text", HIDDEN)
def test_a_message_keeps_its_own_lines_and_no_other(text: str) -> None:
    error = UsageError(f"no view {text}", where=Path("x"), expected=text, got=[text], hint=text)
    lines = str(error).split("\n")
    assert [line[2:6] for line in lines[1:]] == ["wher", "expe", "got:", "next"]
    assert lines[0] == f"no view {HIDDEN[text]}"
    assert HIDDEN[text] in lines[2]
    assert error.expected == text, "what a program reads is not changed"


def printed(show: Callable[[PlainConsole], None], encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace")
    show(PlainConsole(file=stream, width=120))
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("text", HIDDEN)
def test_lines_and_tables_show_all_characters(text: str) -> None:
    def show(console: PlainConsole) -> None:
        console.print(f"{text}: format 1", soft_wrap=True)
        table = new_table("teacher", text)
        table.add_row(text, f"[red]{text}")
        console.print(table)

    out = printed(show)
    assert out.count(HIDDEN[text]) == 4
    assert f"[red]{HIDDEN[text]}" in out
    assert not set(out) & set("\x1b\x07\r\t\x00\x7f\x9b\u202e\u200b\u2028\udce9")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_stream_cannot_encode_is_written_out(encoding: str) -> None:
    out = printed(lambda console: console.print("漢 é \udce9"), encoding)
    assert out.startswith(r"\u6f22 ")
    assert r"\udce9" in out


def test_a_bar_shows_all_characters() -> None:
    progress = ProgressLine("x")
    progress._bar.update(progress._task, description="\x1b[2J", count="\n", rates="\u202e")
    raw = io.StringIO()
    PlainConsole(file=raw, width=120).print(progress._bar.make_tasks_table(progress._bar.tasks))
    assert r"\x1b[2J" in raw.getvalue()
    assert r"\u202e" in raw.getvalue()
    assert "\x1b" not in raw.getvalue()


def test_json_is_ascii_that_any_encoder_takes(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"keys": [*HIDDEN, *PLAIN], "nested": {"\udce9\x7f": ("\udce9", 1, None)}})
    out = capsys.readouterr().out
    assert out.isascii()
    assert not set(out) & {chr(code) for code in (*range(10), *range(11, 32), 127)}
    found = json.loads(out)
    json.dumps(found, ensure_ascii=False).encode()
    assert found["keys"][0] == next(iter(HIDDEN)), "a control character is one for a program"
    assert found["nested"] == {"\\udce9\x7f": ["\\udce9", 1, None]}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_command_line_writes_to_any_stream(encoding: str, tmp_path: Path) -> None:
    name = "漢字\x1b[2J"
    code = (
        "import sys; from logitcache.cli.app import main; from logitcache.cli.echo import echo; "
        "from logitcache.cli import views; "
        f"views.views_app.command('say')(lambda: echo({name!r})); "
        "sys.argv[1:] = ['views', 'say']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "0"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.decode(encoding)
    assert shown.strip() == ("漢字" if encoding == "utf-8" else r"\u6f22\u5b57") + r"\x1b[2J"


def test_the_command_line_prints_in_one_way() -> None:
    """Every other way to print would show text from data as it is."""
    for path in CLI.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called != "typer.echo", f"{path.name} prints without echo"
            assert called != "Console", f"{path.name} prints without PlainConsole"
            if called == "print":
                assert path.name == "app.py", "a message of an error, which is rendered"


def test_markdown_takes_text_as_text() -> None:
    text = "<script>alert(1)</script> [x](https://y) `q` a_b _c_ | \x1b\n# end"
    shown = markdown(text)
    assert shown == (
        r"\<script\>alert(1)\</script\> \[x\](https\://y) \`q\` a_b \_c\_ \| \\x1b\\n\# end"
    )
    assert code("a`b") == "``a`b``"
    assert code("`") == "`` ` ``"
    assert code("a|\x1b") == r"`a\|\x1b`"
    assert block("yaml", "a: |\n  ```\n") == "````yaml\na: |\n  ```\n````"


def test_an_error_of_a_library_stays_on_one_line() -> None:
    assert str(CacheError("x", got=ValueError("a\n\x1b[31mb"))).split("\n")[1:] == [
        r"  got:      a\n\x1b[31mb"
    ]
