"""The command line in this process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from logitcache.cli import app as cli

if TYPE_CHECKING:
    from collections.abc import Callable


class Outcome:
    """What a command left with."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        assert document["schema_version"] == 1
        return document


@pytest.fixture
def logitcache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr("sys.argv", ["logitcache", *map(str, arguments)])
        try:
            cli.main()
            code: object = 0
        except SystemExit as leaving:
            code = leaving.code
        out, err = capsys.readouterr()
        return Outcome(code if isinstance(code, int) else int(code is not None), out, err)

    return call
