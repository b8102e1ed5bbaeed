"""Lines that each system has of its own: its pipeline, and modules that no other system uses.

``python -m tests.system_lines`` prints a table. The blocks of a system are the terms, projectors,
surgeries, samplers, kinds of stages and networks that its pipeline names. A module is its own if no
block of another system imports it, directly or not. Lines of code are counted, without docstrings,
comments and empty lines, and without imports.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm

from logitcache.objectives.combine import TERMS
from logitcache.pipeline.config import PipelineConfig
from logitcache.pipeline.settings import find_pipeline, read_yaml
from logitcache.pipeline.stage_kinds import STAGE_KINDS
from logitcache.students.surgery import SURGERIES
from logitcache.targets.view_scores import SAMPLERS
from logitcache.training.config import TrainConfig
from tests.end_to_end.test_systems import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES = {
    "logitcache.objectives.combine",
    "logitcache.objectives.projector",
    "logitcache.students.surgery",
    "logitcache.pipeline.stage_kinds",
    "logitcache.networks.build",
}
"""Modules with tables of blocks: what they import belongs to the blocks."""
PROJECTOR_MODULES = {
    "prior": "prior",
    "fusion": "fusion",
    "group-linear": "group_linear",
    "attention-scores": "attention",
    "value-products": "attention",
    "pixel-shuffle": "pixel_shuffle",
}
"""Modules of ``logitcache.objectives`` by projector; all others are in that of the table."""
USED_BY = {
    "logitcache.targets.view_scores": {
        "logitcache.targets.epochs.sampled_epoch",
        "logitcache.training.sampler_hook",
    },
    "logitcache.objectives.reconstruct": {"logitcache.networks.patch_drop"},
}
"""Modules that import a block, or that its settings lead to, instead of being imported by it."""
PACKAGES = tuple(
    f"logitcache.{name}"
    for name in ("networks", "objectives", "pipeline.repeat", "students", "tools")
)
EVERYWHERE = {"precompute", "train"}
"""Kinds of stages that every system has."""


def main() -> None:
    """Print a table of all systems."""
    print("| system | YAML | Python of its own | modules |\n|---|---|---|---|")
    for system, modules in own_modules().items():
        names = ", ".join(name.removeprefix("logitcache.") for name in sorted(modules))
        code = sum(map(lines_of_module, modules))
        print(f"| {system} | {lines_of_yaml(system)} | {code} | {names} |")


def own_modules() -> dict[str, set[str]]:
    """Return the modules that one system alone uses, by system."""
    used = {system: set(_closure(blocks_of(system))) for system in SYSTEMS}
    return {
        system: {
            name
            for name in modules
            - set(chain.from_iterable(m for s, m in used.items() if s != system))
            if name.startswith(PACKAGES) or name in chain(USED_BY, *USED_BY.values())
        }
        for system, modules in used.items()
    }


def blocks_of(system: str) -> set[str]:
    """Return the modules of the blocks that the pipeline of a system names."""
    values = read_yaml(find_pipeline(system))
    config = PipelineConfig.parse(values, system)
    found = (
        {"logitcache.pipeline.repeat"} if any("repeat" in s for s in values["stages"]) else set()
    )
    for stage in config.stages:
        if stage.kind not in EVERYWHERE:
            found.add(STAGE_KINDS[stage.kind].function.partition(":")[0])
        models = _values_of(stage.settings, "model")
        found |= {_module_of_network(name) for name in models if isinstance(name, str)}
        if stage.kind == "train":
            found |= _blocks_of_training({**values.get("train", {}), **stage.settings})
    return {name for name in found if name.startswith("logitcache.")}


def _blocks_of_training(values: dict[str, Any]) -> set[str]:
    known = _without_results({n: values[n] for n in ("objectives", "sampler") if n in values})
    base = {"out": "-", "data": "digits", "cache": "-", "student": {"model": "-"}, "steps": 1}
    config = TrainConfig.parse({**base, **known}, "train")
    found = {_of(TERMS[term.name]) for term in config.terms}
    projectors = (getattr(term.term, "projector", None) for term in config.terms)
    kinds = {p.kind for p in projectors if p is not None} & PROJECTOR_MODULES.keys()
    found |= {f"logitcache.objectives.{PROJECTOR_MODULES[kind]}" for kind in kinds}
    surgeries = values["student"].get("surgery", {})
    found |= {_of(SURGERIES[name].prepare) for name in surgeries}
    found |= {_of(SAMPLERS[config.sampler.kind])} if config.sampler else set()
    return found.union(*(others for name, others in USED_BY.items() if name in found))


def _without_results(value: Any) -> Any:
    """Return settings without the weights of teachers, which are results of a stage."""
    if isinstance(value, dict):
        return {k: _without_results(v) for k, v in value.items() if v != "stage:weights/teachers"}
    return [_without_results(each) for each in value] if isinstance(value, list) else value


def _of(block: Any) -> str:
    return str(getattr(block, "__module__", None) or type(block).__module__)


def _values_of(settings: Any, key: str) -> Iterator[Any]:
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from [value] if name == key else _values_of(value, key)
    elif isinstance(settings, list):
        for value in settings:
            yield from _values_of(value, key)


def _module_of_network(name: str) -> str:
    return timm.model_entrypoint(name).__module__ if timm.is_model(name) else ""


def _closure(modules: set[str]) -> set[str]:
    """Return modules and what they import, but not what tables of blocks import."""
    found, waiting = set(modules), sorted(modules)
    while waiting:
        name = waiting.pop()
        new = set() if name in TABLES else _imports_of(name) - found
        found |= new
        waiting += sorted(new)
    return found


@cache
def _imports_of(module: str) -> set[str]:
    """Return the modules of this package that a module imports when it runs."""
    found = set()
    for node in ast.walk(ast.parse(_path_of(module).read_text())):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("logitcache."):
            found.add(str(node.module))
    return found


def lines_of_yaml(system: str) -> int:
    """Return the lines of the pipeline of a system, without comments."""
    lines = find_pipeline(system).read_text().splitlines()
    return sum(bool(line.partition("#")[0].strip()) for line in lines)


def lines_of_module(module: str) -> int:
    """Return the lines of code of a module."""
    text = _path_of(module).read_text()
    counted: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not docstring:
            counted |= {node.lineno} if hasattr(node, "body") else set(_span(node))
    skipped = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_for_types(node)
        for line in _span(node)
    }
    return len(counted - skipped)


def _span(node: Any) -> range:
    return range(node.lineno, node.end_lineno + 1)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def _path_of(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


if __name__ == "__main__":
    main()
