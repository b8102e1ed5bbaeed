"""Model card of an exported network: origin, accuracy and usage."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import yaml

from logitcache.files import write_file
from logitcache.markdown import block, code, markdown
from logitcache.networks.build import is_own_model
from logitcache.networks.forms import HUB
from logitcache.targets.view_group import BASE
from logitcache.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from logitcache.data.readers import DataConfig
    from logitcache.networks.build import InputSpec
    from logitcache.training.config import TrainConfig
    from logitcache.training.evaluation.evaluator import Evaluation

__all__ = ["write_card"]

_FILE = "README.md"
_DIGEST = 16  # digits of a digest that are enough to identify weights


def write_card(
    folder: Path,
    config: TrainConfig,
    spec: InputSpec,
    *,
    architecture: str,
    parameters: int,
    has_classes: bool = True,
    steps: int,
    evaluation: Evaluation | None,
    cache: Mapping[str, Any] | None,
) -> None:
    """Write the model card of an export.

    Args:
        folder: Folder of the export.
        config: Configuration of the run.
        spec: Input size and normalization of the network.
        architecture: Name of the network in timm.
        parameters: Number of parameters.
        has_classes: Whether it has a classifier; otherwise it returns features.
        steps: Number of training steps.
        evaluation: Evaluation at the end of the run; None without validation images.
        cache: Origin of the targets, see ``TargetsReader.provenance``; None without a cache.
    """
    task = "image-classification" if has_classes else "image-feature-extraction"
    front = _front_matter(config, architecture, evaluation, task)
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {markdown(architecture)}",
        _what(architecture, parameters, spec, evaluation, config),
        _how_to_load(architecture, folder),
        _teachers(cache),
        _recipe(config, steps),
    ]
    write_file(folder / _FILE, "\n\n".join(sections) + "\n")


def _front_matter(
    config: TrainConfig, architecture: str, evaluation: Evaluation | None, task: str
) -> dict[str, Any]:
    """Return the metadata of the card, as the Hugging Face Hub reads it."""
    front: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": task,
        "tags": [task, "timm", "logitcache", "knowledge-distillation"],
    }
    if config.license is not None:
        front["license"] = config.license
    base = _base_model(config)
    if base is not None:
        front["base_model"] = base
    if config.data is not None:
        front["datasets"] = [_dataset_name(config.data)]
    if evaluation is not None and config.val is not None:
        metrics = _metrics(evaluation)
        front["metrics"] = sorted({metric["type"] for metric in metrics})
        name = _dataset_name(config.val)
        front["model-index"] = [
            {
                "name": architecture,
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image Classification"},
                        "dataset": {"type": name, "name": name, "split": config.val.split},
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return front


def _metrics(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the measurements as the Hugging Face Hub names them."""
    values = {
        ("accuracy", "top-1 accuracy"): evaluation.top1,
        ("accuracy", "top-5 accuracy"): evaluation.top5,
        ("mean_average_precision", "mean average precision"): evaluation.mean_average_precision,
    }
    return [
        {"type": kind, "name": name, "value": value}
        for (kind, name), value in values.items()
        if value is not None
    ]


def _base_model(config: TrainConfig) -> str | None:
    """Return the pretrained model on the Hub that the student started from, None without one."""
    student = config.student
    if student.model.startswith(HUB):
        return student.model.removeprefix(HUB)
    return f"timm/{student.model}" if student.weights == "pretrained" else None


def _dataset_name(data: DataConfig) -> str:
    """Return the name of a dataset without its parent folders, which may be private."""
    kind, _, folder = data.name.partition(":")
    if kind.startswith("torch/"):
        return kind.removeprefix("torch/")
    return PurePath(folder or kind).name or data.name


def _what(
    architecture: str,
    parameters: int,
    spec: InputSpec,
    evaluation: Evaluation | None,
    config: TrainConfig,
) -> str:
    lines = [
        f"{code(architecture)}, {parameters:,} parameters, for RGB images of {spec.size} pixels, "
        f"normalized with mean {list(spec.mean)} and std {list(spec.std)}, "
        f"evaluated with `crop_pct` {spec.crop_pct} and `crop_mode` {spec.crop_mode}.",
    ]
    if evaluation is None:
        lines.append("It was not evaluated.")
    else:
        top5 = "" if evaluation.top5 is None else f", top-5 {evaluation.top5:.2%}"
        binary = "" if evaluation.top1 is not None else "binary "
        shown = "" if config.val_view == BASE else f" as {code(config.val_view)}"
        lines.append(
            f"Results: {evaluation.score_name} {evaluation.score:.2%}{top5}, "
            f"{binary}cross-entropy {evaluation.loss:.4f} nats, "
            f"on {evaluation.images} images{shown}."
        )
    lines += [f"Note: {markdown(note)}." for note in config.student.surgery.notes]
    return "\n\n".join(lines)


def _how_to_load(architecture: str, folder: Path) -> str:
    registers = "import logitcache  # registers this model\n"
    register = registers if is_own_model(architecture) else ""
    model = visible(f"local-dir:{folder.name}")
    call = f"network = timm.create_model({json.dumps(model)}, pretrained=True)\n"
    return block("python", f"import timm\n{register}\n{call}")


def _teachers(cache: Mapping[str, Any] | None) -> str:
    if cache is None:
        return "## Teachers\n\nNone: it was trained without a cache."
    rows = [
        f"| {markdown(name)} | {code(teacher['architecture'])} | "
        f"{code(teacher['weights_sha256'][:_DIGEST])} |"
        for name, teacher in cache["teachers"].items()
    ]
    table = "\n".join(
        ["| teacher | architecture | sha256 of its weights |", "|---|---|---|", *rows]
    )
    return (
        f"## Teachers\n\n{table}\n\nTheir outputs come from the cache {code(cache['url'])}, "
        f"revision {cache['revision']} (sha256 {code(cache['revision_sha256'])}), "
        f"images {code((cache['fingerprint'] or '')[:_DIGEST])} "
        f"({markdown(cache['description'])})."
    )


def _recipe(config: TrainConfig, steps: int) -> str:
    values = config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    local = {"out", "license", "device", "threads", "workers", "cache"}
    recipe = {name: value for name, value in values.items() if name not in local}
    text = yaml.safe_dump(recipe | {"steps": steps}, sort_keys=False)
    return f"## Recipe\n\n{block('yaml', text)}"
