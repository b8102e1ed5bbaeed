"""Flags that several commands share, with their help texts and the settings that they set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitcache.cli.options import class_maps, objectives, teachers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "IMAGES",
    "AddViews",
    "BatchSize",
    "Budget",
    "CacheFolder",
    "ClassMap",
    "Compile",
    "Config",
    "Creator",
    "Data",
    "Device",
    "Encoding",
    "Feature",
    "ImageMemory",
    "Images",
    "Json",
    "License",
    "MaxKl",
    "Objective",
    "OnBadImage",
    "Precision",
    "Revision",
    "Sets",
    "ShowSettings",
    "SignedBy",
    "Teacher",
    "Threads",
    "TopK",
    "UnitRows",
    "VerifySets",
    "Views",
    "settings_of",
]


# parameters that set no field, and fields that are named differently from their parameter
_NO_FIELDS = {
    *("as_json", "compiled", "config", "configs", "dry_run", "feature", "model", "resume", "sets")
}
_FIELDS = {
    "budget": "encoding.budget",
    "compile_student": "compile",
    "creator": "card.creator",
    "encoding": "encoding.kind",
    "format_": "format",
    "labels": "labels.count",
    "layer_decay": "optimizer.layer_decay",
    "license_": "card.license",
    "lr": "optimizer.lr",
    "max_kl": "encoding.max_kl",
    "objective": "objectives",
    "schedule": "schedule.name",
    "size": "network.size",
    "student": "student.model",
    "teacher": "teachers",
    "teacher_name": "teacher",
    "top_k": "encoding.top_k",
    "views": "views.count",
}
_READERS: dict[str, Callable[[Any], object]] = {
    "class_map": class_maps,
    "objective": objectives,
    "teacher": teachers,
}


def settings_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a command's flags by the field that each sets, None if not given.

    Args:
        values: Values of the command's parameters: its ``locals()`` before any other statement.
    """
    return {
        _FIELDS.get(name, name): _READERS[name](value or []) if name in _READERS else value
        for name, value in values.items()
        if name not in _NO_FIELDS
    }


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
ShowSettings = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print all settings of the run as YAML, defaults included, which --config reads; "
        "nothing is opened or computed.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

CacheFolder = Annotated[str | None, typer.Option(help="Folder or URL of the cache.")]
IMAGES = (
    "Images: a folder, a .tar, .zip, .csv, .tsv, .jsonl or .parquet file, shards x-{000..099}.tar, "
    "hfds/NAME (Hugging Face), torch/SET:FOLDER (torchvision), or digits (scikit-learn)."
)
Data = Annotated[str | None, typer.Option(help=IMAGES)]
Images = Annotated[
    str | None,
    typer.Option(
        metavar="packed[:SIDE]|views",
        help="Store images in a new cache, so that students need the cache alone: each encoded "
        "once as JPEG with a short side of SIDE pixels (256); or each rendered view, at the "
        "teachers' input size.",
    ),
]
Teacher = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODEL[@WEIGHTS]",
        help="Name and network of a teacher: a timm model or torchvision/MODEL with a weights file "
        "or 'pretrained', local-dir:FOLDER, hf-hub:REPOSITORY, MODULE:FACTORY, or an exported "
        "program FILE.pt2; repeatable.",
    ),
]
Feature = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=TAP[,OPTION=VALUE…]",
        help="Also cache intermediate activations of a teacher's layer, for example "
        "vit=norm,values=int8; repeatable.",
    ),
]
Objective = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=WEIGHT]",
        help="Objective: soft, split or label; repeatable. Others need a config file.",
    ),
]
ClassMap = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[TEACHER=]FILE",
        help="Class of the student for classes of the teachers: a file with the columns class of "
        "the teacher (name or WordNet id) and class of the student; repeatable.",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="SHA256",
        help="Require this revision of the cache: the sha256 printed by inspect, or its first 12 "
        "or more digits.",
    ),
]
License = Annotated[
    str | None,
    typer.Option(
        "--license",
        metavar="ID",
        help="License of the cache, for its card: an identifier such as cc-by-4.0, or text.",
    ),
]
Creator = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Person or organization that made the cache, for its card; repeatable."
    ),
]
SignedBy = Annotated[
    str | None,
    typer.Option(
        metavar="PUBLICKEY",
        help="Require a valid signature of the current revision by this Ed25519 key: a PEM or "
        "OpenSSH file.",
    ),
]
Views = Annotated[int | None, typer.Option(help="Number of augmented views per image.")]
AddViews = Annotated[
    bool | None,
    typer.Option(
        "--add-views", help="Add views with other augmentation settings to an existing cache."
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(help="Classes to store per image and view; by default 50, or all if up to 256."),
]
Budget = Annotated[
    str | None, typer.Option(metavar="80B", help="Maximum bytes per image and view.")
]
Encoding = Annotated[
    str | None,
    typer.Option(
        metavar="sparse|dense|transform|auto",
        help="Encoding of logits: the most probable classes, all classes, or all classes along "
        "principal directions; by default dense up to 256 classes, else sparse.",
    ),
]
MaxKl = Annotated[
    str | None,
    typer.Option(
        metavar="0.05@T=1,2,4",
        help="Maximum KL divergence between exact and stored outputs, in nats, at each "
        "temperature; determines the encoding.",
    ),
]
BatchSize = Annotated[
    str | None,
    typer.Option(metavar="N|auto", help="Images per forward pass, a power of two; or auto."),
]
UnitRows = Annotated[
    int | None,
    typer.Option(help="Images per unit of work, a power of two; fixed when the cache is created."),
]
Device = Annotated[
    str | None, typer.Option(help="Torch device, for example cpu or cuda:1; auto by default.")
]
Precision = Annotated[
    str | None,
    typer.Option(help="Precision of the teachers: float32 (default), bfloat16 or float16."),
]
ImageMemory = Annotated[
    str | None,
    typer.Option(
        metavar="2GB",
        help="Maximum memory for decoded images, per process: all views of a block of images are "
        "rendered from one decoding. 1 GiB by default.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Number of decoding threads; all processors by default.")
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile all teachers with torch.compile.")
]
OnBadImage = Annotated[
    str | None,
    typer.Option(
        help="error (default) to stop at an image that cannot be decoded, skip to leave it out."
    ),
]
