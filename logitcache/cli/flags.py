"""Flags that several commands share, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    "OnBadImage",
    "Precision",
    "Revision",
    "Sets",
    "Teacher",
    "Threads",
    "TopK",
    "UnitRows",
    "VerifySets",
    "Views",
]

Config = Annotated[
    Path | None, typer.Option(help="YAML file with the same settings; flags go over it.")
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
        help="Set any field of data and teachers, as data.limit=9 or teachers.cnn.size=64; "
        "repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

CacheFolder = Annotated[str | None, typer.Option(help="Folder or URL of the cache.")]
Data = Annotated[str | None, typer.Option(help="Folder, .tar file, digits, or torch/SET:FOLDER.")]
Teacher = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=MODEL[@WEIGHTS]",
        help="A timm model with a weights file or 'pretrained', local-dir:FOLDER, or "
        "hf-hub:REPOSITORY; repeatable.",
    ),
]
Feature = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=TAP[,OPTION=VALUE…]",
        help="Keep what a teacher's network holds at a module, as vit=blocks.11,values=int8; "
        "repeatable.",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="SHA256",
        help="Refuse the cache unless this is its revision: the sha256 that inspect prints, or its "
        "first 12 digits or more.",
    ),
]
Views = Annotated[int | None, typer.Option(help="How many random views.")]
AddViews = Annotated[
    bool | None,
    typer.Option("--add-views", help="Add views of another recipe to a cache, beside its own."),
]
TopK = Annotated[
    int | None, typer.Option(help="Classes to keep; by default 50, or all of up to 256.")
]
Budget = Annotated[str | None, typer.Option(metavar="80B", help="Most bytes of a row and view.")]
MaxKl = Annotated[
    str | None, typer.Option(metavar="0.05@T=1", help="Largest loss in nats, instead of K.")
]
BatchSize = Annotated[
    str | None, typer.Option(metavar="N|auto", help="Images of one forward; auto for the fastest.")
]
UnitRows = Annotated[int | None, typer.Option(help="Rows of a unit of work.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda …")]
Precision = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Threads = Annotated[int | None, typer.Option(help="Threads that decode.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile all teachers by torch.compile.")]
OnBadImage = Annotated[str | None, typer.Option(help="error, or skip to go on without it.")]
