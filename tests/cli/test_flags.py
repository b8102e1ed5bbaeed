"""The flags of every command as a committed list, so that a change of them is visible in review.

``python -m tests.cli.test_flags`` writes the list.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from logitcache.check.repair import RepairConfig
from logitcache.cli.app import app
from logitcache.cli.flags import settings_of
from logitcache.precompute.config import PrecomputeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.evaluation.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

LIST = Path(__file__).with_name("flags.txt")
CONFIGS: dict[str, type[BaseModel]] = {
    "evaluate": EvaluateConfig,
    "plan": PrecomputeConfig,
    "precompute": PrecomputeConfig,
    "repair": RepairConfig,
    "train": TrainConfig,
}


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and the command of a command and of those below it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}".strip())


def field_of(command: str, parameter: str) -> str:
    """Return the dotted path of the configuration field that a flag sets; ``-`` for none."""
    settings = settings_of({parameter: None}) if command in CONFIGS else {}
    return next(iter(settings), "-")


def type_of(command: Any, parameter: str) -> str:
    """Return the annotated type of a flag; typer's own flags have none."""
    hint = get_type_hints(command.callback).get(parameter, "-") if command.callback else "-"
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    # of Python 3.13 the module of Path is pathlib._local
    return re.sub(r"\bpathlib\.(_local\.)?", "", text.replace(" | ", "|"))


def flags() -> str:
    """Return the list: command, names of the flag, type, and the field that it sets."""
    return "".join(
        f"{name or 'logitcache'} | {', '.join(flag.opts)} | {type_of(command, flag.name)} | "
        f"{field_of(name, flag.name)}{' | required' if flag.required else ''}\n"
        for name, command in sorted(commands(typer.main.get_command(app)), key=lambda pair: pair[0])
        for flag in command.params
        if type_of(command, flag.name) != "-"
    )


def test_flags_are_those_of_the_list() -> None:
    assert flags() == LIST.read_text(), "review the change, then: python -m tests.cli.test_flags"


def test_the_help_has_a_placeholder_for_each_value_and_none_for_switches() -> None:
    for name, command in commands(typer.main.get_command(app)):
        context = command.make_context(name, [], resilient_parsing=True)
        for parameter in command.get_params(context):
            assert parameter.metavar is not None, f"{name}: {parameter.name}"
            is_switch = getattr(parameter, "is_flag", False)
            assert (parameter.metavar == "") == is_switch, f"{name}: {parameter.name}"


def test_every_flag_sets_a_field_that_exists() -> None:
    for line in LIST.read_text().splitlines():
        command, _, _, field, *_ = line.split(" | ")
        config: Any = CONFIGS.get(command)
        for part in field.split(".") if field != "-" else []:
            assert part in config.model_fields, line
            config = config.model_fields[part].annotation


if __name__ == "__main__":
    LIST.write_text(flags())
