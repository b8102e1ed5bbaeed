"""Tables in terminals of several widths."""

from __future__ import annotations

import io

import pytest

from logitcache.cli.layout import PlainConsole, new_table
from logitcache.cli.tables import print_train
from logitcache.training.config import TrainConfig
from logitcache.training.run.result import TrainResult

NETWORK = "from-both (vit_tiny_patch16_224)"
WORDS = ("from-both", "(vit_tiny_patch16_224)", "cache", "teachers,", "shuffled", "95.8 %")


def printed(width: int, network: str = NETWORK) -> list[str]:
    table = new_table("network", "trained on", "images", "labels used", "steps", "top-1")
    table.add_row(network, "cache of all teachers, shuffled", "1347", "0", "400", "95.8 %")
    stream = io.StringIO()
    PlainConsole(file=stream, width=width).print(table)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_no_word_and_no_number_of_a_table_is_cut(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    for word in WORDS:
        assert any(word in line for line in lines), word


def test_rows_are_lines_where_the_columns_do_not_fit() -> None:
    lines = printed(60)
    assert lines[0] == f"network: {NETWORK}"
    assert lines[-1] == "  top-1: 95.8 %"


def test_control_characters_are_visible_in_rows_that_are_lines() -> None:
    assert printed(40, "a\x1b[31mb")[0] == "network: a\\x1b[31mb"


def test_a_table_that_fits_is_not_changed() -> None:
    (row,) = (line for line in printed(120) if "from-both" in line)
    assert f" {NETWORK} " in row
    assert " cache of all teachers, shuffled " in row


@pytest.mark.parametrize(
    ("objectives", "used"), [("soft", "0"), ([{"soft": {}}, {"label": {}}], "60"), (None, "60")]
)
def test_labels_are_used_by_objectives_that_read_them(
    objectives: object, used: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = {} if objectives is None else {"cache": "c"}
    settings = {"out": "o", "data": "d", "student": {"model": "m"}, "epochs": 1, **cache}
    config = TrainConfig.parse({**settings, "objectives": objectives or "label"}, "train")
    result = TrainResult("o", None, 4, 60, 60, 60, 100, 1.0, 0.0)
    print_train(result, config.model_dump(mode="json"))
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("│ o "))
    assert [cell.strip() for cell in row.split("│")[2:4]] == ["60", used]
