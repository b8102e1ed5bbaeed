"""What prose promises: public names, help, lazy imports, documented commands."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import logitcache


def test_public_names_are_sorted_importable_and_documented() -> None:
    assert logitcache.__all__ == sorted(logitcache.__all__)
    assert dir(logitcache) == logitcache.__all__
    for name in logitcache.__all__:
        assert inspect.getdoc(getattr(logitcache, name)), name


def test_no_public_verb_shadows_a_room() -> None:
    rooms = {"data", "views", "networks", "teachers", "encoding", "cache", "precompute", "targets"}
    assert not rooms & set(logitcache.__all__)
    with pytest.raises(AttributeError, match="no attribute 'precompute_all'"):
        _ = logitcache.precompute_all


@pytest.mark.parametrize("name", [n for n in logitcache.__all__ if n[0].islower()])
def test_a_public_function_documents_its_arguments_and_errors(name: str) -> None:
    function = getattr(logitcache, name)
    text = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert f"{parameter}:" in text, f"{name} does not document {parameter}"


@pytest.mark.parametrize("name", [n for n in logitcache.__all__ if n.endswith("Config")])
def test_a_public_configuration_documents_its_fields(name: str) -> None:
    config = getattr(logitcache, name)
    text = inspect.getdoc(config) or ""
    inherited = {f for base in config.__mro__[1:] for f in getattr(base, "model_fields", {})}
    for field in config.model_fields.keys() - inherited:
        assert field in text, f"{name} does not document {field}"


def imported_by(statement: str) -> set[str]:
    script = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_help_comes_without_heavy_imports() -> None:
    """What keeps ``logitcache --help`` under half a second (timed in docs/benchmarks.md)."""
    statement = (
        "import sys\nsys.argv = ['logitcache', '--help']\n"
        "from logitcache.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass"
    )
    modules = imported_by(statement)
    assert not modules & {"torch", "timm", "zarr", "numpy", "pydantic", "yaml", "accelerate"}


def test_importing_the_package_costs_nothing() -> None:
    assert not imported_by("import logitcache") & {"torch", "timm", "zarr", "numpy", "pydantic"}


def test_stage_2_never_imports_a_teacher() -> None:
    modules = imported_by("import logitcache.training.loop, logitcache.cli.run")
    assert not [m for m in modules if m.startswith("logitcache.teachers")]
    assert "logitcache.precompute.build" not in modules


def test_units_of_work_and_what_a_scheduler_passes_on_need_no_torch() -> None:
    names = ("run.unit", "plan.worklist", "cluster.worker")
    modules = imported_by(f"import {', '.join(f'logitcache.precompute.{name}' for name in names)}")
    assert "torch" not in modules


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "plan",
        "precompute",
        "train",
        "run",
        "inspect",
        "status",
        "verify",
        "repair",
        "exclude",
        "withdraw",
        "views",
        "tools",
    ],
)
def test_every_command_and_flag_has_help(command: str) -> None:
    from typer.main import get_command

    from logitcache.cli.app import app

    group = get_command(app)
    found = group.commands[command]  # type: ignore[attr-defined]
    assert found.help
    for parameter in found.params:
        assert getattr(parameter, "help", None), f"{command} {parameter.name}"
