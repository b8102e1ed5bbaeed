"""``docs/configuration.md``, written from the configurations: what ``--set`` and YAML files take.

``python -m tests.configuration_page`` writes it; ``test_configuration_page.py`` compares.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from logitcache.check.repair import RepairConfig
from logitcache.check.verify import VerifyConfig
from logitcache.exchange.config import ImportConfig
from logitcache.pipeline.config import PipelineConfig
from logitcache.precompute.config import PrecomputeConfig
from logitcache.tools.class_means import ClassMeansConfig
from logitcache.tools.fit_weights import FitWeightsConfig
from logitcache.tools.learn_prototypes import LearnPrototypesConfig
from logitcache.tools.pick_bits import PickBitsConfig
from logitcache.tools.pick_hints import PickHintsConfig
from logitcache.tools.synthesize import SynthesizeConfig
from logitcache.training.config import TrainConfig
from logitcache.training.evaluation.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from logitcache.config import Config

__all__ = ["PAGE", "attributes", "page", "sections"]

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

_ROOTS: dict[str, type[Config]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "precompute": PrecomputeConfig,
    "import": ImportConfig,
    "verify": VerifyConfig,
    "repair": RepairConfig,
    "run": PipelineConfig,
    "fit_weights": FitWeightsConfig,
    "pick_hints": PickHintsConfig,
    "class_means": ClassMeansConfig,
    "pick_bits": PickBitsConfig,
    "synthesize": SynthesizeConfig,
    "learn_prototypes": LearnPrototypesConfig,
}

_HEAD = """# Configuration

<!-- given: photos, cache, weights -->

What `--set a.b=VALUE`, `--config FILE` and the stages of a pipeline take, command by command
(`plan` takes what `precompute` takes; the images of every command are a `train.data`, a teacher of
`verify` and `repair` is a `precompute.teachers.NAME`). A flag overrides the file, `--set` overrides
both; the value after `=` is YAML, so mappings need a space after each colon:
`--set 'student.kwargs={img_size: 32}'`. A list is set as a whole:
`--set 'objectives=[{soft: {temperature: 2}}, label]'`; stages of a pipeline are addressed by name:
`--set stages.student.train.steps=100`. A file is UTF-8, of at most 2 MiB, 64 levels and 100 000
values; anchors and aliases are allowed and count as what they stand for.

```yaml
# logitcache train --config student.yaml
data: photos/train
val: photos/val
cache: runs/cache
out: runs/student
student: {model: vit_tiny_patch16_224, kwargs: {img_size: 32, patch_size: 4}}
objectives: [soft, label: {weight: 0.1}]
epochs: 48
optimizer: {lr: 1.0e-3, weight_decay: 0.05}
```

```yaml
# logitcache precompute --config cache.yaml
data: photos/train
cache: runs/augmented
teachers:
  cnn: {model: resnet50, weights: cnn.pth}
  vit: {model: vit_small_patch16_224, weights: vit.safetensors, features: {norm: {values: int8}}}
views: {count: 16, auto_augment: rand-m9-n2-mstd0.5-inc1}
encoding: {top_k: 50}
```

`python -m tests.configuration_page` writes this page from the classes that read the settings;
words are in the [glossary](glossary.md).
"""


def page() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *(_section(path, config) for path, config in sections())])


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    """Return every configuration once, with the dotted path at which it first occurs."""
    seen: set[type[BaseModel]] = set()
    for name, root in _ROOTS.items():
        yield from _below(name, root, seen)


def attributes(config: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a configuration and its bases say of each field."""
    descriptions: dict[str, str] = {}
    for base in reversed(config.__mro__):
        _, _, listed = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        for entry in re.split(r"\n(?=    \w+:)", f"\n{listed}")[1:]:
            name, _, text = entry.partition(":")
            descriptions[name.strip()] = " ".join(text.split())
    return descriptions


def _below(
    path: str, config: type[BaseModel], seen: set[type[BaseModel]]
) -> Iterator[tuple[str, type[BaseModel]]]:
    if config in seen:
        return
    seen.add(config)
    yield path, config
    for name, field in config.model_fields.items():
        for inner, between in _models_in(field.annotation):
            yield from _below(f"{path}.{name}{between}", inner, seen)


def _models_in(annotation: object) -> list[tuple[type[BaseModel], str]]:
    """Return the configurations inside an annotation, and what a path says before theirs."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, "")]
    between = ".NAME" if getattr(annotation, "__origin__", None) is dict else ""
    return [
        (model, between + further)
        for argument in getattr(annotation, "__args__", ())
        for model, further in _models_in(argument)
    ]


def _section(path: str, config: type[BaseModel]) -> str:
    level = "##" if path in _ROOTS else "###"
    descriptions = attributes(config)
    rows = [
        f"| `{name}` | {_default(field)} | {_plain(descriptions.get(name, ''))} |"
        for name, field in config.model_fields.items()
    ]
    return "\n".join(
        [f"{level} {path}", "", "| setting | default | meaning |", "|---|---|---|", *rows, ""]
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    factory: Any = field.default_factory  # get_default has other arguments before pydantic 2.10
    value = field.default if factory is None else factory()
    if value is None or isinstance(value, BaseModel) or value in ({}, [], (), ""):
        return ""
    if isinstance(value, list | tuple):
        value = [one.model_dump() if isinstance(one, BaseModel) else one for one in value]
    return f"`{value}`"


def _plain(text: str) -> str:
    """Turn a docstring's markup into Markdown's."""
    text = re.sub(r":\w+:`~?([\w.]+)`", lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
