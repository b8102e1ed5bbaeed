"""Flags that several commands share, with their help texts and the settings that they set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from logitcache.cli.options import objectives, teachers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "AddViews",
    "BatchSize",
    "Budget",
    "CacheFolder",
    "Compile",
    "Config",
    "Data",
    "Device",
    "Feature",
    "Json",
    "MaxKl",
    "Objective",
    "OnBadImage",
    "Precision",
    "Revision",
    "Sets",
    "Setting",
    "Teacher",
    "Threads",
    "TopK",
    "UnitRows",
    "VerifySets",
    "Views",
    "settings_of",
]


@dataclass(frozen=True)
class Setting:
    """The field of a configuration that a flag sets; part of the flag's annotation.

    Attributes:
        path: Dotted path of the field.
        read: Returns the value of the field from that of the flag; None if they are the same.
    """

    path: str
    read: Callable[[Any], object] | None = None


def settings_of(command: Callable[..., None], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a command's flags by the configuration field that each sets.

    Args:
        command: The function of the command, whose parameters are its flags.
        values: Values of the parameters by name: its ``locals()``. None is a flag not given.
    """
    found = {}
    for name, hint in get_type_hints(command, include_extras=True).items():
        for setting in getattr(hint, "__metadata__", ()):
            if isinstance(setting, Setting):
                value = values[name]
                if setting.read is not None and value is not None:
                    value = setting.read(value)
                found[setting.path] = value
    return found


Config = Annotated[
    Path | None, typer.Option(help="YAML config file with the same settings; flags override it.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=VALUE",
        help="Set any field that docs/configuration.md lists; repeatable.",
    ),
]
VerifySets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=VALUE",
        help="Set any field of data and teachers, for example data.limit=9 or "
        "teachers.cnn.size=64; repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

CacheFolder = Annotated[
    str | None, typer.Option(help="Folder or URL of the cache."), Setting("cache")
]
Data = Annotated[
    str | None,
    typer.Option(
        help="Images: a folder, a .tar file, digits (scikit-learn), or torch/SET:FOLDER "
        "(torchvision)."
    ),
    Setting("data"),
]
Teacher = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODEL[@WEIGHTS]",
        help="Name and network of a teacher: a timm model with a weights file or 'pretrained', "
        "local-dir:FOLDER, or hf-hub:REPOSITORY; repeatable.",
    ),
    Setting("teachers", teachers),
]
Feature = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=TAP[,OPTION=VALUE…]",
        help="Also cache intermediate activations of a teacher's layer, for example "
        "vit=blocks.11,values=int8; repeatable.",
    ),
]
Objective = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=WEIGHT]",
        help="Objective: soft, split or label; repeatable. Others need a config file.",
    ),
    Setting("objectives", objectives),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="SHA256",
        help="Require this revision of the cache: the sha256 printed by inspect, or its first 12 "
        "or more digits.",
    ),
    Setting("revision"),
]
Views = Annotated[
    int | None,
    typer.Option(help="Number of randomly augmented views of each image."),
    Setting("views.count"),
]
AddViews = Annotated[
    bool | None,
    typer.Option(
        "--add-views", help="Add views with other augmentation settings to an existing cache."
    ),
    Setting("add_views"),
]
TopK = Annotated[
    int | None,
    typer.Option(
        help="Number of most likely classes to store per image and view; by default 50, or all "
        "for up to 256 classes."
    ),
    Setting("encoding.top_k"),
]
Budget = Annotated[
    str | None,
    typer.Option(metavar="80B", help="Maximum number of bytes per image and view."),
    Setting("encoding.budget"),
]
MaxKl = Annotated[
    str | None,
    typer.Option(
        metavar="0.05@T=1",
        help="Maximum KL divergence, in nats, of stored from exact outputs at a temperature; "
        "determines the number of stored classes.",
    ),
    Setting("encoding.max_kl"),
]
BatchSize = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto", help="Images per forward pass, a power of two; auto for the fastest."
    ),
    Setting("batch_size"),
]
UnitRows = Annotated[
    int | None,
    typer.Option(help="Images per unit of work, a power of two; fixed when the cache is created."),
    Setting("unit_rows"),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Torch device, for example cpu or cuda:1; by default auto, the accelerator if there "
        "is one."
    ),
    Setting("device"),
]
Precision = Annotated[
    str | None,
    typer.Option(help="Precision of the teachers' forward passes: float32, bfloat16 or float16."),
    Setting("precision"),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Number of threads that decode images; all processors by default."),
    Setting("threads"),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile all teachers with torch.compile.")
]
OnBadImage = Annotated[
    str | None,
    typer.Option(
        help="What to do with an image that cannot be decoded: error stops the command, skip "
        "leaves the image out."
    ),
    Setting("on_bad_image"),
]
